"""The map from one blob's coordinates to another's, and the Crop that aligns them, for nets in Python.

A map is (axis, scale, shift): coordinate ``x`` of a layer's input is ``scale * x + shift`` in its output, for
the axes from ``axis``; numbers, or arrays with one for each spatial axis. An axis of None matches any.

Source: python/caffe/coord_map.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_port.dialects import BVLC
from caffe_port.errors import DefinitionError
from caffe_port.schema.net_spec import Function, Top, layers
from caffe_port.spec import RECORDS
from caffe_port.spec.coords import centre
from caffe_port.spec.windows import Windows

__all__ = [
    "AxisMismatchException",
    "UndefinedMapException",
    "compose",
    "conv_params",
    "coord_map",
    "coord_map_from_to",
    "crop",
    "crop_params",
    "inverse",
]

Map = tuple[Any, Any, Any]

PASS_THROUGH_LAYERS = [name for name in RECORDS if (known := RECORDS.find(name, BVLC)) and "bvlc" in known.aligned]
"""Layers whose tops have the same coordinates as their bottoms."""

_LEGACY = {"pad_h", "pad_w", "kernel_h", "kernel_w", "stride_h", "stride_w"}


class UndefinedMapException(DefinitionError):
    """A layer without a map."""


class AxisMismatchException(DefinitionError):
    """Maps that start at different axes."""


class CropError(DefinitionError, AssertionError):
    """Blobs that no Crop can align; an AssertionError too, as in pycaffe."""


class UnconnectedError(DefinitionError, RuntimeError):
    """Blobs without a common ancestor; a RuntimeError too, as in pycaffe."""


def conv_params(fn: Function) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Axis, stride, kernel size (dilated) and padding of a convolution, a deconvolution, a pooling or an Im2col."""
    if _LEGACY & set(fn.params):
        found = ", ".join(sorted(_LEGACY & set(fn.params)))
        raise CropError(f"L.{fn.type_name}", found, expected="kernel_size, stride and pad, as lists where they differ")
    params = fn.params.get("convolution_param", fn.params)
    size, dilation = np.array(params["kernel_size"], ndmin=1), np.array(params.get("dilation", 1), ndmin=1)
    stride, pad = np.array(params.get("stride", 1), ndmin=1), np.array(params.get("pad", 0), ndmin=1)
    return params.get("axis", 1), stride, (size - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, np.ndarray]:
    """Axis and offset of a Crop."""
    params = fn.params.get("crop_param", fn.params)
    return params.get("axis", 2), np.array(params.get("offset", 0), ndmin=1)


def coord_map(fn: Function) -> Map:
    """The map of one layer.

    Raises:
        UndefinedMapException: it has none.
    """
    record = RECORDS.find(fn.type_name, BVLC)
    if record is not None and issubclass(record, Windows) and record.coord_map is not Windows.coord_map:
        axis, *windows = conv_params(fn)
        way = (axis, *centre(*windows))
        return way if record.transposed else inverse(way)
    if fn.type_name in PASS_THROUGH_LAYERS:
        return None, 1, 0
    if fn.type_name == "Crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset
    raise UndefinedMapException(f"L.{fn.type_name}", "a layer whose tops have no coordinate map to its bottoms")


def compose(base_map: Map, next_map: Map) -> Map:
    """The composition: ``next_map`` first, then ``base_map``.

    Raises:
        AxisMismatchException: they start from different axes.
    """
    (axis, a, b), (other, c, d) = base_map, next_map
    if None not in (axis, other) and axis != other:
        raise AxisMismatchException("coord_map", f"maps from axes {axis} and {other} on")
    return other if axis is None else axis, a * c, a * d + b


def inverse(coord_map: Map) -> Map:
    """The inverse map."""
    axis, a, b = coord_map
    return axis, 1 / a, -b / a


def coord_map_from_to(top_from: Top, top_to: Top) -> Map:
    """The map between two blobs through a common ancestor.

    Raises:
        UnconnectedError: there is none.
    """
    ways = dict(_ancestors(top_from))
    for top, way in _ancestors(top_to):
        if top in ways:
            return compose(way, inverse(ways[top]))
    raise UnconnectedError("coord_map", "tops without a common origin", expected="spatial layers between them")


def _ancestors(start: Top) -> Any:
    """Every ancestor of ``start``, nearest first, each with its map."""
    ways: dict[Top, Map] = {start: (None, 1, 0)}
    waiting = [start]
    while waiting:
        top = waiting.pop(0)
        yield top, ways[top]
        try:
            # A Crop's second bottom determines only the size.
            bottoms = top.fn.inputs[:1] if top.fn.type_name == "Crop" else top.fn.inputs
            new = {bottom: compose(ways[top], coord_map(top.fn)) for bottom in bottoms if bottom not in ways}
        except UndefinedMapException:
            continue
        ways.update(new)
        waiting += new


def crop(top_from: Top, top_to: Top) -> Top:
    """A Crop layer that crops ``top_from`` to the area of ``top_to``.

    Raises:
        CropError: another scale, an offset that is negative or not whole.
    """
    axis, scale, shift = coord_map_from_to(top_from, top_to)
    scale, shift = np.atleast_1d(scale), np.atleast_1d(shift)
    if (scale != 1).any():
        raise CropError("crop", f"scale {scale}", expected="1")
    if (shift > 0).any():
        raise CropError("crop", f"offset {-shift}", expected="0 or more")
    if (np.round(shift) != shift).any():
        raise CropError("crop", f"offset {-shift}", expected="whole numbers")
    offset = [int(-n) for n in shift]
    return layers.Crop(top_from, top_to, crop_param={"axis": axis + 1, "offset": offset})
