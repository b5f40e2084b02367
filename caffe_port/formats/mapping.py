"""Files as memory, and memory to files, a little at a time."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from caffe_port.errors import FileError

__all__ = ["map_file", "write_array"]

_PIECE = 256 * 1024


class _ReadOnlyMap(mmap.mmap):
    """A map that keeps its file open, so that its bytes can also be read without touching it."""

    descriptor: int


def map_file(path: str | os.PathLike, *, writable: bool = True) -> mmap.mmap | bytes:
    """The bytes of a file as a memory map; those of an empty file as ``b""``.

    Args:
        writable: make the map private, so that writing to it changes memory and never the file. Otherwise it is
            read-only, and :func:`write_array` need not touch it.

    Raises:
        FileError: it is missing, a folder, or may not be read.
    """
    try:
        with Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            if writable:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            fixed = _ReadOnlyMap(file.fileno(), 0, access=mmap.ACCESS_READ)
            fixed.descriptor = os.dup(file.fileno())
            weakref.finalize(fixed, os.close, fixed.descriptor)
            return fixed
    except FileNotFoundError:
        folder = Path(path).parent
        near = sorted(p.name for p in folder.iterdir() if p.suffixes == Path(path).suffixes) if folder.is_dir() else []
        remedy = f"the folder holds {', '.join(near[:3])}" if near else "check the path"
        raise FileError(str(path), "no such file", remedy=remedy) from None
    except OSError as error:
        raise FileError(str(path), f"cannot be read: {error.strerror}") from None


def write_array(file: BinaryIO, array: np.ndarray, progress: Callable[[int], object] | None = None) -> None:
    """Writes the C-contiguous ``array`` in pieces that fit the processor's cache; ``progress`` is told each one's size.

    What lies in a file that was mapped read-only is read from there through one small buffer, which takes neither page
    faults nor memory and is as fast as ``cp``. Pieces end where a page of the written file does: else they cost half as
    much again.
    """
    view = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
    source = _source(array)
    buffer = memoryview(bytearray(_PIECE)) if source else view
    start = 0
    while start < len(view):
        size = min(len(view) - start, _PIECE - file.tell() % _PIECE)
        if source:
            descriptor, offset = source
            size = os.preadv(descriptor, [buffer[:size]], offset + start)
            if not size:
                raise FileError("the file that is read", "it has become shorter meanwhile", remedy="begin again")
            written = file.write(buffer[:size])
        else:
            written = file.write(view[start : start + size])
        start += written
        if progress:
            progress(written)


def _source(array: np.ndarray) -> tuple[int, int] | None:
    """The file descriptor and the offset that ``array`` is a read-only view of."""
    root: object = array
    while isinstance(root, np.ndarray):
        root = root.base
    if isinstance(root, memoryview):
        root = root.obj
    if not isinstance(root, _ReadOnlyMap) or not hasattr(os, "preadv"):
        return None
    return root.descriptor, array.ctypes.data - np.frombuffer(root, np.uint8).ctypes.data
