"""Writing .caffemodel: streamed, so that arrays are written from their memory without building a message.

Generation 1 (``layers``) holds legacy dims, generation 2 (``layer``) shapes, as the Caffes that read them expect.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from caffe_port.errors import WeightsError
from caffe_port.formats.atomic import atomic_write
from caffe_port.formats.blob import blob_chunks, blob_size
from caffe_port.formats.caffemodel import NET_NAME, V1, V1_LAYERS, V2, V2_LAYER
from caffe_port.formats.mapping import write_array
from caffe_port.formats.typenames import V1_NUMBERS
from caffe_port.formats.weights import LayerWeights
from caffe_port.formats.wire import BYTES, Reader, bytes_field, tag, varint, varint_field

__all__ = ["LARGEST_FILE", "layer_definition", "write_caffemodel"]

LARGEST_FILE = 2**31 - 1
"""The most bytes of a .caffemodel that Caffe reads (util/io.cpp, kProtoReadBytesLimit)."""

_FLOATS = (np.float16, np.float32, np.float64)


def layer_definition(
    name: str, type: str, *, generation: int, bottoms: Iterable[str] = (), tops: Iterable[str] = ()
) -> bytes:
    """A layer's message without parameters or blobs, for layers that do not come from a .caffemodel.

    Raises:
        WeightsError: generation 1 has no such type.
    """
    fields = V1 if generation == 1 else V2
    links = [bytes_field(fields.bottom, b) for b in bottoms] + [bytes_field(fields.top, t) for t in tops]
    if generation == 2:
        kind = bytes_field(fields.type, type) if type else b""
        return bytes_field(fields.name, name) + kind + b"".join(links)
    if type and type not in V1_NUMBERS:
        remedy = "write generation 2, which Caffe of 2015 and later reads"
        raise WeightsError(f"layer {name!r}", f"the type {type}, which has no number in `layers` {{}}", remedy=remedy)
    kind = varint_field(fields.type, V1_NUMBERS[type]) if type else b""
    return b"".join(links) + bytes_field(fields.name, name) + kind


def write_caffemodel(
    path: str | os.PathLike,
    layers: Iterable[LayerWeights],
    *,
    name: str = "",
    generation: int = 2,
    definition: bytes = b"",
    overwrite: bool = False,
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Writes a .caffemodel that real Caffe loads, atomically, taking one blob at a time.

    Args:
        layers: read from a file of the same generation (their ``definition`` is written unchanged), or new ones, whose
            ``definition`` is empty or from :func:`layer_definition`. Generation 0 is written as 1.
        name: the net's.
        generation: 1 for ``layers`` and legacy dims (what noh and Caffe before 2015 read), 2 for ``layer`` and shapes.
        definition: the net's other fields, as in :class:`Weights`.
        overwrite, durable: see :func:`caffe_port.formats.atomic.atomic_write`.
        progress: called with the size of each piece written, in bytes.

    Raises:
        WeightsError: a blob has more than four axes in generation 1, is not a float array, or is missing; or the file
            would be larger than Caffe reads.
        FileError: the file exists or cannot be written.
    """
    legacy = generation < 2
    with atomic_write(path, overwrite=overwrite, durable=durable) as file:
        before, after = _split(definition, V1_LAYERS if legacy else V2_LAYER)
        file.write(bytes_field(NET_NAME, name) + before)
        for layer in layers:
            for chunk in _layer_chunks(layer, legacy, os.fspath(path), file.tell()):
                if isinstance(chunk, bytes):
                    file.write(chunk)
                else:
                    write_array(file, chunk, progress)
        file.write(after)


def _split(message: bytes, number: int) -> tuple[bytes, bytes]:
    """``message`` before and after the position of field ``number``, in the order in which protobuf writes fields."""
    reader = Reader(message, path="a definition", what="the definition")
    for found, _ in reader:
        if found > number:
            return message[: reader.field_start], message[reader.field_start :]
    return message, b""


def _layer_chunks(layer: LayerWeights, legacy: bool, path: str, at: int) -> Iterator[bytes | np.ndarray]:
    fields = V1 if legacy else V2
    head = layer.definition or layer_definition(layer.name, layer.type, generation=1 if legacy else 2)
    diffs: list[np.ndarray | None] = layer.diffs or [None] * len(layer.blobs)
    blobs = []
    for index, (data, diff) in enumerate(zip(layer.blobs, diffs, strict=True)):
        array = _checked(layer, index, data, legacy)
        size = blob_size(array, diff, legacy=legacy)
        blobs.append((tag(fields.blobs, BYTES) + varint(size), size, array, diff))
    before, after = _split(head, fields.blobs)
    total = len(head) + sum(len(lead) + size for lead, size, _, _ in blobs)
    if at + total > LARGEST_FILE:
        raise WeightsError(
            path,
            f"{at + total:,} bytes with layer {layer.name}",
            expected=f"at most {LARGEST_FILE:,}, Caffe's limit for a .caffemodel",
            remedy="write a .caffemodel.h5",
        )
    yield tag(V1_LAYERS if legacy else V2_LAYER, BYTES) + varint(total) + before
    for lead, _, data, diff in blobs:
        yield lead
        yield from blob_chunks(data, diff, legacy=legacy)
    yield after


def _checked(layer: LayerWeights, index: int, data: np.ndarray | None, legacy: bool) -> np.ndarray:
    where = f"{layer.name}[{index}]"
    if data is None:
        raise WeightsError(where, "no array", expected="one", remedy="a shared parameter is written with each layer")
    if data.dtype.type not in _FLOATS:
        raise WeightsError(where, f"an array of {data.dtype}", expected="float16, float32 or float64")
    if legacy and data.ndim > 4:
        raise WeightsError(
            where, f"{data.ndim} axes", expected="at most 4 in a file of generation 1", remedy="write generation 2"
        )
    return data
