"""The solver compared with the two real programs: their runs, their snapshots.

All runs of bvlc_solvers start from one file of weights and train by HDF5Data. Their numbers are in tests/reference, so
that a clone has them; noh_solver needs the pictures of ../shared.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from reference import EMBEDDED, folder

from caffe_port.errors import DefinitionError
from caffe_port.formats import open_weights
from caffe_port.formats.solverstate import read_solverstate, write_solverstate
from caffe_port.solver import Solver
from caffe_port.solver.log import Log

CLOSE = 5e-5
"""What the reference's README asks of numbers that gradients entered; these runs are seen at 6e-7."""

NET = """
name: "small"
layer {
  name: "data" type: "HDF5Data" top: "data" top: "label"
  hdf5_data_param { source: "data.txt" batch_size: 6 }
}
layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param { lr_mult: 1 decay_mult: 1 }
  param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 }
}
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer {
  name: "frozen" type: "InnerProduct" bottom: "pool" top: "h"
  param { lr_mult: 0 }
  param { lr_mult: 0 }
  inner_product_param { num_output: 10 }
}
layer { name: "tanh" type: "TanH" bottom: "h" top: "h" }
layer { name: "score" type: "InnerProduct" bottom: "h" top: "score" inner_product_param { num_output: 5 } }
layer {
  name: "acc" type: "Accuracy" bottom: "score" bottom: "label" top: "acc"
  include { phase: TEST }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }
"""

EVERY_RUN = """
net: "net.prototxt" max_iter: 20 display: 1 snapshot: 10 snapshot_prefix: "{name}/snap"
random_seed: 7 test_iter: 4 test_interval: 5
"""

FIXED = 'lr_policy: "fixed"'
NESTEROV = 'type: "Nesterov" base_lr: 0.05 momentum: 0.9 weight_decay: 0.01 lr_policy: "step" gamma: 0.1 stepsize: 10'
ADAM = f'type: "Adam" base_lr: 0.01 momentum: 0.9 momentum2: 0.999 delta: 1e-8 weight_decay: 0.01 {FIXED}'
STEP = 'base_lr: 0.1 momentum: 0.9 weight_decay: 0.005 lr_policy: "step" gamma: 0.5 stepsize: 6'
IN_HDF5 = "snapshot_format: HDF5"

RUNS = {
    "adadelta": f'type: "AdaDelta" base_lr: 1 momentum: 0.95 delta: 1e-6 weight_decay: 0.01 {FIXED}',
    "adagrad": f'type: "AdaGrad" base_lr: 0.05 delta: 1e-7 weight_decay: 0.01 {FIXED}',
    "adam": ADAM,
    "adam_h5": f"{ADAM} {IN_HDF5}",
    "legacy_enum": f"solver_type: NESTEROV base_lr: 0.05 momentum: 0.9 {FIXED}",
    "nesterov": NESTEROV,
    "nesterov_h5": f"{NESTEROV} {IN_HDF5}",
    "rmsprop": f'type: "RMSProp" base_lr: 0.01 rms_decay: 0.95 delta: 1e-6 weight_decay: 0.01 {FIXED}',
    "sgd_avgloss": f"base_lr: 0.1 momentum: 0.9 average_loss: 5 {FIXED}",
    "sgd_clip": f"base_lr: 0.2 momentum: 0.9 clip_gradients: 0.8 {FIXED}",
    "sgd_exp": 'base_lr: 0.1 momentum: 0.5 lr_policy: "exp" gamma: 0.9',
    "sgd_fixed": f"base_lr: 0.1 momentum: 0.9 weight_decay: 0.01 {FIXED}",
    "sgd_inv": 'base_lr: 0.1 momentum: 0.9 weight_decay: 0.0005 lr_policy: "inv" gamma: 0.1 power: 0.75',
    "sgd_itersize": f"base_lr: 0.1 momentum: 0.9 weight_decay: 0.02 iter_size: 4 {FIXED}",
    "sgd_l1": f'base_lr: 0.1 momentum: 0.9 weight_decay: 0.01 regularization_type: "L1" {FIXED}',
    "sgd_multistep": 'base_lr: 0.1 momentum: 0.8 lr_policy: "multistep" gamma: 0.3 stepvalue: 4 stepvalue: 11',
    "sgd_poly": 'base_lr: 0.1 momentum: 0.9 weight_decay: 0.0005 lr_policy: "poly" power: 0.9',
    "sgd_sigmoid": 'base_lr: 0.1 momentum: 0.9 lr_policy: "sigmoid" gamma: 0.3 stepsize: 8',
    "sgd_step": STEP,
    "sgd_step_h5": f"{STEP} {IN_HDF5}",
}
"""A run's solver fields besides EVERY_RUN."""


class Recorder(Log):
    """Keeps the numbers that a log would print."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet = True
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.outputs: dict[str, list[dict[str, float]]] = {"Train": [], "Test": []}

    def loss(self, iteration: int, loss: float, **more: Any) -> None:
        self.losses.append(loss)

    def rate(self, iteration: int, rate: float) -> None:
        self.rates.append(rate)

    def scores(self, phase: str, scores: Iterable[Any]) -> None:
        self.outputs[phase].append({s.name: s.value for s in scores})


def apart(ours: Any, theirs: Any) -> float:
    """The README's measure: the largest difference as part of the largest number."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1))


# -- bvlc --------------------------------------------------------------------------------------------------------------


def reference(name: str) -> Path:
    where = folder("bvlc_solvers")
    assert where is not None
    return where / name


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the net, its data and its first weights."""
    for name in ("data.h5", "init.caffemodel"):
        shutil.copy(reference(name), tmp_path)
    (tmp_path / "data.txt").write_text("data.h5\n")
    (tmp_path / "net.prototxt").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def solver(name: str) -> Solver:
    Path(name).mkdir(exist_ok=True)
    return Solver(EVERY_RUN.format(name=name) + RUNS[name], log=Recorder())


def recorded(run: Solver) -> Recorder:
    """The solver's log."""
    assert isinstance(run.log, Recorder)
    return run.log


def follow(run: Solver, name: str, to: int) -> dict[str, float]:
    """Train to an iteration; how far losses, and parameters at the iterations that the reference has, are apart."""
    there = np.load(reference(name) / "trajectory.npz")
    start, worst = run.iter, {}
    for done in range(start + 1, to + 1):
        run.step(1)
        for key in there.files:
            if key.startswith(f"iter{done}/"):
                _, layer, i = key.split("/")
                worst[key] = apart(run.net.params[layer][int(i)].data, there[key])
    losses = [passed["loss"] for passed in recorded(run).outputs["Train"]]
    worst["loss"] = apart(losses, there["loss"][start:to])
    return worst


def compare_states(ours: Path, theirs: Path) -> float:
    """How far the weights and histories of two snapshots are apart; all else in them must be equal."""
    a, b = read_solverstate(ours), read_solverstate(theirs)
    assert (a.iter, a.current_step, a.learned_net) == (b.iter, b.current_step, b.learned_net)
    assert len(a.history) == len(b.history)
    worst = [apart(x, y) for x, y in zip(a.history, b.history, strict=True)]
    mine, real = (open_weights(str(p).replace(".solverstate", ".caffemodel")) for p in (ours, theirs))
    assert [(x.name, x.type) for x in mine.layers] == [(y.name, y.type) for y in real.layers]
    for x, y in zip(mine.layers, real.layers, strict=True):
        worst += [apart(p, q) for p, q in zip(x.blobs, y.blobs, strict=True)]
    return max(worst)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_follows_real_caffe(name: str, place: Path) -> None:
    run = solver(name)
    run.load(["init.caffemodel"])
    worst = follow(run, name, 20)
    assert len(worst) == 4 * 6 + 1
    assert max(worst.values()) < CLOSE, worst
    (theirs,) = reference(name).glob("snap_iter_10.solverstate*")
    assert compare_states(Path(name, theirs.name), theirs) < CLOSE


@pytest.mark.parametrize("name", RUNS)
def test_a_snapshot_of_real_caffe_resumes_here(name: str, place: Path) -> None:
    run = solver(name)
    (theirs,) = reference(name).glob("snap_iter_10.solverstate*")
    run.restore(theirs)
    assert run.iter == 10
    for _ in range(10 * run.param.iter_size):  # real Caffe forgets where its data stood
        run.net.nodes[0][1].forward()
    worst = follow(run, name, 20)
    assert len(worst) == 6 + 1
    assert max(worst.values()) < CLOSE, worst


@pytest.mark.parametrize("name", RUNS)
def test_a_state_is_written_as_real_caffe_writes_it(name: str, tmp_path: Path) -> None:
    (theirs,) = reference(name).glob("snap_iter_10.solverstate*")
    ours = tmp_path / theirs.name
    write_solverstate(ours, read_solverstate(theirs), legacy=False)
    if theirs.suffix != ".h5":
        assert ours.read_bytes() == theirs.read_bytes()
        return
    with h5py.File(ours) as a, h5py.File(theirs) as b:
        assert structure(a) == structure(b)


def structure(file: h5py.File) -> dict[str, Any]:
    """What an HDF5 file holds but for how its bytes lie: names, types, shapes, numbers."""
    found: dict[str, Any] = {}

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            kind = item.id.get_type()
            size = (kind.get_class(), kind.get_size(), item.shape)
            found[path] = (*size, kind.get_strpad() if kind.get_class() == h5py.h5t.STRING else "", item[()].tolist())
        else:
            found[path] = "group"

    file.visititems(visit)
    return found


CORNERS = """
layer {
  name: "data" type: "HDF5Data" top: "data" top: "label"
  hdf5_data_param { source: "data.txt" batch_size: 6 }
}
layer { name: "norm" type: "BatchNorm" bottom: "data" top: "norm" }
layer {
  name: "a" type: "InnerProduct" bottom: "norm" top: "a" param { name: "w" } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { axis: 3 num_output: 8 weight_filler { type: "gaussian" std: 0.2 } }
}
layer { name: "tanh" type: "TanH" bottom: "a" top: "a" }
layer {
  name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" lr_mult: 0.5 decay_mult: 3 }
  inner_product_param { axis: 3 num_output: 8 weight_filler { type: "gaussian" std: 0.2 } }
}
layer {
  name: "aside" type: "InnerProduct" bottom: "b" top: "aside"
  inner_product_param { num_output: 3 weight_filler { type: "gaussian" std: 0.2 } }
}
layer { name: "silence" type: "Silence" bottom: "aside" }
layer {
  name: "stopped" type: "InnerProduct" bottom: "norm" top: "stopped"
  inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.2 } }
}
layer {
  name: "score" type: "InnerProduct" bottom: "b" top: "score"
  inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.2 } }
}
layer {
  name: "sum" type: "Eltwise" bottom: "stopped" bottom: "score" top: "sum"
  propagate_down: false propagate_down: true
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "sum" bottom: "label" top: "loss" }
"""
CORNER_KINDS = {
    "SGD": "base_lr: 0.02 momentum: 0.9",
    "Nesterov": "base_lr: 0.02 momentum: 0.9",
    "AdaGrad": "base_lr: 0.02",
    "RMSProp": "base_lr: 0.02 rms_decay: 0.9",
    "AdaDelta": "base_lr: 1 momentum: 0.95 delta: 1e-6",
    "Adam": "base_lr: 0.02 momentum: 0.9 momentum2: 0.99",
}


@pytest.mark.parametrize("kind", CORNER_KINDS)
def test_what_has_no_gradient_and_what_is_shared_moves_as_in_caffe(kind: str, place: Path) -> None:
    """``caffe train`` on this net and this solver left the files compared with: a parameter shared by layers of which
    the second has the multipliers, layers that no gradient reaches and that decay all the same, statistics."""
    Path("net.prototxt").write_text(CORNERS)
    text = f"""
        net: "net.prototxt" type: "{kind}" {CORNER_KINDS[kind]} weight_decay: 0.05 {FIXED} iter_size: 2
        clip_gradients: 5 random_seed: 3 max_iter: 8 snapshot: 8 snapshot_prefix: "r" solver_mode: CPU
    """
    Solver(text, log=Recorder()).solve()
    theirs = EMBEDDED / "bvlc_solver_corners" / f"{kind}.solverstate"
    assert compare_states(Path("r_iter_8.solverstate"), theirs) < CLOSE


def test_layers_that_share_a_parameter_agree_on_its_multipliers(place: Path) -> None:
    text = CORNERS.replace('param { name: "w" }', 'param { name: "w" lr_mult: 1 }')
    with pytest.raises(DefinitionError, match=r"layer b: a.weight.*expected 1.0, found lr_mult 0.5"):
        Solver("net_param {" + text + '} lr_policy: "fixed" base_lr: 0.1\n', log=Recorder())
