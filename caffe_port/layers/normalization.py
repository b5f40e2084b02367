"""BN of the fork, and local response normalization.

Source: bn_layer.cpp (noh), lrn_layer.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.geometry import CoordMap, identity_map


@layer("BN", param="bn_param", dialects=("noh",))
class BN(Layer):
    """Batch normalization as the fork has it.

    LEARN always normalises with the statistics of the batch at hand, in TEST too; tops two and three give its mean and
    (biased) variance, shape (1, C, 1, 1). INFERENCE is scale * x + shift. Parameters: scale and shift, (1, C, 1, 1).

    The original takes the variance as E[x^2] - E[x]^2 in single precision, which for a channel of one repeated value can come
    out negative and make it nan; here it is zero then.
    """

    tops = (1, 3)
    eps = 1e-9

    def setup(self, x: Shape) -> None:
        self.learn = self.p.enum("bn_mode") == "LEARN"
        if not self.learn and self.n_tops > 1:
            raise self.error("tops for statistics with bn_mode: INFERENCE", expected="one top, or bn_mode: LEARN")
        self.overwrites_diffs = self.dialect.bn_overwrites_diffs
        self.blob("scale", (1, x[1], 1, 1), self.p.scale_filler)
        self.blob("shift", (1, x[1], 1, 1), self.p.shift_filler)

    def reshape(self, x: Shape) -> list[Shape]:
        if len(x) != 4 or x[1] != self.scale.shape[1]:
            raise self.shape_error(f"a bottom of shape {x}", expected=f"4 axes, {self.scale.shape[1]} channels")
        return [x, *[(1, x[1], 1, 1)] * (self.n_tops - 1)]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        if not self.learn:
            return torch.addcmul(self.shift, x, self.scale)
        y = F.batch_norm(x, None, None, self.scale.flatten(), self.shift.flatten(), training=True, eps=self.eps)
        if self.n_tops == 1:
            return y
        with torch.no_grad():
            variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return (y, mean, variance)[: self.n_tops]


@layer("LRN", param="lrn_param")
class LRN(Layer):
    """x / (k + alpha / n * sum of squares)^beta over neighbouring channels, or over a square of pixels (there k is 1)."""

    def setup(self, x: Shape) -> None:
        p = self.p
        p.skip("engine")
        self.size, self.alpha, self.beta, self.k = p.local_size, p.alpha, p.beta, p.k
        self.across = p.enum("norm_region") == "ACROSS_CHANNELS"
        if self.size % 2 == 0:
            raise self.error(f"local_size {self.size}", expected="an odd number")

    def reshape(self, x: Shape) -> list[Shape]:
        if len(x) != 4:
            raise self.shape_error(f"a bottom of shape {x}", expected="4 axes: num, channels, height, width")
        return [x]

    def forward(self, x: Tensor) -> Tensor:
        if self.across:
            return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)
        mean = F.avg_pool2d(x * x, self.size, 1, self.size // 2)
        return x * (1 + self.alpha * mean) ** -self.beta

    def coord_map(self) -> CoordMap:
        return identity_map()
