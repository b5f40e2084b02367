"""Files as memory, and memory to files, a little at a time."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from caffe_port.errors import FileError

__all__ = ["map_file", "release", "write_array"]

_PIECE = 128 * 1024
_RELEASED_TOGETHER = 128 * _PIECE


def map_file(path: str | os.PathLike, *, writable: bool = True) -> mmap.mmap | bytes:
    """The bytes of a file as a memory map; those of an empty file as ``b""``.

    Args:
        writable: make the map private, so that writing to it changes memory and never the file. Otherwise it is
            read-only, and the pages of arrays that are written elsewhere are let go of on the way.

    Raises:
        FileError: it is missing, a folder, or may not be read.
    """
    try:
        with Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ)
    except FileNotFoundError:
        folder = Path(path).parent
        near = sorted(p.name for p in folder.iterdir() if p.suffixes == Path(path).suffixes) if folder.is_dir() else []
        remedy = f"the folder holds {', '.join(near[:3])}" if near else "check the path"
        raise FileError(str(path), "no such file", remedy=remedy) from None
    except OSError as error:
        raise FileError(str(path), f"cannot be read: {error.strerror}") from None


def release(array: np.ndarray, start: int = 0, end: int | None = None) -> None:
    """Lets go of the pages behind bytes ``start:end`` of ``array`` if it views a read-only memory map.

    They are read from the file again when next touched. Writable maps are left alone: theirs may hold changes.
    """
    root: object = array
    while isinstance(root, np.ndarray):
        root = root.base
    if isinstance(root, memoryview):
        root = root.obj
    if array.flags.writeable or not isinstance(root, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    at = array.ctypes.data - np.frombuffer(root, np.uint8).ctypes.data
    first = -(-(at + start) // mmap.PAGESIZE) * mmap.PAGESIZE
    length = at + (array.nbytes if end is None else end) - first
    if length > 0:
        root.madvise(mmap.MADV_DONTNEED, first, length)


def write_array(file: BinaryIO, array: np.ndarray, progress: Callable[[int], object] | None = None) -> None:
    """Writes the C-contiguous ``array`` in pieces that fit the processor's cache; ``progress`` is told each one's size.

    From a memory map, pieces of this size go as fast as ``cp``; one large write takes two to three times as long,
    since the kernel brings in all of its pages before it copies the first. Pieces that end between pages of the file
    that is written cost half as much again.
    """
    view = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
    start = released = 0
    while start < len(view):
        end = start + _PIECE - file.tell() % _PIECE
        written = file.write(view[start:end])
        start += written
        if progress:
            progress(written)
        if start - released >= _RELEASED_TOGETHER:
            release(array, released, start)
            released = start
    release(array, released, start)
