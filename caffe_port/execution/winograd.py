"""3x3 convolutions of many channels by Winograd's F(4x4, 3x3): a quarter of the multiplications.

A tile of 6x6 pixels gives 4x4 outputs. Tiles and filters are transformed, multiplied channel by channel as 36 matrix
products, and transformed back. The transforms interpolate polynomials at the points 0, +-2/3, +-3/2 and infinity: at
the usual 0, +-1, +-2 the rounding error is four times as large (docs/speed.md).

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016; Barabasz, Anderson, Soodhalter and
Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2018.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["pays", "winograd"]

_TILE, _KERNEL = 4, 3
_SIDE = _TILE + _KERNEL - 1
_POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
_FEWEST_CHANNELS = 128
"""Below, transforming tiles costs what multiplying less saves."""
_FEWEST_TILES = 16
"""Below, reading the transformed filters, four times as large, costs more."""
_LARGEST = 64 << 20
"""Bytes of transformed tiles at a time."""


def pays(weight: Tensor, x: Tensor, stride: Sequence[int], dilation: Sequence[int], group: int) -> bool:
    """Whether a convolution (out, in, h, w) of such a bottom is quicker this way. CAFFE_PORT_WINOGRAD=0: never."""
    if os.environ.get("CAFFE_PORT_WINOGRAD") == "0":
        return False
    if tuple(weight.shape[2:]) != (_KERNEL, _KERNEL) or set(stride) != {1} or set(dilation) != {1} or group != 1:
        return False
    tiles = x.shape[0] * -(-x.shape[2] // _TILE) * -(-x.shape[3] // _TILE)
    return min(weight.shape[:2]) >= _FEWEST_CHANNELS and tiles >= _FEWEST_TILES


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


def winograd(weight: Tensor, bias: Tensor, pad: Sequence[int], *, relu: bool) -> Callable[[Tensor], Tensor]:
    """The convolution, with the ReLU if asked, as a function of float32 bottoms (N, C, H, W) of any size.

    Args:
        weight: (out, in, 3, 3). bias: (out,). pad: rows and columns of zeros on either side.
    """
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
