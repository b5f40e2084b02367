"""The loss that the log shows: the average over ``average_loss`` iterations. Source: solver.cpp (both programs)."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["SmoothedLoss"]

_f = np.float32


class SmoothedLoss:
    """A running average in single precision, with Caffe's order of operations.

    Args:
        window: how many numbers are averaged.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.value = 0.0
        self._last: list[float] = []
        self._added = 0
        self._goes_on = False

    def start(self) -> None:
        """Reset, as Caffe does at every call of Step, unless a state has just been set."""
        if not self._goes_on:
            self.value, self._last, self._added = 0.0, [], 0
        self._goes_on = False

    def add(self, number: float) -> float:
        """Add a number; the new average."""
        if len(self._last) < self.window:
            self._last.append(number)
            n = len(self._last)
            self.value = float((_f(self.value) * _f(n - 1) + _f(number)) / _f(n))
        else:
            oldest = self._added % self.window
            self.value = float(_f(self.value) + (_f(number) - _f(self._last[oldest])) / _f(self.window))
            self._last[oldest] = number
        self._added += 1
        return self.value

    def get_state(self) -> list[Any]:
        """The whole state, as JSON."""
        return [self.value, self._last.copy(), self._added]

    def set_state(self, state: list[Any]) -> None:
        """Continue from a :meth:`get_state` of the same window, also past the next :meth:`start`; of another
        window, ignore it."""
        value, last, added = state
        if len(last) == min(added, self.window):
            self.value, self._last, self._added = value, last.copy(), added
            self._goes_on = True

    def back(self, state: list[Any]) -> None:
        """Return to an earlier :meth:`get_state` of this object."""
        self.value, self._last, self._added = state[0], state[1].copy(), state[2]
