"""What bfloat16 changes: the share of pixels whose label differs from single precision's, and the time of a pass.

    python benchmarks/bf16.py PICTURES [--prototxt NET --weights FILE] [--threshold S] [--width 1/1] [--threads 2]

PICTURES is a folder of .jpg files. Without a net it is DecoupledNet of this width with seeded weights (of about unit
gain); then --threshold is the rank of the score above which classes are found: 3 for the two best. Untrained nets are
near ties at far more pixels than trained ones.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.export import NETS, draw  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--prototxt")
    parser.add_argument("--weights", nargs="+", help="a file, or several that together have all weights")
    parser.add_argument("--threshold", type=float)
    parser.add_argument(
        "--true-classes", action="store_true", help="each of NAME.png by itself, in place of the classifier's"
    )
    parser.add_argument("--width", default="1/1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        prototxt, weights = args.prototxt, args.weights
        if prototxt is None:
            from caffe_port import Net

            build = [sys.executable, str(ROOT / "prototxt/build.py"), "--width", args.width, "-o", folder]
            subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
            prototxt, weights = Path(folder, NETS["decouplednet"]), Path(folder, "net.caffemodel")
            net = Net(prototxt, "TEST")
            draw(net)
            net.save(weights)
            del net
        compare(args, prototxt, weights)


def by_true_classes(nets: dict[str, Any], path: Path) -> tuple[int, int]:
    """How many pixels, at the net's size and for each class that NAME.png has, change sides; of how many."""
    import numpy as np
    import torch
    from PIL import Image

    from caffe_port.segmentation.inference import DATA, MASKED, SEGMENTED, prepare
    from caffe_port.segmentation.voc import read_picture

    shapes = nets["fp32"].shapes
    data = torch.from_numpy(prepare(read_picture(path), shapes[DATA][2]))
    changed, pixels = 0, 0
    for label in np.unique(np.array(Image.open(path.with_suffix(".png")))):
        if 0 < label < 255:
            masked = torch.zeros(shapes[MASKED])
            masked[0, label - 1] = 0.9
            with torch.inference_mode():
                sides = [net({DATA: data, MASKED: masked})[SEGMENTED].argmax(1) for net in nets.values()]
            here, of = int((sides[0] != sides[1]).sum()), sides[0].numel()
            print(f"{path.name}: {here / of:.3%} of {of} pixels, class {label}: {sides[0].float().mean():.1%} of them")
            changed, pixels = changed + here, pixels + of
    return changed, pixels


def compare(args: argparse.Namespace, prototxt: Any, weights: Any) -> None:
    import numpy as np
    import torch

    from caffe_port.net import Net
    from caffe_port.segmentation.inference import MASKED, SCORES, THRESHOLD, Segmenter
    from caffe_port.segmentation.voc import read_picture

    nets = {precision: Net(prototxt, weights, precision=precision) for precision in ("fp32", "bf16")}
    ranked = args.prototxt is None and args.threshold is not None
    changed, pixels, classes, errors = 0, 0, 0, []
    for path in sorted(Path(args.pictures).glob("*.jpg")):
        picture, limit = read_picture(path), THRESHOLD if args.threshold is None else args.threshold
        if ranked:
            whole = Segmenter(nets["fp32"])
            given = {"data": torch.from_numpy(whole.prepare(picture)), MASKED: torch.zeros(1, whole.classes, 1, 1)}
            with torch.inference_mode():
                scores = nets["fp32"](given)[SCORES].flatten().sort(descending=True).values
            limit = float(scores[int(args.threshold) - 2 : int(args.threshold)].mean())
        if args.true_classes:
            changed, pixels = np.add((changed, pixels), by_true_classes(nets, path))
            continue
        fp32, bf16 = (Segmenter(net, threshold=limit)(picture) for net in nets.values())
        different = int((fp32.pixels != bf16.pixels).sum())
        same = fp32.labels == bf16.labels
        errors.append(float(np.abs(fp32.scores - bf16.scores).max()))
        print(f"{path.name}: {different / fp32.pixels.size:.3%} of {fp32.pixels.size} pixels", end="")
        print(f", classes {fp32.labels[1:]}" + ("" if same else f" and {bf16.labels[1:]}"))
        changed, pixels, classes = changed + different, pixels + fp32.pixels.size, classes + (not same)
    told = f"; other classes found in {classes}; scores by {max(errors):.1e}" if errors else ""
    print(f"all: {changed / pixels:.3%} of the pixels{told}")
    shapes = {name: nets["fp32"].shapes[name] for name in nets["fp32"].graph.inputs}
    inputs, times = {name: torch.randn(shape) for name, shape in shapes.items()}, {name: [] for name in nets}
    with torch.inference_mode():
        for i in range(args.rounds + 3):
            for name, net in nets.items():
                start = time.perf_counter()
                net(inputs)
                times[name] += [(time.perf_counter() - start) * 1e3] if i > 2 else []
    told = ", ".join(f"{name} {statistics.median(t):.0f} ms (best {min(t):.0f})" for name, t in times.items())
    print(f"a pass, {args.threads} threads: {told}")


if __name__ == "__main__":
    main()
