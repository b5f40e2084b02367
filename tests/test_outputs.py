"""What is written, and what is refused before it is: links, sizes, names, and other trainings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from caffe_port.errors import CaffeError, FileError, WeightsError
from caffe_port.formats import LayerWeights, save_state_dict, write_caffemodel
from caffe_port.formats.atomic import atomic_write
from caffe_port.solver import Solver
from caffe_port.solver.prefix import Lock

NET = """
layer { name: "x" type: "DummyData" top: "x" top: "t" dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 4 }
        data_filler { type: "constant" value: 1 } } }
layer { name: "%s" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 4 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }
"""
SOLVER = 'net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 2 solver_mode: CPU snapshot_prefix: "%s" %s'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def solver(prefix: str = "run", more: str = "snapshot: 1", layer: str = "ip") -> Solver:
    Path("net.prototxt").write_text(NET % layer)
    Path("solver.prototxt").write_text(SOLVER % (prefix, more))
    return Solver("solver.prototxt")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_dangling_link_is_not_written_through(overwrite: bool) -> None:
    Path("out.safetensors").symlink_to("elsewhere")
    with pytest.raises(FileError, match="symbolic link to elsewhere, which does not exist"):
        save_state_dict("out.safetensors", {"a.w": np.zeros(1, np.float32)}, overwrite=overwrite)
    assert [path.name for path in Path().iterdir()] == ["out.safetensors"]


def test_a_link_to_a_file_is_followed() -> None:
    Path("real").write_bytes(b"old")
    Path("out").symlink_to("real")
    with atomic_write("out", overwrite=True) as file:
        file.write(b"new")
    assert Path("out").is_symlink()
    assert Path("real").read_bytes() == b"new"


def test_a_caffemodel_that_caffe_could_not_read_is_refused() -> None:
    """Bounds of one layer and of several together; nothing is left, and nothing of that size is made."""
    half = np.broadcast_to(np.float32(0), (2**28 - 8,))
    full = np.broadcast_to(np.float32(0), (2**29,))
    for layers in (
        [LayerWeights("ip", "", [full])],
        [LayerWeights("small", "", [half[:9]]), LayerWeights("ip", "", [full])],
    ):
        with pytest.raises(WeightsError, match=r"layer ip; |layer ip.*write a \.caffemodel\.h5"):
            write_caffemodel("w.caffemodel", layers)
    assert not list(Path().iterdir())


def test_a_net_that_no_caffemodel_can_hold_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_port.solver.prefix.LARGEST_FILE", 60)  # the net has 16 numbers
    with pytest.raises(WeightsError, match=r"a net of 64 bytes.*snapshot_format: HDF5"):
        solver()
    solver(more="snapshot: 1 snapshot_format: HDF5")
    solver(more="snapshot_after_train: false")


@pytest.mark.parametrize("name", ["a/b", "."])
def test_a_name_that_hdf5_cannot_hold_is_refused_at_start(name: str) -> None:
    with pytest.raises(WeightsError, match=f"a layer named '{name}'.*BINARYPROTO"):
        solver(more="snapshot: 1 snapshot_format: HDF5", layer=name)
    solver(layer=name)


@pytest.mark.parametrize("prefix", ["p" * 300, "d" * 300 + "/p", "a/" * 3000 + "p", "p" * 240])
def test_a_prefix_that_no_file_system_takes(prefix: str) -> None:
    with pytest.raises(CaffeError, match=r"expected at most \d+|a name of \d+ bytes") as e:
        solver(prefix)
    assert len(str(e.value)) < 1000


def test_the_longest_prefix_can_be_written() -> None:
    prefix = "p" * (255 - len("..new-_iter_2147483647.solverstate.h5.12345678.tmp"))
    made = solver(prefix, "snapshot: 1 snapshot_format: HDF5")
    made.step(1)
    assert Path(f"{prefix}_iter_1.solverstate.h5").exists()


# -- one prefix, two trainings -----------------------------------------------------------------------------------------

HOLD = """
import sys, time
from caffe_port.solver.prefix import Lock
with Lock("run", "s"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder():
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_two_trainings_notice_each_other(holder: subprocess.Popen) -> None:
    made = solver()
    for act in (made.solve, lambda: made.step(1), made.snapshot):
        with pytest.raises(
            FileError, match=f"solver.prototxt: snapshots run are being written by process {holder.pid} on"
        ):
            act()
    assert made.iter == 0
    solver("other").solve()
    solver("run", "snapshot_after_train: false").solve()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert Path(".run.lock").exists()
    made.solve()
    assert Path("run_iter_2.caffemodel").exists()
    assert not Path(".run.lock").exists()


def test_within_a_process_it_may_be_taken_again() -> None:
    with Lock("run", "s"), Lock("run", "s"):
        assert f'"process": {os.getpid()}' in Path(".run.lock").read_text()
    assert not Path(".run.lock").exists()
    Path(".run.lock").write_text("of another time")
    with Lock("run", "s"):
        pass
    assert not Path(".run.lock").exists()
