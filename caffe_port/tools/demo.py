"""demo: the paper's procedure on pictures that are drawn, from annotations to masks and their scores."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from caffe_port.segmentation.contact_sheet import contact_sheet
from caffe_port.segmentation.experiment import RECIPES, Runner, Step, plan, read_scores
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.parallel import usable_cores
from caffe_port.tools.cli import FOLDER, Parser, run, table

__all__ = ["main"]

DRAWN = {"images": 400, "val": 60, "classes": 3, "size": 80, "seed": 1}
"""Options of make_shapes for the pictures."""
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
    "torch": "the net as .safetensors, for PyTorch",
    "decouplednet-Full-masks": "the validation pictures, segmented",
    "decouplednet-Full-scores": "their masks compared with the true ones",
}
"""What each step does."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, 2 after an error."""
    parser = Parser(
        "demo",
        "Draw pictures, train DecoupledNet on them for a minute or two, convert it, segment, score. Run again, it shows"
        " the finished results.",
        example="",
    )
    parser.add_argument("-o", "--output", metavar="DIR", default="demo_output", help="default: %(default)s")
    parser.writes("output", kind=FOLDER)
    run(_demo, parser, argv)


def _demo(arguments: argparse.Namespace) -> None:
    start, output = time.perf_counter(), Path(arguments.output)
    words = [str(word) for option, value in DRAWN.items() for word in (f"--{option}", value)]
    made = plan(
        words, output, RECIPES["demo"], classes=DRAWN["classes"], levels=["Full"], systems=["decouplednet"], seed=1
    )
    weights = next(step for step in made.steps if step.name == "decouplednet-Full-folded")
    converted = output / "torch" / "decouplednet.safetensors"
    convert = ("-m", "caffe_port.tools.caffe2torch", str(weights.makes), "-o", str(converted), "-f")
    steps = [*made.steps, Step("torch", convert, (weights,), converted)]

    def report(step: Step, seconds: float) -> None:
        print(f"{seconds:6.1f} s  {WHAT[step.name]}", flush=True)

    # As many at a time as there are cores, with one thread each: the fastest for such narrow nets.
    runner = Runner(output, usable_cores(), report=report)
    known = sum(runner.done(step) for step in steps)
    print(f"{len(steps)} steps, {known} of them done before; each is a command, in {output / 'steps'}\n", flush=True)
    runner.run(steps)

    names, scores = read_scores(made.cells[0].step.makes)
    rows = [(name, "-" if np.isnan(iou) else f"{100 * iou:.1f}") for name, iou in zip(names, scores.iou, strict=True)]
    print()
    print(table(("class", "IoU %"), [*rows, ("mean", f"{100 * scores.mean:.1f}")], right=(1,)))
    sheet = output / "contact_sheet.png"
    folder = Folder(output / "data")
    most = sorted(folder.names("val"), key=lambda name: (-len(folder.labelled[name]), name))[:SHOWN]
    contact_sheet(folder, most, {"result": output / "decouplednet-Full-masks"}, sheet, side=DRAWN["size"])
    print(f"\nwrote {sheet}: picture, truth, result; {converted}")
    print(_NEXT_STEPS.format(seconds=time.perf_counter() - start))


_NEXT_STEPS = """
Done in {seconds:.0f} s. With pictures of your own: docs/tutorial.md. With a model of your own:

   caffe-port caffe2torch model.caffemodel                  # model.safetensors for PyTorch
   caffe-port demo-parity                                   # a model of the original program, compared with it"""


if __name__ == "__main__":
    main()
