"""Segmenting a picture with DecoupledNet: all passes at once, pass by pass, and pass by pass on the fork where built.

    python benchmarks/segment.py [--width 1/1] [--classes 1,3] [--rounds 7] [--threads 2] [--fork DIR] [--cpu]
                                 [--against DIR]

Times a picture's passes through the net and the maps computed from them, without reading and resizing; pass by pass,
these are L + 2 for L classes found. The variants alternate, round by round, the fork in a separate process. Medians are
printed, and the median of the rounds' ratios. ``--fork`` is the folder of a built HyeonwooNoh/caffe; OPENBLAS_CORETYPE
selects the kernels of its BLAS; a BLAS uses its slowest for unknown processors. On a machine with other
load ``--cpu --threads 1`` counts processor time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.forward import DEPLOY, SIDE, random_weights  # noqa: E402

FORK = """
import sys, time
sys.path.insert(0, sys.argv[1])
import caffe, numpy as np
net = caffe.Net(sys.argv[2]); net.set_phase_test(); net.set_mode_cpu()
net = caffe.Net(sys.argv[2], sys.argv[3])
net.blobs['data'].data[...] = np.random.randn(*net.blobs['data'].data.shape) * 60
net.blobs['cls-score-masked'].data[0, 14] = 0.9
last = len(net.layers) - 1
for line in sys.stdin:
    start = time.CLOCK()
    for _ in range(int(line) + 2):
        net._forward(0, last)
    print((time.CLOCK() - start) * 1e3); sys.stdout.flush()
"""

OTHER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from benchmarks.segment import ours
import torch
torch.set_num_threads(int(sys.argv[4]))
run = ours(sys.argv[2], sys.argv[3], time.CLOCK)["caffe_port"]
for line in sys.stdin:
    print(run(int(line)), flush=True)
"""

Way = Callable[[int], float]
"""From a number of classes to milliseconds."""


def ours(prototxt: str, weights: str, clock: Callable[[], float]) -> dict[str, Way]:
    """Both variants of this program, on one net."""
    import torch

    from caffe_port.net import Net
    from caffe_port.segmentation.inference import PassByPass, Segmenter

    net = Net(prototxt, weights)
    picture = torch.randn(1, 3, SIDE, SIDE).numpy()  # small values, so that random weights give different scores
    scores = sorted(Segmenter(net).maps(picture).scores, reverse=True)

    def way(kind: type[Segmenter]) -> Way:
        def run(classes: int) -> float:
            segmenter = kind(net, threshold=float(scores[classes - 1] + scores[classes]) / 2)
            start = clock()
            found = segmenter.maps(picture)
            took = (clock() - start) * 1e3
            assert len(found.labels) == classes + 1
            return took

        return run

    return {"caffe_port": way(Segmenter), "pass by pass": way(PassByPass)}


def served(process: subprocess.Popen[str]) -> Way:
    """The fork or another checkout in its process."""

    def run(classes: int) -> float:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{classes}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{process.args} stopped with status {process.wait()}")
        return float(line)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", default="1/1", help="of the net's layers (default 1/1, the published net)")
    parser.add_argument("--classes", default="1,3", help="numbers of classes found (default 1,3)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default 7)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads for each (default 2)")
    parser.add_argument("--weights", help="a .caffemodel of the net (default: random numbers)")
    parser.add_argument("--fork", help="the folder of a built HyeonwooNoh/caffe, to be timed too")
    parser.add_argument("--against", help="the folder of another commit's checkout, to be timed too")
    parser.add_argument(
        "--fork-python", default="python3", help="the Python that its pycaffe was built for (default python3)"
    )
    parser.add_argument("--cpu", action="store_true", help="processor time in place of the clock's")
    args = parser.parse_args()
    clock = "process_time" if args.cpu else "perf_counter"
    os.environ.update(OMP_NUM_THREADS=str(args.threads), OPENBLAS_NUM_THREADS=str(args.threads), GLOG_minloglevel="2")
    import caffe_port  # noqa: F401  # isort: skip  # before torch, whose threads then do not spin
    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, str(ROOT / "prototxt/build.py"), "--width", args.width, "-o", folder]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        prototxt = str(Path(folder, DEPLOY))
        weights = args.weights or str(random_weights(Path(prototxt), Path(folder, "net.caffemodel")))
        ways, code = ours(prototxt, weights, getattr(time, clock)), {}
        if args.fork:
            code["the fork"] = [args.fork_python, "-c", FORK.replace("CLOCK", clock), f"{args.fork}/python"]
        if args.against:
            code["the other"] = [sys.executable, "-c", OTHER.replace("CLOCK", clock), args.against]
        processes = {
            name: subprocess.Popen(
                [*command, prototxt, weights, str(args.threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name, command in code.items()
        }
        ways.update((name, served(process)) for name, process in processes.items())
        try:
            for classes in map(int, args.classes.split(",")):
                report(ways, classes, args)
        finally:
            for process in processes.values():
                process.kill()


def report(ways: dict[str, Way], classes: int, args: argparse.Namespace) -> None:
    for way in ways.values():  # the first run of a size includes allocation and packing of weights
        way(classes)
    rounds = [{name: way(classes) for name, way in ways.items()} for _ in range(args.rounds)]
    print(f"\n{classes} classes found, {SIDE}x{SIDE}, width {args.width}, fp32, {args.threads} threads")
    print(f"{'':16}{'median ms':>10}{'min ms':>9}{'times ours (median of rounds)':>32}")
    for name in ways:
        times = [one[name] for one in rounds]
        ratio = statistics.median(one[name] / one["caffe_port"] for one in rounds)
        print(f"{name:16}{statistics.median(times):10.0f}{min(times):9.0f}{ratio:32.2f}", flush=True)


if __name__ == "__main__":
    main()
