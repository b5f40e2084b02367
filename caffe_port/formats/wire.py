"""The part of the protobuf wire format that weight files need.

A message is a run of fields, each a tag (field number and wire type) and a value. :class:`Reader` iterates over the
fields of one message inside a larger buffer and returns *positions*, never copies, so that listing a 1.7 GB file reads
only a few of its pages. Every step is checked against the end of the message.

Source: the protobuf encoding specification, https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np

from caffe_port.errors import FormatError

__all__ = ["BYTES", "FIXED32", "FIXED64", "VARINT", "Buffer", "Reader", "bytes_field", "tag", "varint", "varint_field"]

Buffer = bytes | mmap.mmap
"""A file's bytes."""

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
_LONGEST_VARINT = 10


class Reader:
    """Iterates over the fields of the message at ``start:end`` of ``buffer``.

    Args:
        buffer: the whole file.
        start, end: the message's first byte and the byte after its last; the whole buffer if not given.
        path: the file's name for error messages.
        what: the message's description ("layer 'conv1'"), for error messages.

    Iterating yields ``(field number, wire type)``; the value is then taken with one of the methods below, or
    skipped by continuing. Positions are offsets in ``buffer``.
    """

    def __init__(
        self, buffer: Buffer, start: int = 0, end: int | None = None, *, path: str, what: str = "the file"
    ) -> None:
        self.buffer, self.pos, self.end = buffer, start, len(buffer) if end is None else end
        self.path, self.what = path, what
        self.whole = end is None
        self.field_start = start
        self._wire = self._number = -1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        while self.pos < self.end:
            self.field_start = self.pos
            key = self.varint()
            number, self._wire = key >> 3, key & 7
            if number == 0 or self._wire in (GROUP, END_GROUP) or self._wire > FIXED32:
                raise self.error(f"a field with tag {key} at byte {self.field_start}")
            self._number = number
            yield number, self._wire
            if self._wire >= 0:
                self._skip()

    def error(self, found: str) -> FormatError:
        """The error for bytes that are not a field of a message."""
        remedy = "it is damaged, or not a file of Caffe: fetch it again"
        return FormatError(self.path, found, expected=f"the next field of {self.what}", remedy=remedy)

    def _truncated(self, need: int) -> FormatError:
        if not self.whole:
            return self.error(f"a value at byte {self.field_start} that runs past the end of its message at {self.end}")
        found = f"{self.end}: it breaks off in the field at byte {self.field_start}"
        return FormatError(
            self.path, found, expected=f"at least {need} bytes", remedy="the file is truncated: fetch it again"
        )

    def varint(self) -> int:
        """The unsigned varint at the reader's position."""
        value = 0
        for index in range(_LONGEST_VARINT):
            if self.pos >= self.end:
                raise self._truncated(self.end + 1)
            byte = self.buffer[self.pos]
            self.pos += 1
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value
        raise self.error(f"a number of more than {_LONGEST_VARINT} bytes at byte {self.field_start}")

    def _advance(self, size: int) -> int:
        start = self.pos
        if size > self.end - start:
            raise self._truncated(start + size)
        self.pos = start + size
        return start

    def raw(self) -> bytes:
        """The whole current field, tag and value, as bytes, whether or not its value was read."""
        if self._wire >= 0:
            self._skip()
        return bytes(self.buffer[self.field_start : self.pos])

    def _skip(self) -> None:
        wire, self._wire = self._wire, -1
        if wire == VARINT:
            self.varint()
        else:
            self._advance(self.varint() if wire == BYTES else 8 if wire == FIXED64 else 4)

    def _take(self, wire: int) -> None:
        if self._wire != wire:
            raise self.error(f"wire type {self._wire} at byte {self.field_start} instead of {wire}")
        self._wire = -1

    def integer(self) -> int:
        """The varint value of the current field as a signed 64-bit number (proto's int32, int64 and enums)."""
        self._take(VARINT)
        value = self.varint() & (2**64 - 1)
        return value - 2**64 if value >= 2**63 else value

    def single(self) -> float:
        """The current field, a number in single precision."""
        self._take(FIXED32)
        return float(np.frombuffer(self.buffer, "<f4", 1, self._advance(4))[0])

    def span(self) -> tuple[int, int]:
        """Start and end of the current length-delimited field (string, bytes, message, packed numbers)."""
        self._take(BYTES)
        size = self.varint()
        start = self._advance(size)
        return start, start + size

    def text(self) -> str:
        """The current field as text; bytes that are not UTF-8 survive a round trip through ``surrogateescape``."""
        start, end = self.span()
        return bytes(self.buffer[start:end]).decode("utf-8", "surrogateescape")

    def message(self, what: str) -> Reader:
        """A reader of the current field, which is a message."""
        start, end = self.span()
        return Reader(self.buffer, start, end, path=self.path, what=what)

    def array(self, dtype: np.dtype) -> np.ndarray:
        """The current field, packed numbers of ``dtype``, as a flat view of the buffer, aligned or not."""
        start, end = self.span()
        if (end - start) % dtype.itemsize:
            raise self.error(f"{end - start} bytes at byte {start}, not a multiple of {dtype.itemsize}")
        count = (end - start) // dtype.itemsize
        return np.frombuffer(self.buffer, dtype, count, start) if count else np.empty(0, dtype)

    def unpacked(self, dtype: np.dtype, numbers: tuple[int, ...]) -> dict[int, np.ndarray]:
        """Unpacked numbers of ``dtype`` (4 or 8 bytes wide), each with a tag, from the current field on: copies.

        The whole run of such fields, of all the field ``numbers`` (below 16) in any order, is read at once, so that
        files without packing or with two alternating arrays are read fast.
        """
        wire = FIXED32 if dtype.itemsize == 4 else FIXED64
        self._take(wire)
        keys = [number << 3 | wire for number in numbers]
        found: dict[int, list[np.ndarray]] = {number: [] for number in numbers}
        width, size = self.pos - self.field_start, dtype.itemsize
        if width > 1:  # a tag in a non-minimal encoding
            number = self._number
            return {number: np.frombuffer(self.buffer, dtype, 1, self._advance(size)).copy()}
        self.pos = self.field_start
        rows, step = 64, 1 + size
        while True:
            rows = min(rows * 2, (self.end - self.pos) // step)
            if rows == 0:
                break
            table = np.frombuffer(self.buffer, np.uint8, rows * step, self.pos).reshape(rows, step)
            others = np.flatnonzero(~np.isin(table[:, 0], keys))
            count = int(others[0]) if others.size else rows
            for number, key in zip(numbers, keys, strict=True):
                mine = table[:count][table[:count, 0] == key, 1:]
                if mine.size:
                    found[number].append(np.ascontiguousarray(mine).view(dtype).ravel())
            self.pos += count * step
            if count < rows:
                break
        if self.pos == self.field_start:
            raise self._truncated(self.field_start + step)
        return {number: np.concatenate(parts) for number, parts in found.items() if parts}


def varint(value: int) -> bytes:
    """``value`` as a varint; negative numbers as 64-bit two's complement, ten bytes, as proto's int32 and int64 are."""
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, wire: int) -> bytes:
    """The tag of field ``number``."""
    return varint(number << 3 | wire)


def varint_field(number: int, value: int) -> bytes:
    """A varint field with its tag."""
    return tag(number, VARINT) + varint(value)


def bytes_field(number: int, value: bytes | str) -> bytes:
    """A length-delimited field with its tag."""
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return tag(number, BYTES) + varint(len(raw)) + raw
