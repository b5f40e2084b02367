"""Exported ONNX files: right at full width, and fast in onnxruntime next to torch's export of the same net.

    python benchmarks/export.py check [--nets NAME[=FILE.prototxt] ...] [--forms onnx py pt2] [--width 1/1]
                                      [--reference FOLDER]
    python benchmarks/export.py time --python PYTHON --checkout DIR [--nets ...] [--threads 1] [--rounds 15] [--cpu]
    python benchmarks/export.py write [--nets NAME[=FILE.prototxt]] [--rounds 5]

``check`` exports nets with seeded weights as ONNX, PyTorch files and programs of torch.export, runs these beside the
nets, and where FOLDER has NAME.npz (real Caffe's numbers for the weights that ../shared/reference's rule draws)
compares with them. ``time`` runs our ONNX files and those of torch.onnx.export(dynamo=True) in turn; the latter are
made from the net of another checkout by a Python that has onnxscript. ``write`` times writing a file without its check
against ``cp``, with the memory that it takes.

Nets are prototxt/'s by name, or any deploy definition: caffenet=models/bvlc_reference_caffenet/deploy.prototxt.
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
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1 if os.environ.get("PYTHONPATH") else 0, str(ROOT))

from benchmarks.turns import environment, report, serve, take_turns  # noqa: E402

NETS = {
    "decouplednet": "decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt",
    "deconvnet": "deconvnet/DeconvNet_inference_deploy.prototxt",
    "fcn8s": "fcn8s/fcn-8s-pascal-deploy.prototxt",
}
STORED = {"decouplednet": "decouplednet_deploy_full", "deconvnet": "deconvnet_deploy_full"}
"""Their numbers in ../shared/reference/noh_full."""
CHUNK = 1 << 20


def draw(net: Any) -> None:
    """Weights by the rule of ../shared/reference: of about unit gain, so that values neither vanish nor overflow."""
    import numpy as np

    types = {node.name: node.type for node, _ in net.nodes}
    for layer, blobs in net.params.items():
        if types[layer] == "BatchNorm":
            for blob, value in zip(blobs, (0, 1, 1), strict=True):
                blob.data[...] = value
            continue
        for i, blob in enumerate(blobs):
            flat, affine = blob.data.reshape(-1), types[layer] in ("BN", "Scale")
            scale = 0.1 if affine else 0.05
            if i == 0 and not affine:
                scale = np.sqrt(2 / np.prod(blob.shape[1:]))
            random = np.random.RandomState(zlib.crc32(f"{layer}/{i}".encode()))
            for start in range(0, flat.size, CHUNK):
                piece = flat[start : start + CHUNK]
                piece[:] = random.standard_normal(piece.size)
                piece *= np.float32(scale)
                piece += np.float32(affine and i == 0)


def inputs_of(net: Any) -> dict[str, Any]:
    """Arrays for the net's inputs, as ../shared/reference has them."""
    import numpy as np

    found = {}
    for name in net.graph.inputs:
        shape = net.shapes[name]
        found[name] = np.random.RandomState(1).randint(-110, 140, shape).astype(np.float32)
        if name == "cls-score-masked":
            found[name] = np.zeros(shape, np.float32)
            found[name].flat[14] = 0.9
    return found


def definition(net: str, folder: Path, width: str) -> tuple[str, Path]:
    """A net's name and definition from NAME or NAME=FILE."""
    name, _, path = net.partition("=")
    if path:
        return name, Path(path)
    if name not in NETS:
        raise SystemExit(f"no net {name!r}: one of {', '.join(NETS)}, or NAME=FILE.prototxt")
    if not (folder / NETS[name]).exists():
        build = [sys.executable, str(ROOT / "prototxt" / "build.py"), "--width", width, "-o", str(folder)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return name, folder / NETS[name]


# -- the numbers -------------------------------------------------------------------------------------------------------


def check(options: argparse.Namespace, folder: Path) -> None:
    for spec in options.nets:
        name, path = definition(spec, folder, options.width)
        for form in options.forms:
            output = folder / f"{name}.{form}"
            me = [sys.executable, __file__, "make", "--nets", f"{name}={path}", "-o", str(output), "--check"]
            if options.reference and name in STORED:
                me += ["--reference", str(Path(options.reference) / f"{STORED[name]}.npz")]
            subprocess.run(me, check=True, env=environment(options.threads))
            for file in folder.glob(f"{name}.*"):
                file.unlink()


def make(options: argparse.Namespace) -> None:
    """Export one net; in a process of its own."""
    import torch

    import caffe_port

    torch.set_num_threads(1 if os.environ.get("OMP_NUM_THREADS") == "1" else torch.get_num_threads())
    path = options.nets[0].partition("=")[2]
    net = caffe_port.Net(path, caffe_port.TEST)
    draw(net)
    if options.theirs:
        given = tuple(torch.from_numpy(x) for x in inputs_of(net).values())
        torch.onnx.export(net.eval(), given, options.output, dynamo=True, external_data=False, verbose=False)
        return
    from caffe_port import export

    forms = {".onnx": export.onnx, ".py": export.source, ".pt2": export.torch_program}
    result = forms[Path(options.output).suffix](net, options.output, verify=options.check, overwrite=True)
    if options.check:
        print(f"{Path(options.output).name}: {result.nodes} operators; {result.checked}", flush=True)
    if options.reference:
        compare(net, result, options)


def compare(net: Any, exported: Any, options: argparse.Namespace) -> None:
    """Print how far the file's outputs are from stored numbers: all of a blob's, or 4096 of it."""
    import numpy as np

    made = dict(zip(exported.outputs, outputs_of(options.output, exported, inputs_of(net)), strict=True))
    with np.load(options.reference) as theirs:
        for blob, found in made.items():
            if f"out/{blob}" in theirs:
                wanted, largest = theirs[f"out/{blob}"], np.abs(theirs[f"out/{blob}"]).max()
                found = found.reshape(wanted.shape)
            elif f"sample/{blob}" in theirs:
                wanted, largest = theirs[f"sample/{blob}"], np.abs(theirs[f"moments/{blob}"][2:]).max()
                found = found.ravel()[np.random.RandomState(found.size).randint(0, found.size, wanted.size)]
            else:
                continue
            off = np.abs(found.astype(np.float64) - wanted)
            print(
                f"  {blob} against real Caffe's: {off.max() / largest:.1e} of its largest value at most, "
                f"{(off > 1e-5 * largest).sum()} of {off.size} numbers over 1e-5"
            )


def outputs_of(path: str, exported: Any, given: dict[str, Any]) -> list[Any]:
    """What a file gives for these inputs."""
    if path.endswith(".onnx"):
        from caffe_port.export.onnx_check import session

        return session(path).run(exported.outputs, given)
    if path.endswith(".py"):
        from caffe_port.export.source_check import run_file

        return run_file(Path(path), [{blob: given[blob] for blob in exported.inputs}], len(exported.outputs))[0]
    import torch

    from caffe_port.export.torch_program import keywords

    tensors = {key: torch.from_numpy(given[blob]) for blob, key in keywords(exported.inputs).items()}
    with torch.no_grad():
        tops = torch.export.load(path).module()(**tensors)
    return [tops[blob].numpy() for blob in exported.outputs]


# -- the time ----------------------------------------------------------------------------------------------------------


def serve_file(options: argparse.Namespace) -> None:
    """Runs a file on each line of stdin."""
    import numpy as np
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
    run = onnxruntime.InferenceSession(options.output, settings, providers=["CPUExecutionProvider"])
    with np.load(options.inputs) as arrays:
        given = [arrays[key] for key in arrays.files]
    feed = dict(zip([v.name for v in run.get_inputs()], given, strict=True))
    np.save(f"{options.output}.npy", run.run(None, feed)[0])
    serve(lambda: run.run(None, feed), "process_time" if options.cpu else "perf_counter")


def timed(options: argparse.Namespace, folder: Path) -> None:
    import numpy as np

    import caffe_port

    for spec in options.nets:
        name, path = definition(spec, folder, options.width)
        net = caffe_port.Net(str(path), caffe_port.TEST)
        np.savez(folder / "inputs.npz", **inputs_of(net))
        del net
        files = {"ours": folder / f"{name}.ours.onnx", "torch's": folder / f"{name}.theirs.onnx"}
        makers = {"ours": [sys.executable], "torch's": [options.python]}
        commands = {}
        for whose, file in files.items():
            where = {"PYTHONPATH": options.checkout} if whose != "ours" else {}
            command = [*makers[whose], __file__, "make", "--nets", f"{name}={path}", "-o", str(file)]
            command += ["--theirs"] if where else []
            if not file.exists():
                subprocess.run(command, check=True, env={**environment(1), **where}, stdout=sys.stderr)
            commands[whose] = [
                sys.executable,
                __file__,
                "serve",
                "-o",
                str(file),
                "--inputs",
                str(folder / "inputs.npz"),
            ]
            commands[whose] += ["--threads", str(options.threads), *(["--cpu"] if options.cpu else [])]
        times, peaks = take_turns(commands, rounds=options.rounds, warm=2, threads=options.threads, cwd=ROOT)
        first, second = (np.load(f"{file}.npy") for file in files.values())
        off = np.abs(first - second.reshape(first.shape)).max() / np.abs(first).max()
        clock = "processor time" if options.cpu else "wall time"
        print(f"{name}, {options.threads} threads, {options.rounds} rounds, {clock}; their numbers differ by {off:.1e}")
        report(times, peaks, "ours")
        for file in () if options.keep else files.values():
            file.unlink()


# -- writing -----------------------------------------------------------------------------------------------------------

WRITER = """
import sys, threading, time
import caffe_port
from caffe_port.export import onnx
net = caffe_port.Net(sys.argv[1], sys.argv[2], caffe_port.TEST, mmap=True)
import onnx as _
def own():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) / 1e3
before, most, done = own(), [0], threading.Event()
def watch():
    while not done.wait(0.005):
        most[0] = max(most[0], own())
watcher = threading.Thread(target=watch)
watcher.start()
start, cpu = time.perf_counter(), time.process_time()
onnx(net, sys.argv[3], verify=False, overwrite=True)
wall, cpu = time.perf_counter() - start, time.process_time() - cpu
done.set()
watcher.join()
print(wall, cpu, max(most[0], own()) - before)
"""
"""Its memory is the largest while it writes, files that it maps not counted."""


def written(options: argparse.Namespace, folder: Path) -> None:
    import caffe_port

    name, path = definition(options.nets[0], folder, options.width)
    net = caffe_port.Net(str(path), caffe_port.TEST)
    draw(net)
    weights, output = folder / "net.caffemodel", folder / "net.onnx"
    net.save(weights)
    del net
    rows: dict[str, list[tuple[float, ...]]] = {"cp": [], "ours": []}
    for _ in range(options.rounds):
        for file in folder.glob("*.onnx*"):
            file.unlink()
        os.sync()
        start = time.perf_counter()
        shutil.copyfile(weights, folder / "copy.onnx")
        rows["cp"].append((time.perf_counter() - start,))
        (folder / "copy.onnx").unlink()
        os.sync()
        command = [sys.executable, "-c", WRITER, str(path), str(weights), str(output)]
        told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(options.threads))
        rows["ours"].append(tuple(map(float, told.stdout.split())))
    size = sum(file.stat().st_size for file in folder.glob("net.onnx*")) / 1e9
    copy = statistics.median(row[0] for row in rows["cp"])
    wall, cpu, memory = (statistics.median(column) for column in zip(*rows["ours"], strict=True))
    times = f"{wall:.2f} s ({cpu:.2f} s of processor time)"
    print(f"{name}, {size:.2f} GB: {times}, {wall / copy:.2f} times a copy's {copy:.2f} s")
    print(f"own memory: {memory:.0f} MB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["check", "time", "write", "make", "serve"])
    parser.add_argument("--nets", nargs="+", default=[*NETS], metavar="NAME[=FILE]")
    parser.add_argument("--forms", nargs="+", choices=("onnx", "py", "pt2"), default=["onnx", "py", "pt2"])
    parser.add_argument("--width", default="1/1", help="of prototxt/'s nets (default 1/1)")
    parser.add_argument("--reference", help="the folder of real Caffe's numbers; of make: one file")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch and onnxscript")
    parser.add_argument("--checkout", default=str(ROOT), help="the checkout whose nets torch exports")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu", action="store_true", help="processor time instead of wall time")
    parser.add_argument("--folder", help="for temporary files")
    parser.add_argument("--keep", action="store_true", help="of time: use the files in --folder, and leave them there")
    for name in ("-o", "--inputs"):
        parser.add_argument(name, dest="output" if name == "-o" else name[2:], help=argparse.SUPPRESS)
    for name in ("--check", "--theirs"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job in ("make", "serve"):
        (make if options.job == "make" else serve_file)(options)
        return
    kept = nullcontext(options.folder) if options.keep else tempfile.TemporaryDirectory(dir=options.folder)
    with kept as folder:
        {"check": check, "time": timed, "write": written}[options.job](options, Path(folder))


if __name__ == "__main__":
    main()
