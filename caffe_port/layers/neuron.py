"""Elementwise layers of one bottom.

Source: relu_layer.cpp, prelu_layer.cpp, sigmoid_layer.cpp, tanh_layer.cpp, absval_layer.cpp, bnll_layer.cpp,
clip_layer.cpp, elu_layer.cpp, swish_layer.cpp, threshold_layer.cpp, exp_layer.cpp, log_layer.cpp, power_layer.cpp,
dropout_layer.cpp, dropout_channel_layer.cpp (noh).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port import random
from caffe_port.layers.backward import Backward, Gradients
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.comparisons import above
from caffe_port.spec import elementwise


class Neuron(elementwise.Neuron, Layer):
    """One bottom, one top of the same shape."""


class _Curve(Layer):
    """A layer whose backward pass multiplies the diff by a slope computed from its blobs."""

    def caffe_slope(self, b: Backward) -> Tensor:
        """Caffe's derivative, from the blobs' current values."""
        raise NotImplementedError

    def caffe_gradient(self, b: Backward) -> Gradients:
        slope = self.caffe_slope(b)
        return [slope * (slope if b.in_place and self.corrupts_diffs else b.diffs[0])], {}


@layer("ReLU")
class ReLU(elementwise.ReLU, Layer):
    """max(x, 0) + negative_slope * min(x, 0); in noh a second top gives the mask x > 0 as 0 and 1.

    With ``relu6`` (not in BVLC 1.0) at most 6, without a gradient from 6.
    """

    def setup(self, x: Shape) -> None:
        super().setup(x)
        self.is_relu = not self.slope and self.n_tops == 1 and not self.capped

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = F.leaky_relu(x, self.slope) if self.slope else F.relu6(x) if self.capped else F.relu(x)
        y = y.clamp(max=6) if self.slope and self.capped else y
        return (y, above(x, 0)) if self.n_tops == 2 else y


@layer("PReLU")
class PReLU(elementwise.PReLU, Layer):
    """max(x, 0) + weight * min(x, 0), one weight for each channel or (``channel_shared``) one for all."""

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight.reshape(-1))


@layer("Sigmoid")
class Sigmoid(_Curve):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def caffe_slope(self, b: Backward) -> Tensor:
        return b.tops[0] * (1 - b.tops[0])


@layer("TanH")
class TanH(_Curve):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def caffe_slope(self, b: Backward) -> Tensor:
        return 1 - b.tops[0] * b.tops[0]


@layer("AbsVal")
class AbsVal(Neuron):
    """|x|, with gradient 0 at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@layer("BNLL")
class BNLL(Neuron):
    """log(1 + exp(x)), "binomial normal log likelihood"."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, threshold=50)


@layer("Clip")
class Clip(Neuron):
    """x limited to ``min`` .. ``max``; the gradient also passes at the bounds."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.min, self.max)


@layer("ELU")
class ELU(elementwise.ELU, _Curve):
    """x where it is positive, else alpha * (exp(x) - 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.alpha)

    def caffe_slope(self, b: Backward) -> Tensor:
        return torch.where(b.bottoms[0] > 0, 1, self.alpha + b.tops[0])


@layer("Swish")
class Swish(_Curve):
    """x * sigmoid(beta * x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) if self.beta == 1 else x * torch.sigmoid(x * self.beta)

    def caffe_slope(self, b: Backward) -> Tensor:
        y = b.tops[0] * self.beta
        return y + torch.sigmoid(b.given[0] * self.beta) * (1 - y)


@layer("Threshold")
class Threshold(Neuron):
    """1 where x > ``threshold``, else 0. It has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return above(x, self.threshold)


@layer("Exp")
class Exp(elementwise.Exp, _Curve):
    """base^(shift + scale * x)."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.exp(x if self.inner == 1 else x * self.inner)
        return y if self.outer == 1 else y * self.outer

    def caffe_slope(self, b: Backward) -> Tensor:
        return b.tops[0] * self.inner


@layer("Log")
class Log(elementwise.Log, _Curve):
    """The logarithm to ``base`` of shift + scale * x."""

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.scale == 1 else x * self.scale
        y = torch.log(x if self.shift == 0 else x + self.shift)
        return y if self.factor == 1 else y * self.factor

    def caffe_slope(self, b: Backward) -> Tensor:
        return (b.bottoms[0] * self.scale + self.shift).reciprocal() * (self.scale * self.factor)


@layer("Power")
class Power(elementwise.Power, _Curve):
    """(shift + scale * x)^power.

    For 0 ^ power the original's gradient is often 0 / 0; here it is the derivative.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.power * self.scale == 0:
            return torch.full_like(x, self.shift) ** self.power
        x = x if self.scale == 1 else x * self.scale
        x = x if self.shift == 0 else x + self.shift
        return x.view_as(x) if self.power == 1 else x**self.power

    def caffe_slope(self, b: Backward) -> Tensor:
        rate, x = self.power * self.scale, b.bottoms[0]
        if self.linear:
            return torch.full_like(x, rate)
        if self.power == 2:
            return x * (rate * self.scale) + rate * self.shift
        if self.shift == 0:
            return b.tops[0] / x * self.power
        return b.tops[0] / (x * self.scale + self.shift) * rate


class _Dropout(elementwise.Dropout, Layer):
    def mask(self, x: Tensor) -> Tensor:
        """0 for dropped values, 1 for kept ones, in a shape that broadcasts over ``x``."""
        raise NotImplementedError

    def drops(self) -> bool:
        """Whether this pass drops anything."""
        return self.training

    @property
    def untraceable(self) -> str:
        return "it draws random numbers" if self.drops() else ""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x).mul_(1 / (1 - self.ratio)) if self.drops() else x.view_as(x)


@layer("Dropout")
class Dropout(_Dropout):
    """In TRAIN: zero with probability ``dropout_ratio``, the rest scaled up; otherwise the identity."""

    def mask(self, x: Tensor) -> Tensor:
        kept = random.default_stream().bernoulli(1 - self.ratio, x.numel())
        return torch.from_numpy(kept).to(x).view(x.shape)


@layer("DropoutChannel")
class DropoutChannel(_Dropout):
    """Dropout of whole channels, (num, channel) by (num, channel)."""

    def mask(self, x: Tensor) -> Tensor:
        drawn = random.default_stream().uniform(0, 1, x.shape[0] * x.shape[1])
        return torch.from_numpy(drawn > self.ratio).to(x).view(*x.shape[:2], *(1,) * (x.dim() - 2))
