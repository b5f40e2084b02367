"""demo_parity: a model that the fork of DecoupledNet wrote, converted, run on a picture, compared with its numbers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from caffe_port.definitions import data
from caffe_port.errors import FileError
from caffe_port.segmentation.voc import CLASSES, MEAN
from caffe_port.tools.cli import FOLDER, Parser, run

if TYPE_CHECKING:
    from PIL.Image import Image

    from caffe_port.pycaffe import Net

__all__ = ["blob_of", "main"]

DEMO_DATA = data("tests/reference/demo", "demo_data")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, 1 if a number differs from the fork's, 2 after an error."""
    parser = Parser(
        "demo-parity",
        "Convert an embedded model, run it on an embedded picture, compare it with real Caffe.",
        example="",
    )
    parser.add_argument("-o", "--output", metavar="DIR", default="demo_parity", help="default: %(default)s")
    parser.writes("output", kind=FOLDER)
    run(_demo, parser, argv)


def _demo(arguments: argparse.Namespace) -> int:
    from PIL import Image

    start, folder = time.perf_counter(), Path(arguments.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(str(folder), f"cannot be created: {error.strerror}", remedy="choose another with -o") from None
    model, prototxt, reference = (_material(n) for n in ("weights.caffemodel", "net.prototxt", "reference.npz"))

    print("1. Convert: a .caffemodel that the fork wrote, of a DecoupledNet with 1/32 of the features\n")
    converted = folder / "decouplednet.safetensors"
    _convert(model, converted)

    print("\n2. Run it on a picture, in two passes as released: which classes, then where\n")
    from caffe_port.pycaffe import TEST, Net

    net = Net(prototxt, TEST, weights=converted)
    with Image.open(_material("picture.png")) as picture:
        scores, map = segment(net, blob_of(picture))
        shown = folder / "seg.png"
        sheet(picture.convert("RGB"), map, scores).save(shown)
    best = ", ".join(f"{CLASSES[i]} {scores[i]:.3f}" for i in np.argsort(-scores)[:3])
    print(f"   scores: {best} ...; foreground: {(map > 0.5).mean():.1%} of the picture")
    print("   (its weights are random: labels and map have no meaning, but they equal the fork's numbers)")
    print(f"   wrote {shown}")

    print("\n3. Compare every blob with what the fork computes for the same input\n")
    over = _compare(net, reference, folder / "parity.html")
    print(_NEXT_STEPS.format(seconds=time.perf_counter() - start))
    return over


_NEXT_STEPS = """
Done in {seconds:.1f} s. With a model of your own:

   python converters/caffe2torch.py model.caffemodel                       # model.safetensors for PyTorch
   python converters/dump_reference.py net.prototxt model.caffemodel       # inside your Caffe: net.npz, its numbers
   python -m caffe_port.tools.parity net.prototxt model.caffemodel net.npz --html parity.html"""


def _material(name: str) -> Path:
    path = DEMO_DATA / name
    if not path.is_file():
        raise FileError(
            str(path), "no such file", remedy="run the demo in a clone of the repository, which contains it"
        )
    return path


def _convert(model: Path, output: Path) -> None:
    from caffe_port.formats import open_weights, save_state_dict

    weights = open_weights(model)
    arrays = weights.state_dict()
    save_state_dict(output, arrays, overwrite=True)
    total = sum(array.size for array in arrays.values())
    lines = [f"   {key:22} {tuple(array.shape)}" for key, array in arrays.items()]
    print("\n".join([*lines[:3], "   ...", *lines[-2:]]))
    print(f"   wrote {output}: {len(arrays)} arrays, {total:,} numbers")


def blob_of(picture: Image) -> np.ndarray:
    """A picture as the net's input: (1, 3, height, width), blue first, minus the mean; float32."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)[:, :, ::-1] - np.array(MEAN, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]


def segment(net: Net, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The released inference's first two passes.

    Returns:
        The class scores (20,), and the foreground map (height, width) of the classes with a score over 0.5, 0 to 1.
    """

    def forward(masked: np.ndarray) -> dict[str, np.ndarray]:
        inputs: dict[str, Any] = {"data": data, "cls-score-masked": masked}
        return net.forward(**inputs)

    scores = forward(np.zeros(net.blobs["cls-score-masked"].shape))["cls-score-avg-sigmoid"].copy()
    output = forward(scores * (scores > 0.5))["seg-score"][0]
    e = np.exp(output - output.max(0))
    return scores.ravel(), e[1] / e.sum(0)


def sheet(picture: Image, map: np.ndarray, scores: np.ndarray) -> Image:
    """The picture, the foreground map and a bar for each class, side by side."""
    from PIL import Image, ImageDraw

    side, gap = picture.height, 12
    page = Image.new("RGB", (3 * side + 4 * gap, side + 2 * gap), "white")
    page.paste(picture, (gap, gap))
    page.paste(Image.fromarray((255 * map).astype(np.uint8)), (side + 2 * gap, gap))
    draw, left, step = ImageDraw.Draw(page), 2 * side + 3 * gap, side / len(scores)
    for i, (name, score) in enumerate(zip(CLASSES, scores, strict=True)):
        top = gap + i * step
        draw.text((left, top + 2), name, fill="black")
        draw.rectangle((left + 80, top + 3, left + side, top + step - 3), fill="#e8ebee")
        draw.rectangle((left + 80, top + 3, left + 80 + (side - 80) * float(score), top + step - 3), fill="#2f7fc1")
    return page


def _compare(net: Net, reference: Path, page: Path) -> int:
    from caffe_port.tools.parity import listing, write_page
    from caffe_port.tools.parity_report import measure
    from caffe_port.tools.replay import Reference

    report = measure(net, Reference(reference))
    print("   " + listing(report.worst_first[:10]).replace("\n", "\n   "))
    print(f"   {report.head}")
    print(f"   {report.verdict}")
    write_page(page, report, overwrite=True)
    print(f"   wrote {page}, a bar for each layer")
    return 1 if report.over else 0


if __name__ == "__main__":
    main()
