"""Coordinate maps from one blob's pixels to another's. Source: coords.hpp (noh), coord_map.py (bvlc)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

__all__ = ["CoordMap", "centre", "compose", "filter_map", "identity_map", "inverse"]

CoordMap = tuple[tuple[Any, Any], ...]
"""For each spatial axis (scale, shift): position t of the bottom is scale * t + shift in the top."""


def identity_map(axes: int = 2) -> CoordMap:
    """The identity map."""
    return ((Fraction(1), Fraction(0)),) * axes


def centre(stride: Any, kernel: Any, pad: Any) -> tuple[Any, Any]:
    """(scale, shift) of the centre of window t, which is at scale * t + shift. Numbers, or arrays of them."""
    return stride, (kernel - 1) / 2 - pad


def filter_map(
    kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int] | None = None
) -> CoordMap:
    """A deconvolution's map, the inverse of a convolution's (noh: coords.hpp, without dilation; bvlc: coord_map.py)."""
    windows = zip(kernel, stride, pad, dilation or (1,) * len(kernel), strict=True)
    return tuple(centre(Fraction(s), Fraction((k - 1) * d + 1), p) for k, s, p, d in windows)


def compose(left: CoordMap, right: CoordMap) -> CoordMap:
    """``left`` after ``right`` (coords.hpp, compose)."""
    return tuple((a * c, a * d + b) for (a, b), (c, d) in zip(left, right, strict=True))


def inverse(m: CoordMap) -> CoordMap:
    """The inverse of ``m``."""
    return tuple((1 / a, -b / a) for a, b in m)
