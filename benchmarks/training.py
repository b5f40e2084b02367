"""One training step of DecoupledNet: the solver here, a step by hand in PyTorch, and the fork where it is built.

    python benchmarks/training.py [--width 1/1] [--rounds 5] [--batch 4] [--threads 2] [--fork DIR] [--cpu]
                                  [--against DIR]

A step is a forward and a backward pass of a batch at 320x320 and the update, the classification layers frozen. The
three alternate, round by round, in separate processes; medians, ratios and each one's peak memory are printed. The
data is constant: benchmarks/loading.py measures reading. ``--fork`` is the folder of a built
HyeonwooNoh/caffe; OPENBLAS_CORETYPE selects the kernels of its BLAS; a BLAS uses its slowest for unknown processors.
On a machine with other load ``--cpu --threads 1`` counts processor time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.turns import report, serve, take_turns  # noqa: E402

SIDE = 320
TRAIN = "decouplednet/002_train_seg_Full_anno.prototxt"
SOLVER = """net: "{net}" base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005 max_iter: 1000000
display: 0 snapshot_prefix: "none" solver_mode: CPU random_seed: 1
"""
GMAC = 590 / 4
"""GMAC for an image in a step at full width: forward of all layers, backward of those in training."""


def batch(size: int) -> dict[str, object]:
    """The same batch for all baselines."""
    import numpy as np

    draw = np.random.RandomState(0)
    labels = np.zeros((size, 20, 1, 1), np.float32)
    labels[:, 3] = 1
    return {
        "data": draw.randint(-110, 140, (size, 3, SIDE, SIDE)).astype(np.float32),
        "seg-label": draw.randint(0, 2, (size, 1, SIDE, SIDE)).astype(np.float32),
        "cls-label": labels,
    }


def serve_port(folder: str, weights: str, args: argparse.Namespace) -> None:
    from caffe_port.solver import Solver  # isort: skip  # before torch, whose threads then do not spin
    import torch

    torch.set_num_threads(args.threads)
    solver = Solver(f"{folder}/solver.prototxt", dialect="noh")
    solver.load([weights])
    given = {name: torch.from_numpy(array) for name, array in batch(args.batch).items()}

    def step() -> None:
        solver.net.zero_grad(set_to_none=True)
        loss, _ = solver.net.losses(**given)
        loss.backward()
        solver.apply_update()

    serve(step, args.clock)


def serve_hand(folder: str, weights: str, args: argparse.Namespace) -> None:
    os.environ["CAFFE_PORT_KEEP_MEMORY"] = "0"  # our net's allocator setting would also speed up the baseline
    import torch
    from torch.nn import functional as F

    from benchmarks.decouplednet_by_hand import DecoupledNet
    from caffe_port.net import Net

    torch.set_num_threads(args.threads)
    net = DecoupledNet(Net(f"{folder}/net.prototxt", weights, "TRAIN", dialect="noh").state_dict(), learn=True)
    learned = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.01, momentum=0.9, weight_decay=0.0005)
    given = {name: torch.from_numpy(array) for name, array in batch(args.batch).items()}
    truth = given["seg-label"][:, 0].long()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(given["data"], given["cls-label"]), truth, ignore_index=255).backward()
        optimizer.step()

    serve(step, args.clock)


FORK = """
import sys, time
sys.path[:0] = [sys.argv[1], sys.argv[4]]
import caffe, numpy as np
from training import batch
solver = caffe.SGDSolver(sys.argv[2] + '/solver.prototxt')
solver.net.copy_from(sys.argv[3])
for name, array in batch(int(sys.argv[5])).items():
    solver.net.blobs[name].data[...] = array
peak = lambda: [int(l.split()[1]) / 1e3 for l in open('/proc/self/status') if l.startswith('VmHWM')][0]
for _ in sys.stdin:
    start = time.CLOCK()
    solver.step(1)
    print((time.CLOCK() - start) * 1e3, peak()); sys.stdout.flush()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", default="1/1", help="of the net's layers (default 1/1, the published net)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--batch", type=int, default=4, help="images in a batch (default 4)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads for each (default 2)")
    parser.add_argument("--weights", help="a .caffemodel of the net (default: the fillers' draws)")
    parser.add_argument("--fork", help="the folder of a built HyeonwooNoh/caffe, to be timed too")
    parser.add_argument("--against", help="the folder of another commit's checkout, to be timed too")
    parser.add_argument("--fork-python", default="python3", help="the Python its pycaffe was built for")
    parser.add_argument("--cpu", action="store_true", help="processor time in place of the clock's")
    parser.add_argument("--serve", choices=["port", "hand"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.clock = "process_time" if args.cpu else "perf_counter"
    if args.serve:
        {"port": serve_port, "hand": serve_hand}[args.serve](args.folder, args.weights, args)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), args)
        compare(args, folder, args.weights or f"{folder}/net.caffemodel")


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """The net with inputs for data layers, a solver for it, and weights if none are given."""
    from slim import with_inputs

    net = folder / "net.prototxt"
    net.write_text(with_inputs(TRAIN, args.width, args.batch, "TRAIN"))
    (folder / "solver.prototxt").write_text(SOLVER.format(net=net))
    if not args.weights:
        code = "import sys, caffe_port; caffe_port.Net(sys.argv[1], phase='TRAIN', dialect='noh').save(sys.argv[2])"
        subprocess.run([sys.executable, "-c", code, net, folder / "net.caffemodel"], check=True, cwd=ROOT)


def compare(args: argparse.Namespace, folder: str, weights: str) -> None:
    served = ["--folder", folder, "--weights", weights]
    served += ["--threads", str(args.threads), "--batch", str(args.batch), *["--cpu"] * args.cpu, "--serve"]
    me = [sys.executable, __file__, *served]
    commands = {"caffe_port": [*me, "port"], "plain PyTorch": [*me, "hand"]}
    if args.against:
        commands["the other"] = [sys.executable, f"{args.against}/benchmarks/training.py", *served, "port"]
    if args.fork:
        here = str(Path(__file__).parent)
        baseline = [f"{args.fork}/python", folder, weights, here, str(args.batch)]
        commands["the fork"] = [args.fork_python, "-c", FORK.replace("CLOCK", args.clock), *baseline]
    times, peaks = take_turns(commands, rounds=args.rounds, warm=2, threads=args.threads, cwd=ROOT)
    print(f"one training step, batch {args.batch} at {SIDE}x{SIDE}, width {args.width}, fp32, {args.threads} threads, ")
    print(f"{args.rounds} rounds in turn, by {args.clock}\n")
    report(times, peaks, "caffe_port")
    if args.width in ("1", "1/1"):
        from benchmarks.forward import ceiling

        speed, best = ceiling(args.threads), min(times["caffe_port"])
        floor = 2 * GMAC * args.batch / speed * 1e3
        work = f"{GMAC * args.batch:.0f} GMAC at {speed:.0f} GFLOP/s"
        print(f"\nlimit: {work} = {floor:.0f} ms; best {best / floor:.2f} of it")


if __name__ == "__main__":
    main()
