"""Pooling with switches, pyramid pooling, and unpooling.

Source: pooling_layer.cpp, pooling_layer.cu, spp_layer.cpp; unpooling_layer.cpp (noh). Switches are flat indices
y * W + x inside their own channel plane, kept as floating-point blobs.
"""

from __future__ import annotations

import math
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port import random
from caffe_port.errors import ShapeError
from caffe_port.layers.backward import Backward, Gradients
from caffe_port.layers.base import Layer, layer
from caffe_port.layers.functions import Function, as_numbers, made_again, symbolic
from caffe_port.spec import windows

MANY_CHANNELS = 16
"""From this number of channels torch is faster in channels-last layout, including the conversions."""


@layer("Pooling")
class Pooling(windows.Pooling, Layer):
    """MAX (first maximum wins; a second top gives the switches), AVE (padding counts, positions beyond it do
    not), AVE_EXC_PAD (not in BVLC 1.0: only pixels count), STOCHASTIC (for values >= 0: in TRAIN one value of the
    window, drawn with a probability proportional to it; in TEST the mean with these probabilities).

    Caffe has STOCHASTIC only on the GPU. Here the draws come from the net's stream.
    """

    @property
    def untraceable(self) -> str:
        return "it draws random numbers" if self.method == "STOCHASTIC" and self.training else ""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not self._turns(x):
            return self._pool(x)
        tops = self._pool(x.contiguous(memory_format=torch.channels_last))
        return tops.contiguous() if isinstance(tops, Tensor) else (tops[0].contiguous(), tops[1].contiguous())

    def _turns(self, x: Tensor) -> bool:
        """Whether to convert to channels-last: torch then pools all channels at once, in the same order.

        That is several times as fast, unless channels or windows are few, or a gradient has to be converted back. A
        trace must not depend on the gradient mode: torch.jit.trace makes a second one without gradients and compares.
        """
        if symbolic(x) or self.method == "STOCHASTIC" or self.window(x.shape) == x.shape[2:]:
            return False
        if x.shape[1] < MANY_CHANNELS or x.device.type != "cpu" or not x.is_contiguous():
            return False
        return not (torch.is_grad_enabled() and x.requires_grad)

    def _pool(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        kernel = self.window(x.shape)
        size = self.pooled(x.shape[2:], kernel)
        if self.method == "AVE":
            y = self._average(x, kernel, size)
            return y if self.n_tops == 1 else (y, torch.zeros_like(y))
        if self.method == "STOCHASTIC":
            return self._stochastic(x, kernel, size)
        if self._as_torch(x, kernel, size):
            args = (kernel, self.stride, self.pad, 1, self.ceil)
            if self.n_tops == 1:
                return F.max_pool2d(x, *args)
            y, index = F.max_pool2d(x, *args, return_indices=True)
        else:
            width = x.shape[3]
            padded, (top, left) = self._padded(x, kernel, size, -torch.finfo(x.dtype).max)
            y, index = F.max_pool2d(padded, kernel, self.stride, return_indices=True)
            index = (index // padded.shape[3] - top) * width + index % padded.shape[3] - left
        return y if self.n_tops == 1 else (y, as_numbers(index, x))

    def caffe_gradient(self, b: Backward) -> Gradients:
        grad, index = torch.zeros_like(b.given[0]).flatten(2), b.tops[1].flatten(2).long()
        if index.numel() and not (0 <= index.min() and index.max() < grad.shape[2]):
            raise self.shape_error(
                f"switches from {int(index.min())} to {int(index.max())} after a layer changed them in place",
                expected=f"0 to {grad.shape[2] - 1}, the bottom's pixels",
            )
        return [grad.scatter_add_(2, index, b.diffs[0].flatten(2)).view(b.given[0].shape)], {}

    def _as_torch(self, x: Tensor, kernel: tuple[int, int], size: tuple[int, ...]) -> bool:
        """Whether torch's pooling has the same windows."""
        theirs = tuple(
            windows.pooled_length(n, k, s, p, padded=self.ceil, ceil=self.ceil)
            for n, k, s, p in zip(x.shape[2:], kernel, self.stride, self.pad, strict=True)
        )
        return (
            self.pad == self.behind
            and theirs == size
            and all(2 * p <= k for p, k in zip(self.pad, kernel, strict=True))
        )

    def _padded(
        self, x: Tensor, kernel: tuple[int, int], size: tuple[int, ...], value: float
    ) -> tuple[Tensor, tuple[int, int]]:
        """``x`` padded or cropped to the rows and columns that ``size`` windows cover."""
        need = [(n - 1) * s + k for n, s, k in zip(size, self.stride, kernel, strict=True)]
        (top, left), (h, w) = self.pad, x.shape[2:]
        sides = (left, need[1] - w - left, top, need[0] - h - top)
        return F.pad(x, sides, value=value) if any(sides) else x, (top, left)

    def _average(self, x: Tensor, kernel: tuple[int, int], size: tuple[int, ...]) -> Tensor:
        if kernel == x.shape[2:] and not any((*self.pad, *self.behind)):
            return x.mean((2, 3), keepdim=True)
        if self._as_torch(x, kernel, size):
            return F.avg_pool2d(x, kernel, self.stride, self.pad, self.ceil, count_include_pad=self.counts_padding)
        counts = []
        for n, k, s, p, b, m in zip(x.shape[2:], kernel, self.stride, self.pad, self.behind, size, strict=True):
            start = torch.arange(m, device=x.device) * s - p
            if self.counts_padding:
                counts.append(torch.clamp(start + k, max=n + b) - start)
            else:
                counts.append(torch.clamp(start + k, max=n) - start.clamp(min=0))
        total = F.avg_pool2d(self._padded(x, kernel, size, 0.0)[0], kernel, self.stride, divisor_override=1)
        return total / (counts[0][:, None] * counts[1]).to(x.dtype)

    def _stochastic(self, x: Tensor, kernel: tuple[int, int], size: tuple[int, ...]) -> Tensor:
        columns = F.unfold(self._padded(x, kernel, size, 0.0)[0], kernel, stride=self.stride)
        windows = columns.view(*x.shape[:2], -1, *size)
        if not self.training:
            total = windows.sum(2)
            return windows.square().sum(2) / total.masked_fill(total <= 0, math.inf)
        reached = windows.detach().cumsum(2)
        dtype = np.float64 if x.dtype == torch.float64 else np.float32
        drawn = torch.from_numpy(random.default_stream().uniform(0, 1, reached[:, :, 0].numel(), dtype))
        bound = drawn.to(x).view(*x.shape[:2], 1, *size) * reached[:, :, -1:]
        return windows.gather(2, (reached >= bound).max(2, keepdim=True).indices).squeeze(2)


@layer("SPP")
class SPP(windows.SPP, Layer):
    """Spatial pyramid pooling into 1 x 1, 2 x 2, 4 x 4 ... windows, for any size of the bottom, concatenated.

    The top is (N, features); for a pyramid of one level it is that pooling's top, (N, C, 1, 1).
    """

    pooling = Pooling

    def forward(self, x: Tensor) -> Tensor:
        pooled = [pooling.train(self.training)(x) for pooling in self.levels(tuple(x.shape))]
        return pooled[0] if self.height == 1 else torch.cat([y.flatten(1) for y in pooled], 1)


class _Place(Function):
    """out[switch] = value by assignment; backward reads diff[switch], without a sum.

    If two values can have one switch (not ``unique``) the last in raster order wins. It is determined beforehand,
    because a scatter with equal indices has no defined order. Backward uses the original switches.
    """

    own_gradient = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, switches: Tensor, size: tuple[int, int], unique: bool) -> Tensor:
        ctx.save_for_backward(switches)
        index = switches.to(torch.int64)
        if unique:
            return torch.ops.aten.max_unpool2d(x, index, size)
        if not (torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None):
            # If every position holds all values with its switch, there is no conflict.
            out = torch.ops.aten.max_unpool2d(x, index, size)
            if torch.equal(out.flatten(2).gather(2, index.flatten(2)), x.flatten(2)):
                return out
        flat, index = x.flatten(2), index.flatten(2)
        order = torch.arange(1, flat.shape[2] + 1, device=x.device).expand_as(index)
        last = torch.zeros((*x.shape[:2], size[0] * size[1]), dtype=torch.int64, device=x.device)
        last.scatter_reduce_(2, index, order, "amax")
        out = torch.where(last > 0, flat.gather(2, (last - 1).clamp(min=0)), 0)
        return out.unflatten(2, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (switches,) = ctx.saved_tensors
        index = switches.to(torch.int64)
        last = torch.channels_last
        if index.is_contiguous() or not index.is_contiguous(memory_format=last):
            return grad.flatten(2).gather(2, index.flatten(2)).view(index.shape), None, None, None
        pixels, index = (t.contiguous(memory_format=last).permute(0, 2, 3, 1) for t in (grad, index))
        found = pixels.flatten(1, 2).gather(1, index.flatten(1, 2))
        return found.view(index.shape).permute(0, 3, 1, 2), None, None, None


def place(layer: Layer, x: Tensor, switches: Tensor, size: tuple[int, ...], *, unique: bool) -> Tensor:
    """Zeros of (N, C, *size) with each value of ``x`` at its switch, a flat index into its plane.

    Args:
        layer: raises the error if a switch is out of range. unique: no switch occurs twice; else the last one wins.
    """
    try:
        y = _Place.run(x, switches, size, unique)
        inputs = x.detach(), switches, size, unique
        return made_again(y, lambda: _Place.run(*inputs)) if y.requires_grad else y
    except RuntimeError as e:
        if "out of bounds" not in str(e) and "invalid max index" not in str(e):
            raise
        raise wrong_switch(layer, size) from e


def wrong_switch(layer: Any, size: tuple[int, ...] | None = None) -> ShapeError:
    """The error of a switch that is no pixel of an output of this size (default: the layer's)."""
    pixels = prod(size or layer.size)
    error: ShapeError = layer.shape_error(
        "a switch outside the output", expected=f"0 to {pixels - 1}, the output's pixels"
    )
    return error


class _DividedGradient(Function):
    """The identity, whose gradient is divided by ``by``."""

    own_gradient = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: Tensor) -> Tensor:
        ctx.save_for_backward(by)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad / ctx.saved_tensors[0], None


@layer("Unpooling")
class Unpooling(windows.Unpooling, Layer):
    """MAX puts each value back at its switch (or its window's top-left corner), AVE spreads it evenly, TILE repeats it.

    The original's AVE and TILE add to the output's previous values, so that a second forward pass adds to the first;
    here the output starts from zero. TILE's backward pass divides by the window's size although its forward pass does
    not.
    """

    def forward(self, x: Tensor, switches: Tensor | None = None) -> Tensor:
        if self.method != "MAX":
            return self._spread(x)
        if switches is None:
            rows, columns = (
                (torch.arange(n, device=x.device) * s).clamp(max=m - 1)
                for n, s, m in zip(x.shape[2:], self.stride, self.size, strict=True)
            )
            switches = (rows[:, None] * self.size[1] + columns).expand_as(x)
            unique = all((n - 1) * s < m for n, s, m in zip(x.shape[2:], self.stride, self.size, strict=True))
        else:
            unique = all(k <= s for k, s in zip(self.kernel, self.stride, strict=True))
        return place(self, x, switches, self.size, unique=unique)

    def _spread(self, x: Tensor) -> Tensor:
        extents = []
        for n, k, s, m in zip(x.shape[2:], self.kernel, self.stride, self.size, strict=True):
            start = torch.arange(n, device=x.device) * s
            extents.append((torch.clamp(start + k, max=m) - start).clamp(min=1))
        area = (extents[0][:, None] * extents[1]).to(x.dtype)
        x = x / area if self.method == "AVE" else _DividedGradient.run(x, area)
        ones = x.new_ones((x.shape[1], 1, *self.kernel))
        y = F.conv_transpose2d(x, ones, stride=self.stride, groups=x.shape[1])
        return F.pad(y, (0, self.size[1] - y.shape[3], 0, self.size[0] - y.shape[2]))
