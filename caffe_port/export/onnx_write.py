"""Writes a graph as an ONNX file: the model's messages by the onnx package, followed by the large arrays.

No array is copied into a message. Above 2 GiB, the limit of a message, they go to a second file.
Source: onnx.proto (field numbers of ModelProto, GraphProto and TensorProto), docs/ExternalData.md of onnx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import caffe_port
from caffe_port.export.onnx_graph import Array, Graph, Value
from caffe_port.formats.mapping import write_array
from caffe_port.formats.wire import BYTES, bytes_field, tag, varint, varint_field

__all__ = ["LARGEST", "save"]

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
    if len(model) + sum(_nbytes(array, graph) + 200 for array in arrays.values()) < LARGEST:
        with path.open("xb") as file:
            _inside(file, model, arrays, graph)
    else:
        _beside(path, model, arrays, graph)


def _nbytes(array: Array, graph: Graph) -> int:
    half = graph.half and array.dtype == np.float32
    return int(array.nbytes) // 2 if half else int(array.nbytes)


def _stored(array: Array, graph: Graph) -> Array:
    """The array in the file's form: little-endian, contiguous, float16 in a half-precision graph."""
    if graph.half and array.dtype == np.float32:
        array = array.astype(np.float16)
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))


def _message(graph: Graph, inputs: Sequence[Value], outputs: Sequence[Value], facts: Mapping[str, str]) -> bytes:
    """The model without the initializers."""
    from onnx import TensorProto, helper

    def described(value: Value, symbol: str = "") -> Any:
        shape: list[Any] = list(value.shape)
        kind = TensorProto.UINT8 if getattr(value, "picture", False) else TensorProto.FLOAT
        if getattr(value, "picture", False):
            shape[1], shape[2] = "height", "width"
        elif graph.dynamic_size and len(shape) == 4:
            shape[2], shape[3] = f"{symbol}height", f"{symbol}width"
        if graph.dynamic_batch and shape:
            shape[0] = "batch"
        return helper.make_tensor_value_info(value.name, kind, shape)

    body = helper.make_graph(
        graph.nodes,
        facts.get("caffe.net") or "net",
        [described(v) for v in inputs],
        [described(v, f"{v.name}_") for v in outputs],
    )
    if graph.dynamic_batch:
        _forget_unsure(body, graph, inputs, outputs)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", graph.opset)])
    model.ir_version, model.producer_name, model.producer_version = _IR_VERSION, "caffe_port", caffe_port.__version__
    helper.set_model_props(model, dict(facts))
    return model.SerializeToString()


def _forget_unsure(body: Any, graph: Graph, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
    """Leave the first axis of values that do not start with the batch open for the runtime."""
    batch = {v.shape[0] for v in inputs if v.shape}
    for described, value in zip([*body.input, *body.output], [*inputs, *outputs], strict=True):
        if value.shape and value.shape[0] not in batch:
            dim = described.type.tensor_type.shape.dim[0]
            dim.Clear()
            if described in body.input:
                dim.dim_value = value.shape[0]


def _header(key: str, array: Array, graph: Graph) -> bytes:
    """A TensorProto's fields before its numbers."""
    from onnx import helper

    dtype = np.dtype(np.float16) if graph.half and array.dtype == np.float32 else array.dtype
    dims = b"".join(varint_field(_DIMS, n) for n in array.shape)
    return dims + varint_field(_TYPE, helper.np_dtype_to_tensor_dtype(dtype)) + bytes_field(_NAME, key)


def _inside(file: BinaryIO, model: bytes, arrays: Mapping[str, Array], graph: Graph) -> None:
    """The model with its arrays in it; fields of one message may be in any order and in parts."""
    file.write(model)
    heads = {key: _header(key, array, graph) for key, array in arrays.items()}
    parts = []
    for key, array in arrays.items():
        size = _nbytes(array, graph)
        raw = tag(_RAW, BYTES) + varint(size)
        tensor = len(heads[key]) + len(raw) + size
        parts.append((tag(_INITIALIZER, BYTES) + varint(tensor) + heads[key] + raw, size, array))
    total = sum(len(lead) + size for lead, size, _ in parts)
    if not parts:
        return
    # A second part of the graph's message: protobuf merges the two.
    file.write(tag(_GRAPH, BYTES) + varint(total))
    for lead, _, array in parts:
        file.write(lead)
        write_array(file, _stored(array, graph), None)


def _beside(path: Path, model: bytes, arrays: Mapping[str, Array], graph: Graph) -> None:
    from onnx import ModelProto, TensorProto, helper

    message = ModelProto.FromString(model)
    at, location = 0, f"{path.name}.data"
    with path.with_name(location).open("xb") as file:
        for key, array in arrays.items():
            stored = _stored(array, graph)
            tensor = message.graph.initializer.add()
            tensor.name, tensor.data_type = key, helper.np_dtype_to_tensor_dtype(stored.dtype)
            tensor.dims.extend(stored.shape)
            if stored.nbytes < _ALIGNED:
                tensor.raw_data = stored.tobytes()
                continue
            gap = -at % _ALIGNED
            file.write(b"\0" * gap)
            at += gap
            tensor.data_location = TensorProto.EXTERNAL
            for name, value in (("location", location), ("offset", at), ("length", stored.nbytes)):
                entry = tensor.external_data.add()
                entry.key, entry.value = name, str(value)
            write_array(file, stored, None)
            at += stored.nbytes
    with path.open("xb") as file:
        file.write(message.SerializeToString())
