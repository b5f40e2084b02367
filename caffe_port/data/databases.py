"""Records of an LMDB or LevelDB database: Datum messages, in the order of their keys, again and again.

Source: util/db_lmdb.cpp, util/db_leveldb.cpp, data_layer.cpp (both programs).
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from google.protobuf.message import DecodeError

from caffe_port.data.batches import Array, Batches, State
from caffe_port.data.pictures import decode
from caffe_port.data.shard import ALL, Share
from caffe_port.data.transform import Transformer
from caffe_port.errors import CaffeError, FileError, FormatError
from caffe_port.schema.messages import SCHEMA

__all__ = ["DatumBatches", "Records", "missing_package", "open_records", "read_datum"]


class Records(ABC):
    """A position in a database. There is always a current record."""

    key: bytes
    value: bytes

    @abstractmethod
    def first(self) -> bool:
        """Move to the first record; False if there is none."""

    @abstractmethod
    def next(self) -> bool:
        """Go to the next record; False after the last, and then there is no current one until :meth:`first`."""

    @abstractmethod
    def seek(self, key: bytes) -> bool:
        """Move to the record of this key; False if there is none."""

    def advance(self) -> None:
        """Go to the next record, from the last to the first."""
        if not self.next():
            self.first()


class _Lmdb(Records):
    def __init__(self, opened: _Opened) -> None:
        self._opened = opened  # keeps it open
        self._cursor = opened.handle.begin().cursor()

    def first(self) -> bool:
        return self._cursor.first()

    def next(self) -> bool:
        return self._cursor.next()

    def seek(self, key: bytes) -> bool:
        return self._cursor.set_key(key)

    @property
    def key(self) -> bytes:  # type: ignore[override]
        return self._cursor.key()

    @property
    def value(self) -> bytes:  # type: ignore[override]
        return self._cursor.value()


class _LevelDB(Records):
    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        self._cursor = opened.handle.raw_iterator()

    def first(self) -> bool:
        self._cursor.seek_to_first()
        return self._cursor.valid()

    def next(self) -> bool:
        self._cursor.next()
        return self._cursor.valid()

    def seek(self, key: bytes) -> bool:
        self._cursor.seek(key)
        return self._cursor.valid() and self._cursor.key() == key

    @property
    def key(self) -> bytes:  # type: ignore[override]
        return self._cursor.key()

    @property
    def value(self) -> bytes:  # type: ignore[override]
        return self._cursor.value()


class _Opened:
    """A database that is open. A process may open each only once, so that nets share it; the last closes it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle


_open: WeakValueDictionary[str, _Opened] = WeakValueDictionary()


def open_records(path: str, backend: str) -> Records:
    """The records of a database, at the first.

    Args:
        path: its folder. backend: "LMDB" or "LEVELDB".

    Raises:
        FileError: it cannot be opened. FormatError: it is of the other kind, or empty.
        CaffeError: the package that reads it is not installed.
    """
    for other, inside in (("LMDB", "data.mdb"), ("LEVELDB", "CURRENT")):
        if other != backend and Path(path, inside).exists():
            raise FormatError(path, f"a database of the kind {other}", expected=backend, remedy=f"backend: {other}")
    place = os.path.realpath(path)
    opened = _open.get(place)
    if opened is None:
        opened = _open[place] = _Opened((_open_lmdb if backend == "LMDB" else _open_leveldb)(path))
    records = _Lmdb(opened) if backend == "LMDB" else _LevelDB(opened)
    if not records.first():
        raise FormatError(path, "an empty database", expected="records")
    return records


def _open_lmdb(path: str) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise missing_package(path, "lmdb") from error
    try:
        # Without a lock, a folder that is not writable can be read, too.
        return lmdb.open(path, readonly=True, lock=False, subdir=Path(path).is_dir())
    except lmdb.Error as error:
        raise FileError(path, f"an LMDB database that cannot be opened: {error}") from error


def _open_leveldb(path: str) -> Any:
    try:
        import plyvel
    except ImportError as error:
        raise missing_package(path, "plyvel") from error
    try:
        return plyvel.DB(path, create_if_missing=False)
    except (plyvel.Error, OSError) as error:
        raise FileError(path, f"a LevelDB database that cannot be opened: {error}") from error


def missing_package(path: str, package: str, does: str = "reads") -> CaffeError:
    """The error for a database whose package is not installed."""
    return CaffeError(path, f"no Python package {package}, which {does} it", remedy=f"pip install {package}")


def read_datum(data: bytes, decoder: Callable[[bytes, str], Array], where: str) -> tuple[Array, int]:
    """A Datum's numbers, uint8 or float32 (channels, height, width), and its label.

    Args:
        decoder: makes an array of an encoded picture, given its bytes and ``where``.

    Raises:
        FormatError: no Datum, or its data are not as many as its shape says.
    """
    try:
        datum = SCHEMA.Datum.FromString(data)
    except DecodeError as error:
        raise FormatError(where, "a record that is no Datum") from error
    if datum.encoded:
        return decoder(datum.data, where), datum.label
    shape: tuple[int, ...] = (datum.channels, datum.height, datum.width)
    numbers = np.frombuffer(datum.data, np.uint8) if datum.data else np.array(datum.float_data, np.float32)
    if min(shape) < 1 or numbers.size != math.prod(shape):
        raise FormatError(where, f"a Datum of {numbers.size} numbers", expected=f"{'x'.join(map(str, shape))}")
    return numbers.reshape(shape), datum.label


class DatumBatches(Batches):
    """Records of a database: (items, channels, height, width), and (items,) of labels.

    Args:
        color: how encoded records are decoded, a flag of :mod:`~caffe_port.data.pictures`.
        skip: records to pass over at first.
        share: the part of the records that these batches are of.
    """

    def __init__(
        self,
        path: str,
        records: Records,
        transformer: Transformer,
        batch: int,
        *,
        color: int,
        skip: int,
        share: Share = ALL,
    ) -> None:
        self._path, self._records, self.transformer, self._batch, self._color = path, records, transformer, batch, color
        self._share, self._offset = share, 0
        for _ in range(skip):
            records.advance()
        self.shapes = [(batch, *self._shape(self._read()[0])), (batch,)]

    def _read(self) -> tuple[Array, int]:
        return read_datum(self._records.value, lambda data, where: decode(data, self._color, where), self._where)

    def _shape(self, item: Array) -> tuple[int, ...]:
        return self.transformer.shape(*item.shape)

    @property
    def _where(self) -> str:
        return f"{self._path}: record {self._records.key.decode(errors='backslashreplace')}"

    def make(self) -> tuple[Array, ...]:
        data, labels = np.empty(0), np.empty(self._batch, np.float32)
        for i in range(self._batch):
            while not self._share.keeps(self._offset):
                self._advance()
            item, labels[i] = self._read()
            if i == 0:
                data = np.empty((self._batch, *self._shape(item)), np.float32)
            self.transformer.item(item, data[i], self._where)
            self._advance()
        return data, labels

    def _advance(self) -> None:
        self._records.advance()
        self._offset += 1

    def position(self) -> State:
        return {"key": np.frombuffer(self._records.key, np.uint8), "offset": np.array([self._offset])}

    def move(self, state: State) -> None:
        key = state["key"].tobytes()
        if not self._records.seek(key):
            raise CaffeError(
                "the data's position",
                f"{self._path} without the record {key!r}",
                expected="the database as it was saved",
            )
        (self._offset,) = state["offset"].tolist()
