"""The metrics of a training as tables: in memory, as CSV files, and as TensorBoard events."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caffe_port.errors import FileError
from caffe_port.formats.atomic import atomic_write
from caffe_port.paths import exists
from caffe_port.solver.callbacks import Callback, Iteration
from caffe_port.solver.log import Log
from caffe_port.solver.scores import Scores
from caffe_port.solver.solver import Solver

__all__ = ["Metrics", "Table"]

Row = dict[str, float]

_STEP, _SECONDS = "NumIters", "Seconds"


class Table:
    """Rows by iteration, also in a CSV file if there is one.

    Attributes:
        rows: each with ``NumIters``, ``Seconds`` and further columns, named as in Caffe's parse_log.py.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: list[Row] = []

    def start(self, iteration: int) -> None:
        """Continue at ``iteration`` with the rows before it in the file; the earlier file is kept as .old."""
        if self.path is None or not exists(self.path):
            return
        with self.path.open(newline="") as file:
            kept = [row for row in map(_row, csv.DictReader(file)) if row]
        self.rows = [row for row in kept if row.get(_STEP, iteration) < iteration]
        self.path.replace(self.path.with_name(self.path.name + ".old"))
        if self.rows:
            with atomic_write(self.path) as whole:
                whole.write(_text(self.rows[0], self.rows, head=True).encode())

    def add(self, row: Row) -> None:
        """One more row.

        Raises:
            FileError: the file cannot be written.
        """
        self.rows.append(row)
        if self.path is None:
            return
        try:
            with self.path.open("a", newline="") as file:
                file.write(_text(self.rows[0], [row], head=len(self.rows) == 1))
        except OSError as error:
            raise FileError(str(self.path), f"cannot be written: {error.strerror or error}") from error


def _row(texts: dict[str, str]) -> Row | None:
    """A line's numbers; None if it was cut off."""
    try:
        return {k: float(v) for k, v in texts.items() if k and v}
    except ValueError:
        return None


def _text(columns: Row, rows: Sequence[Row], *, head: bool) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if head:
        writer.writerow(columns)
    for row in rows:
        writer.writerow([Log.number(row[name]) if name in row else "" for name in columns])
    return file.getvalue()


class Metrics(Callback):
    """Keeps what the log shows: the displayed iterations and the tests.

    Args:
        folder: where ``train.csv``, ``test.csv`` (further test nets: ``test_1.csv`` ...) and TensorBoard's events go;
            with None they are kept in memory only.

    Attributes:
        train: the table of displayed iterations. tests: one table per test net. losses: names of the loss outputs.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.train, self.tests = Table(), list[Table]()
        self.losses: set[str] = set()
        self._board: Any = None
        self._since = 0.0

    def on_begin(self, solver: Solver) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._board = _board(self.folder, solver)
        names = ["test.csv", *(f"test_{i}.csv" for i in range(1, len(solver.test_nets)))][: len(solver.test_nets)]
        self.train, *self.tests = (Table(self.folder / n if self.folder else None) for n in ("train.csv", *names))
        for table in (self.train, *self.tests):
            table.start(solver.iter)
        for net in (solver.net, *solver.test_nets):
            self.losses.update(name for name in net.outputs if net.loss_weights.get(name))
        before = max((t.rows[-1].get(_SECONDS, 0.0) for t in (self.train, *self.tests) if t.rows), default=0.0)
        self._since = time.monotonic() - before

    def on_iteration(self, solver: Solver, iteration: Iteration) -> None:
        if iteration.scores:
            row = {"LearningRate": iteration.rate, "Loss": iteration.loss}
            self._add(self.train, "train", iteration.number, row, iteration.scores)

    def on_test(self, solver: Solver, net: int, scores: Sequence[Scores]) -> None:
        self._add(self.tests[net], f"test_{net}" if net else "test", solver.iter, {}, scores)

    def on_end(self, solver: Solver) -> None:
        if self._board is not None:
            self._board.close()

    def _add(self, table: Table, group: str, step: int, row: Row, scores: Sequence[Scores]) -> None:
        numbers = dict(row)
        names = [s.name for s in scores]
        for i, s in enumerate(scores):
            several = names.count(s.name) > 1 or s.name in row
            numbers[f"{s.name}[{i - names.index(s.name)}]" if several else s.name] = s.value
        table.add({_STEP: step, _SECONDS: time.monotonic() - self._since, **numbers})
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(f"{group}/{name}", value, step)


def _board(folder: Path, solver: Solver) -> Any:
    """TensorBoard's writer, if the package is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("no package tensorboard (pip install tensorboard): only CSV files are written", file=sys.stderr)
        return None
    return SummaryWriter(str(folder), purge_step=solver.iter or None)
