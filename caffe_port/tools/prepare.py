"""prepare: from a folder in PASCAL VOC's layout, the lists for training every net in prototxt/."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.lists import FULL, Level, Plan, prepare
from caffe_port.segmentation.parallel import helping, usable_cores
from caffe_port.tools.cli import FOLDER, Parser, count, run, share, table
from caffe_port.tools.progress import each

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "prepare",
        "Make the lists that the definitions in prototxt/ read: image-level labels for the classification net,"
        " combinatorial crops for DecoupledNet, both stages of DeconvNet. Run the definitions in the folder OUT.",
        example="VOC2012 -o lists --levels Full --crops 2 --proposals 4",
    )
    defaults = Plan()
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="JPEGImages, SegmentationClass, ImageSets; classes.txt if they are not VOC's")
    parser.add_output("OUT", kind=FOLDER, required=True, help="the folder for the lists; created if missing")
    add("--train", default=defaults.train, metavar="LIST", help="pictures for training; default: %(default)s")
    add("--val", default=defaults.val, metavar="LIST", help="pictures for testing; default: %(default)s")
    add(
        "--levels",
        nargs="+",
        default=list(defaults.levels),
        type=_level,
        metavar="LEVEL",
        help=f"strong annotations: {FULL} (every mask), N (for each class, chosen by the seed), NAME:LIST; default:"
        f" {' '.join(level.name for level in defaults.levels)}",
    )
    add("--crops", type=count, default=defaults.crops, metavar="N", help="for each subset of a picture's classes; 200")
    add("--drawn", type=share, default=defaults.drawn, metavar="S", help="smallest share of random crops; %(default)s")
    add(
        "--proposals",
        type=count,
        default=defaults.proposals,
        metavar="N",
        help="a picture, for DeconvNet; %(default)s",
    )
    add("--no-deconvnet", action="store_true", help="omit the lists of DeconvNet's two stages")
    add(
        "--masks-as-labels",
        action="store_true",
        help="train the classification net on the labels in a crop's mask; default: its picture's labels",
    )
    add(
        "--square",
        action="store_true",
        help="give the classification net pictures that zeros make square, as inference does; default: squashed ones",
    )
    add("--label-dim", type=count, default=0, metavar="N", help="numbers in a line's vector; default: the classes")
    add("--model", metavar="FILE", help="a structured forest (OpenCV's model.yml.gz) for EdgeBox; default: gradients")
    add(
        "--seed", type=int, default=defaults.seed, metavar="N", help="of choices and random boxes; default: %(default)s"
    )
    add("--workers", type=count, default=usable_cores(), metavar="N", help="processes; default: one for each core")
    parser.add_quiet("print nothing but errors and warnings")
    parser.reads("folder", kind=FOLDER)
    parser.reads("model")
    run(_prepare, parser, argv)


def _level(text: str) -> Level:
    name, _, names = text.partition(":")
    if not name or Path(name).name != name or not (names or name == FULL or (name.isdecimal() and int(name))):
        raise argparse.ArgumentTypeError(f"{text!r}, expected {FULL}, a number from 1, or NAME:LIST")
    return Level(name, names)


def _prepare(arguments: argparse.Namespace) -> None:
    plan = Plan(
        train=arguments.train,
        val=arguments.val,
        levels=tuple(dict.fromkeys(arguments.levels)),
        crops=arguments.crops,
        drawn=arguments.drawn,
        proposals=arguments.proposals,
        deconvnet=not arguments.no_deconvnet,
        masks_as_labels=arguments.masks_as_labels,
        square=arguments.square,
        label_dim=arguments.label_dim,
        model=arguments.model,
        seed=arguments.seed,
    )
    with helping(arguments.workers) as first:
        if not first:
            return
        made = prepare(
            Folder(Path(arguments.folder)),
            Path(arguments.output),
            plan,
            workers=arguments.workers,
            overwrite=arguments.force,
            watch=partial(each, quiet=arguments.quiet),
        )
    for warning in made.warnings():
        print(f"caffe-port prepare: warning: {warning}", file=sys.stderr)
    if not arguments.quiet:
        print(table(("list", "lines"), sorted(made.lines.items()), right=(1,)))


if __name__ == "__main__":
    main()
