"""The .safetensors container: a JSON header, then the numbers, read and written without a copy.

Layout: 8 bytes of header length (little endian), the header, the arrays one after the other without gaps. Source:
https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from caffe_port.errors import FormatError, WeightsError
from caffe_port.formats.atomic import atomic_write
from caffe_port.formats.mapping import write_array
from caffe_port.formats.weights import Weights, is_shape, layers_of
from caffe_port.formats.wire import Buffer

__all__ = ["read_safetensors", "write_safetensors"]

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BF16 = "BF16"
_STORED = {**_DTYPES, _BF16: np.dtype("<u2")}
_ALIGNMENT = 64


def read_safetensors(buffer: Buffer, path: str) -> Weights:
    """The state_dict in ``buffer``, each array a view of it; bfloat16 is widened to float32, which is exact.

    Raises:
        FormatError: the header is damaged, or arrays overlap or exceed the file.
        WeightsError: a key is not of the form LAYER.BLOB.
    """
    start = 8 + int.from_bytes(bytes(buffer[:8]), "little")
    if start > len(buffer):
        raise _truncated(path, len(buffer), start)
    try:
        header = json.loads(bytes(buffer[8:start]), object_pairs_hook=lambda pairs: _once(pairs, path))
    except (ValueError, RecursionError) as error:
        raise FormatError(
            path, f"an invalid safetensors header ({error})", remedy="the file is damaged: fetch it again"
        ) from None
    if not isinstance(header, dict):
        raise FormatError(path, "an invalid safetensors header", remedy="the file is damaged: fetch it again")
    layout = [(key, *_entry(entry, f"{path}: {key}")) for key, entry in header.items() if key != "__metadata__"]
    arrays, last = [], 0
    for key, stored, shape, begin, end in sorted(layout, key=lambda item: item[3:]):
        if begin < last:
            raise FormatError(f"{path}: {key}", f"an array at {begin}", expected=f"{last}, where the one before ends")
        if start + end > len(buffer):
            raise _truncated(path, len(buffer), start + end)
        last = end
        array = np.frombuffer(buffer, _STORED[stored], prod(shape), start + begin).reshape(shape)
        if stored == _BF16:
            array = (array.astype("<u4") << 16).view("<f4")
        arrays.append((key, array))
    return Weights(path, "safetensors", layers=layers_of(arrays, path))


def _once(pairs: list[tuple[str, Any]], path: str) -> dict[str, Any]:
    """A JSON object without duplicate keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(names) if key in set(names[:i]))
        raise FormatError(path, f"the key {twice!r} twice", expected="each once", remedy="save it again")
    return found


def _entry(entry: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape, begin and end of an array, from its header."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise FormatError(where, "an invalid safetensors header", expected="dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _STORED:
        raise FormatError(where, f"the dtype {dtype!r}", expected="one of " + ", ".join(_STORED))
    if not is_shape(shape):
        found = f"{len(shape)} axes" if isinstance(shape, list) and len(shape) > 32 else f"the shape {shape!r}"
        raise FormatError(where, found, expected="up to 32 non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        found = f"{len(offsets)} offsets" if isinstance(offsets, list) else f"the data_offsets {offsets!r}"
        raise FormatError(where, found, expected="2 non-negative integers")
    size = offsets[1] - offsets[0]
    if size != prod(shape) * _STORED[dtype].itemsize:
        raise FormatError(where, f"{size} bytes", expected=f"{dtype} numbers of shape {tuple(shape)}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _truncated(path: str, size: int, need: int) -> FormatError:
    return FormatError(
        path, str(size), expected=f"at least {need} bytes", remedy="the file is truncated: fetch it again"
    )


def write_safetensors(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    *,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Writes ``arrays`` (key to array) atomically, directly from their memory.

    Arrays of wider types come first so that each is aligned; otherwise the order is kept.

    Raises:
        WeightsError: the format lacks an array's dtype, or a key is not text.
        FileError: the file exists or cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    at = 0
    for key, array in ordered:
        dtype = _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype is None:
            raise WeightsError(key, f"an array of {array.dtype}", expected="one of " + ", ".join(map(str, _NAMES)))
        header[key] = {"dtype": dtype, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise WeightsError(
            os.fspath(path), f"a layer's name is not UTF-8: {error.object[error.start - 20 : error.end]!r}"
        ) from None
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            write_array(file, np.ascontiguousarray(array, array.dtype.newbyteorder("<")), progress)
