"""Members of an untrusted zip archive: each once, unencrypted, stored or deflated, of its declared size."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from caffe_port.errors import CaffeError, FormatError
from caffe_port.formats.wire import Buffer

__all__ = ["Archive", "open_archive"]

_RATIO = 1100
"""Deflate expands one byte to at most about 1032."""
_LOCAL = struct.Struct("<26xHH")  # the lengths of the name and of the extra field in a member's local header
_ENCRYPTED = 1
_PIECE = 1 << 20


class Archive:
    """An archive's members by name."""

    def __init__(self, archive: zipfile.ZipFile, buffer: Buffer, path: str) -> None:
        self._zip, self._buffer, self.path = archive, buffer, path
        self._members: dict[str, zipfile.ZipInfo] = {}
        total = 0
        for info in archive.infolist():
            where = f"{path}: {info.filename}"
            if info.filename in self._members:
                raise FormatError(where, "a second member of that name", expected="each once", remedy="save it again")
            if info.flag_bits & _ENCRYPTED:
                raise FormatError(
                    where, "an encrypted member", expected="plain arrays", remedy="save it without encryption"
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise FormatError(
                    where, f"compression {info.compress_type}", expected="stored or deflated", remedy="save it again"
                )
            total += info.compress_size
            if info.file_size > info.compress_size * (_RATIO if info.compress_type else 1) or total > len(buffer):
                found = f"{info.compress_size} bytes"
                raise FormatError(where, found, expected=f"{info.file_size} bytes of an archive of {len(buffer)}")
            self._members[info.filename] = info

    def names(self) -> list[str]:
        """The members' names in the archive's order."""
        return list(self._members)

    def size(self, name: str) -> int:
        """A member's size in bytes, unpacked."""
        return self._members[name].file_size

    def read(self, name: str) -> np.ndarray:
        """A member's bytes, uint8, checked against their checksum: a copy."""
        out = np.empty(self.size(name), np.uint8)
        at = 0
        with self._zip.open(self._members[name]) as file:
            while piece := file.read(_PIECE):  # the checksum is verified at the end
                if at + len(piece) > out.size:
                    break
                out[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
                at += len(piece)
        if at != out.size or piece:
            raise FormatError(f"{self.path}: {name}", "a size other than declared", remedy="fetch it again")
        return out

    def view(self, name: str) -> np.ndarray:
        """A member's bytes, uint8: a view of the file where they are stored uncompressed, without their checksum."""
        info = self._members[name]
        head = bytes(self._buffer[info.header_offset : info.header_offset + _LOCAL.size])
        if info.compress_type != zipfile.ZIP_STORED or len(head) < _LOCAL.size:
            return self.read(name)
        start = info.header_offset + _LOCAL.size + sum(_LOCAL.unpack(head))
        if start + info.file_size > len(self._buffer):
            raise FormatError(f"{self.path}: {name}", "a member past the end", remedy="fetch it again")
        return np.frombuffer(self._buffer, np.uint8, info.file_size, start)


@contextmanager
def open_archive(buffer: Buffer, path: str) -> Iterator[Archive]:
    """The archive ``path``, whose bytes ``buffer`` holds; zipfile's errors inside the block become errors of the file.

    Raises:
        FormatError: it is damaged, or a member is encrypted, duplicate, of another compression or larger than the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield Archive(archive, buffer, path)
    except CaffeError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        found = f"a damaged or truncated zip archive ({error})"
        raise FormatError(path, found, remedy="fetch it again") from None
    except (ValueError, struct.error, OverflowError, IndexError) as error:
        raise FormatError(path, f"a damaged zip archive ({error})", remedy="fetch it again") from None
