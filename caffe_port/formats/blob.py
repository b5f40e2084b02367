"""Reading and writing one BlobProto: shape and values.

Field numbers: BVLC's caffe.proto; 10 to 13 are NVCaffe's (its caffe-0.17 branch), which stores halves as raw bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from caffe_port.errors import FormatError
from caffe_port.formats.weights import is_shape
from caffe_port.formats.wire import BYTES, Reader, bytes_field, tag, varint, varint_field

__all__ = ["blob_chunks", "blob_size", "read_blob"]

_DIMS = (1, 2, 3, 4)
_DATA, _DIFF, _SHAPE, _DOUBLE_DATA, _DOUBLE_DIFF = 5, 6, 7, 8, 9
_RAW_DATA_TYPE, _RAW_DIFF_TYPE, _RAW_DATA, _RAW_DIFF = 10, 11, 12, 13
_FLOAT, _DOUBLE = np.dtype("<f4"), np.dtype("<f8")
_NUMBERS: dict[int, np.dtype] = {_DATA: _FLOAT, _DIFF: _FLOAT, _DOUBLE_DATA: _DOUBLE, _DOUBLE_DIFF: _DOUBLE}
_RAW_TYPES: dict[int, np.dtype] = {0: _DOUBLE, 1: _FLOAT, 2: np.dtype("<f2")}
_LARGEST_COUNT = 2**31 - 1  # Caffe's own limit: blob.cpp, Reshape
_MOST_AXES = 32  # blob.hpp, kMaxBlobAxes


def _shape(reader: Reader) -> list[int]:
    dims: list[int] = []
    for number, wire in reader:
        if number == 1 and wire == BYTES:
            start, end = reader.span()
            packed = Reader(reader.buffer, start, end, path=reader.path, what=reader.what)
            while packed.pos < end and len(dims) <= _MOST_AXES:
                dims.append(packed.varint())
        elif number == 1:
            dims.append(reader.integer())
        if len(dims) > _MOST_AXES:
            raise _error(reader, f"{len(dims)} axes or more", f"at most {_MOST_AXES}")
    return dims


def read_blob(reader: Reader) -> tuple[np.ndarray, np.ndarray | None]:
    """The data and, if stored, the diff of the BlobProto at ``reader``'s position.

    Both have the blob's shape: four axes if any legacy dimension is set, as in blob.cpp's FromProto. Packed
    numbers are views of the buffer.

    Raises:
        FormatError: the number of values does not match the shape, a raw type is not a float, or it is not a blob.
    """
    legacy: dict[int, int] = {}
    dims: list[int] = []
    pieces: dict[int, list[np.ndarray]] = {}
    raw_types: dict[int, int] = {}
    raw: dict[int, tuple[int, int]] = {}
    for number, wire in reader:
        if number in _NUMBERS and wire == BYTES:
            pieces.setdefault(number, []).append(reader.array(_NUMBERS[number]))
        elif number in _NUMBERS:
            dtype = _NUMBERS[number]
            for which, numbers in reader.unpacked(dtype, tuple(n for n, d in _NUMBERS.items() if d == dtype)).items():
                pieces.setdefault(which, []).append(numbers)
        elif number in _DIMS:
            legacy[number] = reader.integer()
        elif number == _SHAPE:
            dims += _shape(reader.message(reader.what))
        elif number in (_RAW_DATA_TYPE, _RAW_DIFF_TYPE):
            raw_types[number + 2] = reader.integer()
        elif number in (_RAW_DATA, _RAW_DIFF):
            raw[number] = reader.span()
    shape = tuple(legacy.get(i, 0) for i in _DIMS) if legacy else tuple(dims)
    if not is_shape(shape) or prod(max(n, 1) for n in shape) > _LARGEST_COUNT:
        raise _error(
            reader, f"the shape {shape[: _MOST_AXES + 1]}", "axes of at least 0 and at most 2**31 - 1 numbers together"
        )

    def stored(single: int, double: int, packed: int) -> np.ndarray | None:
        if packed in raw:
            array = _raw_array(reader, raw[packed], raw_types.get(packed, 0))
        elif double in pieces or single in pieces:
            parts = pieces[double if double in pieces else single]
            array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        else:
            return None
        if array.size != prod(shape):
            raise _error(reader, f"{array.size} numbers", f"{prod(shape)} for its shape {shape}")
        return array.reshape(shape)

    data = stored(_DATA, _DOUBLE_DATA, _RAW_DATA)
    if data is None:
        if prod(shape):
            raise _error(reader, "no numbers", f"{prod(shape)} for its shape {shape}")
        data = np.empty(shape, _FLOAT)
    return data, stored(_DIFF, _DOUBLE_DIFF, _RAW_DIFF)


def _raw_array(reader: Reader, span: tuple[int, int], code: int) -> np.ndarray:
    dtype, size = _RAW_TYPES.get(code), span[1] - span[0]
    if dtype is None:
        raise _error(reader, f"raw numbers of type {code}", "DOUBLE (0), FLOAT (1) or FLOAT16 (2)")
    if size % dtype.itemsize:
        raise _error(reader, f"{size} raw bytes", f"a multiple of {dtype.itemsize}")
    return np.frombuffer(reader.buffer, dtype, size // dtype.itemsize, span[0]) if size else np.empty(0, dtype)


def _error(reader: Reader, found: str, expected: str) -> FormatError:
    return FormatError(f"{reader.path}: {reader.what}", found, expected=expected, remedy="the file is damaged")


def _parts(data: np.ndarray, diff: np.ndarray | None, legacy: bool) -> Iterator[tuple[bytes, np.ndarray | None]]:
    """The message in order of field numbers, as protobuf writes it: the bytes before each array, and the array."""

    def packed(number: int, array: np.ndarray | None) -> tuple[bytes, np.ndarray | None]:
        wide = number in (_DOUBLE_DATA, _DOUBLE_DIFF)
        if array is None or (array.dtype == np.float64) != wide or array.size == 0:
            return b"", None
        return tag(number, BYTES) + varint(array.size * (8 if wide else 4)), array

    if legacy:
        dims = (1,) * (4 - data.ndim) + data.shape
        yield b"".join(varint_field(i, n) for i, n in zip(_DIMS, dims, strict=True)), None
    yield packed(_DATA, data)
    yield packed(_DIFF, diff)
    if not legacy and data.ndim:  # a blob without axes has no `shape` (Blob::ToProto only adds dims)
        yield bytes_field(_SHAPE, bytes_field(1, b"".join(varint(n) for n in data.shape))), None
    yield packed(_DOUBLE_DATA, data)
    yield packed(_DOUBLE_DIFF, diff)


def blob_size(data: np.ndarray, diff: np.ndarray | None, *, legacy: bool) -> int:
    """The size of the BlobProto of these arrays in bytes."""
    return sum(
        len(head) + (0 if array is None else array.size * max(4, array.dtype.itemsize))
        for head, array in _parts(data, diff, legacy)
    )


def blob_chunks(data: np.ndarray, diff: np.ndarray | None, *, legacy: bool) -> Iterator[bytes | np.ndarray]:
    """The BlobProto of these arrays, piece by piece; large arrays are yielded without a copy.

    Args:
        data, diff: float16 (widened to float32, exactly, which every Caffe reads), float32 or float64.
        legacy: write num, channels, height, width (arrays of up to four axes, with leading ones) instead of ``shape``.
    """
    for head, array in _parts(data, diff, legacy):
        yield head
        if array is not None:
            dtype = _DOUBLE if array.dtype == np.float64 else _FLOAT
            yield np.ascontiguousarray(array, dtype)
