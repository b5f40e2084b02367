"""Insertion of Split layers where a blob is read more than once (insert_splits.cpp)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from caffe_port.errors import DefinitionError, nearest

__all__ = ["insert_splits", "split_blob_name", "split_layer_name"]

_Top = tuple[int, int]
"""A layer's index and the index of one of its tops."""


def split_layer_name(layer: str, blob: str, top: int) -> str:
    """The name of the layer that splits the ``top``-th top of ``layer``: ``data_input_0_split``."""
    return f"{blob}_{layer}_{top}_split"


def split_blob_name(layer: str, blob: str, top: int, split: int) -> str:
    """The name of the ``split``-th copy: ``data_input_0_split_0``."""
    return f"{split_layer_name(layer, blob, top)}_{split}"


def insert_splits(
    net: Any, where: Callable[[int], str] = "layer {}".format, absent: Mapping[str, str] | None = None
) -> tuple[Any, tuple[int, ...]]:
    """A net in which every blob has at most one reader.

    A loss weight counts as a reader, the first one; it moves to the Split layer.

    Args:
        net: a V2 NetParameter; unchanged.
        where: the place of the i-th layer, for messages.
        absent: why a blob of the source is missing, for messages.

    Returns:
        The net, and for each of its layers the index it had; -1 for a Split layer.

    Raises:
        DefinitionError: a bottom that no earlier layer computes.
    """
    sources, readers, weights = _readers(net, where, absent or {})
    result, origins = type(net)(), []
    result.CopyFrom(net)
    result.ClearField("layer")
    next_split: Counter[_Top] = Counter()
    for i, original in enumerate(net.layer):
        layer = result.layer.add()
        layer.CopyFrom(original)
        origins.append(i)
        for j, blob in enumerate(layer.bottom):
            source = sources[i, j]
            if readers[source] > 1:
                maker, top = source
                layer.bottom[j] = split_blob_name(net.layer[maker].name, blob, top, next_split[source])
                next_split[source] += 1
        for j, blob in enumerate(original.top):
            count, weight = readers[i, j], weights.get((i, j), 0)
            if count > 1:
                split = result.layer.add(name=split_layer_name(layer.name, blob, j), type="Split", bottom=[blob])
                split.top.extend(split_blob_name(layer.name, blob, j, k) for k in range(count))
                origins.append(-1)
                if weight:
                    split.loss_weight.extend([weight] + [0] * (count - 1))
                    layer.ClearField("loss_weight")
                    next_split[i, j] += 1
    return result, tuple(origins)


def _readers(
    net: Any, where: Callable[[int], str], absent: Mapping[str, str]
) -> tuple[dict[tuple[int, int], _Top], Counter[_Top], dict[_Top, float]]:
    """The source of each bottom (layer, index), the number of readers of each top, and its loss weight."""
    makers: dict[str, _Top] = {}
    sources: dict[tuple[int, int], _Top] = {}
    readers: Counter[_Top] = Counter()
    weights: dict[_Top, float] = {}
    for i, layer in enumerate(net.layer):
        for j, blob in enumerate(layer.bottom):
            if blob not in makers:
                raise DefinitionError(
                    where(i),
                    f"bottom {blob!r}, which no earlier layer computes",
                    remedy=absent.get(blob) or _find(blob, net, makers, where),
                )
            sources[i, j] = makers[blob]
            readers[makers[blob]] += 1
        makers.update((blob, (i, j)) for j, blob in enumerate(layer.top))
        for blob, weight in zip(layer.top, layer.loss_weight, strict=False):
            weights[makers[blob]] = weight
            readers[makers[blob]] += weight != 0
    return sources, readers, weights


def _find(blob: str, net: Any, makers: dict[str, _Top], where: Callable[[int], str]) -> str:
    """Remedy for a blob that no layer computes before it is read."""
    for i, layer in enumerate(net.layer):
        if blob in layer.top:
            return f"it is computed too late ({where(i)})"
    near = nearest(blob, makers)
    if near:
        return f"did you mean {near}?"
    return f"computed before it: {', '.join([*makers][-6:])}" if makers else "no earlier layer computes a blob"
