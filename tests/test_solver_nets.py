"""Which nets a solver makes, in which order and state, and when it scores them: rows, by solver.cpp of BVLC Caffe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from caffe_port.errors import CaffeError
from caffe_port.solver import Solver
from caffe_port.solver.callbacks import Callback
from caffe_port.solver.scores import Scores

NET = """
name: "{}"
layer {{ name: "d" type: "DummyData" top: "x" dummy_data_param {{ shape {{ dim: 2 dim: 3 }}
  data_filler {{ type: "gaussian" std: 1 }} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param {{ num_output: 2
  weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "y" top: "loss" }}
layer {{ name: "in_train" type: "Power" bottom: "y" top: "in_train" include {{ phase: TRAIN }} }}
layer {{ name: "in_test" type: "Power" bottom: "y" top: "in_test" include {{ phase: TEST }} }}
layer {{ name: "deep" type: "Power" bottom: "y" top: "deep" include {{ stage: "deep" }} }}
layer {{ name: "third" type: "Power" bottom: "y" top: "third" include {{ min_level: 3 }} }}
"""
SETTINGS = ' base_lr: 0.1 lr_policy: "fixed" max_iter: 4 snapshot_after_train: false\n'
INLINE = f"{{ {NET.format('inline')} }}"
TESTED = "test_interval: 2 test_iter: 1"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with three nets."""
    for name in "abc":
        (tmp_path / name).write_text(NET.format(name))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("fields", "training", "testing"),
    [
        ('net: "a"', "a", []),
        ("net_param " + INLINE, "inline", []),
        ('train_net: "a"', "a", []),
        ("train_net_param " + INLINE, "inline", []),
        (f'net: "a" {TESTED}', "a", ["a"]),
        (f"net_param {INLINE} {TESTED}", "inline", ["inline"]),
        (f'train_net: "a" test_net: "b" {TESTED}', "a", ["b"]),
        (f"train_net_param {INLINE} test_net_param {INLINE} {TESTED}", "inline", ["inline"]),
        (f'train_net: "a" test_net: "b" test_net: "c" {TESTED} test_iter: 3', "a", ["b", "c"]),
        (f'train_net: "a" test_net: "b" test_net_param {INLINE} {TESTED} test_iter: 3', "a", ["inline", "b"]),
        (f'net: "a" test_net: "b" {TESTED} test_iter: 3 test_iter: 3', "a", ["b", "a", "a"]),
    ],
)
def test_nets(fields: str, training: str, testing: list[str]) -> None:
    solver = Solver(fields + SETTINGS)
    assert solver.net.definition.net.name == training
    assert [net.definition.net.name for net in solver.test_nets] == testing
    assert "in_train" in solver.net.outputs
    assert all("in_test" in net.outputs for net in solver.test_nets)


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ("", ["", ""]),
        ('train_state { stage: "deep" }', ["deep", ""]),
        ('test_state { stage: "deep" level: 3 }', ["", "deep third"]),
        ("train_state { level: 3 } test_state { level: 2 }", ["third", ""]),
    ],
)
def test_states(fields: str, seen: list[str]) -> None:
    solver = Solver(f'net: "a" {TESTED} {fields}' + SETTINGS)
    nets = [solver.net, *solver.test_nets]
    assert [" ".join(name for name in net.outputs if name in ("deep", "third")) for net in nets] == seen


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "expected one of net, net_param, train_net, train_net_param, found no net"),
        ('net: "a" train_net: "b"', "found net and train_net"),
        (f'train_net: "a" {TESTED}', "1 test_iter for 0 test nets"),
        (f'train_net: "a" test_net: "b" test_net: "c" {TESTED}', "1 test_iter for 2 test nets"),
        ('net: "a" test_net: "b" test_interval: 2', "0 test_iter for 1 test nets"),
        (f'net: "a" {TESTED} test_state {{ }} test_state {{ }}', "2 test_state for 1 test nets"),
        ('net: "a" test_iter: 1', "test nets without a test_interval"),
        ('net: "d"', "d: .*no such file, nor"),
    ],
)
def test_what_does_not_fit_is_refused(fields: str, message: str) -> None:
    with pytest.raises(CaffeError, match=message):
        Solver(fields + SETTINGS)


class Recorder(Callback):
    """Keeps when which test net was scored."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_test(self, solver: Solver, net: int, scores: Sequence[Scores]) -> None:
        self.seen.append((solver.iter, net))


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ("test_interval: 2 test_iter: 1", [(0, 0), (2, 0), (4, 0)]),
        ("test_interval: 2 test_iter: 1 test_initialization: false", [(2, 0), (4, 0)]),
        ("test_interval: 3 test_iter: 1 test_iter: 2", [(0, 0), (0, 1), (3, 0), (3, 1)]),
    ],
)
def test_tests_run_when_due(fields: str, seen: list[tuple[int, int]]) -> None:
    solver = Solver(f'net: "a" {fields}' + SETTINGS)
    tests = Recorder()
    solver.callbacks.append(tests)
    solver.solve()
    assert tests.seen == seen


def test_weights_that_the_solver_names_go_into_all_nets() -> None:
    for name, number in (("one", 1), ("two", 2)):
        net = Solver('net: "a"' + SETTINGS).net
        net.params["ip"][0].data[...] = number
        net.save(f"{name}.caffemodel")
    solver = Solver(f'net: "a" {TESTED} weights: "one.caffemodel, two.caffemodel"' + SETTINGS)
    for net in (solver.net, *solver.test_nets):
        assert (net.params["ip"][0].data == 2).all()
