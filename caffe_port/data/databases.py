"""Records of an LMDB or LevelDB database: Datum messages, in the order of their keys, again and again.

Source: util/db_lmdb.cpp, util/db_leveldb.cpp, data_layer.cpp (both programs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from caffe_port.data.batches import Array, Batches, State
from caffe_port.data.leveldb_files import LevelRecords
from caffe_port.data.lmdb_file import LmdbRecords
from caffe_port.data.pictures import decode
from caffe_port.data.records import Records
from caffe_port.data.shard import ALL, Share
from caffe_port.data.transform import Transformer
from caffe_port.errors import CaffeError, FormatError
from caffe_port.paths import exists
from caffe_port.schema.messages import SCHEMA

__all__ = ["DatumBatches", "Records", "open_records", "read_datum"]


def open_records(path: str, backend: str) -> Records:
    """The records of a database, at the first. Nothing in its folder is changed.

    Args:
        path: its folder. backend: "LMDB" or "LEVELDB".

    Raises:
        FileError: it cannot be opened. FormatError: it is of the other kind, damaged, or empty.
    """
    for other, inside in (("LMDB", "data.mdb"), ("LEVELDB", "CURRENT")):
        if other != backend and exists(Path(path, inside)):
            raise FormatError(path, f"a database of the kind {other}", expected=backend, remedy=f"backend: {other}")
    records: Records = LmdbRecords(path) if backend == "LMDB" else LevelRecords(path)
    if not records.first():
        raise FormatError(path, "an empty database", expected="records")
    return records


class Record(NamedTuple):
    """A Datum: its numbers, uint8 or float32 (channels, height, width), its label, and whether it was a picture."""

    numbers: Array
    label: int
    encoded: bool


def read_datum(data: bytes, decoder: Callable[[bytes, str], Array], where: str) -> Record:
    """The Datum in a record.

    Args:
        decoder: makes an array of an encoded picture, given its bytes and ``where``.

    Raises:
        FormatError: no Datum, or its data are not as many as its shape says.
    """
    try:
        datum = SCHEMA.Datum.FromString(data)
    except DecodeError as error:
        raise FormatError(where, "a record that is not a Datum") from error
    if datum.encoded:
        return Record(decoder(datum.data, where), datum.label, True)
    shape: tuple[int, ...] = (datum.channels, datum.height, datum.width)
    numbers = np.frombuffer(datum.data, np.uint8) if datum.data else np.array(datum.float_data, np.float32)
    if min(shape) < 1 or numbers.size != math.prod(shape):
        raise FormatError(where, f"a Datum of {numbers.size} numbers", expected=f"{'x'.join(map(str, shape))}")
    return Record(numbers.reshape(shape), datum.label, False)


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
        self.shapes = [(batch, *self._shape(self._read())), (batch,)]

    def _read(self) -> Record:
        return read_datum(self._records.value, lambda data, where: decode(data, self._color, where), self._where)

    def _shape(self, item: Record) -> tuple[int, ...]:
        return self.transformer.made(item.numbers.shape, self._where)

    @property
    def _where(self) -> str:
        return f"{self._path}: record {self._records.key.decode(errors='backslashreplace')}"

    def make(self) -> tuple[Array, ...]:
        data, labels = np.empty(0), np.empty(self._batch, np.float32)
        for i in range(self._batch):
            while not self._share.keeps(self._offset):
                self._advance()
            item = self._read()
            labels[i] = item.label
            if i == 0:
                data = np.empty((self._batch, *self._shape(item)), np.float32)
            transform = self.transformer.decoded if item.encoded else self.transformer.item
            transform(item.numbers, data[i], self._where)
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
