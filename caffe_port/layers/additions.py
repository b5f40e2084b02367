"""Layers that BVLC Caffe 1.0 lacks; registered for every dialect derived from it, because no name clashes. From source.

Source: axpy_layer.cpp of hujie-frank/SENet; shuffle_channel_layer.cpp, conv_dw_layer of farmingyard/ShuffleNet;
depthwise_conv_layer.cpp, relu6_layer.cpp, reorg_layer.hpp of eric612/MobileNet-YOLO; mul_layer.cpp, squeeze_layer.cpp,
pad_layer.cpp, hard_swish_layer.cpp, resize_nearest_neighbor_layer.cpp, upsample_darknet_layer.cpp, pooling_layer.cpp,
relu_layer.cpp, reshape_layer.cpp, base_conv_layer.cpp of foss-for-synopsys-dwc-arc-processors/synopsys-caffe.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.base import Layer, layer
from caffe_port.layers.convolution import Convolution
from caffe_port.spec import additions, records_of


class _Depthwise(additions.DepthwiseConvolution, Convolution):
    """A filter for each channel: Convolution with as many groups as channels."""


for _name in ("ConvolutionDepthwise", "DepthwiseConv", "DepthwiseConvolution"):
    _record = next(iter(records_of(_name)))
    layer(_name)(type(_name, (_record, _Depthwise), {"__doc__": _Depthwise.__doc__, "__module__": __name__}))


@layer("HardSwish")
class HardSwish(Layer):
    """x * min(max(x + 3, 0), 6) / 6. The original has no gradient; here it is the derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x + 3).clamp(0, 6) / 6


@layer("ReLU6")
class ReLU6(additions.ReLU6, Layer):
    """min(max(x, 0) + negative_slope * min(x, 0), 6)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope).clamp(max=6) if self.slope else F.relu6(x)


@layer("Axpy")
class Axpy(additions.Axpy, Layer):
    """The second bottom times the first, a number for each of its channels, plus the third."""

    def forward(self, scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return scale.reshape(*x.shape[:2], *(1,) * (x.dim() - 2)) * x + y


@layer("Mul")
class Mul(additions.Mul, Layer):
    """The product of two blobs, or of a blob and a parameter; axes of length 1 broadcast."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return x * (self.weight if other is None else other)


@layer("Squeeze")
class Squeeze(additions.Squeeze, Layer):
    """The same values without axes of length 1: those listed, or all."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(self.reshape(tuple(x.shape))[0])


@layer("Pad")
class Pad(additions.Pad, Layer):
    """``constant_values`` around every axis; ``paddings`` are before and after the first axis, the second and so on."""

    def forward(self, x: Tensor) -> Tensor:
        sides = [n for i in reversed(range(x.dim())) for n in self.paddings[2 * i : 2 * i + 2]]
        return F.pad(x, sides, value=self.value)


@layer("ShuffleChannel")
class ShuffleChannel(additions.ShuffleChannel, Layer):
    """The first channel of every group, then the second of every group, and so on."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.group, -1)).transpose(1, 2).flatten(1, 2)


@layer("Reorg")
class Reorg(additions.Reorg, Layer):
    """Darknet's: values move between pixels and channels as in its loops, which index the bottom as if it had
    ``stride`` times as many pixels a side. Trained nets depend on this order.

    The original's backward pass on the CPU reads a buffer that is never written; here it is the forward pass's inverse.
    """

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        s = self.stride
        (shape,) = self.reshape((n, c, h, w))
        if self.reverse:  # channel offset * C' + c to (row, column) offset of channel c
            return x.view(n, s, s, c // s**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(shape)
        # the loops read it as (C / s^2, H s, W s), which has the same size
        seen = x.reshape(n, c // s**2, h, s, w, s)
        return seen.permute(0, 3, 5, 1, 2, 4).reshape(shape)


@layer("UpsampleDarknet")
class UpsampleDarknet(additions.UpsampleDarknet, Layer):
    """Every pixel repeated as a square of ``stride`` pixels a side."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.times, 2).repeat_interleave(self.times, 3)


@layer("ResizeNearestNeighbor")
class ResizeNearestNeighbor(additions.ResizeNearestNeighbor, Layer):
    """The nearest pixel below, or (``align_corners``) the nearest pixel, as in TensorFlow 1."""

    def forward(self, x: Tensor) -> Tensor:
        (shape,) = self.reshape(tuple(x.shape))
        for axis in (self.first, self.first + 1):
            x = x.index_select(axis, self._nearest(x.shape[axis], shape[axis]).to(x.device))
        return x

    def _nearest(self, n: int, size: int) -> Tensor:
        """The source pixel, of ``n``, of each of ``size`` pixels; in single precision, as the original."""
        corners = self.corners and size > 1
        step = torch.tensor((n - 1) / (size - 1) if corners else n / size, dtype=torch.float32)
        at = torch.arange(size, dtype=torch.float32)
        at = (at + 0.5) * step if self.centres else at * step
        return ((at + 0.5).floor() if self.corners else at.floor()).long().clamp(0, n - 1)
