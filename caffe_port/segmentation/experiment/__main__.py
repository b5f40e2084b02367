"""python -m caffe_port.segmentation.experiment: the paper's Table 1 on a folder of pictures, or on a drawn data set."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from caffe_port.errors import CaffeError
from caffe_port.segmentation.experiment.plan import LEVELS, SYSTEMS, plan
from caffe_port.segmentation.experiment.recipe import RECIPES, Recipe
from caffe_port.segmentation.experiment.report import report
from caffe_port.segmentation.experiment.run import Runner
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.parallel import usable_cores
from caffe_port.solver.plot import check_matplotlib
from caffe_port.tools.cli import FOLDER, Parser, run

__all__ = ["main"]

_DRAWN = {"quick": (1000, 100, 5, 96), "full": (4000, 400, 8, 128)}
"""Of each recipe's data set: pictures for training, for validation, classes, pixels of the longer side."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, 2 after an error, 130 when interrupted."""
    parser = Parser(
        "experiment",
        "Train and score every system of the paper's Table 1 at every level of strong annotations: a table, its curves"
        " and every command in OUT/results.md. Run again with the same options to continue where it stopped.",
        example="--quick --levels 5 --systems decouplednet --plan",
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", nargs="?", help="pictures in VOC's layout; default: a drawn data set")
    add("-o", "--output", metavar="OUT", default="experiment", help="default: %(default)s")
    add("--quick", action="store_true", help="small nets and few iterations: minutes on two cores")
    add("--levels", nargs="+", default=list(LEVELS), metavar="LEVEL", help="of Full 25 10 5; 25:LIST names pictures")
    add("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS, metavar="S", help=f"of {' '.join(SYSTEMS)}")
    add("--width", metavar="W", help="of the nets, relative to the published ones; default: 1/8")
    add("--init", metavar="WEIGHTS", help="a VGG-16: every system starts from its 13 convolutions, at full width")
    add("--decoder-width", metavar="W", help="of the segmentation half; default: --width, or 1/4 with --init")
    add(
        "--input-size", type=int, metavar="N", help="height and width of the nets' input; 64 quick, 96 full, 160 --init"
    )
    add("--effort", type=float, default=1.0, metavar="F", help="factor on the iterations; default: 1")
    add("--threshold", type=float, default=0.5, metavar="S", help="score above which DecoupledNet finds a class; 0.5")
    parser.add_device()
    add("--jobs", type=int, default=usable_cores(), metavar="N", help="commands at a time; default: one for each core")
    add("--seed", type=int, default=1, metavar="N", help="of everything; default: %(default)s")
    add("--repeats", type=int, nargs="+", default=[], metavar="N", help="further seeds of the trainings at 10 and 5")
    add("--plan", action="store_true", help="print the commands and run none")
    add("--report", action="store_true", help="run none; write the report of finished steps")
    parser.add_quiet("print the table only")
    parser.reads("init")
    parser.reads("folder", kind=FOLDER)
    parser.writes("output", kind=FOLDER)
    run(_experiment, parser, argv)


def _experiment(arguments: argparse.Namespace) -> None:
    for option, number in (("--effort", arguments.effort), ("--jobs", arguments.jobs)):
        if number <= 0:
            raise CaffeError(option, str(number), expected="above 0")
    levels = [level.partition(":")[0] for level in arguments.levels]
    for level in levels:
        if level not in LEVELS:
            raise CaffeError("--levels", level, expected=f"of {', '.join(LEVELS)}: the levels that have definitions")
    check_matplotlib()
    if arguments.init and (arguments.quick or arguments.width):
        raise CaffeError("--init", "with --quick or --width", expected="VGG-16's width; --decoder-width is free")
    if arguments.seed in arguments.repeats:
        raise CaffeError("--repeats", str(arguments.seed), expected="other seeds than --seed")
    kind, output = "quick" if arguments.quick else "full", Path(arguments.output)
    recipe = _recipe(RECIPES["init" if arguments.init else kind], arguments)
    images, val, classes, size = _DRAWN[kind]
    source: Path | list[str]
    if arguments.folder:
        folder = Folder(Path(arguments.folder))
        source, classes = Path(arguments.folder), len(folder.classes)
        images, val = len(folder.names("train")), len(folder.names("val"))
    else:
        words = {"images": images, "val": val, "classes": classes, "size": size, "seed": arguments.seed}
        source = [str(word) for option, value in words.items() for word in (f"--{option}", value)]
    made = plan(
        source,
        output,
        recipe,
        classes=classes,
        levels=levels,
        lists=arguments.levels,
        systems=arguments.systems,
        seed=arguments.seed,
        device=arguments.device,
        threshold=arguments.threshold,
        init=arguments.init or "",
        repeats=arguments.repeats,
    )
    if arguments.plan:
        print("\n".join(step.command for step in made.steps))
        return
    runner = Runner(output, arguments.jobs, arguments.quiet)
    typed = [word for word in sys.argv[1:] if word not in ("--report", "-q", "--quiet")]
    facts = [
        ("command", f"`{shlex.join(['python', '-m', 'caffe_port.segmentation.experiment', *typed])}`"),
        ("pictures", f"{images} for training, {val} for validation, {classes} classes"),
        ("nets", f"width {recipe.width}, input {recipe.size} x {recipe.size}, batches of {recipe.batch}"),
        *_widths(recipe),
        ("iterations", ", ".join(f"{name} {it.iterations}" for name, it in recipe.trainings.items())),
        ("a class is found", f"with a score above {arguments.threshold}"),
        ("seed", ", ".join(map(str, (arguments.seed, *arguments.repeats)))),
    ]
    try:
        if not arguments.report:
            runner.run(made.steps)
    finally:
        if output.is_dir():
            table = report(made, runner, facts)
    print(table if arguments.quiet else f"{table}\nwrote {output / 'results.md'}, results.csv, two plots")
    undone = sum(not runner.done(step) for step in made.steps)
    if undone:
        print(f"{undone} of {len(made.steps)} steps are not done", file=sys.stderr)


def _recipe(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    recipe = replace(
        recipe,
        width=arguments.width or recipe.width,
        size=arguments.input_size or recipe.size,
        decoder_width=arguments.decoder_width or recipe.decoder_width,
    )
    return recipe if arguments.effort == 1 else recipe.longer(arguments.effort)


def _widths(recipe: Recipe) -> list[tuple[str, object]]:
    """What a report says of the parts of the nets."""
    facts: list[tuple[str, object]] = []
    if recipe.fc_width or recipe.decoder_width:
        facts.append(
            ("widths", f"fc6 and fc7 {recipe.fc_width or recipe.width}, decoder {recipe.decoder_width or recipe.width}")
        )
    if recipe.kept:
        facts.append(("kept", ", ".join(f"{name} {count}" for name, count in recipe.kept.items())))
    return facts


if __name__ == "__main__":
    main()
