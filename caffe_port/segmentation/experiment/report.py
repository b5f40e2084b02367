"""The results: tables as Markdown and CSV, every cell's commands, curves and a plot over the annotations."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.errors import FormatError
from caffe_port.formats.atomic import atomic_write
from caffe_port.segmentation.contact_sheet import contact_sheet
from caffe_port.segmentation.evaluate import Scores, percents, short_names
from caffe_port.segmentation.experiment.page import Counts, class_rows, mean_text, page
from caffe_port.segmentation.experiment.plan import SYSTEMS, VAL, Cell, Plan
from caffe_port.segmentation.experiment.run import Runner
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.lists import FULL

__all__ = ["read_scores", "report"]

Array = np.ndarray[Any, np.dtype[Any]]
_SHOWN, _SHOWN_SIDE = 10, 160
"""Pictures on the contact sheet; pixels that each has there at least, if that takes no fraction."""


def report(plan: Plan, runner: Runner, facts: Sequence[tuple[str, object]]) -> str:
    """Writes ``results.md``, ``.html`` and ``.csv``, ``annotations.png`` and ``curves.png``; the main table's text.

    Only finished steps are reported; "-" marks the others.

    Args:
        facts: settings of the whole table, printed above it.
    """
    output = runner.output
    counts: Counts = {}
    classes: Sequence[str] = ()
    for cell in plan.cells:
        if runner.done(cell.step):
            classes, scores = read_scores(cell.step.makes)
            counts.setdefault((cell.level, cell.system), {})[cell.seed] = scores
    levels = list(dict.fromkeys(c.level for c in plan.cells))
    systems = list(dict.fromkeys(c.system for c in plan.cells))
    main = _table(levels, systems, counts)
    pages = [
        "# Table 1, on other data\n",
        _facts(facts),
        "Mean intersection over union in percent, over the background and all classes, of the validation pictures;"
        " of several seeds the mean, and ± their standard deviation.\n",
        main,
    ]
    if counts:
        pages += ["![](annotations.png)\n", _classes(levels, systems, counts, classes)]
    if counts and plan.folder:
        _sheet(output / "sheet.png", plan, runner, plan.folder)
        pages += ["## Validation pictures\n", "![](sheet.png)\n"]
    pages += [_notes(plan.cells), "## Commands\n", _commands(plan, runner), "## Losses\n", "![](curves.png)\n"]
    _write(output / "results.md", "\n".join(pages))
    _write(output / "results.csv", _csv(plan, runner, counts, classes))
    _plot(output / "annotations.png", levels, systems, counts)
    _curves(output / "curves.png", plan)
    pictures = [("Over the annotations", output / "annotations.png"), ("Losses", output / "curves.png")]
    _write(output / "results.html", page(counts, levels, systems, classes, facts, pictures))
    return main


def _write(path: Path, text: str) -> None:
    with atomic_write(path, overwrite=True) as file:
        file.write(text.encode())


def read_scores(path: Path) -> tuple[list[str], Scores]:
    """The classes and the counts of a file that ``evaluate --confusion`` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    counts = np.array([[int(n) for n in row[1:]] for row in rows], np.int64)
    if counts.shape != (len(head) - 1,) * 2:
        raise FormatError(str(path), f"counts of shape {counts.shape}", expected=f"{len(head) - 1} rows and columns")
    return head[1:], Scores(counts)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _table(levels: Sequence[str], systems: Sequence[str], counts: Counts) -> str:
    lines = [_row(["strong annotations", *(SYSTEMS[s] for s in systems)]), "|---|" + "---:|" * len(systems)]
    for level in levels:
        name = "all" if level == FULL else f"{level} a class"
        lines.append(_row([name, *(mean_text(counts.get((level, s), {})) for s in systems)]))
    return "\n".join(lines) + "\n"


def _classes(levels: Sequence[str], systems: Sequence[str], counts: Counts, classes: Sequence[str]) -> str:
    lines = ["## By class\n", _row(["", *short_names(classes), "mean"]), "|---|" + "---:|" * (len(classes) + 1)]
    lines += [_row([name, *percents(scores)]) for name, scores in class_rows(levels, systems, counts)]
    return "\n".join(lines) + "\n"


def _facts(facts: Sequence[tuple[str, object]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(_row(fact) for fact in facts)]) + "\n"


def _notes(cells: Sequence[Cell]) -> str:
    lines = [
        f"- {SYSTEMS[c.system]} at {c.level} is {SYSTEMS[c.same_as]}: both are trained on the same pictures.\n"
        for c in cells
        if c.same_as
    ]
    return "".join(lines)


def _commands(plan: Plan, runner: Runner) -> str:
    """The commands of every cell; those shared by several cells are listed once, before them."""
    users: dict[str, list[Cell]] = {}
    others = {cell.seed for cell in plan.cells[1:]} - {cell.seed for cell in plan.cells[:1]}
    for cell in plan.cells:
        if not cell.same_as:
            for step in cell.step.chain:
                users.setdefault(step.name, []).append(cell)
    parts = ["### Shared\n", *_block([s for s in plan.steps if len(users.get(s.name, ())) > 1], runner)]
    for cell in plan.cells:
        title = f"### {SYSTEMS[cell.system]}, {cell.level}" + (f", seed {cell.seed}" if cell.seed in others else "")
        own = [step for step in cell.step.chain if users[step.name] == [cell]]
        if own and not cell.same_as:
            parts += [f"{title}\n", *_block(own, runner)]
    return "\n".join(parts)


def _block(steps: Sequence[Any], runner: Runner) -> list[str]:
    lines = ["```sh"]
    for step in steps:
        seconds = runner.record(step).get("seconds")
        lines += [f"# {step.name}: " + (f"{seconds:.0f} s" if seconds else "not done"), step.command]
    return [*lines, "```\n"]


def _csv(plan: Plan, runner: Runner, counts: Counts, classes: Sequence[str]) -> str:
    lines = [",".join(["level", "system", "seed", "seconds", "mean_iou", *classes])]
    for cell in plan.cells:
        it = counts.get((cell.level, cell.system), {}).get(cell.seed)
        if it:
            seconds = sum(runner.record(step).get("seconds", 0) for step in cell.step.chain)
            numbers = ["" if np.isnan(n) else f"{n:.6f}" for n in (it.mean, *it.iou)]
            lines.append(",".join([cell.level, cell.system, str(cell.seed), f"{seconds:.0f}", *numbers]))
    return "\n".join(lines) + "\n"


def _plot(path: Path, levels: Sequence[str], systems: Sequence[str], counts: Counts) -> None:
    """Mean IoU against strong annotations, from the lowest to the highest of all seeds."""
    from caffe_port.solver.plot import figure

    with figure(path, 6.4, 4.2) as (axes,):
        order = list(reversed(levels))  # few annotations first
        for system in systems:
            known = {
                i: [100 * scores.mean for scores in counts[level, system].values()]
                for i, level in enumerate(order)
                if (level, system) in counts
            }
            if known:
                means = [float(np.mean(seeds)) for seeds in known.values()]
                (line,) = axes.plot([*known], means, marker="o", label=SYSTEMS[system])
                axes.vlines(
                    [*known], *zip(*((min(s), max(s)) for s in known.values()), strict=True), color=line.get_color()
                )
        axes.set_xticks(range(len(order)), [level if level == FULL else f"{level} a class" for level in order])
        axes.set(xlabel="strong annotations", ylabel="mean IoU, %", ylim=(0, None))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()


def _sheet(path: Path, plan: Plan, runner: Runner, root: Path) -> None:
    """Some validation pictures with the masks of every finished cell of the first seed."""
    folder = Folder(root)
    names = folder.names(VAL)
    names = names[:: -(-len(names) // _SHOWN)]
    results = {
        f"{SYSTEMS[cell.system]}, {cell.level}": cell.step.needs[0].makes
        for cell in plan.cells
        if runner.done(cell.step) and not cell.same_as and cell.seed == plan.cells[0].seed
    }
    side = max(max(folder.size(name)) for name in names)
    contact_sheet(folder, names, results, path, side=side, scale=max(1, _SHOWN_SIDE // side))


def _curves(path: Path, plan: Plan) -> None:
    """The loss of every training that wrote one, with a dashed line where the rate drops."""
    from caffe_port.solver.plot import figure

    trainings = [(step.name, step.curve) for step in plan.steps if step.curve and step.curve.is_file()]
    columns = min(4, max(1, len(trainings)))
    rows = max(1, -(-len(trainings) // columns))
    with figure(path, 3 * columns, 2 * rows, rows, columns) as panels:
        for axes, (name, curve) in zip(panels, trainings, strict=False):
            with curve.open(encoding="utf-8", newline="") as file:
                logged = [row for row in csv.DictReader(file) if row.get("Loss")]
            table = np.array(
                [[row[column] for column in ("NumIters", "Loss", "LearningRate")] for row in logged], float
            )
            at, loss, rate = table.reshape(-1, 3).T
            axes.plot(at, loss, linewidth=0.8)
            for drop in at[1:][rate[1:] < rate[:-1]]:
                axes.axvline(drop, linestyle="--", linewidth=0.8, color="tab:red")
            axes.set_title(name, fontsize=8)
            axes.tick_params(labelsize=7)
            axes.grid(alpha=0.3)
        for axes in panels[len(trainings) :]:
            axes.set_axis_off()
