"""Hostile databases: LMDB's pages, LevelDB's tables, logs and manifest. See :mod:`fuzzing`."""

from __future__ import annotations

from pathlib import Path
from random import Random
from struct import pack_into, unpack_from

import numpy as np
from fuzzing import Reader, integer, register, word
from record_databases import files, unpacked, varint

from caffe_port.data.databases import DatumBatches, open_records
from caffe_port.data.pictures import COLOR
from caffe_port.data.transform import Transformer

PAGE = 4096
MOST = 200
"""Records to read; there are fewer."""


def read_database(path: Path, backend: str) -> None:
    records = open_records(str(path), backend)
    transformer = Transformer(scale=1, mirror=False, crop=4, mean=None, train=False)
    batches = DatumBatches(str(path), records, transformer, 5, color=COLOR, skip=0)
    start = batches.position()
    for _ in range(6):
        batches.make()
    batches.move(start)
    for _ in range(MOST):
        np.frombuffer(records.value, np.uint8).sum()
        if not records.next():
            break


def lmdb(rng: Random, folder: Path) -> Path:
    """Fields of pages' heads, of nodes and of the two meta pages changed; pages cut off or put elsewhere."""
    data = bytearray(files()["lmdb/data.mdb"])
    newest = max((unpack_from("<Q", data, at + 144)[0], at) for at in (0, PAGE))[1]
    for _ in range(rng.choice((1, 1, 2, 4))):
        page = rng.randrange(2, len(data) // PAGE) * PAGE
        way = rng.randrange(10)
        lower = unpack_from("<H", data, page + 12)[0]
        count = max(1, min((lower - 16) // 2, PAGE // 2 - 8))
        node = unpack_from("<H", data, page + 16 + 2 * rng.randrange(count))[0]
        node = page + min(node, PAGE - 8)
        if way == 0:
            meta = newest + rng.choice((16, 20, 40, 88, 92, 94, 120, 128, 128, 136, 144))
            width = rng.choice((2, 4, 8))
            value = integer(rng, unpack_from("<H", data, meta)[0])
            data[meta : meta + width] = (value & (256**width - 1)).to_bytes(width, "little")
        elif way == 1:
            pack_into("<H", data, page + rng.choice((0, 8, 10, 12, 14)), integer(rng, lower) & 0xFFFF)
        elif way == 2:
            at = page + 16 + 2 * rng.randrange(count)
            pack_into("<H", data, at, rng.choice((0, 16, 4090, 4095, 4096, rng.randrange(65536))))
        elif way <= 5:
            at = node + rng.choice((0, 2, 4, 6))
            pack_into("<H", data, at, rng.choice((0, 1, 2, 3, 8, len(data) // PAGE, 65535, integer(rng, 9) & 0xFFFF)))
        elif way == 6 and node + 24 < len(data):
            pack_into("<Q", data, node + rng.choice((8, 16)), integer(rng, 3) & (2**64 - 1))
        elif way == 7:
            other = rng.randrange(len(data) // PAGE) * PAGE
            data[page : page + PAGE] = data[other : other + PAGE]
            if rng.random() < 0.7:
                pack_into("<Q", data, page, page // PAGE)
        elif way == 8 and len(data) > 4 * PAGE:
            del data[rng.choice((page, len(data) - PAGE, page + 100)) :]
        else:
            data[rng.randrange(2 * PAGE, len(data))] ^= 1 << rng.randrange(8)
        if len(data) < 3 * PAGE:
            break
    path = folder / "db"
    if rng.random() < 0.1:
        path.write_bytes(data)
    else:
        path.mkdir()
        (path / "data.mdb").write_bytes(data)
    return path


def put_number(rng: Random, data: bytearray, at: int) -> None:
    """Another number in groups of seven bits where one begins."""
    end = at = min(max(at, 0), len(data) - 1)
    while end < len(data) - 1 and data[end] & 0x80:
        end += 1
    data[at : end + 1] = varint(abs(integer(rng, data[at])) & (2**70 - 1))


def leveldb(rng: Random, folder: Path) -> Path:
    """Numbers in blocks, handles, footers, log records and the manifest changed; files left out or named otherwise."""
    path = unpacked("leveldb", folder)
    for _ in range(rng.choice((1, 1, 2, 4))):
        names = sorted(p.name for p in path.iterdir())
        if not names:
            break
        name = rng.choice((*names, *[n for n in names if n.endswith(".ldb")] * 2))
        file = path / name
        data = bytearray(file.read_bytes())
        if len(data) < (16 if name == "CURRENT" else 64):  # changed before
            continue
        way = rng.randrange(10)
        if way == 0:
            file.rename(path / rng.choice(("CURRENT", "000001.ldb", "MANIFEST-000009", "000009.log", "000005.sst")))
            continue
        if name == "CURRENT" and way < 8:
            text = rng.choice((word(rng), f"MANIFEST-{integer(rng)}\n", "../MANIFEST-000002\n", "MANIFEST-000002"))
            data[:] = text.encode("utf-8", "surrogatepass")
        elif name.endswith("ldb"):
            if way <= 2:  # the footer: two handles
                put_number(rng, data, len(data) - 48 + rng.randrange(8))
                del data[: max(0, rng.choice((0, 0, 1)))]
            elif way <= 4:  # the index block, before the footer
                put_number(rng, data, rng.randrange(max(0, len(data) - 900), len(data) - 48))
            elif way <= 6:  # the first block's head: Snappy's length and tags, an entry's lengths
                put_number(rng, data, rng.randrange(12))
            elif way == 7:
                at = rng.randrange(len(data))
                data[at : at + 4] = (integer(rng) & 0xFFFFFFFF).to_bytes(4, "little")
            else:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif way <= 2:  # a record's length and kind
            pack_into("<H", data, 4, integer(rng, len(data) - 7) & 0xFFFF)
        elif way == 3:
            data[6] = rng.choice((0, 1, 2, 3, 4, 5, 255))
        elif way <= 6:
            put_number(rng, data, rng.randrange(min(7, len(data) - 1), min(len(data), 60 + len(data) // 4)))
        elif way == 7:
            data += bytes(data)
        elif way == 8:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
    return path


register(
    Reader("lmdb", lambda path: read_database(path, "LMDB"), lmdb, ("data/lmdb_file.py", "data/databases.py")),
    Reader("leveldb", lambda path: read_database(path, "LEVELDB"), leveldb, ("data/leveldb_files.py",)),
)
