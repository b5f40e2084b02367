"""The solver compared with the fork: its runs, its snapshots; noh_solver needs the pictures of ../shared."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import EMBEDDED, SHARED, needs_shared
from test_solver_reference import CLOSE, Recorder, apart, place, recorded  # noqa: F401

from caffe_port import random
from caffe_port.errors import DefinitionError
from caffe_port.formats import open_weights
from caffe_port.formats.solverstate import SolverHistory, read_solverstate, write_solverstate
from caffe_port.net import Net
from caffe_port.solver import Solver

NOH_CORNERS = """
layers {
  name: "data" type: HDF5_DATA top: "data" top: "label"
  hdf5_data_param { source: "data.txt" batch_size: 6 }
}
layers {
  name: "norm" type: BN bottom: "data" top: "norm"
  bn_param { scale_filler { type: "constant" value: 1 } shift_filler { type: "constant" value: 0.1 } }
}
layers {
  name: "a" type: CONVOLUTION bottom: "norm" top: "a" param: "w" param: ""
  blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
  convolution_param { num_output: 2 kernel_size: 3 pad: 1 weight_filler { type: "gaussian" std: 0.2 } }
}
layers { name: "tanh" type: TANH bottom: "a" top: "a" }
layers {
  name: "b" type: CONVOLUTION bottom: "a" top: "b" param: "w" param: ""
  blobs_lr: 1 blobs_lr: 0 weight_decay: 3 weight_decay: 1
  convolution_param {
    num_output: 2 kernel_size: 3 pad: 1 weight_filler { type: "gaussian" std: 0.2 } bias_filler { value: 0.3 }
  }
}
layers {
  name: "aside" type: INNER_PRODUCT bottom: "b" top: "aside"
  inner_product_param { num_output: 3 weight_filler { type: "gaussian" std: 0.2 } }
}
layers { name: "silence" type: SILENCE bottom: "aside" }
layers {
  name: "score" type: INNER_PRODUCT bottom: "b" top: "score"
  inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.2 } }
}
layers { name: "loss" type: SOFTMAX_LOSS bottom: "score" bottom: "label" top: "loss" }
"""
NOH_SOLVER = """
net: "net.prototxt" solver_type: {} base_lr: 0.02 weight_decay: 0.05 lr_policy: "fixed" iter_size: 2
random_seed: 3 max_iter: 8 snapshot: 8 snapshot_prefix: "r" solver_mode: CPU
"""
NOH_KINDS = {"SGD": "momentum: 0.9", "NESTEROV": "momentum: 0.9", "ADAGRAD": ""}
"""AdaGrad without the shared parameter."""


@pytest.mark.parametrize("kind", NOH_KINDS)
def test_shared_parameters_and_iter_size_are_the_forks(kind: str, place: Path) -> None:
    """``caffe train`` of the fork left the files compared with: layers that share a parameter each decay it, gradients
    of BN are the last pass's alone, and only SGD divides by iter_size."""
    unshared = kind == "ADAGRAD"
    Path("net.prototxt").write_text(NOH_CORNERS.replace('param: "w" param: ""', "") if unshared else NOH_CORNERS)
    text = NOH_SOLVER.format(kind) + NOH_KINDS[kind]
    run = Solver(text, dialect="noh", log=Recorder())
    run.solve()
    theirs = EMBEDDED / "noh_solver_corners" / f"{kind}.solverstate"
    mine, real = (open_weights(p).state_dict() for p in ("r_iter_8.caffemodel", theirs.with_suffix(".caffemodel")))
    assert list(mine) == list(real)
    assert max(apart(mine[name], real[name]) for name in real) < CLOSE
    resumed = Solver(text, dialect="noh", log=Recorder())
    shutil.copy(theirs, "theirs.solverstate")
    resumed.restore("theirs.solverstate")
    for mine, real in zip(run.state.history[0], resumed.state.history[0], strict=True):
        assert apart(mine, real) < CLOSE
    assert len(read_solverstate("r_iter_8.solverstate").history) == len(read_solverstate(theirs).history) == 10


def test_parameters_that_the_fork_shares_must_be_consistent(place: Path) -> None:
    Path("net.prototxt").write_text(NOH_CORNERS)
    with pytest.raises(DefinitionError, match=r"layer b: .*SGD or Nesterov.*a.weight, which it shares"):
        Solver(NOH_SOLVER.format("ADAGRAD"), dialect="noh", log=Recorder())


NOH = SHARED / "reference" / "noh_solver"
LOG_CLOSE = 1e-4
"""Of a loss or score, as part of it. The fork itself under OpenBLAS's kernels for other processors: 7e-5."""
WEIGHTS_CLOSE = 2e-4
"""The fork itself: 1.2e-4 after 8 iterations."""


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the fork's net and data."""
    for name in ("VOC", "init.caffemodel", "net.prototxt", "solver.prototxt", "train.txt", "val.txt"):
        (tmp_path / name).symlink_to(NOH / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@needs_shared("reference/noh_solver")
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_batches_are_the_forks_to_the_last_bit(phase: str, voc: Path) -> None:
    random.set_random_seed(42)
    net, expected = Net("net.prototxt", phase=phase), np.load(NOH / "batches.npz")
    for i in range(3):
        data, pixels, labels = net.nodes[0][1].forward()
        assert np.array_equal(data[:, :, ::8, ::8], expected[f"{phase}/data/{i}"])
        assert np.array_equal(pixels, expected[f"{phase}/seg-label/{i}"])
        assert np.array_equal(labels.flatten(1), expected[f"{phase}/cls-label/{i}"])


@needs_shared("reference/noh_solver")
def test_the_released_training_net_follows_the_fork(voc: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = Solver("solver.prototxt", log=Recorder())
    run.load(["init.caffemodel"])
    run.solve()
    torch.set_num_threads(threads)
    theirs = json.loads((NOH / "log.json").read_text())
    log = recorded(run)
    np.testing.assert_allclose(np.array(log.losses), [float(x) for _, x in theirs["loss"]], rtol=LOG_CLOSE)
    np.testing.assert_allclose(np.array(log.rates), [float(x) for _, x in theirs["lr"]], rtol=1e-6)
    scores = [x for passed in log.outputs["Test"] for x in passed.items()]
    assert [name for name, _ in scores] == [name for _, name, _ in theirs["test"]]
    np.testing.assert_allclose([x for _, x in scores], [float(x) for *_, x in theirs["test"]], rtol=LOG_CLOSE)
    for done in (4, 8):
        compare_noh(voc / f"snap_iter_{done}.solverstate", NOH / f"snap_iter_{done}.solverstate")


def compare_noh(ours: Path, theirs: Path) -> None:
    a, b = read_solverstate(ours), read_solverstate(theirs)
    assert (a.iter, a.current_step, a.learned_net) == (b.iter, b.current_step, b.learned_net)
    assert [x.shape for x in a.history] == [y.shape for y in b.history]
    # A bias before batch statistics has no gradient but rounding, and single numbers of a momentum move by up to 7 % of
    # the largest in the fork itself.
    assert distance(a, b) < 1e-2
    mine, real = (open_weights(p.with_name(b.learned_net)).state_dict() for p in (ours, theirs))
    assert list(mine) == list(real)
    worst = {name: apart(mine[name], real[name]) for name in real}
    assert max(worst.values()) < WEIGHTS_CLOSE, worst


def distance(a: SolverHistory, b: SolverHistory) -> float:
    """The distance of two histories as part of the second's norm."""
    x, y = (np.concatenate([h.ravel() for h in state.history]) for state in (a, b))
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


@needs_shared("reference/noh_solver")
def test_a_snapshot_of_the_fork_resumes_here(voc: Path) -> None:
    """The weights, momenta and rate of iteration 4; the data start anew, as in the fork."""
    run = Solver("solver.prototxt", log=Recorder())
    run.restore(NOH / "snap_iter_4.solverstate")
    assert (run.iter, run.state.policy.state["current_step"]) == (4, 0)
    weights = open_weights(NOH / "snap_iter_4.caffemodel").state_dict()
    for name, blobs in run.net.params.items():
        for blob, there in zip(blobs, (v for k, v in weights.items() if k.rpartition(".")[0] == name), strict=True):
            assert np.array_equal(blob.data.ravel(), there.ravel())
    theirs = read_solverstate(NOH / "snap_iter_4.solverstate")
    for mine, there in zip(run.state.history[0], theirs.history, strict=True):
        assert np.array_equal(mine.ravel(), there.ravel())


STATES = [
    *(EMBEDDED / "noh_solver_corners" / f"{kind}.solverstate" for kind in NOH_KINDS),
    *(pytest.param(NOH / f"snap_iter_{n}.solverstate", marks=needs_shared("reference/noh_solver")) for n in (4, 8)),
]


@pytest.mark.parametrize("theirs", STATES, ids=lambda path: path.stem)
def test_a_state_is_written_as_the_fork_writes_it(theirs: Path, tmp_path: Path) -> None:
    write_solverstate(tmp_path / "state", read_solverstate(theirs), legacy=True)
    assert (tmp_path / "state").read_bytes() == theirs.read_bytes()
