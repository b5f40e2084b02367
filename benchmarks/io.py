"""Reading, converting and loading a full-size weight file, beside what else can do it.

    python benchmarks/io.py [--rounds 5] [--folder DIR] [--only WORD] [--fork DIR]

Writes a .caffemodel of the full DecoupledNet (1.7 GB, random numbers) and one of the VOC classification net (0.5 GB,
which OpenCV's importer can read) into a temporary folder on the disk of ``--folder``. Then runs every task in a process
of its own, task after task, round after round. Files are warm: in the page cache. ``cp`` and ours write without waiting
for the disk, and before each task the disk has taken what earlier ones wrote.

Times are of the whole process, from its start to its end, or of the part that the task names. ``peak`` is the most
memory that the process had, mapped file pages included; ``own`` leaves those out, since they can be dropped at any
time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

DECOUPLEDNET = "prototxt/decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt"
CLASSIFICATION = "prototxt/classification/cls_voc_deploy.prototxt"

PROTOBUF = """
import sys, time; start = time.perf_counter()
import numpy as np; from caffe_port.schema import SCHEMA
net = SCHEMA.NetParameter(); net.ParseFromString(open(sys.argv[1], 'rb').read())
arrays = [np.array(blob.data, np.float32) for layer in net.layers for blob in layer.blobs]
print(time.perf_counter() - start)
"""
ARRAYS = """
import sys, time; start = time.perf_counter()
import numpy as np; from caffe_port.formats import open_weights
arrays = [np.array(array) for array in open_weights(sys.argv[1], writable=False).state_dict().values()]
print(time.perf_counter() - start)
"""
NET = """
import sys, time; import caffe_port; caffe_port.Net; start = time.perf_counter()
net = caffe_port.Net(sys.argv[1], sys.argv[2], caffe_port.TEST)
print(time.perf_counter() - start)
"""
MAPPED = NET.replace("caffe_port.TEST)", "caffe_port.TEST, mmap=True)")
TOUCHED = MAPPED.replace("print", "sum(p.detach().sum() for p in net.parameters())\nprint")
BARE = """
import ctypes, mmap, os, sys, time; import numpy as np; from concurrent.futures import ThreadPoolExecutor
start, size, turn, page = time.perf_counter(), os.path.getsize(sys.argv[1]), 16 << 20, 2 << 20
file, memory = os.open(sys.argv[1], os.O_RDONLY), np.empty(size, np.uint8)
first = ctypes.c_void_p(-(-memory.ctypes.data // page) * page)
ctypes.CDLL(None).madvise(first, ctypes.c_size_t(size - 2 * page), mmap.MADV_HUGEPAGE)
def read(at):
    into = memory[at : at + turn].data
    while len(into):
        done = os.preadv(file, [into], at); into, at = into[done:], at + done
with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as pool: list(pool.map(read, range(0, size, turn)))
print(time.perf_counter() - start)
"""
OPENCV = """
import sys, time; import cv2; start = time.perf_counter()
net = cv2.dnn.readNetFromCaffe(sys.argv[1], sys.argv[2])
print(time.perf_counter() - start)
"""
FORK = """
import sys, time; sys.path.insert(0, sys.argv[3]); import caffe; start = time.time()
net = caffe.Net(sys.argv[1], sys.argv[2])
print(time.time() - start)
"""


@dataclass
class Task:
    """One command; ``against`` names the baseline of the ratio."""

    name: str
    command: list[str]
    inside: bool = False
    """The command prints its time itself."""
    against: str = ""
    limit: float | None = None
    """Of the ratio if ``against`` is given, else of the seconds."""
    own_limit: float | None = None
    """In MB."""
    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0
    own: float = 0.0


def weights_of(prototxt: Path, path: Path) -> Path:
    """Random weights for a net of this repository."""
    import numpy as np

    from caffe_port.definitions.shapes import infer
    from caffe_port.formats import write_net
    from caffe_port.schema import read_net
    from caffe_port.tools.build import definitions

    definition = read_net(prototxt)
    shapes = infer(definitions()[str(prototxt.relative_to(ROOT / "prototxt"))]).params  # type: ignore[arg-type]
    rng = np.random.default_rng(1)

    class Blobs(list):
        """Created on access, so that only one layer is in memory."""

        def __getitem__(self, index):
            wanted = shapes.get(definition.net.layer[index].name, [])
            return [rng.standard_normal(shape, np.float32) for shape in wanted]

    write_net(path, definition, Blobs())
    return path


def measure(task: Task, environment: dict[str, str]) -> None:
    """Runs the task once and notes its time and memory."""
    start = time.perf_counter()
    process = subprocess.Popen(task.command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    most = {"VmHWM": 0, "RssAnon": 0}
    watcher = threading.Thread(target=watch, args=(process.pid, most), daemon=True)
    watcher.start()
    assert process.stdout is not None
    said = process.stdout.read()
    status = process.wait()
    elapsed = time.perf_counter() - start
    watcher.join()
    if status:
        raise SystemExit(f"{task.name}: ended with status {status}")
    task.seconds.append(float(said.split()[-1]) if task.inside else elapsed)
    task.peak = max(task.peak, most["VmHWM"] / 1e3)
    task.own = max(task.own, most["RssAnon"] / 1e3)


def watch(pid: int, most: dict[str, int]) -> None:
    """Keeps the largest of the values of /proc/PID/status that ``most`` names, in kB, until the process ends."""
    path = Path(f"/proc/{pid}/status")
    while True:
        try:
            status = dict(line.split(":", 1) for line in path.read_text().splitlines())
        except OSError:
            return
        if "RssAnon" not in status:
            return
        for name in most:
            most[name] = max(most[name], int(status[name].split()[0]))
        time.sleep(0.002)


def tasks(args: argparse.Namespace, folder: Path) -> list[Task]:
    """The tasks to measure; writes the weight files."""
    deploy, small = ROOT / DECOUPLEDNET, ROOT / CLASSIFICATION
    full = weights_of(deploy, folder / "decouplednet.caffemodel")
    cls = weights_of(small, folder / "classification.caffemodel")
    me, out = sys.executable, str(folder / "out")
    convert, back = str(ROOT / "converters/caffe2torch.py"), str(ROOT / "converters/torch2caffe.py")
    state = str(folder / "state.safetensors")
    subprocess.run([me, convert, str(full), "-q", "-o", state], check=True)
    net = [str(deploy), str(full)]
    found = [
        Task("list 1.7 GB", [me, convert, str(full), "--list"], limit=0.3),
        Task("cp 1.7 GB", ["cp", str(full), out]),
        Task(
            "caffe2torch to .safetensors",
            [me, convert, str(full), "-q", "-o", out, "--format", "safetensors"],
            against="cp 1.7 GB",
            limit=1.3,
            own_limit=300,
        ),
        Task(
            "torch2caffe back",
            [me, back, state, "--prototxt", str(deploy), "-q", "-o", out],
            against="cp 1.7 GB",
            own_limit=300,
        ),
        Task("copied into arrays, ours", [me, "-c", ARRAYS, str(full)], inside=True),
        Task(
            "copied into arrays, protobuf",
            [me, "-c", PROTOBUF, str(full)],
            inside=True,
            against="copied into arrays, ours",
        ),
        Task("a bare parallel read", [me, "-c", BARE, str(full)], inside=True),
        Task("into a Net", [me, "-c", NET, *net], inside=True, against="a bare parallel read", limit=1.3),
        Task("into a Net, mmap=True", [me, "-c", MAPPED, *net], inside=True, limit=0.6),
        Task("the same, every number read once", [me, "-c", TOUCHED, *net], inside=True, limit=0.6),
        Task("classification into a Net", [me, "-c", NET, str(small), str(cls)], inside=True),
        Task(
            "classification into OpenCV",
            [me, "-c", OPENCV, str(small), str(cls)],
            inside=True,
            against="classification into a Net",
        ),
    ]
    if args.fork:
        fork = [args.fork_python, "-c", FORK, *net, f"{args.fork}/python"]
        found.append(Task("into the fork's Net", fork, inside=True, against="into a Net"))
    needed = {task.against for task in found if not args.only or args.only in task.name}
    return [task for task in found if not args.only or args.only in task.name or task.name in needed]


def report(found: list[Task]) -> str:
    from caffe_port.tools.cli import table

    by_name = {task.name: task for task in found}
    header = ("", "median s", "min s", "ratio", "to", "limit", "distance", "peak MB", "own MB", "limit")
    rows = []
    for task in found:
        other = by_name.get(task.against)
        ratio = statistics.median(a / b for a, b in zip(task.seconds, other.seconds, strict=True)) if other else None
        value = ratio if ratio is not None else statistics.median(task.seconds)
        limit = task.limit
        rows.append(
            (
                task.name,
                f"{statistics.median(task.seconds):.2f}",
                f"{min(task.seconds):.2f}",
                "" if ratio is None else f"{ratio:.2f}",
                task.against if other else "",
                "" if limit is None else f"{limit:g}",
                "" if limit is None else f"{(limit - value) / limit:+.0%}",
                f"{task.peak:.0f}",
                f"{task.own:.0f}",
                "" if task.own_limit is None else f"{task.own_limit:g}",
            )
        )
    return table(header, rows, right=(1, 2, 3, 5, 6, 7, 8, 9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--folder", help="folder for 6 GB of temporary files (default: the system's temporary folder)")
    parser.add_argument("--only", help="only tasks whose name holds this word")
    parser.add_argument("--fork", help="the folder of a built HyeonwooNoh/caffe, to be timed too")
    parser.add_argument("--fork-python", default="python3", help="the Python that its pycaffe was built for")
    args = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "2"}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        found = tasks(args, folder)
        for _ in range(args.rounds):
            for task in found:
                (folder / "out").unlink(missing_ok=True)
                os.sync()
                measure(task, environment)
    print(f"medians of {args.rounds} rounds; a ratio is the median of the rounds' ratios\n")
    print(report(found))


if __name__ == "__main__":
    main()
