"""Caffe numbers a layer's blobs; PyTorch names them. Names, shapes, and the conversion in both directions.

A key is ``LAYER.BLOB``. Blob names hold no dot, so the last dot of a key ends the layer's name, whatever that is. The
names are those of the records in ``caffe_port.spec``: convolution, inner product, embedding and PReLU have PyTorch's;
the others have the names in the layer's source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from caffe_port.errors import WeightsError
from caffe_port.formats.weights import LayerWeights, Weights
from caffe_port.spec import RECORDS, records_of

__all__ = ["blob_names", "layers_of", "state_dict", "torch_shape"]

_NUMBERED = re.compile(r"blob(\d+)")


def blob_names(type: str, count: int) -> tuple[tuple[str, int | None], ...]:
    """Name and rank of each of a layer's ``count`` blobs, by the type's record; ``blob0``, ``blob1`` ... without one.

    Of blobs that not every layer of the type has, the last are omitted until the number matches. Of a type with
    several records in different Caffes, the one with the nearest number of blobs is used.
    """
    records = sorted(records_of(type), key=lambda record: abs(len(record.blob_specs) - count))
    known = list(records[0].blob_specs) if records else []
    for blob in reversed([blob for blob in known if blob.when]):
        if len(known) > count:
            known.remove(blob)
    named = [(blob.name, blob.rank) for blob in known[:count]]
    return *named, *((f"blob{i}", None) for i in range(len(named), count))


def _named(type: str, blobs: Sequence[np.ndarray | None]) -> tuple[tuple[str, int | None], ...]:
    """:func:`blob_names`; two blobs of an unknown type that have the shapes of a convolution's get its names."""
    shapes = [blob.shape for blob in blobs if blob is not None]
    if not records_of(type) and len(shapes) == len(blobs) == 2 and len(shapes[0]) == 4:
        type = "Convolution" if torch_shape(shapes[1], 1) == shapes[0][:1] else type
    return blob_names(type, len(blobs))


def torch_shape(shape: tuple[int, ...], rank: int | None) -> tuple[int, ...]:
    """``shape`` without the leading ones that legacy files add to a blob of ``rank`` axes."""
    extra = len(shape) - rank if rank is not None else 0
    return shape[extra:] if extra > 0 and all(n == 1 for n in shape[:extra]) else shape


def state_dict(weights: Weights, types: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """The blobs of ``weights`` by key, each a view of what ``weights`` holds, in PyTorch's shape.

    Args:
        weights: any file's weights; of a state_dict file the keys and shapes are unchanged.
        types: layer name to V2 type, used where the file does not have it. Blobs of unknown types are numbered.

    Raises:
        WeightsError: two layers that hold blobs have one name, or a layer that holds blobs has none.
    """
    out: dict[str, np.ndarray] = {}
    owner: dict[str, int] = {}
    for index, layer in enumerate(weights.layers):
        if all(b is None for b in layer.blobs):
            continue
        if not layer.name:
            raise WeightsError(
                weights.path,
                f"layer {index} ({layer.type or 'of unknown type'}) with blobs and no name",
                expected="a name for each layer with blobs",
                remedy="name it in the prototxt and save the weights again",
            )
        if layer.name in owner:
            raise WeightsError(
                weights.path,
                f"layers {owner[layer.name]} and {index} both named {layer.name!r}, both with blobs",
                expected="one layer with blobs for each name",
                remedy="rename one of them in the prototxt and save the weights again",
            )
        owner[layer.name] = index
        if layer.names:
            named: Sequence[tuple[str, int | None]] = [(name, None) for name in layer.names]
        else:
            named = _named(layer.type or (types or {}).get(layer.name, ""), layer.blobs)
        for (name, rank), blob in zip(named, layer.blobs, strict=True):
            if blob is not None:
                out[f"{layer.name}.{name}"] = blob.reshape(torch_shape(blob.shape, rank))
    return out


def _in_caffes_order(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The index of each blob of a layer: as in the smallest record that has them all, else by its number."""
    names = list(names)
    tables = [[blob.name for blob in record.blob_specs] for kind in RECORDS for record in records_of(kind)]
    table = min((t for t in tables if set(names) <= set(t)), key=len, default=[])
    if not table:
        table = [name for blobs in sorted(tables, key=len) for name in blobs]

    def rank(name: str) -> tuple[int, int]:
        numbered = _NUMBERED.fullmatch(name)
        return (1, int(numbered[1][:18])) if numbered else (0, table.index(name)) if name in table else (2, 0)

    return {name: rank(name) for name in names}


def layers_of(arrays: Iterable[tuple[str, np.ndarray]], path: str) -> list[LayerWeights]:
    """The layers in a state_dict's keys, in order of first appearance, each with its blobs in Caffe's order.

    Raises:
        WeightsError: a key without a dot, hence without a layer; or numbers that are not real.
    """
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for key, array in arrays:
        if array.dtype.kind not in "fiub":
            raise WeightsError(f"{path}: {key}", f"an array of {array.dtype}", expected="real numbers")
        layer, dot, blob = key.rpartition(".")
        if not (dot and layer and blob):
            raise WeightsError(
                path, f"the key {key!r}", expected="LAYER.BLOB, such as conv1.weight", remedy="rename it before saving"
            )
        found.setdefault(layer, []).append((blob, array))
    layers = []
    for name, blobs in found.items():
        order = _in_caffes_order(blob for blob, _ in blobs)
        blobs.sort(key=lambda item: order[item[0]])
        layers.append(LayerWeights(name, "", [b for _, b in blobs], names=tuple(n for n, _ in blobs)))
    return layers
