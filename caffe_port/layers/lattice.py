"""Gaussian filtering of points in space by a permutohedral lattice: its cost does not grow with the Gaussian's width.

On the CPU a compiled kernel numbers the corners and filters (``caffe_port/native/lattice.c``); elsewhere, and without a
compiler, torch does.

Source: Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.errors import ShapeError
from caffe_port.native import call, library

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
        codes, weights, steps = _simplices(torch.from_numpy(points.astype(np.float32, copy=False)).to(device))
        native = codes.device.type == "cpu" and codes.numel() < 1 << 30 and library("lattice") is not None
        self._by = (_Compiled if native else _Plain)(codes, weights, steps)
        self.corners = self._by.corners

    def filter(self, values: Tensor, *, scale: float = 1, onto: Tensor | None = None) -> Tensor:
        """The weighted sums over all points, of float32 ``values`` (n, channels): linear, not normalised.

        Args:
            scale: a factor. onto: to which the result is added, in place; it is then the result.
        """
        return self._by.filter(values, scale, onto)


class _Plain:
    """A lattice by torch's operations."""

    def __init__(self, codes: Tensor, weights: Tensor, steps: list[int]) -> None:
        each = codes.shape[1]
        ordered, order = codes.flatten().sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=first[1:])
        known, starts = ordered[first], first.nonzero().flatten()
        corner = torch.empty_like(order, dtype=torch.int32)
        corner[order] = first.cumsum(0, dtype=torch.int32).sub_(1)
        self.corners = len(known)
        self._spread = (order // each).int(), starts.int(), weights.flatten()[order]
        self._collect = corner.view(codes.shape), weights / _single(each)
        self._blurs = [_neighbours(known, step) for step in steps]

    def filter(self, values: Tensor, scale: float, onto: Tensor | None) -> Tensor:
        points, starts, weights = self._spread
        at = F.embedding_bag(points, values, starts, mode="sum", per_sample_weights=weights)
        for neighbours, shares in self._blurs:
            at = F.embedding_bag(neighbours, at, mode="sum", per_sample_weights=shares)
        corners, weights = self._collect
        found = F.embedding_bag(corners, at, mode="sum", per_sample_weights=weights)
        return found.mul_(scale) if onto is None else onto.add_(found, alpha=scale)


class _Compiled:
    """The same by the kernel."""

    def __init__(self, codes: Tensor, weights: Tensor, steps: list[int]) -> None:
        (n, each), threads = codes.shape, torch.get_num_threads()
        corner, points = torch.empty(n, each, dtype=torch.int32), torch.empty(n * each, dtype=torch.int32)
        starts, shares = torch.empty(n * each + 1, dtype=torch.int32), torch.empty(n * each)
        # Of what is too long for the corners that there are, the pages are never touched.
        chains, counts = torch.empty(each, n * each, dtype=torch.int32), torch.empty(each + 1, dtype=torch.int64)
        given = codes, weights, torch.tensor(steps), corner, counts, chains, starts, points, shares
        call("lattice", "lattice_corners", (n, each, threads), *given)
        self.corners = int(counts[0])
        self._given = starts, points, shares, chains, counts, corner, weights / _single(each)
        self._each, self._work = each, torch.empty(0)

    def filter(self, values: Tensor, scale: float, onto: Tensor | None) -> Tensor:
        values = values.float().contiguous()
        n, channels = values.shape
        y = torch.empty_like(values) if onto is None else onto
        assert y.is_contiguous() and y.dtype == torch.float32
        size = self.corners * next((w for w in _WIDTHS if w >= channels), _WIDTHS[-1])
        if self._work.numel() < size:
            self._work = torch.empty(size)
        shape = n, self._each, self.corners, channels, int(onto is not None), torch.get_num_threads()
        call(
            "lattice", "lattice_filter", shape, values, *self._given, self._work, y, ctypes.byref(ctypes.c_float(scale))
        )
        return y


_WIDTHS = 4, 8, 16, 24, 32
"""The numbers of channels that the kernel takes at a time."""


def _single(corners: int) -> float:
    """What an isolated point keeps of its value, averaged over its position in the simplex."""
    return 1 + 2.0 ** (1 - corners)


def _simplices(points: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """The corners of each point's simplex as numbers, int64 (n, d + 1), and its share of each, float32 (n, d + 1).

    Also how far apart the numbers of neighbours are along each of the d + 1 axes.

    In single precision and in the original's order (permutohedral.cpp, init): a point half-way between two simplices
    gets the same one as there.

    Raises:
        ShapeError: 63 bits cannot number the corners.
    """
    n, d = points.shape
    one = np.float32
    deviation = one(np.sqrt(2 / 3) * (d + 1))
    # Into the hyperplane of d + 1 coordinates whose sum is 0, scaled so that the blur's deviation is the Gaussian's.
    elevated, total = points.new_empty(d + 1, n), points.new_zeros(n)
    for j in range(d, 0, -1):
        scaled = points[:, j - 1] * float(one(1 / np.sqrt((j + 1) * j) * np.float64(deviation)))
        torch.sub(total, j * scaled, out=elevated[j])
        total += scaled
    elevated[0] = total
    # The nearest corner whose coordinates are all multiples of d + 1, and the order of the remainders.
    nearest = (elevated * float(one(1 / (d + 1)))).round_()
    excess = nearest.sum(0).to(torch.int64)
    nearest *= d + 1
    left = elevated - nearest
    rank = excess.repeat(d + 1, 1)
    for i in range(d + 1):
        for j in range(i + 1, d + 1):
            behind = left[i] < left[j]
            rank[i] += behind
            rank[j] += ~behind
    turn = ((rank < 0).to(torch.int64) - (rank > d).to(torch.int64)) * (d + 1)
    rank += turn
    nearest += turn
    # Barycentric coordinates, from differences of the remainders in their order.
    ordered = torch.empty_like(left).scatter_(0, d - rank, (elevated - nearest) * float(one(1 / (d + 1))))
    weights = points.new_empty(n, d + 1)
    weights[:, 0] = ordered[0] + (1 - ordered[d])
    weights[:, 1:] = (ordered[1:] - ordered[:-1]).t()

    # A corner is numbered by its first d coordinates. Corner k's are the nearest one's plus k, less d + 1 where the
    # coordinate's rank is above d - k.
    corner = nearest[:d].to(torch.int64)
    low = [int(x) - d for x in (corner - rank[:d]).amin(1)]
    high = [int(x) + d for x in (corner + (d - rank[:d])).amax(1)]
    strides = [1]
    for least, most in zip(low, high, strict=True):
        strides.append(strides[-1] * (most - least + 1))
    if strides.pop() >= 1 << 63:
        sizes = " x ".join(str(most - least + 1) for least, most in zip(low, high, strict=True))
        raise ShapeError(
            "lattice",
            f"points over {sizes} corners",
            expected="2^63 at most",
            remedy="take larger standard deviations",
        )
    by_rank = rank.new_zeros(d + 1, n).scatter_(0, rank, torch.tensor([*strides, 0]).to(rank)[:, None].expand(-1, n))
    codes = rank.new_empty(n, d + 1)
    codes[:, 0] = sum((corner[j] - low[j]) * strides[j] for j in range(d))
    for k in range(1, d + 1):
        codes[:, k] = codes[:, k - 1] + sum(strides) - (d + 1) * by_rank[d - k + 1]
    return codes, weights, [*((d + 1) * stride - sum(strides) for stride in strides), -sum(strides)]


def _neighbours(known: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Each corner with its two neighbours by index, int32 (corners, 3), and their weights; 0 for unknown ones."""
    here = torch.arange(len(known), device=known.device)
    at = torch.searchsorted(known, known + step).clamp_(max=len(known) - 1)
    there = known[at] == known + step
    neighbours = here.int()[:, None].repeat(1, 3)
    shares = torch.zeros(neighbours.shape, device=known.device)
    shares[:, 0] = 1
    one, other = here[there], at[there]
    neighbours[one, 1], shares[one, 1] = other.int(), 0.5
    neighbours[other, 2], shares[other, 2] = one.int(), 0.5
    return neighbours, shares
