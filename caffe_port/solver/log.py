"""Caffe's log: the same lines with glog's prefix, so that Caffe's own parse_log and plot tools read it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TextIO

import numpy as np

from caffe_port.console import number, quiet
from caffe_port.solver.scores import Scores

__all__ = ["Log"]


class Log:
    """Writes to ``file`` (stderr by default); GLOG_minloglevel above 0 in the environment silences it, as in Caffe.

    Attributes:
        write: called with each finished line; a progress bar replaces it, to stay below the lines.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file or sys.stderr
        self.write: Callable[[str], object] = self._print
        self.quiet = quiet()

    def _print(self, line: str) -> None:
        self.file.write(f"{line}\n")  # in one write, so that lines of several processes do not mix
        self.file.flush()

    @staticmethod
    def number(x: float) -> str:
        """As C++ streams print a float, with six significant digits; -0 as 0."""
        return number(x)

    def line(self, text: str, source: str = "solver.cpp", severity: str = "I") -> None:
        """One line: ``I1122 10:20:30.123456  4242 solver.cpp:1] text``."""
        if self.quiet:
            return
        now = time.time()
        stamp = time.strftime("%m%d %H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d}"
        self.write(f"{severity}{stamp} {threading.get_native_id():5d} {source}:1] {text}")

    def loss(self, iteration: int, loss: float, *, speed: tuple[float, float, int] | None = None) -> None:
        """The loss of an iteration.

        Args:
            speed: iterations a second, seconds, and the ``display`` interval that they are for.
        """
        rate = "({} iter/s, {}s/{} iters)".format(*map(self.number, speed)) if speed else ""
        self.line(f"Iteration {iteration}{' ' if rate else ''}{rate}, loss = {self.number(loss)}")

    def rate(self, iteration: int, rate: float) -> None:
        """The learning rate of an iteration."""
        self.line(f"Iteration {iteration}, lr = {self.number(rate)}", "sgd_solver.cpp")

    def scores(self, phase: str, scores: Iterable[Scores]) -> None:
        """The outputs of a net, each number on its line, a loss with its weight."""
        for i, s in enumerate(scores):
            self.line(f"    {phase} net output #{i}: {s.name} = {self.weighted(s)}")

    def weighted(self, score: Scores) -> str:
        """A score's number, and for a loss its weight and the product."""
        number = self.number(score.value)
        if not score.weight:
            return number
        product = np.float32(score.weight) * np.float32(score.value)
        return f"{number} (* {self.number(score.weight)} = {self.number(product)} loss)"

    def clipped(self, norm: float, factor: float, limit: float) -> None:
        """Log that the gradients were scaled down."""
        self.line(
            f"Gradient clipping: scaling down gradients (L2 norm {self.number(norm)} > {self.number(limit)}) "
            f"by scale factor {self.number(factor)}",
            "sgd_solver.cpp",
        )
