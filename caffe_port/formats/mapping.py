"""Memory-mapped files, reading them into arrays, and writing arrays."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from caffe_port.errors import FileError
from caffe_port.paths import names_in

__all__ = ["file_span", "map_file", "read_spans", "write_array"]

_PIECE = 256 * 1024
_TURN = 16 << 20
"""Bytes that a thread of :func:`read_spans` reads at a time."""
_HUGE = 2 << 20
"""Bytes of a huge page, on processors whose kernels provide them on request."""
_LARGE = 1 << 20
"""Bytes from which a further thread pays off."""


class _ReadOnlyMap(mmap.mmap):
    """A map that keeps its file open, so that its bytes can also be read without page faults."""

    descriptor: int


def map_file(path: str | os.PathLike, *, writable: bool = True) -> mmap.mmap | bytes:
    """The bytes of a file as a memory map; those of an empty file as ``b""``.

    Args:
        writable: make the map private: writes change memory and never the file. Otherwise it is read-only, and
            :func:`write_array` reads the file instead of the map.

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
        near = [name for name in names_in(folder) if Path(name).suffixes == Path(path).suffixes]
        remedy = f"the folder holds {', '.join(near[:3])}" if near else "check the path"
        raise FileError(str(path), "no such file", remedy=remedy) from None
    except OSError as error:
        raise FileError(str(path), f"cannot be read: {error.strerror}") from None


def write_array(file: BinaryIO, array: np.ndarray, progress: Callable[[int], object] | None = None) -> None:
    """Writes the C-contiguous ``array`` in pieces that fit the processor's cache; ``progress`` gets each one's size.

    An array in a file that was mapped read-only is read from the file through one small buffer, which causes no page
    faults, takes no memory and is as fast as ``cp``. Pieces end at page boundaries of the written file: otherwise they
    take half as long again.
    """
    view = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
    source = file_span(array)
    buffer = memoryview(bytearray(_PIECE)) if source else view
    start = 0
    while start < len(view):
        size = min(len(view) - start, _PIECE - file.tell() % _PIECE)
        if source:
            descriptor, offset = source
            size = os.preadv(descriptor, [buffer[:size]], offset + start)
            if not size:
                raise FileError("the file that is read", "truncated while it was read", remedy="run it again")
            written = file.write(buffer[:size])
        else:
            written = file.write(view[start : start + size])
        start += written
        if progress:
            progress(written)


def file_span(array: np.ndarray) -> tuple[int, int] | None:
    """The file descriptor and the offset that ``array``, C-contiguous, is a read-only view of; else None."""
    root: object = array
    while isinstance(root, np.ndarray):
        root = root.base
    if isinstance(root, memoryview):
        root = root.obj
    if not isinstance(root, _ReadOnlyMap) or not hasattr(os, "preadv") or not array.flags.c_contiguous:
        return None
    return root.descriptor, array.ctypes.data - np.frombuffer(root, np.uint8).ctypes.data


def read_spans(jobs: Iterable[tuple[np.ndarray, np.ndarray]], path: str) -> None:
    """Reads views of a file into arrays, by several threads: as fast as the kernel copies.

    The arrays' memory may be newly allocated: huge pages are requested for it, without which the page faults take
    longer than the copy.

    Args:
        jobs: C-contiguous arrays to fill, each with the view, of its size and dtype, that :func:`file_span` accepts.
        path: the file's name for messages.

    Raises:
        FileError: the file ends before an array is full.
    """
    turns: list[tuple[memoryview, int, int]] = []
    views = list(jobs)  # the views keep the file open
    for array, source in views:
        descriptor, offset = file_span(source) or (-1, 0)
        view = array.reshape(-1).view(np.uint8)
        _request_huge_pages(view)
        turns += [(view[at : at + _TURN].data, descriptor, offset + at) for at in range(0, view.size, _TURN)]

    def read(turn: tuple[memoryview, int, int]) -> None:
        into, descriptor, offset = turn
        while len(into):
            size = os.preadv(descriptor, [into], offset)
            if not size:
                raise FileError(path, "truncated while it was read", remedy="run it again")
            into, offset = into[size:], offset + size

    threads = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    large = [turn for turn in turns if len(turn[0]) >= _LARGE]
    for turn in turns:
        if len(turn[0]) < _LARGE:
            read(turn)
    if threads < 2 or len(large) < 2:
        for turn in large:
            read(turn)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read, large):
            pass


def _request_huge_pages(view: np.ndarray) -> None:
    """Requests huge pages for those that lie completely inside ``view``; no effect where the kernel has none."""
    if view.size < 2 * _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    start = -(-view.ctypes.data // _HUGE) * _HUGE
    size = (view.ctypes.data + view.size - start) // _HUGE * _HUGE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
