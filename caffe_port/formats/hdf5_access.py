"""Access to untrusted HDF5 files: nothing outside the file is read, nothing larger than what it stores.

HDF5 can name other files (external storage, external links, virtual data sets), declare arrays that it does not store
(fill values), and nest groups in a cycle. All reading of HDF5 in this package uses these functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from caffe_port.errors import CaffeError, FormatError
from caffe_port.formats.wire import Buffer

if TYPE_CHECKING:
    import h5py

__all__ = ["dataset_array", "datasets", "find", "members", "open_hdf5", "single_number", "text_of", "whole_number"]

_DEEPEST = 32
_MOST_AXES = 32
_RATIO = 1100
"""Deflate expands one byte to at most about 1032."""
_LARGEST_CHUNK = 1 << 26
_HEAP = b"HEAP\0\0\0\0"
"""How a heap of names begins: of a group of the old form, which Caffe's files have."""
_LARGEST_SEARCHED = 1 << 26


@contextmanager
def open_hdf5(path: str) -> Iterator[h5py.File]:
    """The HDF5 file ``path``, for reading; h5py's errors inside the block become errors of the file.

    Raises:
        FormatError: h5py finds it damaged.
    """
    import h5py

    try:
        _check_heaps(path)
        with h5py.File(path, "r") as file:
            yield file
    except CaffeError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        why = "it is truncated" if "truncated" in str(error) else str(error) or type(error).__name__
        raise FormatError(path, f"an HDF5 file that cannot be read: {why}", remedy="fetch it again") from None


def _check_heaps(path: str) -> None:
    """Raises if a heap of names declares more bytes than the file has: HDF5 takes that memory before it looks."""
    data = Path(path).read_bytes() if Path(path).stat().st_size <= _LARGEST_SEARCHED else b""
    width = data[14:15] if data[8:9] in (b"\0", b"\1") else data[10:11]  # bytes of a size, by the superblock's version
    at = data.find(_HEAP)
    while at >= 0:
        declared = int.from_bytes(data[at + 8 : at + 8 + int.from_bytes(width, "little")], "little")
        if declared > len(data):
            expected = f"at most {len(data):,}, the file's"
            raise FormatError(path, f"names of {declared:,} bytes", expected=expected, remedy="fetch it again")
        at = data.find(_HEAP, at + 1)


def _where(group: h5py.Group, key: str) -> str:
    return f"{group.file.filename}: {(group.name or '').rstrip('/')}/{key}"


def find(group: h5py.Group, key: str, depth: int = 0) -> h5py.Group | h5py.Dataset | None:
    """The object at the path ``key`` in ``group``; soft links are followed within the file. None if there is none.

    Raises:
        FormatError: an external link, a dangling or cyclic soft link, or a named type.
    """
    import h5py

    item: h5py.Group | h5py.Dataset = group.file["/"] if key.startswith("/") else group
    for part in filter(None, key.split("/")):
        if not isinstance(item, h5py.Group):
            return None
        if part == ".":
            continue
        where = _where(item, part)
        link = item.get(part, getlink=True)
        if link is None:
            return None
        if isinstance(link, h5py.SoftLink):
            found = find(item, link.path, depth + 1) if depth < _DEEPEST else None
            if found is None:
                raise FormatError(where, f"a link to {link.path}, which does not exist")
            item = found
        elif isinstance(link, h5py.HardLink):
            item = item[part]
        else:
            remedy = "other files are not read: copy the arrays into this one"
            raise FormatError(where, "a link to another file", expected="arrays in this file", remedy=remedy)
        if not isinstance(item, (h5py.Group, h5py.Dataset)):
            raise FormatError(where, f"a {type(item).__name__.lower()}", expected="an array or a group")
    return item


def members(group: h5py.Group) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """The objects in ``group``, by name."""
    for key in group:
        item = find(group, key)
        if item is None:
            raise FormatError(_where(group, key), "a dangling link", remedy="the file is damaged")
        yield key, item


def datasets(group: h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    """The arrays of ``group`` and of the groups in it, by their paths.

    Raises:
        FormatError: a group contains itself, occurs twice, or is nested too deeply.
    """
    import h5py

    found: list[tuple[str, h5py.Dataset]] = []
    seen: set[tuple[int, int]] = set()

    def walk(group: h5py.Group, path: str, depth: int) -> None:
        info = h5py.h5o.get_info(group.id)
        if (info.fileno, info.addr) in seen or depth > _DEEPEST:
            raise FormatError(
                f"{group.file.filename}: /{path}",
                "a group that occurs twice or contains itself",
                remedy="it is damaged",
            )
        seen.add((info.fileno, info.addr))
        for key, item in members(group):
            if isinstance(item, h5py.Dataset):
                found.append((path + key, item))
            else:
                walk(item, f"{path}{key}/", depth + 1)

    walk(group, "", 0)
    return found


def _check(dataset: h5py.Dataset, kinds: str, what: str) -> None:
    """Raises if it is not an array of numbers, or not stored completely in this file."""
    where = f"{dataset.file.filename}: {dataset.name}"
    try:
        dtype, shape = dataset.dtype, dataset.shape
    except (TypeError, ValueError) as error:
        raise FormatError(where, f"a type that numpy lacks ({error})", expected=what) from None
    if dtype.kind not in kinds or shape is None or dtype.itemsize == 0:
        raise FormatError(where, "nothing" if shape is None else f"an array of {dtype}", expected=what)
    if len(shape) > _MOST_AXES:
        raise FormatError(where, f"{len(shape)} axes", expected=f"at most {_MOST_AXES}")
    if dataset.external is not None or dataset.is_virtual:
        remedy = "other files are not read: copy the arrays into this one"
        raise FormatError(where, "numbers in another file", expected="arrays in this file", remedy=remedy)
    size, stored = prod(shape) * dtype.itemsize, dataset.id.get_storage_size()
    if size > stored * (1 if dataset.chunks is None else _RATIO):
        raise FormatError(where, f"{stored} bytes", expected=f"{size} for the shape {shape} of {dtype}")
    if dataset.chunks and prod(dataset.chunks) * dtype.itemsize > max(size, _LARGEST_CHUNK):
        raise FormatError(where, f"chunks of {dataset.chunks}", expected=f"pieces of the shape {shape}")


def dataset_array(dataset: h5py.Dataset, buffer: Buffer | None = None, *, floats: bool = False) -> np.ndarray:
    """The numbers of ``dataset``: a view of ``buffer``, its mapped file, where they are contiguous; else a copy.

    Args:
        floats: integers are an error.

    Raises:
        FormatError: not an array of real numbers, one in another file, or one larger than its stored data.
    """
    _check(dataset, "f" if floats else "fiub", "real numbers")
    offset = dataset.id.get_offset()
    plain = dataset.chunks is None and dataset.compression is None
    if buffer is None or offset is None or not plain or not dataset.size or dataset.file.userblock_size:
        return np.asarray(dataset[()])
    if offset + dataset.size * dataset.dtype.itemsize > len(buffer):
        raise FormatError(f"{dataset.file.filename}: {dataset.name}", "an array past the end", remedy="fetch it again")
    return np.frombuffer(buffer, dataset.dtype, dataset.size, offset).reshape(dataset.shape)


def whole_number(group: h5py.Group, key: str) -> int:
    """The integer scalar under ``key``.

    Raises:
        FormatError: it is not one.
    """
    array = _small(group, key, "iu", "one whole number")
    return int(array.ravel()[0])


def single_number(group: h5py.Group, key: str) -> float:
    """The scalar number under ``key``. Raises FormatError if it is not one."""
    return float(_small(group, key, "fiu", "one number").ravel()[0])


def _small(group: h5py.Group, key: str, kinds: str, what: str) -> np.ndarray:
    import h5py

    item = find(group, key)
    if not isinstance(item, h5py.Dataset):
        raise FormatError(_where(group, key), "no array", expected=what)
    _check(item, kinds, what)
    if item.size != 1:
        raise FormatError(_where(group, key), f"{item.size} numbers", expected=what)
    return np.asarray(item[()])


def text_of(group: h5py.Group, key: str) -> str:
    """The text under ``key``. Raises FormatError if it is not one."""
    import h5py

    item = find(group, key)
    if not isinstance(item, h5py.Dataset) or item.shape != () or item.dtype.kind not in "SO" or item.external:
        raise FormatError(_where(group, key), "no text", expected="one string")
    value = item[()]
    if not isinstance(value, (bytes, str)):
        raise FormatError(_where(group, key), f"a {type(value).__name__}", expected="one string")
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")
