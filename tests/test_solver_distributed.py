"""Processes that train together: as one with all their data, as often as Caffe's, and killed and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
from killing import NETS, SOLVER, port
from trainer import ROOT, Trainer, same

from caffe_port.data.position import unpack
from caffe_port.data.shard import ALL, Share, set_share
from caffe_port.errors import CaffeError
from caffe_port.formats import open_weights
from caffe_port.formats.solverstate import read_solverstate
from caffe_port.net import Net
from caffe_port.schema.messages import SCHEMA
from caffe_port.solver.distributed import Group

HDF5 = 'type: "HDF5Data" hdf5_data_param {{ source: "rows.txt" batch_size: {} shuffle: {} }}'
RECORDS = 'type: "Data" data_param {{ source: "records" backend: LMDB batch_size: {} }}'
PLAIN = """
layer {{ name: "rows" {data} top: "rows" include {{ phase: TRAIN }} }}
layer {{ name: "rows" {test} top: "rows" include {{ phase: TEST }} }}
layer {{
  name: "wide" type: "InnerProduct" bottom: "rows" top: "wide" param {{ lr_mult: 2 }}
  inner_product_param {{ num_output: 8 weight_filler {{ type: "xavier" }} }}
}}
layer {{ name: "tanh" type: "TanH" bottom: "wide" top: "wide" }}
layer {{
  name: "narrow" type: "InnerProduct" bottom: "wide" top: "narrow"
  inner_product_param {{ num_output: 4 weight_filler {{ type: "xavier" }} }}
}}
layer {{ name: "target" type: "Flatten" bottom: "rows" top: "target" }}
layer {{ name: "loss" type: "EuclideanLoss" bottom: "narrow" bottom: "target" top: "loss" }}
"""


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    one = Trainer(tmp_path_factory.mktemp("together"))
    assert not one.train("noh", "first", iterations=2)  # by then the data are there
    yield one
    one.end()


def two() -> dict[str, Any]:
    """An order for two processes."""
    return {"group": {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port()}}


def records(place: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    numbers = np.random.RandomState(1)
    with lmdb.open(str(place / "records"), map_size=1 << 20) as opened, opened.begin(write=True) as writer:
        for i in range(7):
            values = numbers.standard_normal(4).astype(np.float32).tolist()
            datum = SCHEMA.Datum(channels=4, height=1, width=1, float_data=values, label=i)
            writer.put(b"%08d" % i, datum.SerializeToString())


@pytest.mark.parametrize("data", ["rows", "shuffled", "records"])
def test_two_with_half_a_batch_are_one_with_a_whole(data: str, trainer: Trainer) -> None:
    """9 rows in two files, 7 records: odd numbers, so that a process gets the other's data in the next round."""
    records(trainer.place)
    for processes in (1, 2):
        source, test = ((RECORDS if data == "records" else HDF5).format(4 // processes, s) for s in ("true", "false"))
        text = PLAIN.format(data=source if data == "shuffled" else test, test=test)
        (trainer.place / f"{data}{processes}.prototxt").write_text(text)
    trainer.train(f"{data}1", f"{data}_one")
    trainer.train(f"{data}2", f"{data}_two", two())
    for end in (4, 16):
        one, both = (trainer.place / f"{data}_{who}" / f"snap_iter_{end}" for who in ("one", "two"))
        ours, whole = (open_weights(f"{stem}.caffemodel").state_dict() for stem in (both, one))
        for name in whole:
            np.testing.assert_allclose(ours[name], whole[name], rtol=1e-5, atol=1e-6, err_msg=name)
        histories = [read_solverstate(f"{stem}.solverstate").history for stem in (both, one)]
        for a, b in zip(*histories, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_killed_and_resumed_processes_equal_uninterrupted_ones(net: str, trainer: Trainer) -> None:
    """Their data, shuffles and random streams differ; a snapshot has both."""
    trainer.train(net, f"whole2_{net}", two())
    facts = json.loads((trainer.place / f"whole2_{net}" / "snap_iter_16.resume").read_text())
    streams = [unpack(position["stream"])["key"] for position in facts["positions"]]
    assert len(streams) == 2
    assert not np.array_equal(*streams)
    moments, folder = Random(3), f"kills2_{net}"
    for _ in range(4):
        trainer.train(net, folder, {**two(), "after": moments.uniform(0.1, 0.6)})
    trainer.train(net, folder, two())
    same(trainer.place, folder, f"whole2_{net}")


def test_the_command_under_torchrun(trainer: Trainer) -> None:
    """One log, one snapshot, which the same command resumes."""
    place = trainer.place
    (place / "torchrun").mkdir()
    data = HDF5.format(2, "true")
    (place / "pair.prototxt").write_text(PLAIN.format(data=data, test=HDF5.format(2, "false")))
    text = SOLVER.format(net="pair", folder="torchrun", iterations=4, seed=5)
    (place / "pair_solver.prototxt").write_text(text)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    training = ["-m", "caffe_port.solver", "pair_solver.prototxt", "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOG_minloglevel": "0"}
    for more, iterations in (([], 4), (["--set", "max_iter=6"], 6)):
        command = [*torchrun, f"--master_port={port()}", *training, *more]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("Starting Optimization") == 1
        assert done.stderr.count(f"Snapshotting to binary proto file torchrun/snap_iter_{iterations}.caffemodel") == 1
        assert ("Resuming from torchrun/snap_iter_4.solverstate" in done.stderr) == bool(more)


def test_a_loss_not_finite_in_one_process_stops_both_with_a_snapshot(trainer: Trainer) -> None:
    """Row 13 is in one process's share of the second iteration."""
    place = trainer.place
    (place / "lost").mkdir()
    rows = np.random.RandomState(3).standard_normal((20, 4, 1, 1)).astype(np.float32)
    rows[13, 2] = np.nan
    with h5py.File(place / "lost.h5", "w") as file:
        file["rows"] = rows
    (place / "lost.txt").write_text("lost.h5\n")
    data = HDF5.format(2, "false").replace("rows.txt", "lost.txt")
    (place / "lost.prototxt").write_text(PLAIN.format(data=data, test=HDF5.format(2, "false")))
    text = SOLVER.format(net="lost", folder="lost", iterations=4, seed=5)
    (place / "lost_solver.prototxt").write_text(text)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    command = [*torchrun, f"--master_port={port()}", "-m", "caffe_port.solver", "lost_solver.prototxt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode
    lines = [
        line
        for line in done.stderr.splitlines()
        if line.startswith("python -m caffe_port.solver: error: iteration 1: ")
    ]
    assert sorted("blob rows of layer rows" in line for line in lines) == [False, True], done.stderr
    assert all("resume with --snapshot lost/snap_iter_1.solverstate" in line for line in lines)
    assert "the loss of another process is not finite" in "".join(lines)
    assert sorted(path.name for path in (place / "lost").glob("snap_iter_*")) == [
        f"snap_iter_1.{ending}" for ending in ("caffemodel", "resume", "solverstate")
    ]


def test_another_number_of_processes_restarts_the_data(trainer: Trainer) -> None:
    trainer.train("noh", "changed", two(), iterations=4)
    trainer.train("noh", "changed", iterations=6)
    assert read_solverstate(trainer.place / "changed" / "snap_iter_6.solverstate").iter == 6


@pytest.mark.parametrize("data", ["rows", "records"])
def test_shares_are_disjoint_and_go_round(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_data_layer.cpp of Caffe: process r of n sees items r, r + n, ... and counts on in the next round."""
    monkeypatch.chdir(tmp_path)
    records(tmp_path)
    with h5py.File("rows.h5", "w") as file:
        file["rows"] = np.arange(7, dtype=np.float32)[:, None]
    Path("rows.txt").write_text("rows.h5\n")
    source = (RECORDS if data == "records" else HDF5).format(2, "false")
    top = 'top: "data" top: "rows"' if data == "records" else 'top: "rows"'
    for phase, shares in (("TRAIN", [Share(rank, 3) for rank in range(3)]), ("TEST", [ALL, Share(0, 3)])):
        for mine in shares:
            set_share(mine)
            net = Net(f'layer {{ name: "rows" {source} {top} }}', phase=phase)
            set_share(ALL)
            seen = [int(x) for _ in range(5) for x in net.nodes[0][1].forward()[-1].flatten()]
            count = mine.count if phase == "TRAIN" else 1
            assert seen == [(mine.rank + i * count) % 7 for i in range(10)]
            # and on from a position in the middle
            layer = net.nodes[0][1]
            state = layer.state()
            expected = layer.forward()[-1]
            layer.forward()
            layer.restore(state)
            assert torch.equal(layer.forward()[-1], expected)


def test_alone_nothing_is_sent() -> None:
    alone, gradient = Group(), torch.ones(3)
    alone.broadcast([gradient])
    alone.average([gradient])
    assert (alone.first, alone.gather("x"), alone.agree("stop")) == (True, ["x"], "stop")
    assert torch.equal(gradient, torch.ones(3))
    alone.leave()


def test_waiting_for_a_stopped_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    for name in ("all_reduce", "broadcast", "gather_object"):
        monkeypatch.setattr(dist, name, closed)
    group, numbers = Group(1, 2), [torch.ones(3)]
    for together in (group.average, group.broadcast, group.gather):
        with pytest.raises(CaffeError, match=r"process 1 of 2: .*another process has stopped; see its error"):
            together(numbers)
    with pytest.raises(CaffeError, match="another process has stopped"):
        group.agree("stop")
