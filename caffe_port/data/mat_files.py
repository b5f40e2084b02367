"""Blobs as MATLAB files of version 5: a variable ``data`` whose axes are the blob's in reverse order.

Source: MathWorks, MAT-File Format (level 5); matio_io.cpp of cdmh/deeplab-public-ver2.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from struct import error, unpack_from

import numpy as np

from caffe_port.data.batches import Array
from caffe_port.errors import FileError, FormatError
from caffe_port.formats.atomic import atomic_path

__all__ = ["read_mat", "write_mat"]

_HEAD = 128
_MATRIX, _COMPRESSED, _SINGLE = 14, 15, 7
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""MATLAB stores whole numbers as the shortest of these, whatever the array's class is."""
_LARGEST = 1 << 28
"""Bytes that a compressed variable may have."""


def read_mat(path: str) -> Array:
    """The blob in a file, float32 with four axes.

    Raises:
        FileError: it cannot be read. FormatError: it is not a MATLAB file, or its ``data`` is not an array of single
            numbers with up to four axes.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as problem:
        raise FileError(path, f"cannot be read: {problem.strerror}") from None
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    try:
        if order is None or unpack_from(f"{order}H", content, 124)[0] != 0x100:
            raise ValueError("no head")
        for kind, element in _elements(content[_HEAD:], order):
            body = element
            if kind == _COMPRESSED:
                packed = zlib.decompressobj()
                inside = packed.decompress(element, _LARGEST)
                kind, body = next(_elements(inside, order))
            if kind == _MATRIX:
                parts = _elements(body, order)
                (_, flags), (_, dims), (_, name) = next(parts), next(parts), next(parts)
                if name == b"data":
                    return _blob(path, flags, np.frombuffer(dims, f"{order}i4").tolist(), parts, order)
    except (ValueError, error, zlib.error, StopIteration) as problem:
        why = str(problem) or "an incomplete variable"
        raise FormatError(
            path, f"not a MATLAB file of version 5 ({why})", expected="one with a variable data"
        ) from None
    raise FormatError(path, "no variable data", expected="one, of single numbers")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Kinds and contents of the elements that follow one another; those of up to four bytes have a short form."""
    at = 0
    while at + 8 <= len(data):
        kind, size = unpack_from(f"{order}II", data, at)
        if kind >> 16:
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if size > 4:
                raise ValueError(f"a short element of {size} bytes")
        else:
            start = at + 8
            # Compressed elements are not filled up to eight bytes.
            end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes in {len(data)}")
        yield kind, data[start : start + size]
        at = end


def _blob(path: str, flags: bytes, shape: list[int], parts: Iterator[tuple[int, bytes]], order: str) -> Array:
    (what,) = unpack_from(f"{order}I", flags)
    if what & 0xFF != _SINGLE or what & 0x800 or len(shape) > 4:
        found = f"data of class {what & 0xFF}{', complex,' if what & 0x800 else ''} with {len(shape)} axes"
        raise FormatError(path, found, expected=f"single numbers (class {_SINGLE}), up to 4 axes")
    kind, numbers = next(parts)
    if kind not in _STORED:
        raise ValueError(f"numbers of type {kind}")
    dtype = np.dtype(order + _STORED[kind])
    if min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(f"{len(numbers)} bytes for the shape {shape}")
    data = np.frombuffer(numbers, dtype).astype(np.float32).reshape(shape, order="F")
    return np.ascontiguousarray(data.reshape(*data.shape, *(1,) * (4 - data.ndim), order="F").T)


def write_mat(path: str, blob: Array) -> None:
    """Writes a blob of up to four axes; what is missing follows as 1. Replaces a file once the new one is whole.

    Raises:
        FileError: it cannot be written.
    """
    from scipy.io import savemat

    four = blob.reshape(*blob.shape, *(1,) * (4 - blob.ndim))
    with atomic_path(path, overwrite=True) as temporary, open(temporary, "xb") as file:  # noqa: PTH123
        savemat(file, {"data": np.asfortranarray(four.T)}, format="5")
