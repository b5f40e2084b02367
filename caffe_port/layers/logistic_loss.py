"""Losses of the logarithms of probabilities. Source: multinomial_logistic_loss_layer.cpp, infogain_loss_layer.cpp."""

from __future__ import annotations

import math
from math import prod
from typing import Any

import torch
from torch import Tensor

from caffe_port.formats.blob import read_blob
from caffe_port.formats.mapping import map_file
from caffe_port.formats.wire import Reader
from caffe_port.layers.base import Shape, layer
from caffe_port.layers.functions import Function
from caffe_port.layers.loss import Loss, check_labels, serial_sum
from caffe_port.spec import losses

LEAST = 1e-20
"""Smaller probabilities count as this one (kLOG_THRESHOLD)."""


class _AtLeast(Function):
    """max(x, bound), whose gradient also passes below the bound."""

    own_gradient = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def log_of_bounded(p: Tensor) -> Tensor:
    """log(max(p, LEAST)), with the gradient 1 / max(p, LEAST) above and below the bound."""
    return torch.log(_AtLeast.run(p, LEAST))


@layer("MultinomialLogisticLoss")
class MultinomialLogisticLoss(losses.ByItem, Loss):
    """-log of the probability that the first bottom gives to each item's label, averaged over the items."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        p = x.flatten(1)
        own = p.gather(1, check_labels(self, label.reshape(-1, 1).long(), p.shape[1]))
        return -serial_sum(log_of_bounded(own)) / x.shape[0]


@layer("InfogainLoss")
class InfogainLoss(losses.InfogainLoss, Loss):
    """-sum of H[label, k] log p[k]: a logistic loss with a weight for every pair of label and class.

    p is the softmax of the first bottom along ``axis``; a second top returns it. In noh the first bottom is p itself. H
    is the third bottom, or the matrix in the file ``source`` (.binaryproto).
    """

    def setup(self, x: Shape, label: Shape, matrix: Shape | None = None) -> None:
        super().setup(x, label, matrix)
        if matrix is None:
            self.register_buffer("matrix", self.read_matrix(self.p.source), persistent=False)
            self.matrix_shape = tuple(self.matrix.shape)

    def read_matrix(self, source: str) -> Tensor:
        """H from the file ``source``."""
        blob, _ = read_blob(Reader(map_file(source), path=source, what="the infogain matrix"))
        return torch.tensor(blob, dtype=torch.float32)

    def forward(self, x: Tensor, label: Tensor, matrix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        classes, outer = self.classes(x.shape), prod(x.shape[: self.over])
        rows = x.reshape(outer, classes, -1).transpose(1, 2).reshape(-1, classes)
        label, keep, count = self.kept(label.flatten(), x.dtype)
        check_labels(self, label, classes)
        if self.from_probabilities:
            log_p = log_of_bounded(rows)
        else:
            log_p = _AtLeast.run(torch.log_softmax(rows, 1), math.log(LEAST))
        gain = (self.matrix if matrix is None else matrix).reshape(classes, classes).index_select(0, label)
        gain = gain if keep is None else gain * keep.unsqueeze(1)
        loss = -serial_sum(gain * log_p) / self.normalizer(outer, len(rows), count)
        return loss if self.n_tops == 1 else (loss, torch.softmax(x.detach(), self.over))
