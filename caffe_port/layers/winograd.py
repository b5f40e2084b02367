"""3x3 convolutions of many channels by Winograd's F(4x4, 3x3): a quarter of the multiplications.

A tile of 6x6 pixels gives 4x4 outputs. Tiles and filters are transformed, multiplied channel by channel as 36 matrix
products, and transformed back. The transforms interpolate polynomials at the points 0, +-2/3, +-3/2 and infinity: at
the usual 0, +-1, +-2 the rounding error is four times as large (docs/speed.md).

The compiled kernel (``caffe_port/native/winograd.c``) transforms block by block in the cache, needs no other copy of
the filters than its own order, and has the gradients. Without it torch does inference, for large layers.

CAFFE_PORT_WINOGRAD=0 in the environment turns both off; all takes the kernel wherever it can compute a layer.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016; Barabasz, Anderson, Soodhalter and
Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2018.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from caffe_port.layers.functions import Function, symbolic
from caffe_port.native import call, library

__all__ = ["convolve", "kernel_pays", "ordered", "pays", "prepared"]

_TILE, _KERNEL = 4, 3
_SIDE = _TILE + _KERNEL - 1
_POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
_FEWEST_TILES = 16
"""Below, transforming the filters, or reading them transformed, costs more."""
_FEWEST_CHANNELS = 32
"""Below, transforming tiles costs what multiplying less saves."""
_LANES = 16
"""The kernel's channels are multiples of this number; others are filled up with zeros."""
_FEWEST_CHANNELS_TORCH = 128
_LARGEST = 64 << 20
"""Bytes of tiles that torch transforms at a time."""
SCRATCH_BYTES = 4 << 20
"""Bytes of tiles that a thread of the kernel transforms at a time."""


def _setting() -> str | None:
    return os.environ.get("CAFFE_PORT_WINOGRAD")


def _tiles(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[2] // _TILE) * -(-x.shape[3] // _TILE)


def kernel_pays(
    x: Tensor, weight: Tensor, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int], group: int
) -> bool:
    """Whether the compiled kernel computes such a (de)convolution, and quicker.

    Args:
        x: a bottom (N, C, H, W), float32 on the CPU. weight: (.., .., h, w), channels in any order.
    """
    if _setting() == "0" or tuple(weight.shape[2:]) != (_KERNEL, _KERNEL):
        return False
    if group != 1 or set(stride) != {1} or len(set(dilation)) != 1:
        return False
    if _setting() != "all" and (min(weight.shape[:2]) < _FEWEST_CHANNELS or _tiles(x) < _FEWEST_TILES):
        return False
    return library("winograd") is not None


def pays(
    x: Tensor, weight: Tensor, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int], group: int
) -> bool:
    """The same for inference, where torch does what the kernel does not."""
    if kernel_pays(x, weight, stride, pad, dilation, group):
        return True
    if _setting() == "0" or tuple(weight.shape[2:]) != (_KERNEL, _KERNEL) or group != 1:
        return False
    if {*stride, *dilation} != {1} or min(pad) < 0:
        return False
    return min(weight.shape[:2]) >= _FEWEST_CHANNELS_TORCH and _tiles(x) >= _FEWEST_TILES


def prepared(
    weight: Tensor, bias: Tensor, pad: Sequence[int], dilation: int, *, relu: bool
) -> Callable[[Tensor], Tensor]:
    """The convolution, with the ReLU if asked, as a function of float32 bottoms (N, C, H, W) of any size.

    Args:
        weight: (out, in, 3, 3). bias: (out,). pad: rows and columns of zeros on either side.
    """
    if library("winograd") is None:
        return _by_torch(weight, bias, pad, relu=relu)
    filters, bias, outputs = ordered(weight), _filled_up(bias.clone()), weight.shape[0]
    return lambda x: _run(x, filters, bias, pad, dilation, outputs, relu=relu)


# -- by the kernel -----------------------------------------------------------------------------------------------------


def _filled_up(t: Tensor, axes: int = 1) -> Tensor:
    """Contiguous, with the last axes filled up with zeros to what the kernel takes."""
    more = [n for size in reversed(t.shape[-axes:]) for n in (0, -size % _LANES)]
    return F.pad(t, more) if any(more) else t.contiguous()


def ordered(weight: Tensor, *, turned: bool = False) -> Tensor:
    """Filters in the kernel's order (3, 3, in, out); turned by 180 degrees, the first axis is the inputs'."""
    w = weight.detach()
    return _filled_up(w.flip(2, 3).permute(2, 3, 0, 1) if turned else w.permute(2, 3, 1, 0), 2)


def _run(
    x: Tensor,
    filters: Tensor,
    bias: Tensor | None,
    pad: Sequence[int],
    dilation: int,
    outputs: int,
    *,
    relu: bool = False,
) -> Tensor:
    """The convolution of (N, C, H, W), in channels-last layout. filters and bias are filled up."""
    x = _filled_up(x.detach().permute(0, 2, 3, 1))
    size = (n + 2 * p - 2 * dilation for n, p in zip(x.shape[1:3], pad, strict=True))
    y = x.new_empty(x.shape[0], *size, filters.shape[3])
    rest = filters, bias, int(relu), y, ctypes.c_long(SCRATCH_BYTES), torch.get_num_threads()
    call("winograd", "winograd_forward", (*x.shape, y.shape[3], *pad, dilation), x, *rest)
    return (y if outputs == y.shape[3] else y[..., :outputs].contiguous()).permute(0, 3, 1, 2)


def _filters_gradient(x: Tensor, grad: Tensor, pad: Sequence[int], dilation: int) -> Tensor:
    """The gradient of the (out, in, 3, 3) filters of the convolution of ``x``."""
    inputs, outputs = x.shape[1], grad.shape[1]
    x, grad = (_filled_up(t.detach().permute(0, 2, 3, 1)) for t in (x, grad))
    found = x.new_empty(_KERNEL, _KERNEL, x.shape[3], grad.shape[3])
    shape = (*x.shape, grad.shape[3], *pad, dilation)
    call("winograd", "winograd_filters", shape, x, grad, found, torch.get_num_threads())
    return found[:, :, :inputs, :outputs].permute(3, 2, 0, 1).contiguous()


class _Convolve(Function):
    """The convolution, or its transpose: each the other's gradient, with filters turned by 180 degrees."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pad: tuple[int, int], dilation: int, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = pad, dilation, transposed
        return _either(x, weight, bias, pad, dilation, turned=transposed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        pad, dilation, transposed = ctx.how
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # for gradients of higher order
            how = (1, 1), pad, (dilation, dilation), transposed, (0, 0), 1, (to_x, to_weight, False)
            dx, dw, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *how)
        else:
            dx = _either(grad, weight, None, pad, dilation, turned=not transposed) if to_x else None
            pair = (grad, x) if transposed else (x, grad)
            dw = _filters_gradient(pair[0], pair[1], pad, dilation) if to_weight else None
        return dx, dw, grad.sum((0, 2, 3)) if to_bias else None, None, None, None


def _either(
    x: Tensor, weight: Tensor, bias: Tensor | None, pad: tuple[int, int], dilation: int, *, turned: bool
) -> Tensor:
    """The convolution, or (turned) its transpose, in the layout of ``x``."""
    pads, outputs = ([2 * dilation - p for p in pad], weight.shape[1]) if turned else (pad, weight.shape[0])
    bias = None if bias is None else _filled_up(bias.detach())
    y = _run(x, ordered(weight, turned=turned), bias, pads, dilation, outputs)
    return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, windows: Sequence[tuple[int, ...]], transposed: bool, group: int
) -> Tensor | None:
    """A (de)convolution with gradients, by the kernel; None where it does not pay, or operations are recorded.

    Args:
        windows: for both axes (kernel, stride, pad, dilation).
    """
    if len(windows) != 2 or x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return None
    _, stride, pad, dilation = zip(*windows, strict=True)
    if not x.numel() or not kernel_pays(x, weight, stride, pad, dilation, group):
        return None
    if symbolic(x, weight) or torch.is_autocast_enabled("cpu") or forward_ad._current_level >= 0:
        return None
    result: Tensor = _Convolve.run(x, weight, bias, pad, dilation[0], transposed)
    return result


# -- by torch ----------------------------------------------------------------------------------------------------------


@cache
def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transforms of tiles (6, 6), of filters (6, 3) and of products (4, 6), in double precision (Toom-Cook)."""
    n = len(_POINTS)
    tiles, filters, back = np.zeros((_SIDE, _SIDE)), np.zeros((_SIDE, _KERNEL)), np.zeros((_TILE, _SIDE))
    for i, point in enumerate(_POINTS):
        others = [p for j, p in enumerate(_POINTS) if j != i]
        tiles[i, :n] = np.poly(others)[::-1]
        filters[i] = [point**k / np.prod([point - p for p in others]) for k in range(_KERNEL)]
        back[:, i] = [point**k for k in range(_TILE)]
    tiles[n] = np.poly(_POINTS)[::-1]
    filters[n, -1] = back[-1, n] = 1
    # Rows of both of about one size, by powers of two, which round nothing.
    shift = 2.0 ** np.round(np.log2(np.sqrt(np.abs(filters).max(1) / np.abs(tiles).max(1))))
    return tiles * shift[:, None], filters / shift[:, None], back


def _by_torch(weight: Tensor, bias: Tensor, pad: Sequence[int], *, relu: bool) -> Callable[[Tensor], Tensor]:
    """As :func:`prepared`. The transformed filters take four times the memory."""
    tiles, filters, back = _matrices()
    f = torch.from_numpy(filters)
    transformed = torch.einsum("ik,ockl,jl->ijco", f, weight.detach().double(), f).float()
    transformed = transformed.reshape(_SIDE**2, weight.shape[1], weight.shape[0]).contiguous()
    into = torch.from_numpy(np.kron(tiles, tiles)).float()
    out_of = torch.from_numpy(np.kron(back, back)).float()
    bias = bias.clone()

    def of_images(x: Tensor) -> Tensor:
        """(N, H, W, C) with its padding to (N, rows, columns, out), whole tiles."""
        n, h, w, channels = x.shape
        down, across = (h - _KERNEL + _TILE) // _TILE, (w - _KERNEL + _TILE) // _TILE
        s = x.stride()
        shape = (_SIDE, _SIDE, n, down, across, channels)
        steps = (s[1], s[2], s[0], s[1] * _TILE, s[2] * _TILE, 1)
        cut = x.as_strided(shape, steps).reshape(_SIDE**2, -1)
        products = torch.bmm((into @ cut).view(_SIDE**2, -1, channels), transformed)
        y = (out_of @ products.view(_SIDE**2, -1)).view(_TILE, _TILE, n, down, across, -1)
        return y.permute(2, 3, 0, 4, 1, 5).reshape(n, down * _TILE, across * _TILE, -1)

    def run(x: Tensor) -> Tensor:
        n, channels, h, w = x.shape
        out_h, out_w = h + 2 * pad[0] - 2, w + 2 * pad[1] - 2
        below, right = -out_h % _TILE, -out_w % _TILE
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad[1], pad[1] + right, pad[0], pad[0] + below)).contiguous()
        at_once = max(1, _LARGEST // (4 * _SIDE**2 * -(-out_h // _TILE) * -(-out_w // _TILE) * channels))
        parts = [of_images(padded[i : i + at_once]) for i in range(0, n, at_once)]
        y = (parts[0] if len(parts) == 1 else torch.cat(parts))[:, :out_h, :out_w]
        y = torch.add(y, bias)
        return (y.relu_() if relu else y).permute(0, 3, 1, 2)

    return run
