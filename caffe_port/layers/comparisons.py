"""Comparisons that give 1 or 0 in the dtype of their input; no gradient passes.

In torch this is several times as fast as a comparison to booleans followed by a conversion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port.layers.functions import symbolic

__all__ = ["above", "differs", "equals"]


def above(x: Tensor, bound: float | Tensor) -> Tensor:
    """1 where x > ``bound``, else 0."""
    if symbolic(x):
        return (x.detach() > bound).to(x.dtype)
    return torch.gt(x.detach(), bound, out=torch.empty_like(x))


def equals(x: Tensor, value: float) -> Tensor:
    """1 where x is ``value``, else 0."""
    if symbolic(x):
        return (x.detach() == value).to(x.dtype)
    return torch.eq(x.detach(), value, out=torch.empty_like(x))


def differs(x: Tensor, value: float) -> Tensor:
    """1 where x is not ``value``, else 0."""
    if symbolic(x):
        return (x.detach() != value).to(x.dtype)
    return torch.ne(x.detach(), value, out=torch.empty_like(x))
