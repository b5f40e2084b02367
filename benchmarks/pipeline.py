"""The command segment over a folder, the dense CRF, prepare and info, beside another checkout of this program.

    python benchmarks/pipeline.py --pictures FOLDER [--against DIR] [--width 1/1,1/8] [--rounds 3] [--copies 4]

Times ``caffe-port segment`` as a whole process over the folder's pictures, each ``--copies`` times (once with ``--crf
deconvnet``), less a run over one picture (start, loading): pictures a second. Then the CRF alone, 500x375, with 3 and
21 labels; ``prepare`` of drawn pictures (EdgeBox proposals, combinatorial crops) in one process and in one for each
core; and ``info`` of a definition. ``--against`` is the folder of another commit's checkout; both alternate, medians
are printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.forward import DEPLOY, random_weights  # noqa: E402

INFO = "prototxt/decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt"
CRF = """
import sys, time
import numpy as np
from caffe_port.segmentation.crf import dense_crf
rng, labels = np.random.default_rng(0), int(sys.argv[1])
picture = np.kron(rng.integers(0, 200, (15, 20, 3)), np.ones((25, 25, 1), int)) + rng.integers(0, 56, (375, 500, 3))
scores = np.log(rng.dirichlet(np.ones(labels), (375, 500)).transpose(2, 0, 1)).astype(np.float32)
dense_crf(scores, picture.astype(np.uint8))
start = time.perf_counter()
dense_crf(scores, picture.astype(np.uint8))
print(time.perf_counter() - start)
"""


def calm(prototxt: Path, weights: Path, picture: Path) -> str:
    """Make the scores of random weights differ; a threshold above which a picture shows two classes."""
    from caffe_port.net import Net
    from caffe_port.segmentation.inference import Segmenter
    from caffe_port.segmentation.voc import read_picture

    net = Net(prototxt, weights)
    score = net.state_dict()["cls-score-voc.weight"]
    while (scores := sorted(Segmenter(net)(read_picture(picture)).scores, reverse=True))[0] > 0.9:
        score /= 10
    net.save(weights)
    return str((float(scores[1]) + float(scores[2])) / 2)


def process(root: Path, *words: str) -> tuple[float, str]:
    """Seconds of a process of the checkout ``root``, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    start = time.perf_counter()
    command = [sys.executable, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=root)
    return time.perf_counter() - start, done.stdout


def alternate(what: str, ways: Mapping[str, Callable[[], float]], rounds: int, unit: str, *, invert: float = 0) -> None:
    """Print the median of each way's seconds, or ``invert`` divided by it, and the ratio to the first's."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(way())
    ours = next(iter(times.values()))
    for name, taken in times.items():
        ratio = statistics.median(other / own for other, own in zip(taken, ours, strict=True))
        middle = statistics.median(taken)
        print(f"{what:36}{name:12}{invert / middle if invert else middle:9.2f} {unit:12}{ratio:6.2f} times ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", required=True, help="a folder of JPEGs")
    parser.add_argument("--against", help="the folder of another commit's checkout")
    parser.add_argument("--width", default="1/1,1/8", help="of the net's layers (default 1/1,1/8)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--copies", type=int, default=4, help="of each picture (default 4)")
    args = parser.parse_args()
    roots = {"caffe_port": ROOT, **({"the other": Path(args.against)} if args.against else {})}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "one").mkdir()
        (folder / "many").mkdir()
        (folder / "all").mkdir()
        pictures = sorted(Path(args.pictures).glob("*.jpg"))
        for number in range(args.copies):
            for picture in pictures:
                shutil.copy(picture, folder / f"many/{picture.stem}_{number}.jpg")
        for picture in pictures:
            shutil.copy(picture, folder / "all")
        shutil.copy(pictures[0], folder / "one")
        for width in args.width.split(","):
            here = folder / width.replace("/", "_")
            build = [sys.executable, str(ROOT / "prototxt/build.py"), "--width", width, "-o", str(here)]
            subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
            weights = random_weights(here / DEPLOY, here / "net.caffemodel")
            threshold = calm(here / DEPLOY, weights, pictures[0])
            for given, count, crf in (("many", args.copies, []), ("all", 1, ["--crf", "deconvnet"])):
                what = f"segment, width {width}{' with CRF' * bool(crf)}"

                def over(root: Path, name: str, words: tuple[str, ...]) -> float:
                    out = tempfile.mkdtemp(dir=folder)
                    command = ["-m", "caffe_port.tools.segment", str(folder / name), "-o", out, *words]
                    return process(root, *command)[0]

                words = ("--prototxt", str(here / DEPLOY), "--weights", str(weights), "--threshold", threshold, *crf)
                ways = {
                    n: lambda r=root, g=given, w=words: over(r, g, w) - over(r, "one", w) for n, root in roots.items()
                }
                over(ROOT, "one", words)  # reads the weights from the disk
                alternate(what, ways, args.rounds, "pictures/s", invert=len(pictures) * count - 1)
    for labels in ("3", "21"):
        ways = {n: lambda r=root, c=labels: float(process(r, "-c", CRF, c)[1]) for n, root in roots.items()}
        alternate(f"CRF, 500x375, {labels} labels", ways, args.rounds, "s")
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        drawn = str(Path(name, "drawn"))
        shapes = ["-m", "caffe_port.tools.make_shapes", "-o", drawn, "--images", "120", "--val", "4", "--size", "320"]
        process(ROOT, *shapes, "-q")

        def prepare(workers: int) -> float:
            words = [drawn, "-o", tempfile.mkdtemp(dir=name), "--levels", "Full"]
            return process(ROOT, "-m", "caffe_port.tools.prepare", *words, "--workers", str(workers), "-q")[0]

        ways = {f"{n} processes": lambda n=n: prepare(n) for n in (cores, 1)}
        alternate("prepare, 120 pictures", ways, args.rounds, "s")
    start = {"caffe_port": lambda: process(ROOT, "-m", "caffe_port", "info", str(ROOT / INFO))[0]}
    alternate("info", start, 3 * args.rounds, "s")


if __name__ == "__main__":
    main()
