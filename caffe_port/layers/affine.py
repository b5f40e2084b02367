"""Scale and Bias: factors and terms over some axes of a blob. Source: scale_layer.cpp, bias_layer.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port.layers.base import Layer, layer
from caffe_port.spec import elementwise


class _Broadcast(elementwise.Affine, Layer):
    """Shared by both: the operand over the axes from ``axis`` is a parameter or a second bottom."""

    def along(self, operand: Tensor, x: Tensor) -> Tensor:
        """``operand`` with trailing axes of length 1, so that it broadcasts over ``x`` at ``axis``."""
        behind = x.dim() - self.from_axis % x.dim() - operand.dim() if operand.dim() else 0
        return operand.reshape((*operand.shape, *(1,) * behind))


@layer("Scale")
class Scale(_Broadcast):
    """x * weight, or x times a second bottom; with ``bias_term`` also + bias, a parameter of the same shape."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        factor = self.along(self.weight if other is None else other, x)
        return x * factor if self.bias is None else (x * factor).add_(self.along(self.bias, x))

    def channel_affine(self) -> tuple[Tensor, Tensor] | None:
        if self.n_bottoms == 2 or len(self.operand_shape) != 1 or self.from_axis != 1:
            return None
        weight = self.weight.detach()
        return weight, torch.zeros_like(weight) if self.bias is None else self.bias.detach()


@layer("Bias")
class Bias(_Broadcast):
    """x + bias, or x plus a second bottom."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return x + self.along(self.bias if other is None else other, x)

    def channel_affine(self) -> tuple[Tensor, Tensor] | None:
        if self.n_bottoms == 2 or len(self.operand_shape) != 1 or self.from_axis != 1:
            return None
        bias = self.bias.detach()
        return torch.ones_like(bias), bias
