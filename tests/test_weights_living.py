"""A net owns its numbers: what happens to the weight file once the constructor has returned does not reach it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_port import Net
from caffe_port.formats import LayerWeights, save_state_dict, write_caffemodel
from caffe_port.formats.hdf5 import write_caffe_hdf5
from caffe_port.formats.mapping import file_span, map_file, read_spans
from caffe_port.solver import Solver

NET = """name: "n" input: "data" input_shape { dim: 1 dim: 600 }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2000 } }
layer { name: "first" type: "InnerProduct" bottom: "data" top: "first" inner_product_param { num_output: 3 }
        param { name: "w" } }
layer { name: "second" type: "InnerProduct" bottom: "data" top: "second" inner_product_param { num_output: 3 }
        param { name: "w" } }
"""
RUN = """
import os, sys
os.environ["GLOG_minloglevel"] = "2"
import torch
from caffe_port import Net
prototxt, way, *paths = sys.argv[1:]
for path in paths:
    net = Net(prototxt, path, mmap=way == "mmap")
    with open(path, "r+b") as file:
        file.write(b"\\x7f" * os.path.getsize(path))
        file.flush()
        before = float(net.ip.weight.detach().double().sum())
        file.truncate(100)
    after = float(net.ip.weight.detach().double().sum())
    print(before, after, float(net(data=torch.ones(1, 600))["ip"].double().sum()))
"""


def arrays() -> dict[str, np.ndarray]:
    ramp = np.arange(2000 * 600, dtype=np.float32).reshape(2000, 600) % 7
    return {
        "ip.weight": ramp,
        "ip.bias": np.ones(2000, np.float32),
        "first.weight": np.full((3, 600), 2, np.float32),
        "first.bias": np.zeros(3, np.float32),
        "second.weight": np.full((3, 600), 5, np.float32),
        "second.bias": np.zeros(3, np.float32),
    }


def write(path: Path, dtype: str = "f4") -> None:
    state = {key: array.astype(dtype) for key, array in arrays().items()}
    layers = [
        LayerWeights(name, "InnerProduct", [state[f"{name}.weight"], state[f"{name}.bias"]])
        for name in ("ip", "first", "second")
    ]
    if path.name.endswith(".caffemodel"):
        write_caffemodel(path, layers)
    elif path.name.endswith(".caffemodel.h5"):
        write_caffe_hdf5(path, layers)
    else:
        save_state_dict(path, state)


FORMS = ["w.caffemodel", "w.caffemodel.h5", "w.safetensors", "w.pth", "w.npz", "w.h5"]


def run(folder: Path, way: str, names: list[str]) -> subprocess.CompletedProcess[str]:
    """Build a net of each file, overwrite the file, truncate it; in a separate process, which that may end."""
    for name in names:
        write(folder / name)
    (folder / "net.prototxt").write_text(NET)
    command = [sys.executable, "-c", RUN, str(folder / "net.prototxt"), way, *(str(folder / name) for name in names)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_overwriting_and_truncating_the_file_change_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "own", FORMS)
    assert done.returncode == 0, done.stderr
    total = float(arrays()["ip.weight"].sum(dtype=np.float64))
    assert [float(word) for word in done.stdout.split()] == [total, total, total + 2000] * len(FORMS)


def test_mmap_keeps_the_views_with_what_that_means(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel"
    assert run(tmp_path, "mmap", [path.name]).returncode == -7  # SIGBUS
    path.unlink()
    write(path)
    net = Net(NET, path, mmap=True)
    with path.open("r+b") as file:
        file.write(b"\x7f" * path.stat().st_size)
    assert not torch.equal(net.ip.weight.detach(), torch.from_numpy(arrays()["ip.weight"]))


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("mmap", [False, True])
def test_the_numbers_are_the_files(name: str, dtype: str, mmap: bool, tmp_path: Path) -> None:
    """A parameter that layers share is loaded from the last of them, as in Caffe."""
    write(tmp_path / name, dtype)
    net = Net(NET, tmp_path / name, mmap=mmap)
    for key, array in arrays().items():
        layer, blob = key.split(".")
        wanted = arrays()["second.weight"] if key == "first.weight" else array
        np.testing.assert_array_equal(getattr(getattr(net, layer), blob).detach().numpy(), wanted)
        assert getattr(getattr(net, layer), blob).dtype == torch.float32
    assert net.first.weight is net.second.weight


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_spans_of_any_size_and_place(shift: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(shift)
    (tmp_path / "x").write_bytes(rng.bytes(40_000_001))
    whole = map_file(tmp_path / "x", writable=False)
    sizes = [0, 1, 5, 4096, 1 << 20, 17 << 20, 9_000_000]
    jobs, at = [], shift
    for size in sizes:
        view = np.frombuffer(whole, np.uint8, size, at)
        assert file_span(view)
        jobs.append((np.empty(size, np.uint8), view))
        at += size + shift
    read_spans(jobs, "x")
    for array, view in jobs:
        assert array.tobytes() == view.tobytes()


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    from caffe_port.errors import FileError

    path = tmp_path / "x"
    path.write_bytes(bytes(10_000))
    view = np.frombuffer(map_file(path, writable=False), np.uint8, 5000, 3000)
    with path.open("r+b") as file:
        file.truncate(6000)
    with pytest.raises(FileError, match="truncated while it was read"):
        read_spans([(np.empty(5000, np.uint8), view)], str(path))


TRAINED = """layer { name: "x" type: "DummyData" top: "x" top: "t" dummy_data_param { data_filler { value: 1 }
        shape { dim: 2 dim: 9 } shape { dim: 2 dim: 2000 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2000 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }"""
SOLVER = (
    f"net_param {{ {TRAINED} }} base_lr: 0.1 momentum: 0.9 lr_policy: 'fixed' snapshot_prefix: 'run' random_seed: 3"
)


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_a_solver_owns_what_it_was_restored_from(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"{SOLVER} snapshot_format: {form}"
    first = Solver(text)
    first.step(2)
    first.snapshot()
    state, weights = (next(tmp_path.glob(f"run_iter_2.{kind}*")) for kind in ("solverstate", "caffemodel"))
    again = Solver(text)
    again.restore(state)
    for path in (state, weights):
        with path.open("r+b") as file:
            file.write(b"\x7f" * path.stat().st_size)
            file.flush()
            file.truncate(100)
    for solver in (first, again):
        solver.step(2)
    assert torch.equal(again.net.ip.weight, first.net.ip.weight)
