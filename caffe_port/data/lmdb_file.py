"""The records of an LMDB database, read without LMDB's library, which does not check the numbers in the file.

Source: LMDB 0.9's mdb.c (MDB_meta, MDB_db, MDB_page, MDB_node), data version 1, as 64-bit little-endian machines
write it. Nothing is written and no lock is taken: what another program writes meanwhile is seen when opened again.
"""

from __future__ import annotations

import os
from pathlib import Path
from struct import Struct, error
from typing import NamedTuple

from caffe_port.data.records import Records
from caffe_port.errors import FileError, FormatError

__all__ = ["LmdbRecords"]

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_META = Struct("<II16xI48xHH24xQQQQ")
"""After a page's header: magic, version; the free list's page size; the records' flags, depth, entries, root; the last
page, the transaction."""
_HEADER = Struct("<QHHHH")
"""A page's number, padding, flags, and where its free space begins and ends."""
_NODE = Struct("<HHHH")
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_BIG = 1
_NO_PAGE = 2**64 - 1
_DEEPEST = 32
_SMALLEST_ENTRY = 10
"""Bytes that a record takes in a page: its offset and its head."""


class _Page(NamedTuple):
    """A page's bytes, the places of its nodes, whether it is a leaf."""

    data: bytes
    nodes: tuple[int, ...]
    leaf: bool


class LmdbRecords(Records):
    """The records of the unnamed database in a folder (its data.mdb) or file.

    Raises:
        FileError: it cannot be opened. FormatError: it is not an LMDB database of this kind, or damaged.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.join(path, "data.mdb") if Path(path).is_dir() else path  # noqa: PTH118
        try:
            self._file = open(self._path, "rb", buffering=0)  # noqa: PTH123, SIM115  closed with this object
            self._size = os.fstat(self._file.fileno()).st_size
        except OSError as problem:
            raise FileError(path, f"an LMDB database that cannot be opened: {problem.strerror}") from None
        head = self._read(0, 16 + _META.size)
        found = self._meta(head)
        self._page_size = found[2] if found else 0
        if found is None or not (256 <= self._page_size <= 1 << 16 and self._page_size & (self._page_size - 1) == 0):
            raise FormatError(
                self._path,
                "another kind of file, or a damaged one",
                expected="an LMDB database of version 1, of a 64-bit little-endian machine",
            )
        other = self._meta(self._read(self._page_size, 16 + _META.size)) if self._size > self._page_size else None
        newest = found if other is None or found[-1] >= other[-1] else other
        flags, self._depth, self._entries, self._root = newest[3:7]
        if flags:
            raise FormatError(self._path, f"a database with the flags {flags:#x}", expected="one without, as Caffe's")
        if self._entries * _SMALLEST_ENTRY > self._size or self._depth > _DEEPEST:
            raise self._damaged(f"{self._entries} records in {self._depth} levels and {self._size} bytes")
        self._stack: list[tuple[_Page, int]] = []
        self._count: int | None = None
        """Records up to the current one; None where that is not known."""

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def first(self) -> bool:
        self._stack, self._count = [], 0
        if self._root == _NO_PAGE or not self._entries:
            return False
        self._descend(self._root)
        return self._at_record()

    def next(self) -> bool:
        last = self.key
        while self._stack:
            page, at = self._stack.pop()
            if at + 1 < len(page.nodes):
                self._stack.append((page, at + 1))
                if not page.leaf:
                    self._descend(self._child(page, at + 1))
                self._at_record()
                if self.key <= last:
                    raise self._damaged("keys out of order")
                return True
        if self._count not in (None, self._entries):
            raise self._damaged(f"{self._count} records of {self._entries}")
        return False

    def seek(self, key: bytes) -> bool:
        self._stack = []
        if self._root == _NO_PAGE:
            return False
        number = self._root
        while True:
            page = self._page(number)
            low, high = (0, len(page.nodes)) if page.leaf else (1, len(page.nodes))  # a branch's first key is empty
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if self._key(page, middle) <= key else (low, middle)
            if low == 0:
                return False
            self._stack.append((page, low - 1))
            if page.leaf:
                break
            number = self._child(page, low - 1)
        self.key = self._key(page, low - 1)
        self._count = None
        return self.key == key

    @property
    def value(self) -> bytes:
        page, at = self._stack[-1]
        start = page.nodes[at]
        low, high, flags, length = self._unpack(_NODE, page.data, start)
        size, start = low | high << 16, start + 8 + length
        if flags & ~_BIG:
            raise FormatError(self._path, "named databases or several values for a key", expected="plain records")
        if not flags:
            if start + size > len(page.data):
                raise self._damaged(f"a record of {size} bytes in a page")
            return page.data[start : start + size]
        number = int.from_bytes(page.data[start : start + 8], "little")
        if start + 8 > len(page.data) or (number + 1) * self._page_size > self._size or size > self._size:
            raise self._damaged(f"a record of {size} bytes from page {number} on")
        data = self._read(number * self._page_size, 16 + size)
        if len(data) < 16 + size or self._unpack(_HEADER, data, 0)[::2][:2] != (number, _OVERFLOW):
            raise self._damaged(f"a record of {size} bytes from page {number} on")
        return data[16:]

    # -- pages ---------------------------------------------------------------------------------------------------------

    def _at_record(self) -> bool:
        page, at = self._stack[-1]
        self.key = self._key(page, at)
        if self._count is not None:
            self._count += 1
            if self._count > self._entries:
                raise self._damaged(f"more than {self._entries} records")
        return True

    def _descend(self, number: int) -> None:
        """To the first record below a page."""
        while True:
            page = self._page(number)
            self._stack.append((page, 0))
            if page.leaf:
                return
            number = self._child(page, 0)

    def _page(self, number: int) -> _Page:
        if len(self._stack) >= self._depth or (number + 1) * self._page_size > self._size:
            raise self._damaged(f"page {number} in level {len(self._stack) + 1} of {self._depth}")
        data = self._read(number * self._page_size, self._page_size)
        mine, _, flags, lower, upper = self._unpack(_HEADER, data, 0)
        leaf = flags & 0xF == _LEAF
        good = mine == number and (leaf or flags & 0xF == _BRANCH) and 18 <= lower <= upper <= len(data)
        if not good or lower % 2 or leaf != (len(self._stack) + 1 == self._depth):
            raise self._damaged(f"page {number}")
        nodes = self._unpack(Struct(f"<{lower // 2 - 8}H"), data, 16)
        if min(nodes) < upper or max(nodes) + 8 > len(data):
            raise self._damaged(f"page {number}")
        return _Page(data, nodes, leaf)

    def _child(self, page: _Page, at: int) -> int:
        low, high, higher, _ = self._unpack(_NODE, page.data, page.nodes[at])
        number: int = low | high << 16 | higher << 32
        return number

    def _key(self, page: _Page, at: int) -> bytes:
        start = page.nodes[at] + 8
        length = self._unpack(_NODE, page.data, start - 8)[3]
        if start + length > len(page.data):
            raise self._damaged(f"a key of {length} bytes")
        return page.data[start : start + length]

    def _meta(self, data: bytes) -> tuple[int, ...] | None:
        if len(data) < 16 + _META.size or not self._unpack(_HEADER, data, 0)[2] & _META_PAGE:
            return None
        found = _META.unpack_from(data, 16)
        return found if found[:2] == (_MAGIC, _VERSION) else None

    def _read(self, at: int, count: int) -> bytes:
        try:
            self._file.seek(at)
            return self._file.read(count)
        except (OSError, OverflowError) as problem:
            raise FileError(self._path, f"cannot be read: {problem}") from None

    def _unpack(self, form: Struct, data: bytes, at: int) -> tuple[int, ...]:
        try:
            return form.unpack_from(data, at)
        except error:
            raise self._damaged("an incomplete page") from None

    def _damaged(self, found: str) -> FormatError:
        return FormatError(self._path, found, expected="a whole LMDB database", remedy="it is damaged: copy it again")
