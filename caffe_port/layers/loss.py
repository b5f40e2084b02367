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
from torch.nn import functional as F

from caffe_port.layers.backward import Backward, Gradients
from caffe_port.layers.base import Layer, layer
from caffe_port.layers.comparisons import above, differs
from caffe_port.layers.functions import Function, symbolic
from caffe_port.spec import elementwise, losses


def softmax(x: Tensor, axis: int) -> Tensor:
    """The softmax along ``axis``. Torch is fastest along the last one, so trailing axes of length 1 are removed."""
    if axis + 1 < x.dim() and prod(x.shape[axis + 1 :]) == 1:
        return torch.softmax(x.flatten(axis), axis).view(x.shape)
    return torch.softmax(x, axis)


@layer("Softmax")
class Softmax(elementwise.Softmax, Layer):
    """exp(x) normalised to sum 1 along ``axis``."""

    def forward(self, x: Tensor) -> Tensor:
        return softmax(x, self.over)

    def caffe_gradient(self, b: Backward) -> Gradients:
        (d,), (y,) = b.diffs, b.tops
        return [(d - (d * y).sum(self.over, keepdim=True)) * y], {}


class Loss(losses.Loss, Layer):
    """Shared by the losses: ignored labels and the divisor."""

    def kept(self, label: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The labels as int64, 0 for ignored ones; 1 where valid, else 0; their count, or None if all must be."""
        if self.ignore is None:
            return label.to(torch.int64), None, None
        label = label.to(torch.int32)  # enough for any class, and faster
        keep = differs(label, self.ignore)
        return (label * keep).to(torch.int64), keep.to(dtype), keep.sum().to(dtype)

    def normalizer(self, batch: int, full: int, valid: Tensor | None) -> Tensor | float:
        """The divisor of the sum: ``valid`` is the count of labels not ignored, None if none can be ignored."""
        if self.normalization == "VALID":
            n: Tensor | float = float(full) if valid is None else valid
        else:
            n = float({"FULL": full, "BATCH_SIZE": batch, "NONE": 1, "PRE_FIXED": self.fixed}[self.normalization])
        if not self.dialect.loss_guards_empty:
            return n
        return n.clamp(min=1) if isinstance(n, Tensor) else max(n, 1.0)


def check_labels(loss: Loss, label: Tensor, classes: int) -> Tensor:
    """``label`` (int64) itself, if every label is a class's number; else ShapeError. Symbolic ones are unchecked."""
    if symbolic(label):
        return label
    low, high = (int(end) for end in label.aminmax()) if label.numel() else (0, 0)
    if not 0 <= low <= high < classes:
        raise loss.shape_error(
            f"labels from {low} to {high}",
            expected=f"0 to {classes - 1}" + (f", or {loss.ignore} to ignore" if loss.ignore is not None else ""),
        )
    return label


def serial_sum(x: Tensor) -> Tensor:
    """The sum in raster order, rounded after every addition.

    Caffe's loss loops add in this order; over 10^5 pixels the rounding reaches 4e-4 of the loss, so another order gives
    a different result. On other devices, where Caffe does not add this way, the sum is torch's. Differentiable.
    """
    return _SerialSum.run(x)


class _SerialSum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return _sum_in_order(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.expand(ctx.shape)


def _sum_in_order(x: Tensor) -> Tensor:
    if x.device.type != "cpu" or symbolic(x):
        return x.sum()
    # numpy adds pairwise, but subtracts sequentially.
    return x.new_tensor(0 - np.subtract.reduce(x.contiguous().numpy().ravel(), initial=0))


def grouped_sum(x: Tensor, groups: int) -> Tensor:
    """(N, C, ...) to (N, groups, ...): sums of ``groups`` runs of channels, cut as red_softmax_loss_layer.cpp does."""
    channels = x.shape[1]
    edges = [k * channels // groups for k in range(groups + 1)]
    return torch.stack([x[:, a:b].sum(1) for a, b in pairwise(edges)], 1)


class _LogProbability(Function):
    """Sum of -log(max(p[label], smallest normal float)); the gradient, as Caffe's, ignores the bound.

    ``x`` (outer, C, inner), ``label`` (outer, inner), ``keep`` (outer, inner) as 0 and 1, or None for all. With fewer
    ``classes`` than channels a label's probability is the sum of its class's channels. Returns the sum and the
    probabilities.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, label: Tensor, keep: Tensor | None, classes: int) -> tuple[Any, ...]:
        probability = softmax(x, 1)
        by_class = probability if classes == x.shape[1] else grouped_sum(probability, classes)
        own = by_class.flatten(1).gather(1, _places(label))
        log = own.clamp(min=torch.finfo(torch.float32).tiny).log_()
        loss = -_sum_in_order(log if keep is None else log.mul_(keep))
        ctx.save_for_backward(probability, label, keep, own)
        ctx.classes = classes
        ctx.mark_non_differentiable(probability)
        return loss, probability

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        probability, label, keep, own = ctx.saved_tensors
        channels, classes = probability.shape[1], ctx.classes
        factor = grad.expand(own.shape) if keep is None else keep * grad
        diff = probability * factor.unsqueeze(1)
        if classes == channels:
            diff.scatter_(1, label.unsqueeze(1), ((own - 1) * factor).unsqueeze(1))
        else:
            first, past = label * channels // classes, (label + 1) * channels // classes
            for i in range(-(-channels // classes)):  # the channels of the label's class
                channel = torch.minimum(first + i, past - 1).unsqueeze(1)
                p = probability.gather(1, channel)
                diff.scatter_(1, channel, (p - p / own.unsqueeze(1)) * factor.unsqueeze(1))
        return diff, None, None, None


def _places(label: Tensor) -> Tensor:
    """For labels (outer, inner) the indices of their scores in (outer, classes * inner)."""
    inner = label.shape[1]
    return label if inner == 1 else torch.add(torch.arange(inner, device=label.device), label, alpha=inner)


class _SoftmaxLoss(Loss):
    def weighted(self, label: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The weight of each pixel's loss; ``keep`` is 0 for ignored pixels and else 1, None if none is ignored."""
        return keep

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        outer, inner = prod(x.shape[: self.over]), prod(x.shape[self.over + 1 :])
        label, keep, count = self.kept(label.reshape(outer, inner), x.dtype)
        classes = self.classes(x.shape[self.over])
        check_labels(self, label, classes)
        keep = self.weighted(label, keep, x.dtype)
        total, probability = _LogProbability.run(x.reshape(outer, -1, inner), label, keep, classes)
        loss = total / self.normalizer(outer, outer * inner, count)
        return loss if self.n_tops == 1 else (loss, probability.view(x.shape))


@layer("SoftmaxWithLoss")
class SoftmaxWithLoss(losses.SoftmaxWithLoss, _SoftmaxLoss):
    """The cross-entropy of the softmax; a second top returns the probabilities."""


@layer("RedSoftmaxWithLoss")
class RedSoftmaxWithLoss(losses.RedSoftmaxWithLoss, _SoftmaxLoss):
    """The same where ``class_num`` classes share the channels evenly: a class has its channels' summed probability."""


class _LogLogistic(Function):
    """Sum of -(t log s + (1 - t) log(1 - s)) for s = sigmoid(x), where ``keep`` (None: everywhere)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, keep: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, target, keep)
        loss = F.softplus(x.abs().neg_()).addcmul_(target - above(x, 0), x, value=-1)
        return _sum_in_order(loss if keep is None else loss.mul_(keep))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, target, keep = ctx.saved_tensors
        diff = torch.sigmoid(x).sub_(target).mul_(grad)
        return diff if keep is None else diff.mul_(keep), None, None


@layer("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(losses.SigmoidCrossEntropyLoss, Loss):
    """The cross-entropy of independent binary predictions sigmoid(x) with targets in [0, 1]."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        target = target.reshape(x.shape)
        _, keep, count = self.kept(target, x.dtype) if self.ignore is not None else (None, None, None)
        return _LogLogistic.run(x, target, keep) / self.normalizer(x.shape[0], x.numel(), count)
