"""Caffe's gradient of a layer whose blobs were overwritten.

Caffe's backward pass reads bottoms and tops from memory. A later in-place layer has changed them by then, and what
Caffe computes from them is not the derivative, but it is what Caffe trains with. An in-place layer also shares its diff
with its bottom, and some layers write it before they read it.

Source: every layer's Backward_cpu (both programs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Backward", "Gradients", "at_the_blobs"]

Gradients = tuple[Sequence[Tensor | None], Mapping[str, Tensor | None]]
"""The diff of each bottom, and those of the parameters by name; None or missing means zero."""


@dataclass(frozen=True)
class Backward:
    """The arguments of a layer's backward pass.

    Attributes:
        given: the bottoms as forward read them. bottoms, tops: their current values.
        diffs: the tops' diffs. wanted: which bottoms' diffs are required.
        in_place: whether the first top is the first bottom, with one diff.
    """

    given: Sequence[Tensor]
    bottoms: Sequence[Tensor]
    tops: Sequence[Tensor]
    diffs: Sequence[Tensor]
    wanted: Sequence[bool]
    in_place: bool


def at_the_blobs(layer: Any, b: Backward) -> Gradients:
    """The layer's derivative at the current values of those bottoms that its backward pass reads.

    This is Caffe's gradient if the backward pass reads neither tops nor values stored by forward.
    """
    leaves = [
        (b.bottoms if k in layer.reads_bottoms else b.given)[k].detach().requires_grad_(b.wanted[k])
        for k in range(len(b.given))
    ]
    learned = [name for name in layer.blob_names if getattr(layer, name).requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad] + [getattr(layer, name) for name in learned]
    with torch.enable_grad():
        tops = layer(*leaves)
    tops = tops if isinstance(tops, tuple) else (tops,)
    paths = [(top, diff.reshape(top.shape)) for top, diff in zip(tops, b.diffs, strict=True) if top.requires_grad]
    if not paths or not wanted:
        return [None] * len(leaves), {}
    of, seeds = zip(*paths, strict=True)
    found = iter(torch.autograd.grad(of, wanted, seeds, allow_unused=True))
    bottoms = [next(found) if leaf.requires_grad else None for leaf in leaves]
    return bottoms, dict(zip(learned, found, strict=True))
