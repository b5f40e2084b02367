"""make_shapes: draws a small data set of textured shapes, in PASCAL VOC's layout, for trials of every command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from caffe_port.segmentation.parallel import usable_cores
from caffe_port.segmentation.shapes import SHAPES, ShapeSet, make_shapes
from caffe_port.tools.cli import FOLDER, Parser, run
from caffe_port.tools.progress import each

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "make-shapes",
        "Draw a data set: textured shapes in clutter, several classes a picture, in PASCAL VOC's layout.",
        example="-o shapes --images 8 --classes 2 --size 48",
    )
    add = parser.add_argument
    parser.add_output("DIR", kind=FOLDER, required=True, help="the folder to create")
    add("--images", type=int, default=400, metavar="N", help="pictures for training; default: %(default)s")
    add("--val", type=int, metavar="N", help="pictures for validation; default: a quarter as many")
    add("--classes", type=int, default=5, metavar="K", help=f"1 to {len(SHAPES)}; default: %(default)s")
    add("--skip", type=int, default=0, metavar="N", help="leave out the first N shapes and their patterns; default: 0")
    add("--easy", action="store_true", help="square pictures of one to three large objects on quiet backgrounds")
    add("--size", type=int, default=128, metavar="S", help="pixels along the longer side; default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="each seed gives another set; default: %(default)s")
    add("--workers", type=int, default=usable_cores(), metavar="N", help="processes; default: one for each core")
    parser.add_quiet()
    run(_make_shapes, parser, argv)


def _make_shapes(arguments: argparse.Namespace) -> None:
    val = max(1, arguments.images // 4) if arguments.val is None else arguments.val
    drawn = ShapeSet(
        arguments.images, val, arguments.classes, arguments.size, arguments.seed, arguments.skip, arguments.easy
    )
    make_shapes(
        Path(arguments.output),
        drawn,
        workers=arguments.workers,
        overwrite=arguments.force,
        watch=partial(each, quiet=arguments.quiet),
    )
    if not arguments.quiet:
        print(f"{drawn.images} + {drawn.val} pictures of {', '.join(drawn.names)} in {arguments.output}")


if __name__ == "__main__":
    main()
