"""Hostile HDF5 files: Caffe's weights, state_dicts, solver states. See :mod:`fuzzing`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzzing import Reader, integer, register, word
from weight_reading import read_state, read_weights

SHAPES = ((), (0,), (1,), (3,), (3, 4), (1, 1, 3, 4), (0, 10**6), (10**12,), (2**31,), (10**6, 10**6), (1,) * 32)
REFUSED = (ValueError, TypeError, OSError, RuntimeError, KeyError)
"""h5py's errors for objects that a file cannot hold."""
TYPES = ("<f4", "<f8", "<f2", ">f4", "<i4", "<i8", "u1", "S5", "<c8", "O", "?", "V7")


def put(rng: Random, group: Any, key: str) -> None:
    """A data set of any kind, or what stands where one belongs, under ``key``; what HDF5 refuses is left out."""
    import h5py

    shape, dtype = rng.choice(SHAPES), rng.choice(TYPES)
    small = [s for s in SHAPES if np.prod(s, dtype=float) < 100]

    def odd_float() -> None:
        kind = h5py.h5t.IEEE_F32LE.copy()
        kind.set_fields(*rng.choice(((31, 20, 11, 0, 20), (15, 8, 7, 0, 8), (31, 23, 8, 0, 23))))
        kind.set_ebias(rng.choice((1, 127, 1023)))
        h5py.h5d.create(group.id, key.encode(), kind, h5py.h5s.create_simple((3,)))

    def chunked() -> None:
        options = rng.choice(({"compression": "gzip"}, {"fletcher32": True}, {"shuffle": True}, {}))
        group.create_dataset(key, rng.choice(small[1:]), "<f4", chunks=True, maxshape=None, **options)

    def enum() -> None:
        group.create_dataset(key, (3,), h5py.enum_dtype({"A": 0, "B": 1}))

    ways = (
        lambda: group.create_dataset(key, data=np.ones(rng.choice(small), "<f4")),
        lambda: group.create_dataset(key, data=np.ones(rng.choice(small), rng.choice(TYPES[:7]))),
        lambda: group.create_dataset(key, shape, dtype),
        lambda: group.create_dataset(key, shape, dtype, chunks=(1024,) * len(shape) if shape else None),
        lambda: group.create_dataset(key, shape, dtype, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]),
        lambda: group.__setitem__(key, h5py.ExternalLink("/etc/other.h5", "/data")),
        lambda: group.__setitem__(key, h5py.SoftLink(rng.choice(("/data", "/nowhere", key, "/")))),
        lambda: group.__setitem__(key, group.file["/"]),
        lambda: group.create_group(key),
        lambda: group.__setitem__(key, np.dtype("<f4")),
        lambda: group.create_dataset(
            key, data=rng.choice((b"text", "text", "é", 3, -5, 2**40, 1.5, [[1, 2]], [-5], []))
        ),
        lambda: group.create_dataset(key, data=h5py.Empty("<f4")),
        lambda: group.create_dataset(key, (2,), np.dtype([("a", "<f4"), ("b", "<i4")])),
        lambda: group.create_dataset(key, (2,), h5py.vlen_dtype(np.float32)),
        lambda: group.create_dataset(key, (2,), h5py.ref_dtype),
        lambda: group.create_dataset(key, (2,), np.dtype(("<f4", (3,)))),
        odd_float,
        chunked,
        enum,
    )
    with suppress(*REFUSED):
        rng.choice(ways)()


def hdf5_file(rng: Random, path: Path) -> Any:
    import h5py

    options: dict = rng.choice(({}, {}, {"libver": "latest"}, {"userblock_size": 512}))
    return h5py.File(path, "w", **options)


def change(rng: Random, file: Any, keys: tuple[str, ...]) -> None:
    """Put something else at one of the places, or something at another."""
    key = rng.choice(
        (*keys, *keys, word(rng), f"data/{integer(rng)}", f"data/ip/{integer(rng)}", f"history/{integer(rng)}")
    )
    with suppress(*REFUSED):
        if key in file:
            del file[key]
        if rng.random() < 0.8:
            put(rng, file, key)


def hdf5_weights(rng: Random, folder: Path) -> Path:
    path = folder / "w.caffemodel.h5"
    keys = (
        "data/ip/0",
        "data/ip/1",
        "data/bn/0",
        "data/bn/1",
        "data/bn/2",
        "diff/ip/0",
        "ip.weight",
        "ip.bias",
        "data",
    )
    with hdf5_file(rng, path) as file:
        if rng.random() < 0.7:
            for key, shape in zip(keys[:5], ((3, 4), (3,), (3,), (3,), (1,)), strict=True):
                file[key] = np.ones(shape, "<f4")
        else:
            file["ip.weight"], file["ip.bias"] = np.ones((3, 4), "<f4"), np.ones(3, "<f4")
        for _ in range(rng.choice((1, 1, 2, 5))):
            change(rng, file, keys)
    return path


def hdf5_state(rng: Random, folder: Path) -> Path:
    path = folder / "w.solverstate.h5"
    with hdf5_file(rng, path) as file:
        file["iter"], file["current_step"] = np.array([5], "<i4"), np.array([0], "<i4")
        file["learned_net"] = np.bytes_(b"w.caffemodel.h5")
        file["history/0"], file["history/1"] = np.ones((3, 4), "<f4"), np.ones(3, "<f4")
        for _ in range(rng.choice((1, 1, 2, 5))):
            change(rng, file, ("iter", "current_step", "learned_net", "history", "history/0", "history/1", "history/2"))
    return path


HDF5 = ("formats/hdf5.py", "formats/hdf5_access.py")
register(
    Reader("hdf5_weights", read_weights, hdf5_weights, HDF5),
    Reader("hdf5_state", read_state, hdf5_state, ("formats/solverstate.py", HDF5[1])),
)
