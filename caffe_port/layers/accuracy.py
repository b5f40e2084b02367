"""Layers that measure predictions; none has a gradient.

Source: accuracy_layer.cpp, argmax_layer.cpp; eltwise_accuracy_layer.cpp, red_accuracy_layer.cpp, binary_accuracy.cpp
(noh).
"""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port.layers.base import Layer, layer
from caffe_port.layers.comparisons import above, equals
from caffe_port.layers.functions import as_numbers, symbolic
from caffe_port.layers.loss import grouped_sum
from caffe_port.spec import losses, shaping


def hits(score: Tensor, label: Tensor, top_k: int) -> Tensor:
    """Whether each pixel's label is among its ``top_k`` best classes; of equal scores the later class ranks higher.

    Args:
        score: (N, C, ...). label: (N, ...) of int64 within 0 .. C - 1.
    """
    own = score.gather(1, label.unsqueeze(1))
    classes = torch.arange(score.shape[1], device=score.device).view(1, -1, *(1,) * (score.dim() - 2))
    later = classes > label.unsqueeze(1)
    return ((score > own) | ((score == own) & later)).sum(1) < top_k


@layer("Accuracy")
class Accuracy(losses.Accuracy, Layer):
    """The share of labels not ignored that fewer than ``top_k`` other classes along ``axis`` outscore or equal.

    A second top gives the share for each class, 0 for a class without labels. In noh the classes are all values of an
    item, and of equal scores the later ranks higher.
    """

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        score = (
            x.flatten(1) if self.by_item else x.flatten(self.over + 1) if self.over + 1 < x.dim() else x.unsqueeze(-1)
        )
        if not self.by_item:
            score = score.reshape(-1, *score.shape[-2:])
        classes = score.shape[1]
        label = label.reshape(score.shape[0], *score.shape[2:]).long()
        counts = torch.ones_like(label, dtype=torch.bool) if self.ignore is None else label != self.ignore
        known = counts & (label >= 0) & (label < classes)
        own = label.clamp(0, classes - 1)
        if self.by_item or self.dialect.accuracy_ranks_ties:
            right = hits(score, own, self.top_k) & known
        else:
            right = ((score >= score.gather(1, own.unsqueeze(1))).sum(1) <= self.top_k) & known
        count = counts.sum()
        accuracy = right.sum().to(x.dtype) / (count if self.dialect.accuracy_ranks_ties else count.clamp(min=1))
        if self.n_tops == 1:
            return accuracy
        labelled, hit = (own[mask].bincount(minlength=classes).to(x.dtype) for mask in (known, right))
        return accuracy, self.by_class(hit, labelled)

    def by_class(self, hit: Tensor, labelled: Tensor) -> Tensor:
        """The second top, from the counts of each class."""
        return hit / labelled.clamp(min=1)


@layer("ArgMax")
class ArgMax(shaping.ArgMax, Layer):
    """Indices of the ``top_k`` largest values of an item, in falling order, of equal ones the later first.

    With ``out_max_val`` also the values: (N, 2, top_k), indices first. With ``axis`` along that axis, and
    ``out_max_val`` gives the values instead of the indices; noh's has no ``axis``, DeepLab's is always along 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        (shape,) = self.reshape(tuple(x.shape))
        value, place = self.ranked(x.flatten(1) if self.over is None else x, 1 if self.over is None else self.over)
        if self.over is not None:
            return value if self.out_max_val else place
        return (torch.stack((place, value.to(place.dtype)), 1) if self.out_max_val else place).view(shape)

    def ranked(self, x: Tensor, along: int) -> tuple[Tensor, Tensor]:
        """The largest values and their indices; of equal ones the last first, hence the search in reversed order."""
        n = x.shape[along]
        if self.top_k > 1:
            value, place = x.topk(min(self.top_k + 1, n), along)
            if not symbolic(x) and not (value.diff(dim=along) == 0).any():
                return value.narrow(along, 0, self.top_k), as_numbers(place.narrow(along, 0, self.top_k), x)
            value, place = x.flip(along).sort(dim=along, descending=True, stable=True)
            value, place = value.narrow(along, 0, self.top_k), place.narrow(along, 0, self.top_k)
        else:
            value, place = x.flip(along).max(along, keepdim=True)
        return value, as_numbers(n - 1 - place, x)


class _PixelAccuracy(losses.PixelAccuracy, Layer):
    """The share of the pixels not ignored whose label is among the best ``top_k`` classes."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        score = self.score(x)
        label = label[:, 0].to(torch.int64)
        counts = torch.ones_like(label, dtype=torch.bool) if self.ignore is None else label != self.ignore
        known = counts & (label >= 0) & (label < score.shape[1])
        right = hits(score, label.clamp(0, score.shape[1] - 1), self.top_k) & known
        return right.sum().to(x.dtype) / counts.sum().to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        return x


@layer("EltwiseAccuracy")
class EltwiseAccuracy(_PixelAccuracy):
    """Top-k accuracy of each pixel."""


@layer("RedAccuracy")
class RedAccuracy(losses.RedAccuracy, _PixelAccuracy):
    """The same where ``class_num`` classes share the channels evenly: a class scores its channels' probabilities."""

    def score(self, x: Tensor) -> Tensor:
        return grouped_sum(torch.softmax(x, 1), x.shape[1] if self.class_num is None else self.class_num)


@layer("BinaryAccuracy")
class BinaryAccuracy(losses.BinaryAccuracy, Layer):
    """Accuracy, precision, recall or F-measure of the predictions ``score > 0`` against labels 0 and 1."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        said, label = above(x, 0), label.to(torch.int32).to(x.dtype)
        (tp, positive), (fp, negative) = (
            ((said * true).sum(), true.sum()) for true in (equals(label, 1), equals(label, 0))
        )
        fn, tn = positive - tp, negative - fp
        if self.mode == "Accuracy":
            return (tp + tn) / (tp + fn + tn + fp)
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        if self.mode == "F_measure":
            return 2 * precision * recall / (precision + recall)
        return precision if self.mode == "Precision" else recall
