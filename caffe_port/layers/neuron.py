"""Layers that act on each number by itself.

Source: relu_layer.cpp, prelu_layer.cpp, sigmoid_layer.cpp, tanh_layer.cpp, dropout_layer.cpp, dropout_channel_layer.cpp (noh).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port import random
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.geometry import CoordMap, identity_map


class Neuron(Layer):
    """One bottom, one top of the same shape."""

    def coord_map(self) -> CoordMap:
        return identity_map()


@layer("ReLU", param="relu_param")
class ReLU(Neuron):
    """max(x, 0) + negative_slope * min(x, 0); in noh a second top gives the mask x > 0 as 0 and 1."""

    tops = (1, 2)

    def setup(self, x: Shape) -> None:
        self.p.skip("engine")
        self.slope = self.p.negative_slope
        if self.n_tops == 2 and self.dialect.name == "bvlc":
            raise self.error("2 tops", expected="1 top", remedy="the mask is the fork's: --dialect noh")

    def reshape(self, x: Shape) -> list[Shape]:
        return [x] * self.n_tops

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = F.leaky_relu(x, self.slope) if self.slope else F.relu(x)
        return (y, (x > 0).to(x.dtype)) if self.n_tops == 2 else y


@layer("PReLU", param="prelu_param")
class PReLU(Neuron):
    """max(x, 0) + weight * min(x, 0), one weight a channel or (``channel_shared``) one for all."""

    def setup(self, x: Shape) -> None:
        if len(x) < 2:
            raise self.shape_error(f"a bottom of shape {x}", expected="2 axes or more")
        if not self.p.has("filler"):
            self.p.message.filler.type, self.p.message.filler.value = "constant", 0.25
        self.blob("weight", () if self.p.channel_shared else (x[1],), self.p.filler)

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight.reshape(-1))


@layer("Sigmoid", param="sigmoid_param")
class Sigmoid(Neuron):
    """1 / (1 + exp(-x))."""

    def setup(self, x: Shape) -> None:
        self.p.skip("engine")

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@layer("TanH", param="tanh_param")
class TanH(Neuron):
    """The hyperbolic tangent."""

    def setup(self, x: Shape) -> None:
        self.p.skip("engine")

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class _Dropout(Neuron):
    def setup(self, x: Shape) -> None:
        self.ratio = self.p.dropout_ratio
        if not 0 < self.ratio < 1:
            raise self.error(f"dropout_ratio {self.ratio}", expected="a number between 0 and 1")

    def mask(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x) * (1 / (1 - self.ratio)) if self.training else x.view_as(x)


@layer("Dropout", param="dropout_param")
class Dropout(_Dropout):
    """In TRAIN: zero with probability ``dropout_ratio``, the rest scaled up; otherwise the identity."""

    def mask(self, x: Tensor) -> Tensor:
        kept = random.default_stream().bernoulli(1 - self.ratio, x.numel())
        return torch.from_numpy(kept).to(x).view(x.shape)


@layer("DropoutChannel", param="dropout_param", dialects=("noh",))
class DropoutChannel(_Dropout):
    """Dropout of whole channels, (num, channel) by (num, channel)."""

    def mask(self, x: Tensor) -> Tensor:
        drawn = random.default_stream().uniform(0, 1, x.shape[0] * x.shape[1])
        return torch.from_numpy(drawn > self.ratio).to(x).view(*x.shape[:2], *(1,) * (x.dim() - 2))
