"""The cost of reading data in a training step: pictures from disk, compared with the same step on constant data.

    python benchmarks/loading.py [--nets small,1/8] [--side 500] [--steps 8] [--rounds 5] [--threads 2]

Pictures and masks are drawn, and stored as JPEG and PNG. For every net three alternate, round by round, each in a
separate process: steps whose data layer reads, steps whose data layer repeats one batch, and the data layer alone.
 Printed are the best round's milliseconds of a step or a batch, the ratio of the best and the median
of the rounds' ratios, and how much of the data layer's time does not show in a step. The nets are
docs/examples/small.prototxt ("small") and DecoupledNet's training net at a width (such as 1/8).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.turns import take_turns  # noqa: E402

SMALL = "docs/examples/small.prototxt"
PUBLISHED = "decouplednet/002_train_seg_Full_anno.prototxt"
LISTS = ("seg_imgset_Full/train.txt", "stage_1_train_imgset/train.txt")
SOLVER = """net: "{net}" base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005 max_iter: 1000000
display: 0 snapshot_prefix: "none" solver_mode: CPU random_seed: 1
"""
KINDS = ("reading", "repeated", "data alone")


def furnish(folder: Path, nets: list[str], side: int) -> None:
    """Draw the pictures and write lists of them, and a definition and a solver for each net."""
    from PIL import Image
    from slim import narrow

    draw = [sys.executable, "-m", "caffe_port.tools.make_shapes", "-o", str(folder / "VOC2012"), "--quiet"]
    subprocess.run([*draw, "--images", "40", "--size", str(side)], check=True, cwd=ROOT)
    lines = []
    for path in sorted(folder.glob("VOC2012/JPEGImages/*.jpg")):
        width, height = Image.open(path).size
        box = f"0 0 {width - 1} {height - 1}"
        lines.append(f"/JPEGImages/{path.name} /SegmentationClass/{path.stem}.png {box} 1{' 0' * 19}\n")
    for path in LISTS:
        (folder / path).parent.mkdir()
        (folder / path).write_text("".join(lines))
    for i, net in enumerate(nets):
        definition = (ROOT / SMALL).read_text() if net == "small" else str(narrow(PUBLISHED, net))
        (folder / f"{i}.prototxt").write_text(definition)
        (folder / f"{i}_solver.prototxt").write_text(SOLVER.format(net=f"{i}.prototxt"))


def serve(way: str, solver_path: str, args: argparse.Namespace) -> None:
    """Answer each line on stdin with the milliseconds of a step, after one that sets the thread to work."""
    import torch

    from caffe_port.solver import Solver

    torch.set_num_threads(args.threads)
    solver = Solver(solver_path, dialect="noh")
    layer: Any = solver.net.nodes[0][1]
    if way == "repeated":
        batch = layer()
        layer.forward = lambda: batch

    def step() -> None:
        if way == "data alone":
            layer()
            return
        solver.net.zero_grad(set_to_none=True)
        loss, _ = solver.net.losses()
        loss.backward()
        solver.apply_update()

    for _ in sys.stdin:
        step()
        start = time.perf_counter()
        for _ in range(args.steps):
            step()
        print((time.perf_counter() - start) * 1e3 / args.steps, flush=True)
        layer.prefetcher._job.join()  # its current job must not overlap the next measurement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="small,1/8", help="small, or widths of DecoupledNet (default small,1/8)")
    parser.add_argument("--side", type=int, default=500, help="of the pictures, in pixels (default 500)")
    parser.add_argument("--steps", type=int, default=8, help="steps in a turn (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads for each (default 2)")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--solver", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.solver, args)
        return
    nets = args.nets.split(",")
    with tempfile.TemporaryDirectory() as folder:
        furnish(Path(folder), nets, args.side)
        print(
            f"{args.side}-pixel pictures, {args.threads} threads, {args.rounds} rounds of {args.steps} steps in turn\n"
        )
        print(f"{'':12}{'step, reading':>15}{'repeated':>10}{'ratio':>7}{'median':>8}{'data alone':>12}{'hidden':>8}")
        for i, net in enumerate(nets):
            me = [sys.executable, __file__, "--solver", f"{i}_solver.prototxt"]
            me += ["--steps", str(args.steps), "--threads", str(args.threads)]
            commands = {way: [*me, "--serve", way] for way in KINDS}
            times, _ = take_turns(commands, rounds=args.rounds, warm=1, threads=args.threads, cwd=Path(folder))
            reading, repeated, alone = (min(times[way]) for way in KINDS)
            ratio = median(a / b for a, b in zip(times["reading"], times["repeated"], strict=True))
            hidden = 1 - (reading - repeated) / alone
            numbers = f"{reading:15.1f}{repeated:10.1f}{reading / repeated:7.2f}{ratio:8.2f}"
            print(f"{net:12}{numbers}{alone:12.1f}{hidden:8.0%}", flush=True)


if __name__ == "__main__":
    main()
