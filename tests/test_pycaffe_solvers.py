"""pycaffe's solvers: training, and access to their nets after every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import caffe_port
from caffe_port import CaffeError
from caffe_port.solver import Solver

NET = """
layer { name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 6 dim: 3 } shape { dim: 6 dim: 2 }
  data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" value: 0.5 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "z" param { lr_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "z" bottom: "y" top: "loss" }
"""
KINDS = ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"]


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(f"""
        net: "{tmp_path}/net.prototxt" base_lr: 0.1 lr_policy: "step" gamma: 0.5 stepsize: 4 delta: 1e-3 random_seed: 7
        max_iter: 10 test_iter: 2 test_interval: 5 snapshot_after_train: false snapshot_prefix: "{tmp_path}/s"
    """)
    return tmp_path / "solver.prototxt"


def solver(kind: str, definition: Path) -> Any:
    return getattr(caffe_port, f"{kind}Solver")(definition)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_as_the_solver_does(definition: Path, kind: str) -> None:
    named = solver(kind, definition)
    named.solve()
    plain = Solver(definition, kind=kind)
    plain.solve()
    assert named.iter == plain.iter == 10
    for name, blob in plain.net.state_dict().items():
        np.testing.assert_allclose(named.net.state_dict()[name], blob, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_definition_names_the_kind(definition: Path, kind: str) -> None:
    definition.write_text(f'{definition.read_text()} type: "{kind}"')
    assert type(caffe_port.get_solver(str(definition))) is getattr(caffe_port, f"{kind}Solver")


def test_an_unknown_kind(definition: Path) -> None:
    definition.write_text(f'{definition.read_text()} type: "Adamm"')
    with pytest.raises(CaffeError, match="'Adamm'; near: Adam"):
        caffe_port.get_solver(definition)


def test_blobs_and_diffs_of_the_last_step(definition: Path) -> None:
    s = solver("SGD", definition)
    ready: list[tuple[np.ndarray, ...]] = []
    calls: list[str] = []

    def look() -> None:
        calls.append("ready")
        ready.append(tuple(p.diff.copy() for p in s.net.params["ip"]))

    s.add_callback(lambda: calls.append("start"), look)
    before = [p.data.copy() for p in s.net.params["ip"]]
    s.step(1)
    x, z = s.net.blobs["x"].data, s.net.blobs["z"].data
    np.testing.assert_allclose(z, x @ before[0].T + before[1], rtol=1e-5, atol=1e-6)
    gradient = (z - 0.5) / 6
    np.testing.assert_allclose(s.net.blobs["z"].diff, gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ready[0][0], gradient.T @ x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(s.net.params["ip"][1].data, before[1] - 0.2 * gradient.sum(0), rtol=1e-4, atol=1e-6)
    s.step(2)
    assert calls == ["start", "ready"] * 3
    assert s.iter == 3


def test_an_update_by_hand_and_the_rate(definition: Path) -> None:
    s = solver("SGD", definition)
    data = s.net.params["ip"][0].data
    data[...] = 0
    s.net.params["ip"][0].diff[...] = 1
    assert s.lr == pytest.approx(0.1)
    s.apply_update()
    np.testing.assert_allclose(data, -0.1, rtol=1e-6)
    s.net.clear_param_diffs()
    for _ in range(3):
        s.apply_update()
    assert s.lr == pytest.approx(0.05)
    s.param.base_lr = 0.2
    assert s.lr == pytest.approx(0.1)


def test_test_nets_and_shared_weights(definition: Path) -> None:
    s = solver("SGD", definition)
    (test,) = s.test_nets
    s.share_weights(test)
    s.net.params["ip"][0].data[...] = 2
    assert (test.params["ip"][0].data == 2).all()
    test.forward()
    np.testing.assert_allclose(test.blobs["z"].data, 2 * test.blobs["x"].data.sum(1, keepdims=True) * [1, 1], rtol=1e-5)


def test_resuming_from_a_snapshot(definition: Path) -> None:
    whole = solver("Nesterov", definition)
    whole.step(4)
    state = whole.snapshot()
    assert state.name == "s_iter_4.solverstate"
    again = solver("Nesterov", definition)
    again.restore(state)
    assert again.iter == 4
    assert np.array_equal(again.net.params["ip"][0].data, whole.net.params["ip"][0].data)
    last = solver("Nesterov", definition)
    last.solve(state)
    assert last.iter == 10
