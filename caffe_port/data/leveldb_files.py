"""The records of a LevelDB database, read without LevelDB's library, which does not check sizes in the files.

Source: LevelDB's doc/table_format.md, doc/log_format.md, db/version_edit.cc, db/write_batch.cc and Snappy's
format_description.txt. Nothing is written and no lock is taken. As in LevelDB, check sums are not looked at.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from pathlib import Path
from struct import error, unpack_from
from typing import BinaryIO, NamedTuple

from caffe_port.data.records import Records
from caffe_port.errors import FileError, FormatError
from caffe_port.paths import exists

__all__ = ["LevelRecords", "snappy"]

_BLOCK = 1 << 15
"""Bytes of a log's blocks."""
_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER = 48
_ORDER = b"leveldb.BytewiseComparator"
_LARGEST = 1 << 28
"""Bytes of an uncompressed block; Caffe's have 64 KiB, or what one record has."""
_RATIO = 22
"""Snappy makes at most 64 bytes of three."""

Entry = tuple[bytes, int, bytes]
"""A key; its sequence number and kind (1, or 0 where it is deleted) as a negative number, newest first; its value."""


class _Damage(Exception):  # noqa: N818  not an error that leaves this module
    """What is wrong with a file."""


class _Table(NamedTuple):
    """A table file, the keys of its first and last entry."""

    number: int
    smallest: bytes
    largest: bytes


class LevelRecords(Records):
    """The records of the database in a folder.

    Raises:
        FileError: a file is missing or cannot be read. FormatError: it is not a LevelDB database, or damaged.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._levels: dict[int, dict[int, _Table]] = {}
        self._logged: list[Entry] = []
        self._entries: Iterator[Entry] = iter(())
        self._value = b""
        self._open()

    @property
    def value(self) -> bytes:
        return self._value

    def first(self) -> bool:
        return self.seek(b"", exactly=False)

    def seek(self, key: bytes, *, exactly: bool = True) -> bool:
        sources = [iter([entry for entry in self._logged if entry[0] >= key])]
        for level, tables in sorted(self._levels.items()):
            chosen = sorted((t for t in tables.values() if t.largest >= key), key=lambda table: table.smallest)
            sources += [self._tables([t], key) for t in chosen] if level == 0 else [self._tables(chosen, key)]
        self._entries = heapq.merge(*sources)
        self.key = b""
        return self._forward(None) and (not exactly or self.key == key)

    def next(self) -> bool:
        return self._forward(self.key)

    def _forward(self, last: bytes | None) -> bool:
        """To the next key that is not deleted, in its newest form."""
        for key, order, value in self._entries:
            if last is not None and key <= last:
                if key < last:
                    raise self._damaged("keys out of order")
                continue
            last = key
            if -order & 0xFF:
                self.key, self._value = key, value
                return True
        return False

    # -- files ---------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        current = self._bytes("CURRENT", 1000)
        name = re.fullmatch(rb"(MANIFEST-\d{1,20})\n", current)
        if not name:
            raise self._damaged(f"{current[:50]!r} in CURRENT")
        try:
            log, before = self._versions(name[1].decode())
            logs = sorted(int(p.stem) for p in Path(self._path).glob("*.log") if re.fullmatch(r"\d{1,20}", p.stem))
            for number in logs:
                if number >= log or number == before:
                    for batch in _logged(self._bytes(f"{number:06d}.log")):
                        self._logged += _batch(batch)
        except (_Damage, IndexError, error) as problem:
            raise self._damaged(str(problem)) from None
        self._logged.sort()

    def _versions(self, name: str) -> tuple[int, int]:
        """Reads which tables there are; the number of the log, and of the one before."""
        log = before = 0
        for edit in _logged(self._bytes(name)):
            at = 0
            while at < len(edit):
                tag, at = _varint(edit, at)
                if tag == 1:
                    order, at = _text(edit, at)
                    if order != _ORDER:
                        raise _Damage(f"keys in the order {order[:50]!r}")
                elif tag in (2, 3, 4, 9):
                    number, at = _varint(edit, at)
                    log, before = (number if tag == 2 else log), (number if tag == 9 else before)
                elif tag == 5:
                    _, at = _varint(edit, at)
                    _, at = _text(edit, at)
                elif tag == 6:
                    level, at = _varint(edit, at)
                    number, at = _varint(edit, at)
                    self._levels.get(level, {}).pop(number, None)
                elif tag == 7:
                    level, at = _varint(edit, at)
                    number, at = _varint(edit, at)
                    _, at = _varint(edit, at)
                    smallest, at = _text(edit, at)
                    largest, at = _text(edit, at)
                    self._levels.setdefault(level, {})[number] = _Table(number, smallest[:-8], largest[:-8])
                else:
                    raise _Damage(f"the tag {tag} in {name}")
        return log, before

    def _tables(self, tables: list[_Table], start: bytes) -> Iterator[Entry]:
        """The entries of tables that follow one another, from a key on."""
        for table in tables:
            names = [f"{table.number:06d}.{kind}" for kind in ("ldb", "sst")]
            name = next((n for n in names if exists(Path(self._path, n))), names[0])
            try:
                with Path(self._path, name).open("rb") as file:
                    yield from _entries(file, start)
            except OSError as problem:
                raise self._unreadable(name, problem) from None
            except (_Damage, IndexError, error, OverflowError) as problem:
                raise self._damaged(f"{problem} in {name}") from None

    def _bytes(self, name: str, most: int = -1) -> bytes:
        try:
            with Path(self._path, name).open("rb") as file:
                return file.read(most)
        except OSError as problem:
            raise self._unreadable(name, problem) from None

    def _unreadable(self, name: str, problem: OSError) -> FileError:
        return FileError(self._path, f"a LevelDB database that cannot be opened: {name}: {problem.strerror}")

    def _damaged(self, found: str) -> FormatError:
        return FormatError(
            self._path, found, expected="a whole LevelDB database", remedy="it is damaged: copy it again"
        )


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of up to 64 bits in groups of seven, and where it ends."""
    number = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise _Damage("a number of more than 64 bits")


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    length, at = _varint(data, at)
    if length > len(data) - at:
        raise _Damage(f"a text of {length} bytes")
    return data[at : at + length], at + length


def _logged(data: bytes) -> Iterator[bytes]:
    """The records of a log. As in LevelDB, one that the end of the file cuts off was never written."""
    parts: list[bytes] = []
    at = 0
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        length, kind = unpack_from("<HB", data, at + 4)
        if kind == 0 and length == 0:  # space that was never used
            at += left
            continue
        if not 1 <= kind <= 4 or length + 7 > left or (kind in (1, 2)) == bool(parts):
            raise _Damage(f"a log's record of kind {kind} and {length} bytes")
        part = data[at + 7 : at + 7 + length]
        if len(part) < length:
            return
        at += 7 + length
        parts.append(part)
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []
        elif not part and kind == 3:
            raise _Damage("a log's record without an end")


def _batch(data: bytes) -> Iterator[Entry]:
    """What a batch of writes writes."""
    sequence, count = unpack_from("<QI", data)
    at = 12
    for number in range(sequence, sequence + count):
        kind, at = data[at], at + 1
        if kind > 1:
            raise _Damage(f"a write of kind {kind}")
        key, at = _text(data, at)
        value = b""
        if kind:
            value, at = _text(data, at)
        yield key, -(number << 8 | kind), value
    if at != len(data):
        raise _Damage(f"{len(data) - at} bytes after {count} writes")


def _entries(file: BinaryIO, start: bytes) -> Iterator[Entry]:
    """The entries of a table from a key on."""
    size = file.seek(0, 2)
    file.seek(max(size - _FOOTER, 0))
    footer = file.read(_FOOTER)
    if footer[40:] != _MAGIC:
        raise _Damage("no table")
    _, at = _varint(footer, 0)
    _, at = _varint(footer, at)
    for last, where in _block(_contents(file, size, footer, at)):
        if last[:-8] < start:
            continue
        for key, value in _block(_contents(file, size, where, 0)):
            if len(key) < 8:
                raise _Damage(f"a key of {len(key)} bytes")
            if (user := key[:-8]) >= start:
                order = int.from_bytes(key[-8:], "little")
                if order & 0xFF > 1:
                    raise _Damage(f"an entry of kind {order & 0xFF}")
                yield user, -order, value


def _contents(file: BinaryIO, size: int, handle: bytes, at: int) -> bytes:
    """The block that a handle is of."""
    offset, at = _varint(handle, at)
    length, _ = _varint(handle, at)
    if offset + length + 5 > size:
        raise _Damage(f"a block of {length} bytes at {offset}")
    file.seek(offset)
    data = file.read(length + 1)
    kind = data[length]
    if kind > 1:
        raise _Damage(f"a block compressed by method {kind}")
    return snappy(data[:length]) if kind else data[:length]


def _block(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a block."""
    (restarts,) = unpack_from("<I", data, len(data) - 4) if len(data) >= 4 else (0,)
    end = len(data) - 4 - 4 * restarts
    if end < 0:
        raise _Damage(f"a block of {len(data)} bytes with {restarts} restarts")
    key, at = b"", 0
    while at < end:
        shared, at = _varint(data, at)
        more, at = _varint(data, at)
        length, at = _varint(data, at)
        if shared > len(key) or at + more + length > end:
            raise _Damage("an entry past its block")
        key = key[:shared] + data[at : at + more]
        at += more + length
        yield key, data[at - length : at]


def snappy(data: bytes) -> bytes:
    """What Snappy has compressed.

    Raises:
        _Damage, IndexError: it is damaged.
    """
    size, at = _varint(data, 0)
    if size > min(_RATIO * len(data), _LARGEST):
        raise _Damage(f"a block of {size} bytes in {len(data)}")
    out = bytearray()
    end = len(data)
    while at < end and len(out) <= size:
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            length = (tag >> 2) + 1
            if length > 60:
                extra = length - 60
                length = int.from_bytes(data[at : at + extra], "little") + 1
                at += extra
            out += data[at : at + length]
            at += length
            continue
        if tag & 3 == 1:
            length, offset = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | data[at]
            at += 1
        else:
            width = 2 if tag & 3 == 2 else 4
            length, offset = (tag >> 2) + 1, int.from_bytes(data[at : at + width], "little")
            at += width
        start = len(out) - offset
        if offset == 0 or start < 0:
            raise _Damage("a copy from before the block")
        piece = out[start : start + length]
        out += piece if offset >= length else (piece * (length // offset + 1))[:length]
    if len(out) != size or at != end:
        raise _Damage(f"{len(out)} bytes of {size} in a block")
    return bytes(out)
