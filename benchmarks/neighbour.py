"""A deploy pass beside a process that takes a core: milliseconds by the clock and of processor time, quiet and busy.

    python benchmarks/neighbour.py [--width 1/1,1/8] [--passes 15] [--threads 2] [--against DIR] [--spins 0,1000,]

A process computes for itself while the busy passes run. ``--against`` is the folder of another commit's checkout;
``--spins`` tries values of GOMP_SPINCOUNT instead (an empty one: none is set). Medians.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.forward import DEPLOY, random_weights  # noqa: E402

PASSES = """
import statistics, sys, time
import caffe_port, torch
prototxt, weights, threads, passes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
net = caffe_port.Net(prototxt, weights, caffe_port.TEST)
given = {"data": torch.randn(1, 3, 320, 320) * 60, "cls-score-masked": torch.full((1, 20, 1, 1), 0.1)}

def measure(count):
    taken = []
    for _ in range(count):
        clock, used = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            net(**given)
        taken.append((time.perf_counter() - clock, time.process_time() - used))
    return [statistics.median(column) * 1e3 for column in zip(*taken)]

measure(4)
for _ in sys.stdin:
    print(*measure(passes), flush=True)
"""


def measure(root: Path, spin: str | None, args: argparse.Namespace, *net: str) -> list[float]:
    """Clock and processor time of a pass, quiet and beside a neighbour."""
    variables = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(args.threads)}
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        variables.pop(name, None)
    if spin:
        variables["GOMP_SPINCOUNT"] = spin
    command = [sys.executable, "-c", PASSES, *net, str(args.threads), str(args.passes)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=variables, cwd=root) as process:
        assert process.stdin and process.stdout
        found = []
        for busy in (False, True):
            neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
            process.stdin.write("\n")
            process.stdin.flush()
            found += map(float, process.stdout.readline().split())
            if neighbour:
                neighbour.kill()
        process.stdin.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", default="1/1,1/8", help="of the net's layers (default 1/1,1/8)")
    parser.add_argument("--passes", type=int, default=15, help="default 15")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="default 2")
    parser.add_argument("--against", help="the folder of another commit's checkout")
    parser.add_argument("--spins", help="values of GOMP_SPINCOUNT")
    args = parser.parse_args()
    ways: dict[str, tuple[Path, str | None]] = {"caffe_port": (ROOT, None)}
    if args.spins is not None:
        ways = {f"spins {spin or 'not set'}": (ROOT, spin) for spin in args.spins.split(",")}
    if args.against:
        ways["the other"] = Path(args.against), None
    print(
        f"{args.threads} threads, ms of a pass{'quiet: clock':>18}{'processor':>11}{'busy: clock':>13}{'processor':>11}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for width in args.width.split(","):
            here = Path(folder, width.replace("/", "_"))
            build = [sys.executable, str(ROOT / "prototxt/build.py"), "--width", width, "-o", str(here)]
            subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
            weights = random_weights(here / DEPLOY, here / "net.caffemodel")
            for name, (root, spin) in ways.items():
                clock, used, busy_clock, busy = measure(root, spin, args, str(here / DEPLOY), str(weights))
                ratio = f"   processor time busy / quiet {busy / used:.2f}"
                print(f"{width:6}{name:20}{clock:15.0f}{used:11.0f}{busy_clock:13.0f}{busy:11.0f}{ratio}", flush=True)


if __name__ == "__main__":
    main()
