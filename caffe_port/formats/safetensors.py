"""The .safetensors container: a JSON header, then the numbers, both ways without a copy.

Layout: 8 bytes of header length (little endian), the header, the arrays one after the other without gaps. Source:
https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from caffe_port.errors import FormatError, WeightsError
from caffe_port.formats.atomic import atomic_write
from caffe_port.formats.mapping import write_array
from caffe_port.formats.naming import layers_of
from caffe_port.formats.weights import Weights
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
_ALIGNMENT = 64


def read_safetensors(buffer: Buffer, path: str) -> Weights:
    """The state_dict in ``buffer``, each array a view of it; bfloat16 is widened to float32, which is exact.

    Raises:
        FormatError: the header is damaged, or an array runs past the end of the file.
        WeightsError: a key is not of the form LAYER.BLOB.
    """
    start = 8 + int.from_bytes(bytes(buffer[:8]), "little")
    if start > len(buffer):
        raise _truncated(path, len(buffer), start)
    try:
        header = json.loads(bytes(buffer[8:start]))
        entries = [(key, entry) for key, entry in header.items() if key != "__metadata__"]
        layout = [(k, e["dtype"], tuple(map(int, e["shape"])), *map(int, e["data_offsets"])) for k, e in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            path, f"a header that is no safetensors header ({error})", remedy="the file is damaged: fetch it again"
        ) from None
    arrays = []
    for key, dtype, shape, begin, end in sorted(layout, key=lambda item: item[3]):
        stored = np.dtype("<u2") if dtype == _BF16 else _DTYPES.get(dtype)
        if stored is None:
            raise FormatError(f"{path}: {key}", f"the dtype {dtype}", expected="one of " + ", ".join([*_DTYPES, _BF16]))
        if not 0 <= begin <= end or end - begin != prod(shape) * stored.itemsize:
            raise FormatError(f"{path}: {key}", f"{end - begin} bytes", expected=f"{dtype} numbers of shape {shape}")
        if start + end > len(buffer):
            raise _truncated(path, len(buffer), start + end)
        array = np.frombuffer(buffer, stored, prod(shape), start + begin).reshape(shape)
        if dtype == _BF16:
            array = (array.astype("<u4") << 16).view("<f4")
        arrays.append((key, array))
    return Weights(path, "safetensors", layers=layers_of(arrays, path))


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
    """Writes ``arrays`` (key to array) atomically, straight from where they lie.

    Wider numbers come first so that each array is aligned; otherwise the order is kept.

    Raises:
        WeightsError: an array's dtype has no place in the format, or a key is not text.
        FileError: the file exists already or cannot be written.
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
