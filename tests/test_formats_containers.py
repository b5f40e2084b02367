"""Names, state_dict containers, and Caffe's HDF5."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caffe_port.errors import CaffeError, FileError, FormatError, WeightsError
from caffe_port.formats import LayerWeights, Weights, blob_names, open_weights, save_state_dict
from caffe_port.formats.hdf5 import write_caffe_hdf5
from caffe_port.formats.naming import torch_shape
from caffe_port.formats.statedict import STATE_FORMATS, format_of

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(pattern: str) -> list:
    """The files of ../shared that match, as test parameters; one that is skipped where there are none."""
    missing = [pytest.param(None, marks=pytest.mark.skip(reason="../shared is not here"), id=pattern)]
    return [pytest.param(p, id=str(p.relative_to(SHARED))) for p in sorted(SHARED.glob(pattern))] or missing


def weights(*layers: LayerWeights) -> Weights:
    return Weights("file", "caffemodel", layers=list(layers))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


# -- names -------------------------------------------------------------------------------------------------------------

RNN = [(4, 3), (4,), (4, 4), (4, 2), (2,)]
NAMES = [  # type, stored shapes, keys, PyTorch's shapes
    ("Convolution", [(7, 3, 2, 5), (1, 1, 1, 7)], ["weight", "bias"], [(7, 3, 2, 5), (7,)]),
    ("Deconvolution", [(1, 1, 4, 4)], ["weight"], [(1, 1, 4, 4)]),
    ("InnerProduct", [(1, 1, 5, 3), (1, 1, 1, 5)], ["weight", "bias"], [(5, 3), (5,)]),
    ("InnerProduct", [(1, 3), (1,)], ["weight", "bias"], [(1, 3), (1,)]),
    ("BN", [(1, 4, 1, 1), (1, 4, 1, 1)], ["scale", "shift"], [(1, 4, 1, 1)] * 2),
    ("BatchNorm", [(4,), (4,), (1,)], ["mean", "variance", "scale_factor"], [(4,), (4,), (1,)]),
    ("Scale", [(1, 4), (1, 4)], ["weight", "bias"], [(1, 4), (1, 4)]),
    ("PReLU", [()], ["weight"], [()]),
    ("LSTM", [(8, 3), (8,), (8, 2)], ["W_xc", "b_c", "W_hc"], [(8, 3), (8,), (8, 2)]),
    ("LSTM", [(8, 3), (8,), (8, 5), (8, 2)], ["W_xc", "b_c", "W_xc_static", "W_hc"], [(8, 3), (8,), (8, 5), (8, 2)]),
    ("Interp", [(1, 1, 1, 2), (2,)], ["blob0", "blob1"], [(1, 1, 1, 2), (2,)]),
    ("Atrous", [(7, 3, 2, 5), (1, 1, 1, 7)], ["weight", "bias"], [(7, 3, 2, 5), (7,)]),
    ("Atrous", [(7, 3, 2, 5), (3,)], ["blob0", "blob1"], [(7, 3, 2, 5), (3,)]),
    ("Atrous", [(7, 3, 2, 5)], ["blob0"], [(7, 3, 2, 5)]),
    ("Scale", [(4,)], ["weight"], [(4,)]),
    (
        "RNN",
        [(4, 3), (4,), (4, 4), (4, 4), (4,)],
        ["W_xh", "b_h", "W_hh", "W_ho", "b_o"],
        [(4, 3), (4,), (4, 4), (4, 4), (4,)],
    ),
    ("Convolution", [(2, 1, 1, 1), (2,), (1,)], ["weight", "bias", "blob2"], [(2, 1, 1, 1), (2,), (1,)]),
]


@pytest.mark.parametrize(("type", "stored", "keys", "shapes"), NAMES)
def test_names_and_shapes(type: str, stored: list, keys: list, shapes: list) -> None:
    state = weights(LayerWeights("a/b.c", type, [zeros(*shape) for shape in stored])).state_dict()
    assert list(state) == [f"a/b.c.{key}" for key in keys]
    assert [array.shape for array in state.values()] == shapes


def test_a_shape_that_is_not_padded_is_kept() -> None:
    assert torch_shape((2, 1, 5, 3), 2) == (2, 1, 5, 3)
    assert torch_shape((1, 1, 1, 1), 1) == (1,)


ALL_BLOBS = {"InnerProduct": 2, "Embed": 2, "Scale": 2, "BN": 2, "BatchNorm": 3, "LSTM": 4, "RNN": 6}


@pytest.mark.parametrize(("type", "count"), ALL_BLOBS.items())
def test_files_in_any_order_get_caffes_order(type: str, count: int, tmp_path: Path) -> None:
    names = [name for name, _ in blob_names(type, count)]
    path = tmp_path / "w.safetensors"
    save_state_dict(path, {f"l.{name}": np.full(3, names.index(name), np.float32) for name in reversed(names)})
    (layer,) = open_weights(path).layers
    assert list(layer.names) == names
    assert [int(blob[0]) for blob in layer.blobs if blob is not None] == list(range(count))


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([("a", 1), ("b", 1), ("a", 1)], "layers 0 and 2 both named 'a'"),
        ([("a", 1), ("", 1)], r"layer 1 \(Convolution\) with blobs and no name"),
    ],
)
def test_names_that_cannot_be_keys(layers: list, says: str) -> None:
    held = [LayerWeights(name, "Convolution", [zeros(2, 1, 1, 1)] * count) for name, count in layers]
    with pytest.raises(WeightsError, match=says):
        weights(*held).state_dict()


def test_layers_without_blobs_may_have_any_name() -> None:
    held = [
        LayerWeights("", "ReLU"),
        LayerWeights("", "ReLU"),
        LayerWeights("a", "ReLU"),
        LayerWeights("a", "PReLU", [zeros(3)]),
    ]
    assert list(weights(*held).state_dict()) == ["a.weight"]


# -- containers --------------------------------------------------------------------------------------------------------

ARRAYS: dict[str, np.ndarray] = {
    "conv1_1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bnfc6-seg.scale": np.full((1, 5, 1, 1), np.nan, np.float32),
    "inception/1x1.weight": np.arange(3, dtype=np.float64),
    "file.bias": np.arange(3, dtype=np.float16),
    "naïve.中.bias": zeros(1),
    "empty.weight": zeros(0, 4),
    "scalar.weight": np.array(2.5, np.float32),
}


@pytest.mark.parametrize("format", STATE_FORMATS)
@pytest.mark.parametrize("writable", [True, False])
def test_round_trip(format: str, writable: bool, tmp_path: Path) -> None:
    path = tmp_path / f"w.{format}"
    save_state_dict(path, ARRAYS)
    back = open_weights(path, writable=writable)
    assert back.kind == format
    state = back.state_dict()
    assert state.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        assert (state[key].shape, state[key].dtype) == (array.shape, array.dtype)
        assert state[key].tobytes() == array.tobytes()


def test_the_libraries_read_what_is_written(tmp_path: Path) -> None:
    for format in STATE_FORMATS:
        save_state_dict(tmp_path / f"w.{format}", ARRAYS)
    with h5py.File(tmp_path / "w.h5") as file, np.load(tmp_path / "w.npz", allow_pickle=False) as archive:
        loaded = [
            safetensors.numpy.load_file(tmp_path / "w.safetensors"),
            {k: v.numpy() for k, v in torch.load(tmp_path / "w.pth", weights_only=True).items()},
            {k: file[k][()] for k in ARRAYS},
            dict(archive),
        ]
    for state in loaded:
        assert state.keys() == ARRAYS.keys()
        for key, array in ARRAYS.items():
            assert np.asarray(state[key]).tobytes() == array.tobytes()


def test_reads_what_the_libraries_write(tmp_path: Path) -> None:
    arrays = {key: array for key, array in ARRAYS.items() if array.ndim}
    safetensors.numpy.save_file(arrays, tmp_path / "a")
    torch.save({key: torch.nn.Parameter(torch.from_numpy(array)) for key, array in arrays.items()}, tmp_path / "b")
    named: dict[str, Any] = {key: array for key, array in arrays.items() if not key.startswith("file")}
    np.savez(tmp_path / "c.npz", **named)
    one: dict[str, Any] = {"a.weight": arrays["conv1_1.weight"]}
    np.savez_compressed(tmp_path / "d.npz", **one)
    for name, kind in (("a", "safetensors"), ("b", "pth"), ("c.npz", "npz"), ("d.npz", "npz")):
        opened = open_weights(tmp_path / name)
        assert opened.kind == kind
        for key, array in opened.state_dict().items():
            assert array.tobytes() == ARRAYS["conv1_1.weight" if name == "d.npz" else key].tobytes()


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    import safetensors.torch

    tensor = torch.tensor([1.5, -2.0, 3e38]).bfloat16()
    safetensors.torch.save_file({"a.weight": tensor}, tmp_path / "w.safetensors")
    torch.save({"a.weight": tensor}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        array = open_weights(tmp_path / name).state_dict()["a.weight"]
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensor.float().numpy())


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    state=st.dictionaries(
        st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=9).map(
            lambda s: s + ".weight"
        ),
        hnp.arrays(
            st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?"]), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0)
        ),
        max_size=5,
    )
)
def test_safetensors_of_any_shape_dtype_and_name(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_state_dict(path, state, overwrite=True)
    library, ours = safetensors.numpy.load_file(path), open_weights(path).state_dict()
    assert library.keys() == ours.keys() == state.keys()
    for key, array in state.items():
        for back in (library[key], ours[key]):
            assert (back.shape, back.dtype, back.tobytes()) == (array.shape, array.dtype, array.tobytes())
        assert ours[key].flags.aligned


def test_safetensors_arrays_are_views(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_state_dict(path, ARRAYS)
    assert not open_weights(path).state_dict()["conv1_1.weight"].flags.owndata


@pytest.mark.parametrize("name", ["w", "w.bin", "w.caffemodel"])
def test_unknown_extensions(name: str) -> None:
    with pytest.raises(FileError, match="--format"):
        format_of(name)


@pytest.mark.parametrize("name", ["w.npz", "w.pth", "w.h5", "w.safetensors"])
@pytest.mark.parametrize("given", [np.ones(2, np.complex64), np.array(["a"]), np.array([None]), [1.0], 3])
def test_only_arrays_of_real_numbers_are_written(given: object, name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"{name}: expected a numpy array of real numbers, found a\.w: "):
        save_state_dict(tmp_path / name, {"a.w": given})
    assert not list(tmp_path.iterdir())


def header(entries: dict, size: int = 24) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def entry(**changes: object) -> dict:
    return {"a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes}


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch /nonexistent/evil",)


def zipped(tmp_path: Path, saved: object) -> bytes:
    torch.save(saved, tmp_path / "saved")
    return (tmp_path / "saved").read_bytes()


WRONG = {
    "safetensors cut in its header": (lambda t: header(entry())[:40], "truncated"),
    "safetensors cut in its numbers": (lambda t: header(entry(), 20), "truncated"),
    "safetensors with a wrong header": (lambda t: struct.pack("<Q", 4) + b"{]}]" + bytes(9), "header"),
    "safetensors with a wrong entry": (lambda t: header({"a.weight": 3}), "header"),
    "safetensors with a wrong size": (lambda t: header(entry(shape=[2, 2])), "24 bytes"),
    "safetensors with a strange dtype": (lambda t: header(entry(dtype="F4")), "F4"),
    "safetensors with offsets reversed": (lambda t: header(entry(data_offsets=[24, 0])), "-24 bytes"),
    "a key without a layer": (lambda t: header({"weight": entry()["a.weight"]}), "LAYER.BLOB"),
    "a pickled module": (lambda t: zipped(t, torch.nn.Linear(1, 1)), "model.state_dict"),
    "a pickled command": (lambda t: zipped(t, {"a.weight": Evil()}), "model.state_dict"),
    "a checkpoint": (lambda t: zipped(t, {"epoch": 3, "state_dict": {}}), "'epoch' that holds a int"),
    "a list": (lambda t: zipped(t, [torch.zeros(1)]), "a list"),
    "a bare pickle": (lambda t: pickle.dumps({"a.weight": zeros(1)}), "pickles are never read"),
    "a cut .pth": (lambda t: zipped(t, {"a.weight": torch.zeros(99)})[:500], "truncated zip"),
}


@pytest.mark.parametrize(("make", "says"), WRONG.values(), ids=WRONG)
def test_wrong_files(make, says: str, tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(make(tmp_path))
    with pytest.raises(CaffeError, match=says) as caught:
        open_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_npz_of_objects_is_refused(tmp_path: Path) -> None:
    evil: dict[str, Any] = {"a.weight": np.array([Evil()], object)}
    np.savez(tmp_path / "w.npz", **evil)
    with pytest.raises(FormatError, match="plain arrays"):
        open_weights(tmp_path / "w.npz")


# -- HDF5 of Caffe -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", shared("**/*.caffemodel.h5"))
def test_caffes_hdf5(path: Path, tmp_path: Path) -> None:
    opened = open_weights(path)
    with h5py.File(path) as file:
        assert [layer.name for layer in opened.layers if layer.blobs] == [
            n for n in file["data"] if len(file["data"][n])
        ]
        assert {layer.name for layer in opened.layers} == set(file["data"])
        for layer in opened.layers:
            for i, blob in enumerate(layer.blobs):
                np.testing.assert_array_equal(blob, file[f"data/{layer.name}/{i}"][()])
                assert blob is not None
                assert not blob.flags.owndata
    write_caffe_hdf5(tmp_path / "again.caffemodel.h5", opened.layers)
    with h5py.File(path) as one, h5py.File(tmp_path / "again.caffemodel.h5") as two:
        listed: list[list] = [[], []]
        for file, into in ((one, listed[0]), (two, listed[1])):
            file.visititems(
                lambda n, i, into=into: into.append((n, getattr(i, "shape", None), getattr(i, "dtype", None)))
            )
        assert listed[0] == listed[1]


def test_caffes_hdf5_with_diffs_and_shared_parameters(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel.h5"
    one, two = np.arange(3, dtype=np.float32), np.arange(4, dtype=np.float64)
    layers = [
        LayerWeights("a", "", [one, two], [one * 2, None]),
        LayerWeights("b", "", [None, one]),
        LayerWeights("no/blobs", ""),
        LayerWeights("c"),
    ]
    write_caffe_hdf5(path, layers)
    with h5py.File(path) as file:
        assert sorted(file["data"]) == ["a", "b", "c"]
        assert list(file["data/b"]) == ["1"]
    back = {layer.name: layer for layer in open_weights(path).layers}
    assert back["b"].blobs[0] is None
    np.testing.assert_array_equal(back["b"].blobs[1], one)
    np.testing.assert_array_equal(back["a"].diffs[0], one * 2)
    assert back["a"].diffs[1] is None
    assert list(open_weights(path).state_dict()) == ["a.blob0", "a.blob1", "b.blob1"]
    assert "b.bias" in open_weights(path).state_dict({"b": "Convolution"})


@pytest.mark.parametrize("names", [("a/b",), ("",), ("a", "a")])
def test_names_that_caffes_hdf5_cannot_hold(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"write a \.caffemodel instead"):
        write_caffe_hdf5(tmp_path / "w.h5", [LayerWeights(name, "", [zeros(1)]) for name in names])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keys", [("a.weight", "a.weight/b.weight"), ("/a.weight",), ("a//b.weight",)])
def test_keys_that_hdf5_cannot_hold(keys: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="safetensors instead"):
        save_state_dict(tmp_path / "w.h5", {key: zeros(1) for key in keys})
    assert not list(tmp_path.iterdir())


def test_compressed_data_sets_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("a.weight", data=np.arange(99.0), compression="gzip")
    np.testing.assert_array_equal(open_weights(tmp_path / "w.h5").state_dict()["a.weight"], np.arange(99.0))


def test_wrong_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file["data/0"] = zeros(3)
    with pytest.raises(FormatError, match="LAYER/0"):
        open_weights(path)
    with h5py.File(path, "w") as file:
        file.create_group("x")
    with pytest.raises(FormatError, match="without arrays"):
        open_weights(path)
    with h5py.File(path, "w") as file:
        file["a.weight"] = zeros(3000)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FormatError, match="truncated"):
        open_weights(path)
