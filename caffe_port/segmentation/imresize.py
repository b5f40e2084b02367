"""MATLAB's ``imresize``, with equal results: the released inference resizes pictures and score maps with it.

Other libraries give other results. When it shrinks, the kernel is widened by the factor (antialiasing); beyond an
edge the array is mirrored, with the edge's pixel twice; the axis that shrinks most is resized first, and its result is
rounded to the array's type before the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_port.errors import CaffeError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["imresize"]

Array = np.ndarray[Any, np.dtype[Any]]


def imresize(array: Array, size: Sequence[int] | float, method: str = "bicubic", *, antialias: bool = True) -> Array:
    """Resize the first two axes.

    Args:
        array: (height, width, ...), uint8, float32 or float64; the result has its type. uint8 is rounded and clipped.
        size: (height, width), or the factor for both, which gives ``ceil(factor * n)`` pixels for n.
        method: "bicubic" or "bilinear".
        antialias: widen the kernel where the array shrinks.

    Raises:
        CaffeError: another method or type, an empty array or a size below 1.
    """
    if method not in _KERNELS:
        raise CaffeError("imresize", f"method {method!r}", expected=" or ".join(_KERNELS))
    if array.dtype not in (np.uint8, np.float32, np.float64):
        raise CaffeError("imresize", f"an array of {array.dtype}", expected="uint8, float32 or float64")
    if isinstance(size, (int, float)):
        factors = [float(size)] * 2
        lengths = [ceil(size * n) for n in array.shape[:2]]
    else:
        lengths = [int(n) for n in size]
        factors = [n / max(old, 1) for n, old in zip(lengths, array.shape, strict=False)]
    if array.ndim < 2 or not array.size or len(lengths) != 2 or min(lengths) < 1:
        raise CaffeError("imresize", f"shape {array.shape} to {size}", expected="two axes or more and no empty ones")
    for axis in sorted((0, 1), key=lambda axis: factors[axis]):
        weights = _weights(array.shape[axis], lengths[axis], factors[axis], method, antialias)
        array = _along(weights, array, axis)
    return array


def _weights(before: int, after: int, factor: float, method: str, antialias: bool) -> csr_array:
    """The weight of each of ``before`` pixels in each of ``after``: float64 (after, before), rows of sum 1."""
    from scipy.sparse import csr_array

    kernel, width = _KERNELS[method]
    squeeze = factor if antialias and factor < 1 else 1.0
    # Pixels are unit intervals around 1, 2, ...; centre is a new one's position among the old ones.
    centre = np.arange(1, after + 1) / factor + 0.5 * (1 - 1 / factor)
    left = np.floor(centre - width / squeeze / 2)
    reach = left[:, None] + np.arange(ceil(width / squeeze) + 2)
    values = kernel((centre[:, None] - reach) * squeeze)
    values /= values.sum(axis=1, keepdims=True)
    mirrored = np.concatenate([np.arange(before), np.arange(before)[::-1]])
    pixels = mirrored[(reach.astype(np.int64) - 1) % (2 * before)]
    return csr_array((values.ravel(), pixels.ravel(), np.arange(after + 1) * reach.shape[1]), (after, before))


def _along(weights: csr_array, array: Array, axis: int) -> Array:
    moved = np.moveaxis(array, axis, 0)
    resized = weights @ moved.reshape(len(moved), -1).astype(np.float64, copy=False)
    if array.dtype == np.uint8:
        resized = np.floor(resized.clip(0, 255) + 0.5)
    return np.moveaxis(resized.reshape(-1, *moved.shape[1:]).astype(array.dtype, copy=False), 0, axis)


def _triangle(x: Array) -> Array:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: Array) -> Array:
    """Keys' cubic convolution with a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))


_KERNELS: dict[str, tuple[Callable[[Array], Array], int]] = {"bicubic": (_cubic, 4), "bilinear": (_triangle, 2)}
"""Each kernel with the width of its support."""
