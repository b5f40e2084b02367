"""Layers that act on each number by itself.

Source: relu_layer.cpp, prelu_layer.cpp, sigmoid_layer.cpp, tanh_layer.cpp, absval_layer.cpp, bnll_layer.cpp,
clip_layer.cpp, elu_layer.cpp, swish_layer.cpp, threshold_layer.cpp, exp_layer.cpp, log_layer.cpp, power_layer.cpp,
dropout_layer.cpp, dropout_channel_layer.cpp (noh).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port import random
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.comparisons import above
from caffe_port.layers.fields import Fields
from caffe_port.layers.geometry import CoordMap, identity_map
from caffe_port.schema.messages import FillerParameter


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
        if self.n_tops == 2 and not self.dialect.relu_gives_mask:
            raise self.error("2 tops", expected="1 top", remedy="the mask is the fork's: --dialect noh")

    def reshape(self, x: Shape) -> list[Shape]:
        return [x] * self.n_tops

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = F.leaky_relu(x, self.slope) if self.slope else F.relu(x)
        return (y, above(x, 0)) if self.n_tops == 2 else y


@layer("PReLU", param="prelu_param", dialects=("bvlc",))
class PReLU(Neuron):
    """max(x, 0) + weight * min(x, 0), one weight a channel or (``channel_shared``) one for all."""

    def setup(self, x: Shape) -> None:
        if len(x) < 2:
            raise self.shape_error(f"a bottom of shape {x}", expected="2 axes or more")
        filler = self.p.filler if self.p.has("filler") else Fields(FillerParameter(value=0.25))
        self.blob("weight", () if self.p.channel_shared else (x[1],), filler)

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


@layer("AbsVal")
class AbsVal(Neuron):
    """|x|, with gradient 0 at 0."""

    in_place = False

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@layer("BNLL")
class BNLL(Neuron):
    """log(1 + exp(x)), "binomial normal log likelihood"."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, threshold=50)


@layer("Clip", param="clip_param", dialects=("bvlc",))
class Clip(Neuron):
    """x within ``min`` and ``max``; the gradient passes at the bounds themselves."""

    def setup(self, x: Shape) -> None:
        self.min, self.max = self.p.min, self.p.max

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.min, self.max)


@layer("ELU", param="elu_param", dialects=("bvlc",))
class ELU(Neuron):
    """x where it is positive, else alpha * (exp(x) - 1)."""

    def setup(self, x: Shape) -> None:
        self.alpha = self.p.alpha

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.alpha)


@layer("Swish", param="swish_param", dialects=("bvlc",))
class Swish(Neuron):
    """x * sigmoid(beta * x)."""

    def setup(self, x: Shape) -> None:
        self.p.skip("engine")
        self.beta = self.p.beta

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) if self.beta == 1 else x * torch.sigmoid(x * self.beta)


@layer("Threshold", param="threshold_param")
class Threshold(Neuron):
    """1 where x > ``threshold``, else 0. It has no gradient."""

    labels = (0,)

    def setup(self, x: Shape) -> None:
        self.threshold = self.p.threshold

    def forward(self, x: Tensor) -> Tensor:
        return above(x, self.threshold)


class _Exponential(Neuron):
    def log_base(self) -> float:
        """The natural logarithm of ``base``; a base of -1 stands for e."""
        base = self.p.base
        if base == -1:
            return 1.0
        if not 0 < base < math.inf:
            raise self.error(f"base {base}", expected="a number above 0, or -1 for e")
        return math.log(base)


@layer("Exp", param="exp_param")
class Exp(_Exponential):
    """base^(shift + scale * x)."""

    def setup(self, x: Shape) -> None:
        log_base, shift = self.log_base(), self.p.shift
        self.inner, self.outer = log_base * self.p.scale, math.exp(log_base * shift)
        if self.p.base == -1 and shift and self.dialect.exp_shift_raises_minus_one:
            self.outer = (-1.0) ** shift if shift == int(shift) else math.nan

    def forward(self, x: Tensor) -> Tensor:
        y = torch.exp(x if self.inner == 1 else x * self.inner)
        return y if self.outer == 1 else y * self.outer


@layer("Log", param="log_param", dialects=("bvlc",))
class Log(_Exponential):
    """The logarithm to ``base`` of shift + scale * x."""

    def setup(self, x: Shape) -> None:
        log_base = self.log_base()
        if not log_base:
            raise self.error("base 1", expected="another base: every power of 1 is 1")
        self.factor, self.scale, self.shift = 1 / log_base, self.p.scale, self.p.shift

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.scale == 1 else x * self.scale
        y = torch.log(x if self.shift == 0 else x + self.shift)
        return y if self.factor == 1 else y * self.factor


@layer("Power", param="power_param")
class Power(Neuron):
    """(shift + scale * x)^power.

    Where that is 0 ^ power the original often divides 0 by 0 in its gradient; here the gradient is the power's own.
    """

    def setup(self, x: Shape) -> None:
        self.power, self.scale, self.shift = self.p.power, self.p.scale, self.p.shift

    def forward(self, x: Tensor) -> Tensor:
        if self.power * self.scale == 0:
            return torch.full_like(x, self.shift) ** self.power
        x = x if self.scale == 1 else x * self.scale
        x = x if self.shift == 0 else x + self.shift
        return x.view_as(x) if self.power == 1 else x**self.power


class _Dropout(Neuron):
    def setup(self, x: Shape) -> None:
        self.ratio = self.p.dropout_ratio
        if not 0 < self.ratio < 1:
            raise self.error(f"dropout_ratio {self.ratio}", expected="a number between 0 and 1")

    def mask(self, x: Tensor) -> Tensor:
        """0 for what is dropped, 1 for what is kept, in a shape that lies over ``x``."""
        raise NotImplementedError

    def drops(self) -> bool:
        """Whether this pass drops anything."""
        return self.training

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x).mul_(1 / (1 - self.ratio)) if self.drops() else x.view_as(x)


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
