"""Reading .caffemodel: a NetParameter whose layers hold blobs, in any of its three generations.

Only headers are parsed; every array is a view of the memory-mapped file (see :mod:`caffe_port.formats.blob` for the
exceptions). Source: BVLC's caffe.proto and net.cpp (ToProto), the fork's caffe.proto, upgrade_proto.cpp for
generation 0.
"""

from __future__ import annotations

from typing import NamedTuple

from caffe_port.errors import FormatError
from caffe_port.formats.blob import read_blob
from caffe_port.formats.sniff import protobuf_kind
from caffe_port.formats.typenames import DEEPLAB1_BLOCKS, DEEPLAB1_TYPES, V0_TYPES, V1_NUMBERS, V1_TYPES
from caffe_port.formats.weights import LayerWeights, Weights
from caffe_port.formats.wire import BYTES, VARINT, Buffer, Reader, bytes_field, varint_field

__all__ = ["NET_NAME", "V0", "V1", "V1_LAYERS", "V2", "V2_LAYER", "LayerFields", "read_caffemodel"]

NET_NAME, V1_LAYERS, V2_LAYER = 1, 2, 100


class LayerFields(NamedTuple):
    """Field numbers of a generation's layer message."""

    name: int
    type: int
    blobs: int
    bottom: int
    top: int


V0 = LayerFields(name=1, type=2, blobs=50, bottom=0, top=0)
V1 = LayerFields(name=4, type=5, blobs=6, bottom=2, top=3)
V2 = LayerFields(name=1, type=2, blobs=7, bottom=3, top=4)
_V1_LAYER = 1  # V1LayerParameter.layer: a whole generation-0 layer inside


def read_caffemodel(buffer: Buffer, path: str) -> Weights:
    """The weights in ``buffer``, the bytes (or the memory map) of the .caffemodel file ``path``.

    Raises:
        FormatError: the bytes are not a NetParameter, are truncated, or hold both ``layers`` and ``layer``.
    """
    kind = protobuf_kind(buffer, path)
    if kind != "caffemodel":
        raise _not_weights(buffer, path, kind)
    weights = Weights(path, "caffemodel")
    generations: set[int] = set()
    rest: list[bytes] = []
    reader = Reader(buffer, path=path)
    for number, wire in reader:
        if number in (V1_LAYERS, V2_LAYER):
            message = reader.message(f"layer {len(weights.layers)}")
            layer, generation = _layer(message, V2, 2) if number == V2_LAYER else _layer(message, V1, 1)
            weights.layers.append(layer)
            generations.add(generation)
        elif number == NET_NAME and wire == BYTES:
            weights.name = reader.text()
        else:
            rest.append(reader.raw())
    if 2 in generations and len(generations) > 1:
        raise FormatError(
            path, "both", expected="either `layers` or `layer`", remedy="Caffe would ignore one of the two"
        )
    weights.generation = min(generations, default=2)
    if weights.generation == 1:
        _rename_deeplab1(weights.layers, path)
    weights.definition = b"".join(rest)
    return weights


def _rename_deeplab1(layers: list[LayerWeights], path: str) -> None:
    """Give the layers of a file of DeepLab v1's fork their types, if some layer's fields tell that it is one."""
    numbers, is_deeplab1 = [], False
    for layer in layers:
        kind, bottoms, fields = 0, 0, set[int]()
        reader = Reader(layer.definition, path=path)
        for number, wire in reader:
            fields.add(number)
            bottoms += number == V1.bottom
            kind = reader.integer() if number == V1.type and wire == VARINT else kind
        numbers.append(kind)
        is_deeplab1 |= DEEPLAB1_BLOCKS.get(kind) in fields and (kind != V1_NUMBERS["EltwiseAccuracy"] or bottoms == 1)
    for layer, kind in zip(layers, numbers, strict=True) if is_deeplab1 else ():
        layer.type = DEEPLAB1_TYPES.get(kind, layer.type)


def _not_weights(buffer: Buffer, path: str, kind: str) -> FormatError:
    """The error for another kind of message."""
    if kind == "solverstate":
        reader = Reader(buffer, path=path)
        learned = [reader.text() for number, _ in reader if number == 2]
        remedy = f"the weights are in {learned[0]}: give that file" if learned else "give the .caffemodel saved with it"
        return FormatError(path, "a solverstate", expected="a net's weights", remedy=remedy)
    if kind == "blob":
        return FormatError(path, "a mean image", expected="a net's weights", remedy="give the .caffemodel")
    found = f"an {kind}" if kind else "a message without layers"
    return FormatError(path, found, expected="a net's weights", remedy="the file is of another program, or damaged")


def _layer(reader: Reader, fields: LayerFields, generation: int) -> tuple[LayerWeights, int]:
    """One layer message and its generation.

    Of generation 0, whose parameters have other names, only name and type are kept, in generation 1's form: in a
    generation-0 layer Caffe reads the blobs from another place.
    """
    layer = LayerWeights("")
    rest: list[bytes] = []
    for number, wire in reader:
        if number == fields.blobs:
            data, diff = read_blob(reader.message(f"blob {len(layer.blobs)} of {reader.what}"))
            layer.blobs.append(data)
            layer.diffs.append(diff)
            continue
        if generation == 1 and number == _V1_LAYER:
            inner, generation = _layer(reader.message(reader.what), V0, 0)
            layer.name, layer.type, layer.blobs, layer.diffs = inner.name, inner.type, inner.blobs, inner.diffs
            rest.append(bytes_field(V1.name, inner.name) + varint_field(V1.type, V1_NUMBERS.get(inner.type, 0)))
            continue
        if number == fields.name:
            layer.name = reader.text()
            reader.what = f"layer {layer.name!r}"
        elif number == fields.type:
            layer.type = _type(reader, generation, wire)
        rest.append(reader.raw())
    if all(diff is None for diff in layer.diffs):
        layer.diffs = []
    layer.definition = b"".join(rest)
    return layer, generation


def _type(reader: Reader, generation: int, wire: int) -> str:
    if generation == 1 and wire == VARINT:
        return V1_TYPES.get(reader.integer(), "")
    text = reader.text()
    return V0_TYPES.get(text, text) if generation == 0 else text
