"""SSD300 of VGG-16 at full width, with 21 classes and DetectionOutput, compared with OpenCV's Caffe importer.

    python benchmarks/detect.py [--rounds 9] [--threads 2] [--confident]

One picture at a time, in separate processes that alternate, round by round. Weights are random. With them every class
has its 400 candidates, the most work for DetectionOutput; --confident makes the scores of all but a few priors small,
as in a trained net.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.turns import report, serve, take_turns  # noqa: E402

CLASSES = 21
TRUNK = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
EXTRAS = (
    ("6", 256, 512, "pad: 1 stride: 2"),
    ("7", 128, 256, "pad: 1 stride: 2"),
    ("8", 128, 256, ""),
    ("9", 128, 256, ""),
)
SOURCES = (  # blob, least and largest size, step, ratios
    ("conv4_3_norm", 30, 60, 8, (2,)),
    ("fc7", 60, 111, 16, (2, 3)),
    ("conv6_2", 111, 162, 32, (2, 3)),
    ("conv7_2", 162, 213, 64, (2, 3)),
    ("conv8_2", 213, 264, 100, (2,)),
    ("conv9_2", 264, 315, 300, (2,)),
)


def layer(type: str, name: str, bottoms: str, body: str = "", top: str = "") -> str:
    ends = " ".join(f'bottom: "{b}"' for b in bottoms.split())
    return f'layer {{ name: "{name}" type: "{type}" {ends} top: "{top or name}" {body} }}\n'


def convolution(name: str, bottom: str, width: int, body: str) -> str:
    return layer("Convolution", name, bottom, f"convolution_param {{ num_output: {width} {body} }}")


def with_relu(name: str, bottom: str, width: int, body: str) -> str:
    return convolution(name, bottom, width, body) + layer("ReLU", f"{name}_relu", name, top=name)


def definition() -> str:
    """The net that was released as VGG_VOC0712_SSD_300x300."""
    return 'name: "SSD300"\ninput: "data" input_shape { dim: 1 dim: 3 dim: 300 dim: 300 }\n' + "".join(_layers())


def _layers() -> Iterator[str]:
    below = "data"
    for i, (count, width) in enumerate(TRUNK, 1):
        for j in range(1, count + 1):
            yield with_relu(f"conv{i}_{j}", below, width, "kernel_size: 3 pad: 1")
            below = f"conv{i}_{j}"
        window = "kernel_size: 2 stride: 2" if i < 5 else "kernel_size: 3 stride: 1 pad: 1"
        yield layer("Pooling", f"pool{i}", below, f"pooling_param {{ pool: MAX {window} }}")
        below = f"pool{i}"
    yield layer("Normalize", "conv4_3_norm", "conv4_3", "norm_param { across_spatial: false channel_shared: false }")
    yield with_relu("fc6", below, 1024, "kernel_size: 3 pad: 6 dilation: 6")
    yield with_relu("fc7", "fc6", 1024, "kernel_size: 1")
    below = "fc7"
    for n, narrow, wide, body in EXTRAS:
        yield with_relu(f"conv{n}_1", below, narrow, "kernel_size: 1")
        yield with_relu(f"conv{n}_2", f"conv{n}_1", wide, f"kernel_size: 3 {body}")
        below = f"conv{n}_2"
    for blob, least, largest, step, ratios in SOURCES:
        boxes = 2 + 2 * len(ratios)
        for what, each in (("loc", 4), ("conf", CLASSES)):
            name = f"{blob}_mbox_{what}"
            yield convolution(name, blob, boxes * each, "kernel_size: 3 pad: 1")
            order = "permute_param { order: 0 order: 2 order: 3 order: 1 }"
            yield layer("Permute", f"{name}_perm", name, order)
            yield layer("Flatten", f"{name}_flat", f"{name}_perm", "flatten_param { axis: 1 }")
        ratio_fields = " ".join(f"aspect_ratio: {r}" for r in ratios)
        body = f"min_size: {least} max_size: {largest} {ratio_fields} flip: true clip: false step: {step} offset: 0.5"
        body += " variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
        yield layer("PriorBox", f"{blob}_priors", f"{blob} data", f"prior_box_param {{ {body} }}")
    for name, end, axis in (("loc", "_mbox_loc_flat", 1), ("conf", "_mbox_conf_flat", 1), ("priors", "_priors", 2)):
        bottoms = " ".join(f"{blob}{end}" for blob, *_ in SOURCES)
        yield layer("Concat", f"mbox_{name}", bottoms, f"concat_param {{ axis: {axis} }}")
    shape = f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {CLASSES} }} }}"
    yield layer("Reshape", "conf_rows", "mbox_conf", shape)
    yield layer("Softmax", "conf_softmax", "conf_rows", "softmax_param { axis: 2 }")
    yield layer("Flatten", "conf_flat", "conf_softmax", "flatten_param { axis: 1 }")
    body = f"num_classes: {CLASSES} share_location: true background_label_id: 0 code_type: CENTER_SIZE keep_top_k: 200"
    body += " confidence_threshold: 0.01 nms_param { nms_threshold: 0.45 top_k: 400 }"
    yield layer(
        "DetectionOutput", "detection_out", "mbox_loc conf_flat mbox_priors", f"detection_output_param {{ {body} }}"
    )


def make(folder: Path, *, confident: bool) -> None:
    """The definition, random weights and a picture, in files."""
    import torch

    import caffe_port

    (folder / "net.prototxt").write_text(definition())
    net = caffe_port.Net(folder / "net.prototxt", dialect="ssd")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("weight"):
                gain = 0.5 if "mbox" in name else 2**0.5
                p.normal_(0, gain / p[0].numel() ** 0.5)
            else:
                p.fill_(20.0 if name.endswith("scale") else 0.0)
            if confident and name.endswith("mbox_conf.bias"):
                p.view(-1, CLASSES)[:, 0] = 9
    net.save(folder / "net.caffemodel")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(0, 1, (1, 3, 300, 300)).astype(np.float32))


def run(name: str, folder: Path, threads: int):
    """A function that runs the net once and returns its detections."""
    files, x = (str(folder / "net.prototxt"), str(folder / "net.caffemodel")), np.load(folder / "x.npy")
    if name == "opencv":
        import cv2

        cv2.setNumThreads(threads)
        theirs = cv2.dnn.readNetFromCaffe(*files)

        def forward() -> np.ndarray:
            theirs.setInput(x)
            return theirs.forward()

        return forward
    import torch

    import caffe_port

    torch.set_num_threads(threads)
    net = caffe_port.Net(*files)
    data = torch.from_numpy(x)

    def ours() -> np.ndarray:
        with torch.inference_mode():
            return net(data=data)["detection_out"].numpy()

    return ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--confident", action="store_true")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(run(args.serve[0], Path(args.serve[1]), args.threads))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), confident=args.confident)
        scores = {
            name: np.sort(run(name, Path(folder), args.threads)()[0, 0, :, 2])[::-1] for name in ("ours", "opencv")
        }
        shared = min(len(s) for s in scores.values())
        off = np.abs(scores["ours"][:shared] - scores["opencv"][:shared]).max(initial=0)
        print(f"{len(scores['ours'])} objects, OpenCV {len(scores['opencv'])}; sorted scores apart by {off:.1e}")
        here = [sys.executable, __file__, "--threads", str(args.threads), "--serve"]
        commands = {name: [*here, name, folder] for name in ("ours", "opencv")}
        times, peaks = take_turns(commands, rounds=args.rounds, warm=2, threads=args.threads, cwd=ROOT)
        report(times, peaks, "ours")


if __name__ == "__main__":
    main()
