"""Factors and terms, learned or given, over some axes of a blob. Source: scale_layer.cpp, bias_layer.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.fields import Fields
from caffe_port.layers.geometry import CoordMap, identity_map
from caffe_port.schema.messages import FillerParameter


class _Broadcast(Layer):
    """What the two share: a parameter over the axes from ``axis`` on, or a second bottom laid there."""

    bottoms = (1, 2)

    def read_operand(self, name: str, x: Shape, other: Shape | None, filler: Fields) -> None:
        """Make the parameter ``name``, unless a second bottom takes its place."""
        self.from_axis = self.p.axis
        if other is None:
            self.operand_shape = self.over(x)
            self.blob(name, self.operand_shape, filler)
        else:
            self.operand_shape = other
            self.p.skip("num_axes", "filler")

    def over(self, x: Shape) -> Shape:
        """The shape of the parameter: ``num_axes`` axes of ``x`` from ``axis`` on; -1 is all of them."""
        axis, n = self.axis(self.from_axis, x), self.p.num_axes
        if n < -1 or axis + n > len(x):
            raise self.error(f"axis {axis} and num_axes {n}", expected=f"axes of a blob of shape {x}")
        return x[axis:] if n == -1 else x[axis : axis + n]

    def reshape(self, x: Shape, other: Shape | None = None) -> list[Shape]:
        other = self.operand_shape if other is None else other
        axis = self.axis(self.from_axis, x) if other else 0
        if x[axis : axis + len(other)] != other:
            raise self.shape_error(f"{other} laid over {x} from axis {axis} on", expected="equal numbers on these axes")
        return [x]

    def along(self, operand: Tensor, x: Tensor) -> Tensor:
        """``operand`` with as many axes behind as lay it over ``x`` at ``axis``."""
        behind = x.dim() - self.from_axis % x.dim() - operand.dim() if operand.dim() else 0
        return operand.reshape((*operand.shape, *(1,) * behind))

    def coord_map(self) -> CoordMap:
        return identity_map()


@layer("Scale", param="scale_param", dialects=("bvlc",))
class Scale(_Broadcast):
    """x * weight, or x times a second bottom; with ``bias_term`` also + bias, a parameter of the same shape."""

    def setup(self, x: Shape, other: Shape | None = None) -> None:
        p = self.p
        self.read_operand("weight", x, other, p.filler if p.has("filler") else Fields(FillerParameter(value=1)))
        if p.bias_term:
            self.blob("bias", self.operand_shape, p.bias_filler)
        else:
            self.bias = None
            p.skip("bias_filler")

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        factor = self.along(self.weight if other is None else other, x)
        return x * factor if self.bias is None else (x * factor).add_(self.along(self.bias, x))

    def channel_affine(self) -> tuple[Tensor, Tensor] | None:
        if self.n_bottoms == 2 or len(self.operand_shape) != 1 or self.from_axis != 1:
            return None
        weight = self.weight.detach()
        return weight, torch.zeros_like(weight) if self.bias is None else self.bias.detach()


@layer("Bias", param="bias_param", dialects=("bvlc",))
class Bias(_Broadcast):
    """x + bias, or x plus a second bottom."""

    def setup(self, x: Shape, other: Shape | None = None) -> None:
        self.read_operand("bias", x, other, self.p.filler)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return x + self.along(self.bias if other is None else other, x)

    def channel_affine(self) -> tuple[Tensor, Tensor] | None:
        if self.n_bottoms == 2 or len(self.operand_shape) != 1 or self.from_axis != 1:
            return None
        bias = self.bias.detach()
        return torch.ones_like(bias), bias
