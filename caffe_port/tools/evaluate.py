"""evaluate: scores masks against the true ones as PASCAL VOC's devkit does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from caffe_port.data.shard import gather, launched
from caffe_port.errors import CaffeError, FileError
from caffe_port.formats.atomic import atomic_write, check_output
from caffe_port.segmentation import voc
from caffe_port.segmentation.evaluate import Scores, markdown, masks_in, percents, score, short_names
from caffe_port.segmentation.folder import MASKS, PHOTOGRAPHS, Folder
from caffe_port.tools.cli import FOLDER, Parser, print_json, run, table
from caffe_port.tools.evaluation_page import System, Truth, page
from caffe_port.tools.progress import each

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "evaluate",
        "Score folders of masks by mean intersection over union, as PASCAL VOC's devkit does: over the pixels of all"
        " pictures together, without those whose true label is 255.",
        example="masks --truth VOC2012",
    )
    add = parser.add_argument
    add("results", metavar="[SYSTEM=]RESULTS", nargs="+", help="a folder of masks NAME.png; a row of the table")
    add("--truth", metavar="DIR", required=True, help="the true masks: a folder of them, or one in VOC's layout")
    add(
        "--list",
        metavar="FILE",
        help="the pictures to score, one name a line; in VOC's layout also a list's name (val)",
    )
    add("--names", metavar="A,B,...", help="the classes from label 1; default: classes.txt of VOC's layout, or VOC's")
    add("--markdown", metavar="FILE", help="also write the table as Markdown, in the form of the paper's table 2")
    add(
        "--confusion",
        metavar="FILE",
        help="also write pixel counts as CSV: true labels by row, predicted ones by column",
    )
    add(
        "--html",
        metavar="FILE",
        help="also write an HTML page: scores, confusion, the worst and the best pictures",
    )
    add("--pictures", metavar="DIR", help="the pictures shown on that page; default: those of VOC's layout")
    add(
        "--show",
        type=int,
        default=8,
        metavar="N",
        help="worst and best pictures on the page; default: %(default)s each",
    )
    parser.add_force()
    parser.reads("results", kind=FOLDER, part=lambda text: text.partition("=")[2] or text)
    parser.reads("truth", "pictures", kind=FOLDER)
    parser.writes("markdown", "confusion", "html")
    parser.add_json("print a line of JSON for each system: mean, IoU by class, pixel accuracy")
    parser.add_quiet()
    run(_evaluate, parser, argv)


def _evaluate(arguments: argparse.Namespace) -> None:
    for path in filter(None, (arguments.markdown, arguments.confusion, arguments.html)):
        check_output(path, overwrite=arguments.force)
    if len(arguments.results) > 1 and (arguments.html or arguments.confusion):
        raise CaffeError("--html and --confusion", f"{len(arguments.results)} folders of results", expected="one")
    truth = _truth(arguments)
    named = [_results(given, truth) for given in arguments.results]
    names = [name for number, name in enumerate(truth.names) if launched().keeps(number)]
    own = [
        [score(name, folder, truth.masks, len(truth.classes)) for _, folder in named]
        for name in each(names, "evaluate", quiet=arguments.quiet)
    ]
    gathered = gather(own)
    if gathered is None:  # the first process prints
        return
    systems = [
        System(name, folder, Scores(np.sum([one.scores.counts for one in scored], axis=0)), list(scored))
        for (name, folder), scored in zip(named, zip(*gathered, strict=True), strict=True)
    ]
    if arguments.json:
        for system in systems:
            print_json(_as_json(system, truth))
    elif not arguments.quiet:
        _print(systems, truth)
    if arguments.markdown:
        rows = [(system.name, system.total) for system in systems]
        _write(arguments.markdown, markdown(rows, truth.classes), arguments)
    if arguments.confusion:
        counts = zip(truth.classes, systems[0].total.counts, strict=True)
        lines = [("", *truth.classes), *((name, *row) for name, row in counts)]
        _write(arguments.confusion, "".join(",".join(map(str, line)) + "\n" for line in lines), arguments)
    if arguments.html:
        _write(arguments.html, page(systems[0], truth, arguments.show), arguments)


def _truth(arguments: argparse.Namespace) -> Truth:
    masks, pictures = Path(arguments.truth), arguments.pictures and Path(arguments.pictures)
    classes: tuple[str, ...] = voc.CLASSES
    if (masks / MASKS).is_dir():
        folder = Folder(masks)
        masks, pictures, classes = folder.root / MASKS, pictures or folder.root / PHOTOGRAPHS, folder.classes
        names = folder.names(arguments.list) if arguments.list else masks_in(masks)
    else:
        names = masks_in(masks, arguments.list and Path(arguments.list))
    if arguments.names:
        classes = tuple(arguments.names.split(","))
    return Truth(masks, names, ("background", *classes), pictures)


def _results(given: str, truth: Truth) -> tuple[str, Path]:
    """The name and the folder of ``[SYSTEM=]RESULTS``.

    Raises:
        FileError: masks are missing; gives their number and the first.
    """
    name, equals, path = given.partition("=")
    folder = Path(path if equals else given)
    for one, remedy in (
        (truth.masks, "check that the list belongs to these masks"),
        (folder, "name the pictures to score with --list"),
    ):
        missing = [name for name in truth.names if not (one / f"{name}.png").is_file()]
        if missing:
            found = f"{len(missing)} of {len(truth.names)} masks missing, the first {missing[0]}.png"
            raise FileError(str(one), found, remedy=remedy)
    return name if equals else folder.resolve().name, folder


def _print(systems: Sequence[System], truth: Truth) -> None:
    head = [*short_names(truth.classes), "mean"]
    if len(systems) == 1:  # one class a line is easier to read
        total = systems[0].total
        print(table(("class", "IoU %"), list(zip(head, percents(total), strict=True)), right=(1,)))
        print(f"{len(truth.names)} pictures, {100 * total.accuracy:.1f} % of the pixels correct")
    else:
        rows = [[system.name, *percents(system.total)] for system in systems]
        print(table(["", *head], rows, right=range(1, len(head) + 1)))


def _as_json(system: System, truth: Truth) -> dict[str, Any]:
    total = system.total
    return {
        "system": system.name,
        "pictures": len(truth.names),
        "mean": float(total.mean),
        "iou": {name: float(iou) for name, iou in zip(truth.classes, total.iou, strict=True)},
        "pixel_accuracy": float(total.accuracy),
    }


def _write(path: str, text: str, arguments: argparse.Namespace) -> None:
    with atomic_write(path, overwrite=arguments.force) as file:
        file.write(text.encode())
    if not (arguments.quiet or arguments.json):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
