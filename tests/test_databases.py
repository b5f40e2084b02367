"""Databases that LMDB's and LevelDB's own libraries wrote, record for record; damaged ones are one error."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from struct import pack_into

import pytest
from record_databases import expected, unpacked

from caffe_port.data.databases import open_records
from caffe_port.data.leveldb_files import LevelRecords, snappy
from caffe_port.data.lmdb_file import LmdbRecords
from caffe_port.data.records import Records
from caffe_port.errors import CaffeError, FileError, FormatError

KINDS: dict[str, Callable[[str], Records]] = {"lmdb": LmdbRecords, "leveldb": LevelRecords}


def everything(records: Records) -> list[tuple[bytes, bytes]]:
    found = []
    there = records.first()
    while there:
        found.append((records.key, records.value))
        there = records.next()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_all_records_in_order(kind: str, tmp_path: Path) -> None:
    path = unpacked(kind, tmp_path)
    before = sorted((p, p.stat().st_mtime_ns) for p in path.rglob("*"))
    records = KINDS[kind](str(path))
    assert everything(records) == [*expected().items()]
    assert everything(records) == [*expected().items()]
    assert sorted((p, p.stat().st_mtime_ns) for p in path.rglob("*")) == before
    records.first()
    for _ in expected():
        records.advance()
    assert records.key == min(expected())


@pytest.mark.parametrize("kind", KINDS)
def test_any_record_by_its_key(kind: str, tmp_path: Path) -> None:
    records, keys = KINDS[kind](str(unpacked(kind, tmp_path))), sorted(expected())
    for i in (0, len(keys) - 1, *random.Random(1).sample(range(len(keys)), 30)):
        assert records.seek(keys[i])
        assert records.value == expected()[keys[i]]
        assert records.next() == (i + 1 < len(keys))
        assert i + 1 == len(keys) or records.key == keys[i + 1]
        assert not records.seek(keys[i] + b"\0")
    assert not records.seek(b"")
    assert not records.seek(b"\xff")


@pytest.mark.parametrize("count", [0, 1, 3, 400])
def test_lmdb_of_any_depth(count: int, tmp_path: Path) -> None:
    """As the library's own cursor goes."""
    lmdb = pytest.importorskip("lmdb")
    rng = random.Random(count)
    wanted = {
        rng.randbytes(rng.choice((1, 10, 300, 511))): rng.randbytes(rng.choice((0, 1, 500, 3000, 9000)))
        for _ in range(count)
    }
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 24) as db:
        for part in (sorted(wanted), sorted(wanted)[::3]):
            with db.begin(write=True) as write:
                for key in part:
                    write.put(key, wanted[key])
    assert everything(LmdbRecords(str(tmp_path / "db"))) == sorted(wanted.items())
    assert everything(LmdbRecords(str(tmp_path / "db" / "data.mdb"))) == sorted(wanted.items())


PAGE = 4096


def field(form: str, at: int, value: int) -> Callable[[bytearray], None]:
    """Writes a number; both meta pages are meant by a place below 4096."""

    def change(data: bytearray) -> None:
        for place in (at, at + PAGE) if at < PAGE else (at,):
            pack_into(form, data, place, value)

    return change


def cut(data: bytearray) -> None:
    del data[5 * PAGE :]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (field("<I", 16, 1), "expected an LMDB database of version 1"),
        (field("<I", 20, 2), "expected an LMDB database of version 1"),
        (field("<I", 40, 4095), "expected an LMDB database of version 1"),
        (field("<H", 92, 4), "found a database with the flags 0x4"),
        (field("<H", 94, 1), "found page "),
        (field("<H", 94, 60000), "in 60000 levels"),
        (field("<Q", 120, 10**15), "1000000000000000 records in"),
        (field("<Q", 120, 3), "more than 3 records"),
        (field("<Q", 120, 5000), "records of 5000"),
        (field("<Q", 128, 10**15), "page 1000000000000000 in level 1"),
        (field("<Q", 128, 0), "page 0"),
        (cut, "in level 1 of"),
        (lambda data: data.__delitem__(slice(100, None)), "expected an LMDB database of version 1"),
    ],
)
def test_damaged_lmdb(change: Callable[[bytearray], None], said: str, tmp_path: Path) -> None:
    path = unpacked("lmdb", tmp_path) / "data.mdb"
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=said):
        everything(open_records(str(path.parent), "LMDB"))


@pytest.mark.parametrize(("at", "value"), [(12, 17), (14, 4), (10, 4), (0, 9), (16, 4095), (16, 3)])
def test_damaged_pages_of_lmdb(at: int, value: int, tmp_path: Path) -> None:
    path = unpacked("lmdb", tmp_path) / "data.mdb"
    data = bytearray(path.read_bytes())
    root = max((int.from_bytes(data[p + 144 : p + 152], "little"), p) for p in (0, PAGE))[1] + 128
    pack_into("<H", data, int.from_bytes(data[root : root + 8], "little") * PAGE + at, value)
    path.write_bytes(data)
    with pytest.raises(FormatError, match="expected a whole LMDB database, found"):
        everything(open_records(str(path.parent), "LMDB"))


def varied(name: str, data: bytes | None) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).unlink()
        if data is not None:
            (path / name).write_bytes(data)

    return change


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (varied("CURRENT", None), FileError, "CURRENT: No such file"),
        (varied("CURRENT", b"../MANIFEST-000002\n"), FormatError, "in CURRENT"),
        (varied("MANIFEST-000002", None), FileError, "MANIFEST-000002: No such file"),
        (varied("MANIFEST-000002", b"\0" * 4 + b"\x02\0\1\x63\0"), FormatError, "the tag 99"),
        (varied("MANIFEST-000002", b"\0" * 4 + b"\x04\0\1\1\x02ab"), FormatError, "keys in the order b'ab'"),
        (varied("MANIFEST-000002", b"\0" * 4 + b"\xff\xff\1"), FormatError, "record of kind 1 and 65535 bytes"),
        (varied("MANIFEST-000002", b""), FormatError, "an empty database"),
        (varied("000005.ldb", None), FileError, "000005.ldb: No such file"),
        (varied("000005.ldb", b"no"), FormatError, "no table in 000005.ldb"),
        (
            varied("000005.ldb", b"\0\0" + b"\xff" * 9 + b"\1\5" + bytes(27) + bytes.fromhex("57fb808b247547db")),
            FormatError,
            "a block of 5 bytes at|a block of",
        ),
    ],
)
def test_damaged_leveldb(change: Callable[[Path], None], error: type[CaffeError], said: str, tmp_path: Path) -> None:
    path = unpacked("leveldb", tmp_path)
    change(path)
    if "empty" in said:
        (path / "000004.log").unlink()
    with pytest.raises(error, match=said):
        everything(open_records(str(path), "LEVELDB"))


@pytest.mark.parametrize(
    ("data", "made"),
    [
        (b"\x00", b""),
        (b"\x03\x08abc", b"abc"),
        (b"\x0a\x04ab\x1e\x02\0", b"ab" * 5),  # copies that overlap themselves: the format's own example
        (b"\x05\x00a\x01\x01", b"aaaaa"),
        (b"\x46\xf0\x45" + b"z" * 70, b"z" * 70),
        (b"\x06\x08abc\x0b\x03\0\0\0", b"abcabc"),
    ],
)
def test_snappy(data: bytes, made: bytes) -> None:
    assert snappy(data) == made


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xff\xff\xff\x0f", b"\x03\x01\x05", b"\x02\x08abc", b"\x09\x08abc", b"\x05\x00a\x01\0"]
)
def test_damaged_snappy(data: bytes) -> None:
    with pytest.raises(Exception, match=r"a block|index out of range|a copy|bytes of"):
        snappy(data)
