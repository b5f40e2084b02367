"""Comparisons whose answer is a number: 1 or 0.

Torch compares into the precision of its input several times as quickly as into booleans, which then are converted.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["above", "differs", "equals"]


def above(x: Tensor, bound: float | Tensor) -> Tensor:
    """1 where x > ``bound``, else 0, as numbers of the kind that ``x`` has; no gradient passes."""
    return x.detach().clone().gt_(bound)


def equals(x: Tensor, value: float) -> Tensor:
    """1 where x is ``value``, else 0, as numbers of the kind that ``x`` has; no gradient passes."""
    return x.detach().clone().eq_(value)


def differs(x: Tensor, value: float) -> Tensor:
    """1 where x is not ``value``, else 0, as numbers of the kind that ``x`` has; no gradient passes."""
    return x.detach().clone().ne_(value)
