"""Databases as LMDB's and LevelDB's own libraries write them, for the tests of our readers.

To write ``reference/data_layers/databases.zip`` again (with plyvel 1.5.1 and lmdb 3.0.0)::

    python tests/record_databases.py tests/reference/data_layers/databases.zip
"""

from __future__ import annotations

import io
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from random import Random

ARCHIVE = Path(__file__).parent / "reference" / "data_layers" / "databases.zip"


def varint(number: int) -> bytes:
    low, high = number & 0x7F, number >> 7
    return bytes((low | 0x80,)) + varint(high) if high else bytes((low,))


def datum(rng: Random, side: int, label: int) -> bytes:
    """A Datum of 3 x side x side bytes, of few values so that Snappy has something to do."""
    data = bytes(rng.choice((0, 0, 0, 7, rng.randrange(256))) for _ in range(3 * side * side))
    head = (b"\x08" + varint(3), b"\x10" + varint(side), b"\x18" + varint(side), b"\x22" + varint(len(data)))
    return b"".join(head) + data + b"\x28" + varint(label)


def records() -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """What is written first, and what then: other values, further keys, and the empty ones are deleted."""
    rng = Random(9)
    first = {b"%05d_x.png" % (n * 37 % 150): datum(rng, 45 if n % 30 == 7 else 4, n) for n in range(150)}
    then = {key: datum(rng, 5, n) if n % 3 else b"" for n, key in enumerate(sorted(first)[::9])}
    return first, then | {b"%05d_y.png" % n: datum(rng, 4, n) for n in range(0, 150, 11)}


def expected() -> dict[bytes, bytes]:
    first, then = records()
    return {key: value for key, value in sorted((first | then).items()) if value}


@cache
def files() -> dict[str, bytes]:
    """The archive's files: ``lmdb/data.mdb``, ``leveldb/CURRENT`` ..."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def unpacked(kind: str, folder: Path) -> Path:
    """One of the databases as a folder."""
    for name, data in files().items():
        if name.startswith(f"{kind}/"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    return folder / kind


def main(out: str) -> None:
    import lmdb
    import plyvel

    first, then = records()
    with tempfile.TemporaryDirectory() as work:
        with lmdb.open(f"{work}/lmdb", map_size=1 << 20) as db:
            for part in (first, then):
                with db.begin(write=True) as transaction:
                    for key, value in part.items():
                        transaction.put(key, value) if value else transaction.delete(key)
        db = plyvel.DB(f"{work}/leveldb", create_if_missing=True, write_buffer_size=1 << 16, block_size=1 << 10)
        for part in (first, then):
            for key, value in part.items():
                db.put(key, value) if value else db.delete(key)
            if part is first:
                db.compact_range()
        db.close()
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(Path(work).rglob("*")):
                if path.is_file() and path.name.upper() not in ("LOCK", "LOG", "LOG.OLD", "LOCK.MDB"):
                    archive.write(path, path.relative_to(work))
    Path(out).write_bytes(whole.getvalue())


if __name__ == "__main__":
    main(sys.argv[1])
