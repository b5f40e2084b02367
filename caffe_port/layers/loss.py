"""Softmax and the losses.

Source: softmax_layer.cpp, softmax_loss_layer.cpp, sigmoid_cross_entropy_loss_layer.cpp, red_softmax_loss_layer.cpp
(noh).
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.geometry import CoordMap, identity_map


@layer("Softmax", param="softmax_param")
class Softmax(Layer):
    """exp(x) normalised to sum 1 along ``axis``."""

    def setup(self, x: Shape) -> None:
        self.p.skip("engine")
        self.over = self.axis(self.p.axis, x)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, self.over)

    def coord_map(self) -> CoordMap:
        return identity_map()


class Loss(Layer):
    """A loss over predictions and labels, divided as ``loss_param`` says.

    Attributes:
        ignore: the label that counts for nothing, or None.
        normalization: FULL, VALID, BATCH_SIZE or NONE.
    """

    bottoms = (2, 2)
    loss = True
    labels: tuple[int, ...] = (1,)
    ignore: int | None = None

    def read_loss_param(self, default: str) -> None:
        """Read ``loss_param``; ``normalize`` is the older form of ``normalization`` (loss_layer.cpp)."""
        p = self.fields.loss_param
        self.ignore = p.ignore_label if p.has("ignore_label") else None
        if p.has("normalization"):
            p.skip("normalize")
            self.normalization = p.enum("normalization")
        elif p.has("normalize"):
            self.normalization = "VALID" if p.normalize else "BATCH_SIZE"
        else:
            self.normalization = default

    def normalizer(self, batch: int, full: int, valid: Tensor | None) -> Tensor | float:
        """What the sum is divided by: ``valid`` is the count of labels not ignored, None when every label counts."""
        if self.normalization == "VALID":
            n: Tensor | float = float(full) if valid is None else valid
        else:
            n = float({"FULL": full, "BATCH_SIZE": batch, "NONE": 1}[self.normalization])
        if not self.dialect.loss_guards_empty:
            return n
        return n.clamp(min=1) if isinstance(n, Tensor) else max(n, 1.0)


def check_labels(loss: Loss, label: Tensor, classes: int) -> Tensor:
    """``label`` (int64) itself, if every label is a class's number; a ShapeError otherwise."""
    if label.numel() and not (0 <= label.min() and label.max() < classes):
        raise loss.shape_error(
            f"labels from {int(label.min())} to {int(label.max())}",
            expected=f"0 to {classes - 1}" + (f", or {loss.ignore} to ignore" if loss.ignore is not None else ""),
        )
    return label


def serial_sum(x: Tensor) -> Tensor:
    """The sum in raster order, rounded after every addition.

    That is how Caffe's loss loops add; over 10^5 pixels the rounding reaches 4e-4 of the loss, so another order would
    show. Elsewhere than on the CPU, where no Caffe computes losses this way, the sum is torch's. Differentiable.
    """
    return _SerialSum.apply(x) if x.device.type == "cpu" and x.numel() else x.sum()


class _SerialSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return torch.from_numpy(np.add.accumulate(x.contiguous().numpy().ravel())[-1:]).squeeze(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.expand(ctx.shape)


def grouped_sum(x: Tensor, groups: int) -> Tensor:
    """(N, C, ...) to (N, groups, ...): sums of ``groups`` runs of channels, cut as red_softmax_loss_layer.cpp does."""
    channels = x.shape[1]
    edges = [k * channels // groups for k in range(groups + 1)]
    return torch.stack([x[:, a:b].sum(1) for a, b in pairwise(edges)], 1)


class _LogProbability(torch.autograd.Function):
    """Sum of -log(max(p[label], smallest normal float)); the gradient, as Caffe's, does not see the bound.

    ``x`` (outer, C, inner), ``label`` (outer, inner), ``keep`` (outer, inner) as 0 and 1. With fewer ``classes`` than
    channels a label's probability is the sum of its class's channels. Returns the sum and the probabilities.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, label: Tensor, keep: Tensor, classes: int) -> tuple[Any, ...]:
        probability = torch.softmax(x, 1)
        index, redundant = label.unsqueeze(1), classes != x.shape[1]
        by_class = grouped_sum(probability, classes) if redundant else probability
        own = by_class.gather(1, index)
        loss = serial_sum(own.clamp(min=torch.finfo(torch.float32).tiny).log().squeeze(1) * -keep)
        ctx.save_for_backward(probability, index, keep, own)
        ctx.classes, ctx.redundant = classes, redundant
        ctx.mark_non_differentiable(probability)
        return loss, probability

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        probability, index, keep, own = ctx.saved_tensors
        if ctx.redundant:
            channels = probability.shape[1]
            first = index * channels // ctx.classes
            past = (index + 1) * channels // ctx.classes
            channel = torch.arange(channels, device=index.device).view(1, -1, 1)
            diff = probability - probability / own * ((channel >= first) & (channel < past))
        else:
            diff = probability.scatter_add(1, index, -torch.ones_like(own))
        return diff * (keep.unsqueeze(1) * grad), None, None, None


class _SoftmaxLoss(Loss):
    tops = (1, 2)

    def setup(self, x: Shape, label: Shape) -> None:
        self.read_loss_param("VALID")
        self.over, self.classes = 1, x[1]

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        if prod(label) * x[self.over] != prod(x):
            raise self.shape_error(f"scores {x} with labels {label}", expected="a label for each pixel of the scores")
        return [(), x][: self.n_tops]

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        outer, inner = prod(x.shape[: self.over]), prod(x.shape[self.over + 1 :])
        label = label.reshape(outer, inner).to(torch.int64)
        valid = torch.ones_like(label, dtype=torch.bool) if self.ignore is None else label != self.ignore
        label = check_labels(self, torch.where(valid, label, 0), self.classes)
        total, probability = _LogProbability.apply(x.reshape(outer, -1, inner), label, valid.to(x.dtype), self.classes)
        count = None if self.ignore is None else valid.sum().to(x.dtype)
        loss = total / self.normalizer(outer, outer * inner, count)
        return loss if self.n_tops == 1 else (loss, probability.view(x.shape))


@layer("SoftmaxWithLoss", param="softmax_param")
class SoftmaxWithLoss(_SoftmaxLoss):
    """The cross-entropy of the softmax; a second top gives the probabilities."""

    def setup(self, x: Shape, label: Shape) -> None:
        super().setup(x, label)
        self.p.skip("engine")
        self.over = self.axis(self.p.axis, x)
        self.classes = x[self.over]


@layer("RedSoftmaxWithLoss", param="red_softmax_loss_param", dialects=("noh",))
class RedSoftmaxWithLoss(_SoftmaxLoss):
    """The same where ``class_num`` classes share the channels evenly: a class has its channels' summed probability."""

    def setup(self, x: Shape, label: Shape) -> None:
        super().setup(x, label)
        self.classes = self.p.class_num if self.p.has("class_num") else x[1]


@layer("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(Loss):
    """The cross-entropy of independent yes-or-no predictions sigmoid(x) against targets in [0, 1]."""

    def setup(self, x: Shape, target: Shape) -> None:
        if self.dialect.sigmoid_loss_by_batch:
            self.normalization = "BATCH_SIZE"
        else:
            self.read_loss_param("BATCH_SIZE")

    def reshape(self, x: Shape, target: Shape) -> list[Shape]:
        if prod(x) != prod(target):
            raise self.shape_error(f"predictions {x} with targets {target}", expected="as many targets as predictions")
        return [()]

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        target = target.reshape(x.shape)
        positive = (x >= 0).to(x.dtype)
        loss = torch.log1p(torch.exp(x - 2 * x * positive)) - x * (target - positive)
        valid = None
        if self.ignore is not None:
            keep = target.to(torch.int64) != self.ignore
            loss, valid = loss * keep, keep.sum().to(x.dtype)
        return serial_sum(loss) / self.normalizer(x.shape[0], x.numel(), valid)
