"""The fork's scores; none has a gradient.

Source: eltwise_accuracy_layer.cpp, red_accuracy_layer.cpp, binary_accuracy.cpp (all noh).
"""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.loss import grouped_sum


def hits(score: Tensor, label: Tensor, top_k: int) -> Tensor:
    """Whether each pixel's label is among its ``top_k`` best classes; of equal scores the later class is the better one.

    Args:
        score: (N, C, ...). label: (N, ...) of int64 within 0 .. C - 1.
    """
    own = score.gather(1, label.unsqueeze(1))
    later = torch.arange(score.shape[1], device=score.device).view(1, -1, *(1,) * (score.dim() - 2)) > label.unsqueeze(1)
    return ((score > own) | ((score == own) & later)).sum(1) < top_k


class _PixelAccuracy(Layer):
    """The share of pixels, ignored ones aside, whose label is among the best ``top_k`` classes."""

    bottoms = (2, 2)
    labels = (0, 1)

    def setup(self, x: Shape, label: Shape) -> None:
        self.top_k = self.p.top_k
        self.ignore = self.p.ignore_label if self.p.has("ignore_label") else None

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        if len(x) != 4 or label != (x[0], 1, *x[2:]):
            raise self.shape_error(f"scores {x} with labels {label}", expected="labels (num, 1, height, width) of the scores")
        if self.top_k > x[1] * x[2] * x[3]:
            raise self.error(f"top_k {self.top_k}", expected="no more than there are classes")
        return [()]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        score = self.score(x)
        label = label[:, 0].to(torch.int64)
        counts = torch.ones_like(label, dtype=torch.bool) if self.ignore is None else label != self.ignore
        known = counts & (label >= 0) & (label < score.shape[1])
        right = hits(score, label.clamp(0, score.shape[1] - 1), self.top_k) & known
        return right.sum().to(x.dtype) / counts.sum().to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        return x


@layer("EltwiseAccuracy", param="eltwise_accuracy_param", dialects=("noh",))
class EltwiseAccuracy(_PixelAccuracy):
    """Top-k accuracy of each pixel."""


@layer("RedAccuracy", param="red_accuracy_param", dialects=("noh",))
class RedAccuracy(_PixelAccuracy):
    """The same where ``class_num`` classes share the channels evenly: a class scores its channels' summed probability."""

    def setup(self, x: Shape, label: Shape) -> None:
        super().setup(x, label)
        self.classes = self.p.class_num if self.p.has("class_num") else x[1]

    def score(self, x: Tensor) -> Tensor:
        return grouped_sum(torch.softmax(x, 1), self.classes)


@layer("BinaryAccuracy", param="binary_accuracy_param", dialects=("noh",))
class BinaryAccuracy(Layer):
    """Accuracy, precision, recall or F-measure of the predictions ``score > 0`` against labels 0 and 1."""

    bottoms = (2, 2)
    labels = (0, 1)

    def setup(self, x: Shape, label: Shape) -> None:
        self.mode = self.p.enum("accuracy_mode")

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        if x != label:
            raise self.shape_error(f"scores {x} with labels {label}", expected="equal shapes")
        return [()]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        said, label = x > 0, label.to(torch.int64)
        tp, fn, tn, fp = (
            (a & b).sum().to(x.dtype)
            for a, b in ((said, label == 1), (~said, label == 1), (~said, label == 0), (said, label == 0))
        )
        if self.mode == "Accuracy":
            return (tp + tn) / (tp + fn + tn + fp)
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        if self.mode == "F_measure":
            return 2 * precision * recall / (precision + recall)
        return precision if self.mode == "Precision" else recall
