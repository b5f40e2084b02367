"""Comparisons whose answer is a number, 1 or 0, of the kind that is compared; no gradient passes.

Torch compares into numbers several times as quickly as into booleans, which then are converted.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["above", "differs", "equals"]


def above(x: Tensor, bound: float | Tensor) -> Tensor:
    """1 where x > ``bound``, else 0."""
    return torch.gt(x.detach(), bound, out=torch.empty_like(x))


def equals(x: Tensor, value: float) -> Tensor:
    """1 where x is ``value``, else 0."""
    return torch.eq(x.detach(), value, out=torch.empty_like(x))


def differs(x: Tensor, value: float) -> Tensor:
    """1 where x is not ``value``, else 0."""
    return torch.ne(x.detach(), value, out=torch.empty_like(x))
