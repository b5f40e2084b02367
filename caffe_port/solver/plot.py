"""A plot of a training: loss, rate and scores over the iterations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caffe_port.errors import CaffeError
from caffe_port.formats.atomic import atomic_path, check_output
from caffe_port.solver.callbacks import Callback
from caffe_port.solver.metrics import Metrics, Table
from caffe_port.solver.solver import Solver

__all__ = ["Plot", "check_matplotlib", "figure"]

_Line = tuple[str, Table, str]
"""A line's label, its table and its column."""
_APART = ("NumIters", "Seconds", "LearningRate", "Loss")


class Plot(Callback):
    """Plots what ``metrics`` hold into a PNG file, at every snapshot and at the end.

    Raises:
        CaffeError: matplotlib is not installed. FileError: the file's folder is missing or not writable.
    """

    def __init__(self, path: str | Path, metrics: Metrics) -> None:
        check_output(path, overwrite=True)
        check_matplotlib()
        self.path, self.metrics = Path(path), metrics

    def on_snapshot(self, solver: Solver, state: Path) -> None:
        self.draw(solver)

    def on_end(self, solver: Solver) -> None:
        self.draw(solver)

    def draw(self, solver: Solver) -> None:
        """Write the plot; without any rows nothing is written."""
        metrics = self.metrics
        tables = [("train", metrics.train), *((f"test {i}" if i else "test", t) for i, t in enumerate(metrics.tests))]
        lines = [(f"{name} ({which})", table, name) for which, table in tables for name in _outputs(table)]
        losses = [line for line in lines if line[2] in metrics.losses and line[1] is not metrics.train]
        scores = [line for line in lines if line[2] not in metrics.losses]
        if not any(table.rows for _, table in tables):
            return
        heights = [3, 1] + [2] * bool(scores)
        with figure(self.path, 9, 1.6 * sum(heights), len(heights), sharex=True, height_ratios=heights) as panels:
            self._fill(panels, losses, scores, solver.net.definition.net.name or solver.path)

    def _fill(self, panels: list[Any], losses: list[_Line], scores: list[_Line], title: str) -> None:
        metrics = self.metrics
        if metrics.train.rows:
            panels[0].plot(*_line(metrics.train, "Loss"), linewidth=1, label="loss (train)")
            iterations, rates = _line(metrics.train, "LearningRate")
            panels[1].plot(iterations, rates, linewidth=1, color="black", drawstyle="steps-post")
            panels[1].set_yscale("log" if max(rates) > 30 * min(rates) > 0 else "linear")
        for label, table, name in losses:
            panels[0].plot(*_line(table, name), marker="o", markersize=3, label=label)
        for label, table, name in scores:
            alone = table is metrics.train
            panels[-1].plot(*_line(table, name), marker="" if alone else "o", markersize=3, linewidth=1, label=label)
        for panel, what in zip(panels, ("loss", "learning rate", "scores"), strict=False):
            panel.set_ylabel(what)
            panel.grid(alpha=0.3)
            if panel.get_legend_handles_labels()[1]:
                panel.legend(fontsize="small")
        panels[0].set_title(title)
        panels[-1].set_xlabel("iteration")


@contextmanager
def figure(
    path: Path, width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[list[Any]]:
    """Matplotlib's axes, row by row; after the block they are written as a PNG, 100 pixels to the inch.

    Args:
        options: of matplotlib's ``Figure.subplots``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    yield list(drawn.subplots(rows, columns, squeeze=False, **options).ravel())
    drawn.align_ylabels()
    with atomic_path(path, overwrite=True) as temporary:
        drawn.savefig(temporary, format="png", dpi=100)


def check_matplotlib() -> None:
    """Raise at the start of a training, not at its end, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise CaffeError("--plot", "no matplotlib here", remedy="pip install matplotlib, or caffe_port[plot]") from None


def _outputs(table: Table) -> list[str]:
    return [name for name in (table.rows[0] if table.rows else {}) if name not in _APART]


def _line(table: Table, name: str) -> tuple[list[Any], list[Any]]:
    return [row["NumIters"] for row in table.rows], [row.get(name, float("nan")) for row in table.rows]
