"""Hostile weight and state files, one row each: their errors, and that nothing else is read or allocated."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from caffe_port.errors import CaffeError, FormatError
from caffe_port.formats import open_weights
from caffe_port.formats.meanfile import read_mean
from caffe_port.formats.solverstate import read_solverstate
from caffe_port.schema import SCHEMA

ONES = np.ones((3, 4), np.float32)
TERA = 10**12


def safetensors(*entries: tuple[str, Any], size: int = 96) -> bytes:
    text = "{" + ",".join(f"{json.dumps(k)}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in entries) + "}"
    return struct.pack("<Q", len(text)) + text.encode() + bytes(size)


def entry(dtype: Any = "F32", shape: Any = (3, 4), offsets: Any = (0, 48)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def npz(*members: tuple[str, bytes], kind: int = zipfile.ZIP_STORED, edit: Callable[[bytes], bytes] = bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return edit(out.getvalue())


def npy(array: np.ndarray | None = None, descr: str = "<f4", shape: str = "(3, 4)") -> bytes:
    if array is not None:
        out = io.BytesIO()
        np.save(out, array)
        return out.getvalue()
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(48)


def encrypted(data: bytes) -> bytes:
    at = data.index(b"PK\x01\x02") + 8
    return data[:at] + b"\x01" + data[at + 1 :]


def saved(thing: Any, edit: Callable[[bytes], bytes] = bytes) -> bytes:
    """What torch.save writes, its pickle edited."""
    out, back = io.BytesIO(), io.BytesIO()
    torch.save(thing, out)
    with zipfile.ZipFile(out) as one, zipfile.ZipFile(back, "w") as two:
        for name in one.namelist():
            content = one.read(name)
            two.writestr(name, edit(content) if name.endswith("data.pkl") else content)
    return back.getvalue()


def blob(**fields: Any) -> bytes:
    net = SCHEMA.NetParameter(name="n")
    made = net.layer.add(name="ip", type="InnerProduct").blobs.add(data=[1.0])
    made.shape.dim.extend(fields["dims"])
    return net.SerializeToString()


ARRAYS: dict[str, tuple[bytes, str]] = {
    "safetensors, one array in another": (
        safetensors(("a.w", entry()), ("b.w", entry(offsets=(24, 72)))),
        "an array at 24",
    ),
    "safetensors past the end": (safetensors(("a.w", entry(offsets=(960, 1008)))), "truncated"),
    "safetensors of 10^12": (safetensors(("a.w", entry(shape=[TERA], offsets=(0, 4 * TERA)))), "truncated"),
    "safetensors, a dtype that is a list": (safetensors(("a.w", entry(dtype=["F32"]))), r"the dtype \['F32'\]"),
    "safetensors, a negative side": (safetensors(("a.w", entry(shape=[-3, -4]))), "the shape"),
    "safetensors, a fractional side": (safetensors(("a.w", entry(shape=[3.0, 4]))), "the shape"),
    "safetensors, a side of text": (safetensors(("a.w", entry(shape=["3", 4]))), "the shape"),
    "safetensors, one offset": (safetensors(("a.w", entry(offsets=[48]))), "1 offsets"),
    "safetensors, three offsets": (safetensors(("a.w", entry(offsets=[0, 24, 48]))), "3 offsets"),
    "safetensors, 65 axes": (safetensors(("a.w", entry(shape=[1] * 63 + [3, 4]))), "65 axes"),
    "safetensors, deep": (safetensors(("a.w", "[" * 100_000 + "]" * 100_000)), "header"),
    "safetensors, a key twice": (safetensors(("a.w", entry()), ("a.w", entry(offsets=(48, 96)))), "'a.w' twice"),
    "safetensors, complex": (safetensors(("a.w", entry(dtype="C64", offsets=(0, 96)))), "C64"),
    "safetensors of no numbers, 2^62 wide": (
        safetensors(("a.w", entry(shape=[0, 2**62], offsets=(0, 0)))),
        "the shape",
    ),
    "npz of no numbers, 2^62 wide": (npz(("a.w.npy", npy(shape=f"(0, {2**62})"))), "48 bytes"),
    "a blob of no numbers, 2^31 wide": (blob(dims=[0, 2**31]), "2\\*\\*31 - 1"),
    "npz of 10^12": (npz(("a.w.npy", npy(shape=f"({TERA},)"))), "48 bytes"),
    "npz, negative": (npz(("a.w.npy", npy(shape="(-3, -4)"))), "48 bytes"),
    "npz, fractional": (npz(("a.w.npy", npy(shape="(3.0, 4)"))), "48 bytes"),
    "npz, text": (npz(("a.w.npy", npy(shape="'34'"))), "48 bytes"),
    "npz, complex": (npz(("a.w.npy", npy(descr="<c8", shape="(6,)"))), "real numbers"),
    "npz, a key twice": (npz(("a.w.npy", npy(ONES)), ("a.w.npy", npy(ONES))), "second member"),
    "npz, encrypted": (npz(("a.w.npy", npy(ONES)), edit=encrypted), "encrypted"),
    "npz, bzip2": (npz(("a.w.npy", npy(ONES)), kind=zipfile.ZIP_BZIP2), "compression 12"),
    "npz, an empty member": (npz(("a.w.npy", b"")), "plain arrays"),
    "npz, no LAYER.BLOB": (npz((".npy", npy(ONES))), "LAYER.BLOB"),
    "npz, a header that nests": (npz(("a.w.npy", npy(shape="(" * 3000 + ")" * 3000))), "header"),
    "pth, a tensor past its storage": (
        saved({"a.w": torch.ones(3, 4)}, lambda data: data.replace(b"K\x03K\x04\x86", b"K\x03K\x7f\x86", 1)),
        "in 12 numbers",
    ),
    "pth, expanded": (saved({"a.w": torch.ones(1).expand(10**6, 10**6)}), "contiguous"),
    "pth, sparse": (saved({"a.w": torch.ones(3, 4).to_sparse()}), "_get_layout"),
    "pth, complex": (saved({"a.w": torch.ones(3, dtype=torch.complex64)}), "ComplexFloat"),
    "pth, a function": (saved({"a.w": 1}, lambda data: pickle.dumps(print, 2)), "print"),
    "pth, an operation": (saved({}, lambda data: b"\x80\x02]\x94\x8f."), "EMPTY_SET|damaged"),
    "pth, cut": (saved({"a.w": torch.ones(3)}, lambda data: data[:40]), "damaged"),
    "a blob of 65 axes": (blob(dims=[1] * 65), "33 axes"),
    "a blob of 100,000 axes": (blob(dims=[1] * 100_000), "33 axes"),
    "a blob of 2^62 numbers": (blob(dims=[2**31, 2**31]), "2\\*\\*31 - 1"),
    "a blob whose product overflows": (blob(dims=[2**32, 2**32]), "2\\*\\*31 - 1"),
}


@pytest.mark.parametrize(("content", "says"), ARRAYS.values(), ids=ARRAYS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_and_messages(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(content)
    refused(open_weights, path, says)


def refused(read: Callable[[Path], object], path: Path, says: str) -> None:
    """One CaffeError, one line, and no memory taken for it that is worth mention."""
    tracemalloc.start()
    try:
        with pytest.raises(CaffeError, match=says) as caught:
            read(path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)
    assert most < 30e6


# -- HDF5 --------------------------------------------------------------------------------------------------------------


def external(file: h5py.File) -> None:
    Path("secret").write_bytes(ONES.tobytes())
    file.create_dataset("data/ip/0", (3, 4), "<f4", external=[("secret", 0, 48)])


def other_file(file: h5py.File) -> None:
    with h5py.File("other.h5", "w") as other:
        other["data/ip/0"] = ONES
    file["data"] = h5py.ExternalLink("other.h5", "/data")


def soft_out(file: h5py.File) -> None:
    with h5py.File("other.h5", "w") as other:
        other["ip/0"] = ONES
    file["out"] = h5py.ExternalLink("other.h5", "/")
    file["data"] = h5py.SoftLink("/out")


def virtual(file: h5py.File) -> None:
    with h5py.File("other.h5", "w") as other:
        other["x"] = ONES
    layout = h5py.VirtualLayout((3, 4), "<f4")
    layout[...] = h5py.VirtualSource("other.h5", "x", (3, 4))
    file.create_virtual_dataset("data/ip/0", layout)


def itself(file: h5py.File) -> None:
    file["data/ip/0"] = ONES
    file["data/again"] = file["/"]


def odd_float(file: h5py.File) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(31, 20, 11, 0, 20)
    file.create_group("data/ip")
    h5py.h5d.create(file["data/ip"].id, b"0", kind, h5py.h5s.create_simple((3,)))


def put(key: str, *args: Any, **kwargs: Any) -> Callable[[h5py.File], object]:
    return lambda file: file.create_dataset(key, *args, **kwargs)


HDF5: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "external storage": (external, "another file"),
    "an external link": (other_file, "another file"),
    "a soft link through an external one": (soft_out, "another file"),
    "a virtual data set": (virtual, "another file"),
    "a soft link to nothing": (lambda f: f.__setitem__("data", h5py.SoftLink("/x")), "does not exist"),
    "a soft link to itself": (lambda f: f.__setitem__("data", h5py.SoftLink("/data")), "does not exist"),
    "a group in itself": (itself, "contains itself"),
    "an index of 10,000,000": (put("data/ip/10000000", data=ONES), "LAYER/0"),
    "an index of -1": (put("data/ip/-1", data=ONES), "LAYER/0"),
    "an index with a zero in front": (put("data/ip/00", data=ONES), "LAYER/0"),
    "an index of 5,000 digits": (put("data/ip/" + "1" * 5000, data=ONES), "LAYER/0"),
    "10^12 numbers, none stored": (put("data/ip/0", (TERA,), "<f4"), "0 bytes"),
    "10^12 numbers in chunks": (put("data/ip/0", (TERA,), "<f4", chunks=(1024,)), "0 bytes"),
    "a chunk of 1 GB": (put("data/ip/0", data=ONES[0], chunks=(1 << 28,), maxshape=(None,)), "chunks"),
    "complex weights": (put("data/ip/0", data=ONES + 1j), "complex"),
    "text": (put("data/ip/0", data=b"text"), "real numbers"),
    "structures": (put("data/ip/0", (2,), np.dtype([("a", "<f4")])), "real numbers"),
    "an odd float": (odd_float, r"numpy lacks|bytes|array"),
    "nothing": (put("data/ip/0", data=h5py.Empty("<f4")), "nothing"),
}


@pytest.mark.parametrize(("make", "says"), HDF5.values(), ids=HDF5)
def test_hdf5_weights(make: Callable, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with h5py.File("w.h5", "w") as file:
        make(file)
    refused(open_weights, Path("w.h5"), says)


def test_soft_links_within_the_file_and_gaps_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["real/ip/1"] = ONES
        file["data"] = h5py.SoftLink("real")
        file["real/two"] = h5py.SoftLink("ip")
    with pytest.raises(FormatError, match="twice"):
        open_weights(tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as file:
        del file["real/two"]
    (layer,) = open_weights(tmp_path / "w.h5").layers
    assert layer.blobs[0] is None
    np.testing.assert_array_equal(layer.blobs[1], ONES)


STATE: dict[str, tuple[str, Any, str]] = {
    "iter -5": ("iter", np.array([-5], "<i4"), "iter -5"),
    "iter past 2^31": ("iter", np.array([2**40], "<i8"), "iter 1099511627776"),
    "iter is text": ("iter", b"five", "one whole number"),
    "iter is a fraction": ("iter", np.array([1.5]), "one whole number"),
    "no iter in iter": ("iter", np.array([], "<i4"), "0 numbers"),
    "learned_net is a number": ("learned_net", np.array([3]), "one string"),
    "history is an array": ("history", ONES, "`history`"),
    "a history of whole numbers": ("history/0", np.arange(3), "real numbers"),
    "a history of complex numbers": ("history/0", ONES * 1j, "real numbers"),
    "a hole in the history": ("history/3", ONES, "no array 1 among 2"),
}


@pytest.mark.parametrize(("key", "value", "says"), STATE.values(), ids=STATE)
def test_hdf5_states(key: str, value: Any, says: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["iter"], file["current_step"], file["learned_net"] = np.array([5], "<i4"), np.array([0], "<i4"), b"w.h5"
        file["history/0"] = ONES
        if key in file:
            del file[key]
        file[key] = value
    refused(read_solverstate, tmp_path / "s.h5", says)


@pytest.mark.parametrize("fields", [{"iter": -5}, {"iter": 5, "current_step": -1}])
def test_negative_numbers_in_a_state(fields: dict, tmp_path: Path) -> None:
    state = SCHEMA.SolverState(**fields)
    state.history.add(data=[1.0]).shape.dim.append(1)
    (tmp_path / "s").write_bytes(state.SerializeToString())
    refused(read_solverstate, tmp_path / "s", "-[51], found|found (iter|current_step) -[51]|-5|-1")


def test_a_mean_of_another_shape(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(SCHEMA.BlobProto(data=[1.0]).SerializeToString())
    with pytest.raises(FormatError):
        read_mean(tmp_path / "m")


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("declared", [1_400_000_000, 2**63])
def test_a_heap_of_names_larger_than_the_file(which: int, declared: int, tmp_path: Path) -> None:
    """HDF5 would reserve that much first: the root's heap, and a group's in it."""
    path = tmp_path / "w.caffemodel.h5"
    with h5py.File(path, "w") as file:
        file["data/ip/0"] = ONES
    assert open_weights(path).layers[0].blobs[0].shape == (3, 4)
    heaps = [match.start() for match in re.finditer(b"HEAP", path.read_bytes())]
    with path.open("r+b") as out:
        out.seek(heaps[which] + 8)
        out.write(struct.pack("<Q", declared))
    with pytest.raises(FormatError, match=rf"expected at most \d.*, the file's, found names of {declared:,} bytes"):
        _ = open_weights(path).layers
