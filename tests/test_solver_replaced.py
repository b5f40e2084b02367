"""A layer of a solver's net that is replaced or changed after the solver was made. Expectations: torch.optim's SGD."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from caffe_port.errors import CaffeError
from caffe_port.solver import Solver
from caffe_port.solver.callbacks import Callback
from caffe_port.solver.pycaffe_solvers import get_solver

NET = """
layer { name: "d" type: "DummyData" top: "x" top: "t" dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 4 }
  data_filler { value: 0.5 } data_filler { value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "h" inner_product_param { num_output: 5
  weight_filler { type: "xavier" } } }
layer { name: "ip2" type: "InnerProduct" bottom: "h" top: "y" inner_product_param { num_output: 4
  weight_filler { type: "xavier" } } param { lr_mult: 1 } param { lr_mult: 2 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }
"""
SETTINGS = 'net: "net" base_lr: 0.05 momentum: 0.9 lr_policy: "fixed" max_iter: 9 random_seed: 4 '
NO_SNAPSHOTS = "snapshot_after_train: false "


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net").write_text(NET)
    monkeypatch.chdir(tmp_path)


def head() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(5, 4)


@pytest.mark.parametrize("make", [Solver, get_solver])
@pytest.mark.parametrize("before", [0, 2])
def test_a_new_head_is_trained(make, before: int) -> None:
    """The new parameters from no momentum, with the multipliers of their place; the others go on with theirs."""
    solver = make(SETTINGS + NO_SNAPSHOTS)
    twins = {"ip": nn.Linear(3, 5), "ip2": nn.Linear(5, 4)}
    for name, twin in twins.items():
        twin.load_state_dict(solver.net.get_submodule(name).state_dict())
    optimizer = torch.optim.SGD(twins["ip"].parameters(), 0.05, 0.9)

    def train(iterations: int) -> None:
        own = torch.optim.SGD(
            [{"params": twins["ip2"].weight, "lr": 0.05}, {"params": twins["ip2"].bias, "lr": 0.1}], 0.05, 0.9
        )
        for _ in range(iterations):
            y = twins["ip2"](twins["ip"](torch.full((2, 3), 0.5)))
            ((y - 1).square().sum() / 4).backward()
            for one in (optimizer, own):
                one.step()
                one.zero_grad()
        solver.step(iterations)
        for name, twin in twins.items():
            for key, value in twin.state_dict().items():
                torch.testing.assert_close(solver.net.state_dict()[f"{name}.{key}"], value)

    if before:
        train(before)
    solver.net.ip2 = head()
    twins["ip2"] = copy.deepcopy(solver.net.ip2)
    train(3)
    solver.net.ip2.weight = nn.Parameter(torch.zeros(4, 5))  # one parameter of two: the bias goes on
    solver.step(1)
    assert solver.net.ip2.weight.abs().max() > 0


def test_what_cannot_be_trained_is_one_error() -> None:
    solver = Solver(SETTINGS + NO_SNAPSHOTS)
    solver.step(1)
    nn.utils.parametrizations.weight_norm(solver.net.ip2)
    with pytest.raises(CaffeError, match=r"layer ip2: .*weight is computed from other.*torch\.optim"):
        solver.step(1)
    assert solver.iter == 1


def test_snapshots_that_no_file_can_hold_are_refused_before_training() -> None:
    solver = Solver(SETTINGS + 'snapshot: 5 snapshot_prefix: "s"')
    solver.net.ip2 = head()
    for _ in range(2):
        with pytest.raises(
            CaffeError, match=r"layer ip2: .*a Linear in place.*snapshot: 0 snapshot_after_train: false"
        ):
            solver.step(1)
    assert solver.iter == 0


def test_test_nets_score_the_same_module_or_none() -> None:
    solver = Solver(SETTINGS + NO_SNAPSHOTS + "test_iter: 1 test_interval: 1")
    solver.net.ip2 = nn.Sequential(head(), nn.ReLU())
    with pytest.raises(CaffeError, match=r"layer ip2: .*test_net\.ip2 = net\.ip2"):
        solver.step(1)
    solver.test_nets[0].ip2 = solver.net.ip2
    solver.step(1)
    (score,) = solver.test(0)
    assert score.value == pytest.approx(float(solver.net.losses()[0]))


@pytest.mark.parametrize("event", ["on_start", "on_gradients_ready", "on_iteration"])
def test_a_callback_replaces_a_layer(event: str) -> None:
    """In the iteration's start it trains at once; later it has no gradient until the next one."""

    class Replacing(Callback):
        done = False

    def replace(self: Replacing, solver: Solver, *_: object) -> None:
        if solver.iter == (event == "on_iteration") and not self.done:
            solver.net.ip2, self.done = head(), True

    setattr(Replacing, event, replace)
    solver = Solver(SETTINGS + NO_SNAPSHOTS)
    solver.callbacks.append(Replacing())
    x, below = torch.full((2, 3), 0.5), nn.Linear(3, 5)
    below.load_state_dict(solver.net.ip.state_dict())
    first = copy.deepcopy(nn.Linear(5, 4))
    first.load_state_dict(solver.net.ip2.state_dict())
    new = head()
    own = torch.optim.SGD([{"params": new.weight, "lr": 0.05}, {"params": new.bias, "lr": 0.1}], 0.05, 0.9)
    optimizer = torch.optim.SGD(below.parameters(), 0.05, 0.9)
    for iteration in range(3):
        top = new if iteration or event == "on_start" else first
        for one in (optimizer, own):
            one.zero_grad()
        ((top(below(x)) - 1).square().sum() / 4).backward()
        for one in (optimizer, own):
            one.step()
    solver.step(3)
    for twin, layer in ((below, solver.net.ip), (new, solver.net.ip2)):
        for key, value in twin.state_dict().items():
            torch.testing.assert_close(layer.state_dict()[key], value)
