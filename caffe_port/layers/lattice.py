"""Gaussian filtering of points in space by a permutohedral lattice: its cost does not grow with the Gaussian's width.

Source: Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.errors import ShapeError

__all__ = ["Lattice"]

Array = np.ndarray[Any, np.dtype[Any]]


class Lattice:
    """Filters values at ``points`` by ``exp(-|p - q|^2 / 2)``, approximately.

    A point spreads its value to the corners of the simplex around it, the corners are blurred along each of the
    lattice's axes by (1/2, 1, 1/2), and the point collects from its corners again. Only the simplices' corners
    are stored, as in the original programs: values that would pass through other corners are lost.

    Args:
        points: (n, d), in units of the Gaussian's standard deviation.
        device: of the computation.

    Raises:
        ShapeError: no points, infinite or NaN ones, or an extent in the lattice that 63 bits cannot number.

    Attributes:
        corners: their number.
    """

    def __init__(self, points: Array, device: torch.device | str = "cpu") -> None:
        if points.ndim != 2 or not points.size or not np.isfinite(points).all():
            raise ShapeError("lattice", f"points of shape {points.shape}", expected="(n, d), finite")
        keys, weights = _simplices(points.astype(np.float32, copy=False))
        codes, strides = _numbered(keys)
        known, corner = np.unique(codes, return_inverse=True)
        corner = corner.reshape(codes.shape)
        self.corners = len(known)

        d = points.shape[1]
        order = np.argsort(corner, axis=None, kind="stable")
        starts = np.searchsorted(corner.ravel()[order], np.arange(self.corners))
        self._spread = tuple(
            torch.from_numpy(array).to(device)
            for array in ((order // (d + 1)).astype(np.int32), starts.astype(np.int32), weights.ravel()[order])
        )
        self._collect = torch.from_numpy(corner.astype(np.int32)).to(device), torch.from_numpy(weights).to(device)
        self._blurs = [
            tuple(torch.from_numpy(array).to(device) for array in _neighbours(known, step))
            for step in (*((d + 1) * strides - strides.sum()), -strides.sum())
        ]
        # So that an isolated point keeps its value, averaged over its position in the simplex.
        self._scale = 1 / (1 + 2.0**-d)

    def filter(self, values: Tensor) -> Tensor:
        """The weighted sums over all points, of float32 ``values`` (n, channels): linear, not normalised."""
        points, starts, weights = self._spread
        at = F.embedding_bag(points, values, starts, mode="sum", per_sample_weights=weights)
        for neighbours, shares in self._blurs:
            at = F.embedding_bag(neighbours, at, mode="sum", per_sample_weights=shares)
        corners, weights = self._collect
        return F.embedding_bag(corners, at, mode="sum", per_sample_weights=weights * self._scale)


def _simplices(points: Array) -> tuple[Array, Array]:
    """The corners of each point's simplex, (n, d + 1, d) by their first d coordinates, and its share of each.

    In single precision and in the original's order (permutohedral.cpp, init): a point half-way between two simplices
    gets the same one as there.
    """
    n, d = points.shape
    one = np.float32
    deviation = one(np.sqrt(2 / 3) * (d + 1))
    scales = [one(1 / np.sqrt((i + 2) * (i + 1)) * np.float64(deviation)) for i in range(d)]
    # Into the hyperplane of d + 1 coordinates whose sum is 0, scaled so that the blur's deviation is the Gaussian's.
    elevated = np.empty((n, d + 1), np.float32)
    total = np.zeros(n, np.float32)
    for j in range(d, 0, -1):
        scaled = points[:, j - 1] * scales[j - 1]
        elevated[:, j] = total - one(j) * scaled
        total += scaled
    elevated[:, 0] = total
    # The nearest corner whose coordinates are all multiples of d + 1, and the order of the remainders.
    nearest = np.rint(elevated * one(1 / (d + 1)))
    excess = nearest.sum(axis=1, keepdims=True)
    nearest *= d + 1
    rank = np.argsort(np.argsort(nearest - elevated, axis=1, kind="stable"), axis=1, kind="stable") + excess
    turn = ((rank < 0).astype(np.float32) - (rank > d)) * (d + 1)
    rank = (rank + turn).astype(np.int64)
    nearest += turn
    # Barycentric coordinates, from differences of the remainders in their order.
    left = (elevated - nearest) * one(1 / (d + 1))
    ordered = np.empty_like(left)
    np.put_along_axis(ordered, d - rank, left, 1)
    weights = np.empty((n, d + 1), np.float32)
    weights[:, 0] = ordered[:, 0] + (1 - ordered[:, d])
    weights[:, 1:] = ordered[:, 1:] - ordered[:, :-1]
    k = np.arange(d + 1)
    canonical = np.where(k[None] <= d - k[:, None], k[:, None], k[:, None] - (d + 1))
    keys = nearest.astype(np.int64)[:, None, :d] + canonical.T[rank[:, :d]].transpose(0, 2, 1)
    return keys, weights


def _numbered(keys: Array) -> tuple[Array, Array]:
    """Indices of each corner and of its possible neighbours, and the stride of the indices for each coordinate."""
    d = keys.shape[-1]
    low, high = keys.min(axis=(0, 1)) - d, keys.max(axis=(0, 1)) + d
    sizes = [int(n) for n in high - low + 1]
    strides = [1]
    for size in sizes:
        strides.append(strides[-1] * size)
    if strides[-1] >= 1 << 63:
        raise ShapeError(
            "lattice",
            f"points over {' x '.join(map(str, sizes))} corners",
            expected="2^63 at most",
            remedy="take larger standard deviations",
        )
    growth = np.array(strides[:-1])
    return (keys - low) @ growth, growth


def _neighbours(known: Array, step: int) -> tuple[Array, Array]:
    """Each corner with its two neighbours by index, int32 (corners, 3), and their weights; 0 for unknown ones."""
    here = np.arange(len(known))
    found, shares = [here], [np.ones(len(known))]
    for wanted in (known + step, known - step):
        at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        there = known[at] == wanted
        found.append(np.where(there, at, here))
        shares.append(there * 0.5)
    return np.stack(found, 1).astype(np.int32), np.stack(shares, 1).astype(np.float32)
