"""Callbacks of a solver: progress bars, tables, plots, users' own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffe_port.solver.scores import Scores

__all__ = ["Callback", "Iteration"]


@dataclass(frozen=True)
class Iteration:
    """One training iteration.

    Attributes:
        number: from 0. loss: as the log shows it, averaged over ``average_loss`` iterations. rate: the learning rate.
        scores: the training net's outputs in the iterations that are displayed, else empty.
    """

    number: int
    loss: float
    rate: float
    scores: Sequence[Scores]


class Callback:
    """Called at every event of a training; the methods do nothing until a subclass overrides them.

    ``solver`` is the :class:`caffe_port.solver.Solver` that calls.
    """

    def on_begin(self, solver: Any) -> None:
        """A training begins, at iteration 0 or at that of a snapshot."""

    def on_start(self, solver: Any) -> None:
        """An iteration starts (Caffe's callback of this name)."""

    def on_gradients_ready(self, solver: Any) -> None:
        """The gradients are summed, the parameters not yet updated (Caffe's callback of this name)."""

    def on_iteration(self, solver: Any, iteration: Iteration) -> None:
        """An iteration is done."""

    def on_test(self, solver: Any, net: int, scores: Sequence[Scores]) -> None:
        """Test net number ``net`` was scored."""

    def on_snapshot(self, solver: Any, state: Path) -> None:
        """A snapshot was written."""

    def on_end(self, solver: Any) -> None:
        """The training is over, also by an error."""
