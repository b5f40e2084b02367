"""Caffe numbers a layer's blobs; PyTorch names them. Names, shapes, and the conversion in both directions.

A key is ``LAYER.BLOB``. Blob names hold no dot, so the last dot of a key ends the layer's name, whatever that is. The
names are those of the records in ``caffe_port.spec``: convolution, inner product, embedding and PReLU have PyTorch's;
the others have the names in the layer's source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from caffe_port.spec import RECORDS, records_of

__all__ = ["blob_names", "in_caffes_order", "names_of", "torch_shape"]

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


def names_of(type: str, blobs: Sequence[np.ndarray | None]) -> tuple[tuple[str, int | None], ...]:
    """:func:`blob_names`; two blobs of an unknown type that have the shapes of a convolution's get its names."""
    shapes = [blob.shape for blob in blobs if blob is not None]
    if not records_of(type) and len(shapes) == len(blobs) == 2 and len(shapes[0]) == 4:
        type = "Convolution" if torch_shape(shapes[1], 1) == shapes[0][:1] else type
    return blob_names(type, len(blobs))


def torch_shape(shape: tuple[int, ...], rank: int | None) -> tuple[int, ...]:
    """``shape`` without the leading ones that legacy files add to a blob of ``rank`` axes."""
    extra = len(shape) - rank if rank is not None else 0
    return shape[extra:] if extra > 0 and all(n == 1 for n in shape[:extra]) else shape


def in_caffes_order(names: Iterable[str]) -> dict[str, tuple[int, int]]:
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
