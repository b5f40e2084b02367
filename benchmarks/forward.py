"""One DecoupledNet deploy pass: this net, the same net by hand in plain PyTorch, and the fork where it is built.

    python benchmarks/forward.py [--width 1/1] [--rounds 15] [--threads 2] [--fork DIR] [--against DIR] [--bf16]

Runs the three in turn, round by round, in processes of their own, and prints medians and ratios of medians, with what
limits them: the arithmetic of the pass at the speed that oneDNN reaches on this machine's best-sized convolution, and
the reading of its weights. ``--fork`` is the folder of a built HyeonwooNoh/caffe (its ``python`` folder is imported
with ``--fork-python``); OPENBLAS_CORETYPE decides which kernels its BLAS uses.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.turns import report, serve, take_turns  # noqa: E402

SIDE = 320
DEPLOY = "decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt"
GMAC = {"convolution": 66.2, "fully-connected and bridge": 6.4}
"""Of the full-width pass (SPEED in docs/)."""


def serve_port(prototxt: str, weights: str, threads: int, **options: str) -> None:
    import caffe_port  # isort: skip  # before torch, whose threads then do not spin
    import torch

    torch.set_num_threads(threads)
    net = caffe_port.Net(prototxt, weights, caffe_port.TEST, **options)
    image, label = torch.randn(1, 3, SIDE, SIDE) * 60, torch.zeros(1, 20, 1, 1)
    label[0, 14] = 0.9

    def run() -> None:
        with torch.inference_mode():
            net(**{"data": image, "cls-score-masked": label})

    serve(run)


def serve_hand(prototxt: str, weights: str, threads: int) -> None:
    os.environ["CAFFE_PORT_KEEP_MEMORY"] = (
        "0"  # what our own net asks of the C library would be the other program's gain too
    )
    import torch

    import caffe_port
    from benchmarks.decouplednet_by_hand import DecoupledNet

    torch.set_num_threads(threads)
    source = caffe_port.Net(prototxt, weights, caffe_port.TEST)
    net = DecoupledNet(source.state_dict()).eval()
    label = torch.zeros(1, 20, 1, 1)
    label[0, 14] = 0.9
    for _ in range(24):  # where two values of a pooling window are nearly equal, the nets may choose differently
        image = torch.randn(1, 3, SIDE, SIDE) * 60
        with torch.inference_mode():
            ours = source(**{"data": image, "cls-score-masked": label})["seg-score"]
            theirs = net(image, label)
        off = ((ours - theirs).abs().max() / ours.abs().max()).item()
        if off < 1e-4:
            break
    else:
        raise SystemExit(f"the hand-written net differs by {off:.1e} in the last of 24 images")
    del source

    def run() -> None:
        with torch.inference_mode():
            net(image, label)

    serve(run)


FORK = """
import sys, time
sys.path.insert(0, sys.argv[1])
import caffe, numpy as np
net = caffe.Net(sys.argv[2]); net.set_phase_test(); net.set_mode_cpu()
net = caffe.Net(sys.argv[2], sys.argv[3])
net.blobs['data'].data[...] = np.random.randn(*net.blobs['data'].data.shape) * 60
net.blobs['cls-score-masked'].data[0, 14] = 0.9
last = len(net.layers) - 1
for _ in sys.stdin:
    start = time.time()
    net._forward(0, last)
    print((time.time() - start) * 1e3); sys.stdout.flush()
"""


def ceiling(threads: int) -> float:
    """GFLOP/s of oneDNN on a 3x3 convolution of 512 channels with packed weights."""
    import torch

    torch.set_num_threads(threads)
    x = torch.randn(1, 512, 40, 40).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(512, 512, 3, 3), torch.zeros(512)
    one = [1, 1]
    packed = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), one, one, one, 1, [1, 512, 40, 40])
    times = []
    for _ in range(20):
        start = time.perf_counter()
        torch.ops.mkldnn._convolution_pointwise(x, packed, bias, one, one, one, 1, "none", [], "")
        times.append(time.perf_counter() - start)
    return 2 * 512 * 512 * 9 * 40 * 40 / min(times) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", default="1/1", help="of the net's layers (default 1/1, the published net)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default 15)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads for each (default 2)")
    parser.add_argument(
        "--weights", help="a .caffemodel of the net (default: random numbers, written to a temporary folder)"
    )
    parser.add_argument("--fork", help="the folder of a built HyeonwooNoh/caffe, to be timed too")
    parser.add_argument("--against", help="the folder of another commit's checkout, to be timed too")
    parser.add_argument(
        "--fork-python", default="python3", help="the Python that its pycaffe was built for (default python3)"
    )
    parser.add_argument("--bf16", action="store_true", help="ours in bfloat16, too")
    parser.add_argument("--serve", choices=["port", "bf16", "hand"], help=argparse.SUPPRESS)
    parser.add_argument("--prototxt", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        half = partial(serve_port, precision="bf16")
        {"port": serve_port, "bf16": half, "hand": serve_hand}[args.serve](args.prototxt, args.weights, args.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        prototxt = Path(folder, "net.prototxt")
        build = [sys.executable, str(ROOT / "prototxt/build.py"), "--width", args.width, "-o", folder]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        prototxt = Path(folder, DEPLOY)
        weights = args.weights or random_weights(prototxt, Path(folder, "net.caffemodel"))
        compare(args, str(prototxt), str(weights))


def random_weights(prototxt: Path, path: Path) -> Path:
    """Weights of about unit gain, so that values neither vanish nor overflow."""
    import torch

    import caffe_port

    net = caffe_port.Net(prototxt, caffe_port.TEST)
    for name, p in net.state_dict().items():
        if name.endswith("weight"):
            p.normal_(0, (2 / p[0].numel()) ** 0.5)
        elif name.endswith("scale"):
            p.fill_(1.0)
        else:
            torch.nn.init.normal_(p, 0, 0.05)
    net.save(path)
    return path


def compare(args: argparse.Namespace, prototxt: str, weights: str) -> None:
    served = ["--prototxt", prototxt, "--weights", weights, "--threads", str(args.threads), "--serve"]
    me = [sys.executable, __file__, *served]
    commands = {"caffe_port": [*me, "port"], "plain PyTorch": [*me, "hand"]}
    if args.bf16:
        commands["ours, bf16"] = [*me, "bf16"]
    if args.against:
        commands["the other"] = [sys.executable, f"{args.against}/benchmarks/forward.py", *served, "port"]
    if args.fork:
        commands["the fork"] = [args.fork_python, "-c", FORK, f"{args.fork}/python", prototxt, weights]
    # Three rounds to warm up: the second prepares weights.
    times, peaks = take_turns(commands, rounds=args.rounds, warm=3, threads=args.threads, cwd=ROOT)
    print(f"one deploy pass, {SIDE}x{SIDE}, width {args.width}, fp32, {args.threads} threads, {args.rounds} rounds\n")
    report(times, peaks, "caffe_port")
    if Fraction(args.width) == 1:
        speed, work, best = ceiling(args.threads), sum(GMAC.values()), min(times["caffe_port"])
        floor = 2 * work / speed * 1e3
        print(f"\nlimit: {work:.1f} GMAC at {speed:.0f} GFLOP/s = {floor:.0f} ms; best run {best / floor:.2f} of it")


if __name__ == "__main__":
    main()
