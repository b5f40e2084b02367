"""Writes a graph as an ONNX file: the model's messages by the onnx package, followed by the large arrays.

No array is copied into a message. Above 2 GiB, the limit of a message, they go to a second file.
Source: onnx.proto (field numbers of ModelProto, GraphProto and TensorProto), docs/ExternalData.md of onnx.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import caffe_port
from caffe_port.export.onnx_graph import Array, Graph, Value
from caffe_port.export.parts import Scaled
from caffe_port.formats.mapping import write_array
from caffe_port.formats.wire import BYTES, bytes_field, tag, varint, varint_field

__all__ = ["LARGEST", "outputs_added", "save"]

LARGEST = 2**31 - 1
"""The largest protobuf message in bytes."""
_ALIGNED = 4096
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9
_IR_VERSION = 8


def save(path: Path, graph: Graph, inputs: Sequence[Value], outputs: Sequence[Value], facts: Mapping[str, str]) -> None:
    """Write the file, and NAME.data for its arrays if they do not fit into it; ``facts`` are its metadata."""
    arrays = graph.initializers
    model = _message(graph, inputs, outputs, facts)
    if len(model) + sum(_nbytes(key, array, graph) + 200 for key, array in arrays.items()) < LARGEST:
        with path.open("xb") as file:
            _inside(file, model, arrays, graph)
    else:
        _beside(path, model, arrays, graph)


def _halved(key: str, array: Array, graph: Graph) -> bool:
    return bool(graph.half and array.dtype == np.float32 and key not in graph.singles)


def _nbytes(key: str, array: Array, graph: Graph) -> int:
    return int(array.nbytes) // (2 if _halved(key, array, graph) else 1)


def _dtype(key: str, array: Array, graph: Graph) -> np.dtype:
    """In the file: float16 in a half-precision graph."""
    return np.dtype(np.float16) if _halved(key, array, graph) else array.dtype


def _stored(key: str, array: Array, graph: Graph) -> Iterator[Array]:
    """The array in the file's form, little-endian and contiguous: whole, or in the pieces that it is made in."""
    dtype = _dtype(key, array, graph).newbyteorder("<")
    for piece in array.pieces() if isinstance(array, Scaled) else (array,):
        yield np.ascontiguousarray(piece.astype(dtype, copy=False))


def _message(graph: Graph, inputs: Sequence[Value], outputs: Sequence[Value], facts: Mapping[str, str]) -> bytes:
    """The model without the initializers."""
    from onnx import TensorProto, helper

    symbols: dict[int, str] = {}
    """By length, what the first axis of inputs is called."""
    for value in inputs:
        if value.shape and value.rows is None:
            symbols.setdefault(value.shape[0], f"{value.name}_batch" if symbols else "batch")

    def described(value: Value, *, given: bool) -> Any:
        shape: list[Any] = list(value.shape)
        picture = getattr(value, "picture", False)
        if picture:
            shape[1], shape[2] = "height", "width"
        elif graph.dynamic_size and len(shape) == 4:
            shape[2:] = ("height", "width") if given else (f"{value.name}_height", f"{value.name}_width")
        if value.rows is not None:
            if not given:
                shape[value.rows] = None
            elif graph.dynamic_batch:
                shape[value.rows] = f"{value.name}_rows"
        elif graph.dynamic_batch and shape:
            shape[0] = symbols.get(shape[0])
        return helper.make_tensor_value_info(value.name, TensorProto.UINT8 if picture else TensorProto.FLOAT, shape)

    body = helper.make_graph(
        graph.nodes,
        facts.get("caffe.net") or "net",
        [described(v, given=True) for v in inputs],
        [described(v, given=False) for v in outputs],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", graph.opset)])
    model.ir_version, model.producer_name, model.producer_version = _IR_VERSION, "caffe_port", caffe_port.__version__
    helper.set_model_props(model, dict(facts))
    return model.SerializeToString()


def outputs_added(names: Mapping[str, bool]) -> bytes:
    """What makes these values outputs, too, when it is appended to a file; each with whether it is float16."""
    from onnx import GraphProto, TensorProto, helper

    part = GraphProto()
    for name, half in names.items():
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        part.output.append(helper.make_tensor_value_info(name, kind, None))
    return bytes_field(_GRAPH, part.SerializeToString())


def _header(key: str, array: Array, graph: Graph) -> bytes:
    """A TensorProto's fields before its numbers."""
    from onnx import helper

    dtype = _dtype(key, array, graph)
    dims = b"".join(varint_field(_DIMS, n) for n in array.shape)
    return dims + varint_field(_TYPE, helper.np_dtype_to_tensor_dtype(dtype)) + bytes_field(_NAME, key)


def _inside(file: BinaryIO, model: bytes, arrays: Mapping[str, Array], graph: Graph) -> None:
    """The model with its arrays in it; fields of one message may be in any order and in parts."""
    file.write(model)
    heads = {key: _header(key, array, graph) for key, array in arrays.items()}
    parts = []
    for key, array in arrays.items():
        size = _nbytes(key, array, graph)
        raw = tag(_RAW, BYTES) + varint(size)
        tensor = len(heads[key]) + len(raw) + size
        parts.append((tag(_INITIALIZER, BYTES) + varint(tensor) + heads[key] + raw, size, key))
    total = sum(len(lead) + size for lead, size, _ in parts)
    if not parts:
        return
    # A second part of the graph's message: protobuf merges the two.
    file.write(tag(_GRAPH, BYTES) + varint(total))
    for lead, _, key in parts:
        file.write(lead)
        for piece in _stored(key, arrays[key], graph):
            write_array(file, piece, None)


def _beside(path: Path, model: bytes, arrays: Mapping[str, Array], graph: Graph) -> None:
    from onnx import ModelProto, TensorProto, helper

    message = ModelProto.FromString(model)
    at, location = 0, f"{path.name}.data"
    with path.with_name(location).open("xb") as file:
        for key, array in arrays.items():
            tensor, size = message.graph.initializer.add(), _nbytes(key, array, graph)
            tensor.name, tensor.data_type = key, helper.np_dtype_to_tensor_dtype(_dtype(key, array, graph))
            tensor.dims.extend(array.shape)
            if size < _ALIGNED:
                tensor.raw_data = b"".join(piece.tobytes() for piece in _stored(key, array, graph))
                continue
            gap = -at % _ALIGNED
            file.write(b"\0" * gap)
            at += gap
            tensor.data_location = TensorProto.EXTERNAL
            for name, value in (("location", location), ("offset", at), ("length", size)):
                entry = tensor.external_data.add()
                entry.key, entry.value = name, str(value)
            for piece in _stored(key, array, graph):
                write_array(file, piece, None)
            at += size
    with path.open("xb") as file:
        file.write(message.SerializeToString())
