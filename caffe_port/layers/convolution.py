"""Convolution and deconvolution, with any number of spatial axes, groups and dilation; and Im2col.

Source: base_conv_layer.cpp, conv_layer.cpp, deconv_layer.cpp, im2col_layer.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers import winograd
from caffe_port.layers.base import Layer, layer
from caffe_port.layers.capabilities import Filters, Fusible, PrefersChannelsLast, Product
from caffe_port.layers.functions import Function, traced
from caffe_port.spec import windows

FEW_PIXELS = 64
"""Up to this number of pixels in an image, a layer with large weights is bound by reading them."""

LARGE_WEIGHT = 1 << 15
"""Number of values from which a weight is used in one matrix product."""

MANY_CHANNELS = 16
"""From this number of channels a convolution trains faster in channels-last layout."""


class _Convolve(Function):
    """Convolution, or its transpose, whose bias gradient is torch's accurate sum.

    The convolution libraries add the gradients of 10^5 pixels one to the next, which loses digits of a bias near zero:
    errors of 5e-3 where Caffe's own, by blocks, stay below 1e-4.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return torch.convolution(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False)
        dx, dw = (
            torch.ops.aten.convolution_backward(grad, x, weight, None, *ctx.how, wanted)[:2]
            if any(wanted)
            else (None, None)
        )
        db = grad.sum([0, *range(2, grad.dim())]) if ctx.needs_input_grad[2] else None
        return dx, dw, db, *[None] * len(ctx.how)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, windows: tuple[tuple[int, ...], ...], transposed: bool, group: int
) -> Tensor:
    """Convolution, or its transpose, over any number of spatial axes.

    torch has one to three. With none it is a convolution of single pixels; with more, a sum over the first axis's taps.

    Args:
        windows: for each spatial axis (kernel, stride, pad, dilation).
    """
    if not windows:
        return _convolve(x[..., None], weight[..., None], bias, ((1, 1, 0, 1),), transposed, group)[..., 0]
    if (y := winograd.convolve(x, weight, bias, windows, transposed, group)) is not None:
        return y
    if len(windows) <= 3:
        _, strides, pads, dilations = zip(*windows, strict=True)
        if torch.is_autocast_enabled(x.device.type):  # autocast covers conv2d and the like, not the general function
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        learns_bias = bias is not None and bias.requires_grad and torch.is_grad_enabled() and not traced()
        run = _Convolve.run if learns_bias else torch.convolution
        return run(x, weight, bias, strides, pads, dilations, transposed, (0,) * len(windows), group)
    (kernel, stride, pad, dilation), *rest = windows
    n, extent = x.shape[2], (kernel - 1) * dilation + 1

    def tap(part: Tensor, k: int) -> Tensor:
        """The term of tap ``k``: the other axes' convolution of every slice, each slice an image."""
        images = part.movedim(2, 1).flatten(0, 1)
        y = _convolve(images, weight[:, :, k], None, tuple(rest), transposed, group)
        return y.unflatten(0, (part.shape[0], part.shape[2])).movedim(1, 2)

    if transposed:
        parts = [tap(x, k) for k in range(kernel)]
        shape = list(parts[0].shape)
        shape[2] = stride * (n - 1) + extent
        y = x.new_zeros(shape)
        for k, part in enumerate(parts):
            y[:, :, k * dilation : k * dilation + stride * (n - 1) + 1 : stride] += part
        y = y.narrow(2, pad, shape[2] - 2 * pad)
    else:
        count = (n + 2 * pad - extent) // stride + 1
        padded = F.pad(x, (0, 0) * len(rest) + (pad, pad))
        last = stride * (count - 1) + 1
        slices = (padded[:, :, k * dilation : k * dilation + last : stride] for k in range(kernel))
        y = reduce(torch.add, (tap(part, k) for k, part in enumerate(slices)))
    return y if bias is None else y + bias.view(1, -1, *(1,) * len(windows))


class _Windowed(Layer, Fusible, PrefersChannelsLast):
    """Shared by both; the weight has Caffe's axes in both: (conv out, conv in / group, *kernel)."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._one(x) for x in bottoms)

    def _one(self, x: Tensor) -> Tensor:
        lead = x.shape[: self.channel_axis]
        # Axes before the channels count as further images.
        y = self.convolve(x.flatten(0, self.channel_axis - 1) if len(lead) > 1 else x if lead else x.unsqueeze(0))
        return y.unflatten(0, lead) if len(lead) > 1 else y if lead else y.squeeze(0)

    def convolve(self, x: Tensor) -> Tensor:
        """(images, channels, ...) to (images, num_output, ...)."""
        if self.as_product(x):
            return self.by_product(x)
        x = F.pad(x, self.border) if any(self.border) else x
        windows = tuple(zip(self.kernel, self.stride, self.pad, self.dilation, strict=True))
        return _convolve(x, self.weight, self.bias, windows, self.transposed, self.group)

    def as_product(self, x: Tensor) -> bool:
        """Whether one product with all weights is faster: few pixels, large weights, on the CPU.

        Such a layer is bound by reading its weights, which the convolution kernels would first reorder.
        """
        if x.device.type != "cpu" or len(self.kernel) != 2 or self.group != 1 or self.weight.numel() < LARGE_WEIGHT:
            return False
        if any(self.border):
            return False
        return prod(x.shape[2:] if self.transposed else self.lengths(x.shape[2:])) <= FEW_PIXELS

    def by_product(self, x: Tensor, linear: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The layer as one product of rows with the weights; ``linear`` replaces the product (packed, fused)."""
        raise NotImplementedError

    def fusible(self) -> bool:
        return len(self.kernel) == 2 and self.channel_axis == 1 and self.n_bottoms == 1 and not any(self.border)

    def form_key(self, x: Tensor) -> tuple[bool, bool]:
        return self.as_product(x), winograd.pays(x, self.weight, self.stride, self.pad, self.dilation, self.group)

    def prefers_channels_last(self, x: Tensor) -> bool:
        if len(self.kernel) != 2 or self.group != 1 or self.channel_axis != 1 or self.n_bottoms != 1:
            return False
        return min(self.channels, self.num_output) >= MANY_CHANNELS and not self.as_product(x)


@layer("Convolution")
class Convolution(windows.Convolution, _Windowed):
    """Cross-correlation with learned filters."""

    def by_product(self, x: Tensor, linear: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        size = self.reshape(tuple(x.shape))[0][2:]
        if set(self.kernel) == set(self.stride) == {1} and not any(self.pad):
            columns = x.flatten(2)
        else:
            columns = F.unfold(x.contiguous(), self.kernel, self.dilation, self.pad, self.stride)
        rows = columns.transpose(1, 2).flatten(0, 1).contiguous()
        y = linear(rows) if linear else F.linear(rows, self.weight.flatten(1), self.bias)
        return y.view(x.shape[0], *size, -1).permute(0, 3, 1, 2)

    def form(self, x: Tensor, scale: Tensor | None, bias: Tensor) -> Product | Filters:
        weight = self.weight.detach()
        if self.as_product(x):
            pixels = x.shape[0] * prod(self.reshape(tuple(x.shape))[0][2:])
            return Product(weight.flatten(1), bias, pixels, self.by_product, scale)
        weight = weight if scale is None else weight * scale.view(-1, 1, 1, 1)
        return Filters(weight, bias, self.stride, self.pad, self.dilation, self.group)


@layer("Deconvolution")
class Deconvolution(windows.Deconvolution, _Windowed):
    """The transpose of :class:`Convolution`: its backward pass with respect to the data."""

    def by_product(self, x: Tensor, linear: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Without the bias if ``linear`` is given."""
        size = self.reshape(tuple(x.shape))[0][2:]
        rows = x.flatten(2).transpose(1, 2).flatten(0, 1).contiguous()
        columns = linear(rows) if linear else rows @ self.weight.flatten(1)
        columns = columns.view(x.shape[0], prod(x.shape[2:]), -1).transpose(1, 2)
        y = F.fold(columns, size, self.kernel, self.dilation, self.pad, self.stride)
        return y if linear or self.bias is None else y + self.bias.view(1, -1, 1, 1)

    def fusible(self) -> bool:
        flips = all((k - 1) * d >= p for k, d, p in zip(self.kernel, self.dilation, self.pad, strict=True))
        return super().fusible() and self.group == 1 and set(self.stride) == {1} and flips

    def form(self, x: Tensor, scale: Tensor | None, bias: Tensor) -> Product | Filters:
        weight = self.weight.detach()
        if self.as_product(x):
            pixels = x.shape[0] * prod(x.shape[2:])
            return Product(weight.flatten(1).t(), None, pixels, self.by_product, scale, after=bias)
        weight = weight if scale is None else weight * scale.view(1, -1, 1, 1)
        pad = tuple((k - 1) * d - p for k, d, p in zip(self.kernel, self.dilation, self.pad, strict=True))
        return Filters(weight.flip(2, 3).transpose(0, 1), bias, self.stride, pad, self.dilation, self.group)


@layer("Im2col")
class Im2col(windows.Im2col, Layer):
    """The windows that a convolution multiplies by filters: (N, C, ...) to (N, C * kernel numbers, windows ...)."""

    def forward(self, x: Tensor) -> Tensor:
        (shape,) = self.reshape(tuple(x.shape))
        c, axes = self.channel_axis, len(self.kernel)
        if axes == 2:  # torch has this for two axes
            return F.unfold(x.reshape(-1, *x.shape[c:]), self.kernel, self.dilation, self.pad, self.stride).view(shape)
        windows = F.pad(x, [side for p in reversed(self.pad) for side in (p, p)])
        for i, (k, s, d) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            windows = windows.unfold(c + 1 + i, (k - 1) * d + 1, s)[..., ::d]
        inside = range(windows.dim() - axes, windows.dim())
        return windows.permute(*range(c + 1), *inside, *range(c + 1, c + 1 + axes)).reshape(shape)
