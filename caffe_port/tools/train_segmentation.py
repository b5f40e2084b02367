"""train_segmentation: DecoupledNet's bridge and segmentation net, with a fixed classification net."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from caffe_port.errors import CaffeError
from caffe_port.formats import open_weights
from caffe_port.formats.adding import add_layers
from caffe_port.tools import fp_bp
from caffe_port.tools.cli import FOLDER, Parser, as_gflags, run
from caffe_port.tools.train_stage import PROTOTXT, add_stage_options, train_stage

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0 when done or stopped, 2 after an error."""
    parser = Parser(
        "train-segmentation",
        "Train the segmentation net, with the released solver of the LEVEL, in the folder of the lists that prepare"
        " made. The classification net's weights are converted for the net that holds its backward pass as layers.",
        example="5 --nets nets/decouplednet --classifier classifier.caffemodel -o trained.caffemodel",
    )
    add = parser.add_argument
    add("annotations", metavar="LEVEL", help="Full, 25, 10 or 5: strong annotations for each class")
    add("--classifier", metavar="FILE", help="the classification net's weights; needed unless the run is resumed")
    add(
        "--init",
        metavar="WEIGHTS",
        help="start from these layers of the bridge and the segmentation net; others are drawn",
    )
    add("--nets", metavar="DIR", default=str(PROTOTXT / "decouplednet"), help="the definitions; default: %(default)s")
    add_stage_options(parser, "trained.caffemodel")
    parser.reads("classifier", "init")
    parser.reads("nets", kind=FOLDER)
    run(_train, parser, as_gflags(argv))


def _train(arguments: argparse.Namespace) -> None:
    nets = Path(arguments.nets)
    solvers = sorted(nets.glob(f"*_train_seg_{arguments.annotations}_anno_solver.prototxt"))
    if len(solvers) != 1:
        known = [
            p.name.split("_train_seg_")[1].split("_anno")[0] for p in nets.glob("*_train_seg_*_anno_solver.prototxt")
        ]
        raise CaffeError(
            f"level {arguments.annotations}",
            f"{len(solvers)} solvers in {nets}",
            expected=f"one of {', '.join(sorted(known)) or 'a folder with *_train_seg_*_anno_solver.prototxt'}",
        )
    if arguments.weights:
        raise CaffeError(
            "--weights", "given", remedy="pass the classification net's with --classifier, or --snapshot to continue"
        )

    def start(path: Path) -> str:
        if not arguments.classifier:
            raise CaffeError("--classifier", "missing", expected="the classification net's weights")
        fp_bp.write(arguments.classifier, path, nets / fp_bp.DEFINITION.name, overwrite=True)
        if arguments.init:
            add_layers(path, open_weights(arguments.init).layers)
        return str(path)

    fixed = open_weights(arguments.classifier).layers if arguments.classifier else []
    what = f"DecoupledNet, {arguments.annotations} annotations"
    train_stage(arguments, solvers[0], start, what=what, fixed=fixed)


if __name__ == "__main__":
    main()
