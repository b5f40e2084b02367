"""Losses of distances and margins.

Source: euclidean_loss_layer.cpp, contrastive_loss_layer.cpp, hinge_loss_layer.cpp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.base import layer
from caffe_port.layers.functions import Function
from caffe_port.layers.loss import Loss, check_labels, serial_sum
from caffe_port.spec import losses


@layer("EuclideanLoss")
class EuclideanLoss(losses.EuclideanLoss, Loss):
    """Half the squared distance of two bottoms, averaged over the items; both get its gradient."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(x, y.reshape(x.shape), reduction="sum") / (2 * x.shape[0])


class _Distance(Function):
    """The root of a squared distance; its gradient is Caffe's, 1 / (2 (d + 1e-4)), finite at 0."""

    own_gradient = True

    @staticmethod
    def forward(ctx: Any, squared: Tensor) -> Tensor:
        distance = squared.sqrt()
        ctx.save_for_backward(distance)
        return distance

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        return grad / (2 * (distance + 1e-4))


@layer("ContrastiveLoss")
class ContrastiveLoss(losses.ContrastiveLoss, Loss):
    """For each pair of vectors d^2 if the third bottom marks them similar, else max(margin - d, 0)^2; halved, averaged.

    ``legacy_version``, the only one in noh, takes max(margin - d^2, 0) for pairs that differ.
    """

    def forward(self, x: Tensor, y: Tensor, alike: Tensor) -> Tensor:
        d = (x - y).flatten(1)
        squared = d.square().sum(1)
        if self.legacy:
            apart = torch.relu(self.margin - squared)
        else:
            apart = torch.relu(self.margin - _Distance.run(squared)).square()
        loss = torch.where(alike.flatten().to(torch.int32).bool(), squared, apart)
        return serial_sum(loss) / x.shape[0] / 2


@layer("HingeLoss")
class HingeLoss(losses.ByItem, Loss):
    """The sum of max(0, 1 - x) for the label's class and max(0, 1 + x) for the others, or (L2) of their squares."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        scores = x.flatten(1)
        index = check_labels(self, label.reshape(-1, 1).long(), scores.shape[1])
        margin = torch.relu(1 + scores * torch.ones_like(scores).scatter_(1, index, -1))
        return (margin if self.norm == "L1" else margin.square()).sum() / x.shape[0]
