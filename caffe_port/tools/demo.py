"""demo: the paper's procedure on pictures that are drawn, from annotations to masks and their scores."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from caffe_port.definitions import data
from caffe_port.formats import open_weights
from caffe_port.formats.atomic import atomic_write
from caffe_port.segmentation.contact_sheet import contact_sheet
from caffe_port.segmentation.experiment import RECIPES, Cell, Runner, Step, plan, read_scores
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.parallel import usable_cores
from caffe_port.tools.cli import FOLDER, Parser, run, table

__all__ = ["main"]

DRAWN = {"images": 400, "val": 60, "classes": 3, "size": 96, "seed": 1, "skip": 12}
"""Options of make_shapes for the pictures, beside --easy."""
WEIGHTS = data("weights/demo", "demo_weights") / "shapes.npz"
"""What the trainings start from: nets trained on pictures of OTHERS, without the layer of the classes' scores."""
OTHERS = {"images": 2000, "val": 200, "classes": 8, "size": 96, "seed": 11}
"""Options of make_shapes: shapes and patterns of which DRAWN has none."""
SHOWN = 8
"""Number of pictures on the contact sheet: those with most classes."""

WHAT = {
    "data": "pictures with masks, drawn: textured shapes in clutter",
    "lists": "combinatorial crops of every subset of a picture's classes",
    "nets": "the published definitions, with an eighth of the features",
    "classifier": "the classification net, from image-level labels",
    "classifier-folded": "its batch normalization folded into its convolutions",
    "decouplednet-Full": "the segmentation net, from masks",
    "decouplednet-Full-folded": "batch normalization for single pictures",
    "decouplednet-Full-masks": "the validation pictures, segmented",
    "decouplednet-Full-scores": "their masks compared with the true ones",
    "decouplednet-Full-untrained-scores": "the same of the net that training starts from",
    "safetensors": "the net as .safetensors, for PyTorch",
    "onnx": "the net as .onnx, run beside it",
}
"""What the steps do. Others, not named here, make the masks of the net before it is trained."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, 2 after an error."""
    parser = Parser(
        "demo",
        "Draw pictures, train DecoupledNet on them for a minute or two, segment, score, convert it. Run again, it shows"
        " the finished results.",
        example="",
    )
    add = parser.add_argument
    add("-o", "--output", metavar="DIR", default="demo_output", help="default: %(default)s")
    add("--make-weights", metavar="FILE.npz", help="train the weights that it starts from, on other shapes")
    parser.writes("output", kind=FOLDER)
    parser.writes("make_weights")
    run(_demo, parser, argv)


def _demo(arguments: argparse.Namespace) -> None:
    start, output, making = time.perf_counter(), Path(arguments.output), arguments.make_weights
    drawn = OTHERS if making else DRAWN
    made = plan(
        ["--easy", *(str(word) for option, value in drawn.items() for word in (f"--{option}", value))],
        output,
        RECIPES["demo-weights" if making else "demo"],
        classes=drawn["classes"],
        levels=["Full"],
        systems=["decouplednet"],
        seed=1,
        start="" if making else str(WEIGHTS),
        untrained=not making,
    )
    steps = [*made.steps]
    if not making:
        steps += _conversions(output, next(step for step in steps if step.name == "decouplednet-Full-folded"))

    def report(step: Step, seconds: float) -> None:
        if step.name in WHAT:
            print(f"{seconds:6.1f} s  {WHAT[step.name]}", flush=True)

    # As many at a time as there are cores, with one thread each: the fastest for such narrow nets.
    runner = Runner(output, usable_cores(), report=report)
    known = sum(runner.done(step) for step in steps)
    print(f"{len(steps)} steps, {known} of them done before; each is a command, in {output / 'steps'}\n", flush=True)
    runner.run(steps)

    print()
    print(_scores(made.cells))
    if making:
        _save({step.name: step.makes for step in made.steps}, Path(making))
    sheet, folder = output / "contact_sheet.png", Folder(output / "data")
    most = sorted(folder.names("val"), key=lambda name: (-len(folder.labelled[name]), name))[:SHOWN]
    masks = {"after": output / "decouplednet-Full-masks"}
    if not making:
        masks = {"before": output / "decouplednet-Full-untrained-masks"} | masks
    contact_sheet(folder, most, masks, sheet, side=drawn["size"])
    print(f"\nwrote {sheet}: {SHOWN} pictures, their true masks, the net's")
    for step in steps[len(made.steps) :]:
        compared = [line for line in runner.said(step) if "gives the numbers" in line]
        print(f"wrote {step.makes}", *compared[-1:], sep=": ")
    print(_NEXT_STEPS.format(seconds=time.perf_counter() - start))


def _scores(cells: Sequence[Cell]) -> str:
    """A table of every class's IoU: of the trained net, and of the untrained one before it, if there is one."""
    known = [read_scores(cell.step.makes) for cell in reversed(cells)]
    columns = [[*scores.iou, scores.mean] for _, scores in known]
    rows = [
        (name, *("-" if np.isnan(iou) else f"{100 * iou:.1f}" for iou in ious))
        for name, *ious in zip((*known[0][0], "mean"), *columns, strict=True)
    ]
    return table(("class", *("IoU % before", "after")[-len(known) :]), rows, right=(1, 2)[: len(known)])


def _conversions(output: Path, weights: Step) -> list[Step]:
    """Steps that write the net for PyTorch, and for ONNX where its packages are installed."""
    net = output / "nets" / "decouplednet" / "DecoupledNet_Full_anno_inference_deploy.prototxt"
    torch, onnx = (output / name / f"decouplednet.{name}" for name in ("safetensors", "onnx"))
    words: tuple[str, ...] = ("-m", "caffe_port.tools.caffe2torch", str(weights.makes), "-o", str(torch), "-f")
    steps = [Step("safetensors", words, (weights,), torch)]
    if all(map(find_spec, ("onnx", "onnxruntime"))):
        words = ("-m", "caffe_port.tools.export", str(net), str(weights.makes), "-o", str(onnx), "-f")
        steps.append(Step("onnx", words, (weights,), onnx))
    return steps


def _save(made: Mapping[str, Path], output: Path) -> None:
    """Writes the trained layers of both nets, but the classes' scores, in half precision."""
    blobs: dict[str, np.ndarray] = {}
    for step in ("decouplednet-Full", "classifier"):  # whose convolutions are the ones before folding
        blobs |= open_weights(made[step]).state_dict()
    kept: dict[str, Any] = {name: blob.astype(np.float16) for name, blob in blobs.items() if not _SCORES.match(name)}
    with atomic_write(output, overwrite=True) as file:
        np.savez_compressed(file, **kept)
    print(f"wrote {output}: {len(kept)} blobs, {output.stat().st_size:,} bytes")


_SCORES = re.compile(r"cls-score|.*-bp\.")
"""Layers that depend on the classes, or are made of the classification net's (fp_bp)."""


_NEXT_STEPS = """
Done in {seconds:.0f} s. With pictures of your own: docs/tutorial.md. With a model of your own:

   caffe-port caffe2torch model.caffemodel                  # model.safetensors for PyTorch
   caffe-port demo-parity                                   # a model of the original program, compared with it"""


if __name__ == "__main__":
    main()
