"""The fully-connected layer, and the one that looks its rows up. Source: inner_product_layer.cpp, embed_layer.cpp."""

from __future__ import annotations

from math import prod

from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.base import Layer, Shape, layer


@layer("InnerProduct", param="inner_product_param")
class InnerProduct(Layer):
    """x W' + b; the axes from ``axis`` on are one vector. Weight: (num_output, K), turned with ``transpose``."""

    def setup(self, x: Shape) -> None:
        p = self.p
        self.num_output, self.transpose, self.from_axis = p.num_output, p.transpose, self.axis(p.axis, x)
        self.length = prod(x[self.from_axis :])
        shape = (self.num_output, self.length)
        self.blob("weight", shape[::-1] if self.transpose else shape, p.weight_filler)
        if p.bias_term:
            self.blob("bias", (self.num_output,), p.bias_filler)
        else:
            self.bias = None
            p.skip("bias_filler")

    def reshape(self, x: Shape) -> list[Shape]:
        if prod(x[self.from_axis :]) != self.length:
            raise self.shape_error(
                f"{prod(x[self.from_axis :])} numbers an item in a bottom of shape {x}",
                expected=f"{self.length}, as the weights have",
            )
        return [(*x[: self.from_axis], self.num_output)]

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(self.from_axis) if self.from_axis < x.dim() else x.unsqueeze(-1)
        return F.linear(flat, self.weight.t() if self.transpose else self.weight, self.bias)


@layer("Embed", param="embed_param", dialects=("bvlc",))
class Embed(Layer):
    """The row of the weight that each number of the bottom counts out, + b. Weight: (input_dim, num_output)."""

    labels = (0,)

    def setup(self, x: Shape) -> None:
        p = self.p
        self.num_output, self.input_dim = p.num_output, p.input_dim
        if min(self.num_output, self.input_dim) < 1:
            raise self.error(f"num_output {self.num_output}, input_dim {self.input_dim}", expected="at least 1 each")
        self.blob("weight", (self.input_dim, self.num_output), p.weight_filler)
        if p.bias_term:
            self.blob("bias", (self.num_output,), p.bias_filler)
        else:
            self.bias = None
            p.skip("bias_filler")

    def reshape(self, x: Shape) -> list[Shape]:
        return [(*x, self.num_output)]

    def forward(self, x: Tensor) -> Tensor:
        index = x.long()
        if index.numel() and not (0 <= index.min() and index.max() < self.input_dim):
            raise self.shape_error(
                f"rows {int(index.min())} to {int(index.max())} asked for",
                expected=f"numbers from 0 to {self.input_dim - 1}",
            )
        y = F.embedding(index, self.weight)
        return y if self.bias is None else y + self.bias
