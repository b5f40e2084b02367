"""The batch normalization of PSPNet's fork. Source: bn_layer.cpp of hszhao/PSPNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.functions import Function
from caffe_port.layers.normalization import by_batch
from caffe_port.spec import pspnet


class _Normalized(Function):
    """(x - mean) / std * slope + bias, with the gradient of a batch's own statistics, whichever they are."""

    own_gradient = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, bias: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
        normal = (x - mean) * factor
        ctx.save_for_backward(normal, slope, factor)
        return normal * slope + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        normal, slope, factor = ctx.saved_tensors
        over = (0, 2, 3)
        dslope, dbias = (grad * normal).sum(over, keepdim=True), grad.sum(over, keepdim=True)
        count = grad.numel() // grad.shape[1]
        dx = (grad - (dbias + normal * dslope) / count) * (slope * factor)
        return dx, dslope, dbias, None, None


@layer("BN")
class MovingBN(pspnet.MovingBN, Layer):
    """(x - mean) / sqrt(variance + eps) * slope + bias for each channel.

    In TRAIN by the batch's statistics, which the moving ones (blobs 2 and 3, the variance biased) follow by 1 -
    ``momentum``; in TEST, or with ``frozen``, by the moving ones. Slope and bias are 0 without a filler. With
    ``frozen`` nothing is learned, and the gradient is that of a factor; in TEST without it the gradient is the one of
    TRAIN, around the moving statistics.
    """

    def setup(self, x: Shape) -> None:
        super().setup(x)
        self.filled.add("variance")
        self.variance.fill_(float(self.frozen))
        if self.frozen:
            for name in ("slope", "bias"):
                blob = getattr(self, name).data
                del self._parameters[name]
                self.register_buffer(name, blob)

    @property
    def keeps_state(self) -> bool:
        return self.by_the_batch()

    def by_the_batch(self) -> bool:
        """Whether the statistics are the batch's."""
        return self.training and not self.frozen

    def channel_affine(self) -> tuple[Tensor, Tensor] | None:
        if self.by_the_batch():
            return None
        scale = (torch.rsqrt(self.variance + self.eps) * self.slope.detach()).flatten()
        return scale, self.bias.detach().flatten() - self.mean.flatten() * scale

    def forward(self, x: Tensor) -> Tensor:
        if self.by_the_batch():
            mean, variance = torch.zeros_like(self.mean).flatten(), torch.zeros_like(self.mean).flatten()
            y = by_batch(
                x, self.eps, scale=self.slope.flatten(), shift=self.bias.flatten(), mean=mean, variance=variance
            )
            with torch.no_grad():
                count = x.numel() // x.shape[1]
                biased = variance * ((count - 1) / count) if count > 1 else torch.zeros_like(variance)
                for blob, batch in ((self.mean, mean), (self.variance, biased)):
                    blob.mul_(self.momentum).add_(batch.view_as(blob), alpha=1 - self.momentum)
            return y
        factor = torch.rsqrt(self.variance + self.eps)
        if self.frozen:
            return (x - self.mean) * factor * self.slope + self.bias
        return _Normalized.run(x, self.slope, self.bias, self.mean, factor)
