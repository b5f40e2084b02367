"""Window arithmetic that convolution, pooling and their inverses share."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from caffe_port.layers.base import Layer
from caffe_port.layers.fields import Fields

__all__ = ["CoordMap", "compose", "filter_map", "holes", "identity_map", "inverse", "single_or_pair", "spatial"]

CoordMap = tuple[tuple[Fraction, Fraction], ...]
"""For each spatial axis (scale, shift): what lies at t in the bottom lies at scale * t + shift in the top."""


def spatial(layer: Layer, p: Fields, name: str, axes: int, default: int | None) -> tuple[int, ...]:
    """A repeated window field (``kernel_size``, ``pad``, ``stride``, ``dilation``), with its ``_h``/``_w`` forms.

    Source: base_conv_layer.cpp, LayerSetUp.
    """
    values = getattr(p, name)
    short = "kernel" if name == "kernel_size" else name
    if short != "dilation" and (p.has(f"{short}_h") or p.has(f"{short}_w")):
        if axes != 2:
            raise layer.error(f"{short}_h and {short}_w with {axes} spatial axes", expected="2 spatial axes")
        if values:
            raise layer.error(f"both {name} and {short}_h/{short}_w", remedy="keep one of them")
        return getattr(p, f"{short}_h"), getattr(p, f"{short}_w")
    if not values and default is not None:
        return (default,) * axes
    if len(values) not in (1, axes):
        raise layer.error(
            f"{name} given {len(values)} times", expected=f"once, or once for each of {axes} spatial axes"
        )
    return tuple(values) if len(values) == axes else tuple(values) * axes


def single_or_pair(layer: Layer, p: Fields, name: str) -> tuple[int, int]:
    """An optional window field with ``_h``/``_w`` forms, as pooling has them (pooling_layer.cpp, LayerSetUp)."""
    short = "kernel" if name == "kernel_size" else name
    h, w = f"{short}_h", f"{short}_w"
    if p.has(h) != p.has(w) and (name == "kernel_size" or not p.has(name)):
        raise layer.error(f"only one of {h} and {w}", expected="both")
    if p.has(h) and p.has(name):
        raise layer.error(f"both {name} and {h}/{w}", remedy="keep one of them")
    return (getattr(p, h), getattr(p, w)) if p.has(h) else (getattr(p, name),) * 2


def holes(layer: Layer, p: Fields, axes: int) -> tuple[int, ...]:
    """``dilation``, or ``hole`` as DeepLab calls it (deeplab-public: conv_layer.cpp); 1 without."""
    if not (p.has("hole") or p.has("hole_h") or p.has("hole_w")):
        return spatial(layer, p, "dilation", axes, 1)
    if p.dilation or axes != 2:
        raise layer.error(f"hole, with {axes} spatial axes", expected="2, and no dilation beside it")
    return single_or_pair(layer, p, "hole")


def identity_map(axes: int = 2) -> CoordMap:
    """The map of a layer that keeps every pixel where it is."""
    return ((Fraction(1), Fraction(0)),) * axes


def filter_map(kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int]) -> CoordMap:
    """Where the centre of window t lies: a deconvolution's map, the inverse of a convolution's (noh: coords.hpp)."""
    return tuple((Fraction(s), Fraction(k - 1, 2) - p) for k, s, p in zip(kernel, stride, pad, strict=True))


def compose(left: CoordMap, right: CoordMap) -> CoordMap:
    """``left`` after ``right`` (coords.hpp, compose)."""
    return tuple((a * c, a * d + b) for (a, b), (c, d) in zip(left, right, strict=True))


def inverse(m: CoordMap) -> CoordMap:
    """The map that undoes ``m``."""
    return tuple((1 / a, -b / a) for a, b in m)
