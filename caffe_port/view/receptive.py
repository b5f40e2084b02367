"""Which pixels of the input a value depends on, exactly, for each row and each column of a blob.

A field is, for height and for width, the first and the last pixel of the input that position t depends on: two arrays
as long as the axis. Where nothing of the input is reached (padding alone), the last lies before the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Field", "fields"]

Axis = tuple[np.ndarray, np.ndarray]
Field = tuple[Axis, Axis]

_NOWHERE = np.iinfo(np.int64).max
_POINTWISE = (
    *("AbsVal", "BNLL", "Sigmoid", "TanH", "Clip", "Swish", "HardSwish", "Threshold", "ELU", "Power", "ReLU", "ReLU6"),
    *("PReLU", "Exp", "Log", "Dropout", "DropoutChannel", "Eltwise", "Scale", "Bias", "Split", "ShuffleChannel", "Mul"),
)
"""Types whose tops depend on the same pixel of their bottoms only."""
_BY_CHANNEL = {"Concat": "along", "Slice": "along", "Softmax": "over"}
"""Types of which that holds where the axis in this attribute is that of the channels or the items."""


def fields(
    nodes: Sequence[tuple[Any, Any]], shapes: Sequence[list[tuple[int, ...]]], start: str, *, train: bool = False
) -> list[Field | None]:
    """Each layer's field, that of all its tops; None where it is not known, or does not depend on the input.

    Args:
        nodes: (node, layer) in running order, layers set up. shapes: of each layer's bottoms, then tops.
        start: the input blob, (items, channels, height, width).
        train: the phase is TRAIN, in which BatchNorm measures its bottom.
    """
    found: dict[str, Field | None] = {}
    result: list[Field | None] = []
    for (node, layer), around in zip(nodes, shapes, strict=True):
        bottoms, tops = around[: len(node.bottoms)], around[len(node.bottoms) :]
        if start in node.tops and not node.bottoms:
            field: Field | None = _whole_axes(tops[node.tops.index(start)])
            found[start] = field
            result.append(field if len(node.tops) == 1 else None)
            continue
        reached = [(found[name], shape) for name, shape in zip(node.bottoms, bottoms, strict=True) if name in found]
        field = None
        if reached and tops and all(one is not None for one, _ in reached):
            field = _through(layer, reached, tops, train)  # type: ignore[arg-type]
        if reached:
            found.update(dict.fromkeys(node.tops, field))
        result.append(field)
    return result


def _whole_axes(shape: tuple[int, ...]) -> Field | None:
    if len(shape) != 4:
        return None
    rows, columns = (np.arange(n) for n in shape[2:])
    return (rows, rows.copy()), (columns, columns.copy())


def _through(
    layer: Any, bottoms: list[tuple[Field, tuple[int, ...]]], tops: list[tuple[int, ...]], train: bool
) -> Field | None:
    """What a layer makes of its bottoms' fields; None where that is not known here."""
    top, kind = tops[0], layer.type
    size = top[2:] if len(top) == 4 else (1, 1)
    pointwise = kind in _POINTWISE or (kind in _BY_CHANNEL and getattr(layer, _BY_CHANNEL[kind]) in (0, 1))
    pointwise |= kind == "LRN" and layer.across
    pointwise |= kind == "BatchNorm" and (layer.use_global_stats or (layer.use_global_stats is None and not train))
    pointwise |= kind == "BN" and not layer.learn
    if pointwise:
        return _union([field for field, _ in bottoms], size)
    if kind in ("Convolution", "Im2col", "Pooling", "Deconvolution", "Unpooling"):
        steps = _windows(layer, bottoms[0][1])
        if len(steps) != 2 or len(top) != 4:
            return None
        moved = []
        for field, _ in bottoms:
            axes = zip(field, size, steps, strict=True)
            moved.append(tuple(_taps(axis, n, kind in ("Deconvolution", "Unpooling"), *step) for axis, n, step in axes))
        return _union(moved, size)  # type: ignore[arg-type]
    if kind == "Crop":
        (field, shape), first = bottoms[0], layer.from_axis
        if len(shape) != 4 or len(top) != 4:
            return None
        offsets = [0] * first + list(layer.offset)
        cut = [slice(offsets[axis], offsets[axis] + top[axis]) for axis in (2, 3)]
        rows, columns = ((low[part], high[part]) for (low, high), part in zip(field, cut, strict=True))
        return rows, columns
    if size == (1, 1):
        return _union([tuple(_all(axis) for axis in field) for field, _ in bottoms], size)  # type: ignore[misc]
    return None


def _windows(layer: Any, bottom: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """(kernel, stride, pad before, dilation) for each spatial axis."""
    if layer.type == "Pooling":
        return list(zip(layer.window(bottom), layer.stride, layer.pad, (1, 1), strict=True))
    if layer.type == "Unpooling":
        return list(zip(layer.kernel, layer.stride, (0, 0), (1, 1), strict=True))
    left, _, above, _ = getattr(layer, "border", (0, 0, 0, 0))
    pad = layer.pad if len(layer.pad) != 2 else (layer.pad[0] + above, layer.pad[1] + left)
    return list(zip(layer.kernel, layer.stride, pad, layer.dilation, strict=True))


def _taps(axis: Axis, n: int, transposed: bool, kernel: int, stride: int, pad: int, dilation: int) -> Axis:
    """The field of ``n`` windows over an axis (transposed: of ``n`` pixels that windows write to)."""
    low, high = np.full(n, _NOWHERE), np.full(n, -1)
    t = np.arange(n)
    for j in range(kernel):
        if transposed:
            at, rest = np.divmod(t + pad - j * dilation, stride)
            inside = (rest == 0) & (at >= 0) & (at < len(axis[0]))
        else:
            at = t * stride - pad + j * dilation
            inside = (at >= 0) & (at < len(axis[0]))
        low[inside] = np.minimum(low[inside], axis[0][at[inside]])
        high[inside] = np.maximum(high[inside], axis[1][at[inside]])
    return low, high


def _all(axis: Axis) -> Axis:
    return np.array([axis[0].min()]), np.array([axis[1].max()])


def _union(many: list[Field], size: tuple[int, ...]) -> Field | None:
    """The fields together; one of a single position is laid over the others' axis, as operands are."""
    if any(len(axis[0]) not in (1, n) for field in many for axis, n in zip(field, size, strict=True)):
        return None
    low, high = ([[np.broadcast_to(f[k][i], size[k]) for f in many] for k in (0, 1)] for i in (0, 1))
    rows, columns = ((np.min(low[k], 0), np.max(high[k], 0)) for k in (0, 1))
    return rows, columns
