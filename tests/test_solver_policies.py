"""Learning-rate policies compared with the programs that have them, and policies and rules that plugins add."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from reference import EMBEDDED
from test_solver_reference import CLOSE, NET, apart

import caffe_port
from caffe_port.dialects import BVLC, NOH
from caffe_port.errors import CaffeError, FormatError
from caffe_port.formats.solverstate import SolverHistory, read_solverstate, write_solverstate
from caffe_port.schema import read_solver
from caffe_port.schema.plugins import load_plugin
from caffe_port.solver import Policy, Rule, Solver, policy, rule
from caffe_port.solver.log import Log
from caffe_port.solver.optimizers import Rates

SSD = EMBEDDED / "ssd_plateau"
"""Runs of the ssd branch of weiliu89/caffe (4817bf8b) with the net and the data of bvlc_solvers: its log without times,
its snapshots at 10 (in both forms) and 20, and its log when it resumed from the first."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")


def make_policy(fields: str, dialect: Any = BVLC) -> Policy:
    return policy.make(read_solver(f'net: "n" base_lr: 0.02 {fields}'), dialect, "s.prototxt")


# -- SSD's plateau -----------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLOG_minloglevel", "0")
    monkeypatch.chdir(tmp_path)
    for name in ("data.h5", "init.caffemodel"):
        shutil.copy(EMBEDDED / "bvlc_solvers" / name, tmp_path)
    (tmp_path / "data.txt").write_text("data.h5\n")
    (tmp_path / "net.prototxt").write_text(NET)
    return tmp_path


def plateau(more: str = "") -> Solver:
    return Solver(f"{(SSD / 'solver.prototxt').read_text()} {more}", log=Log(io.StringIO()))


def lines(log: Log, first: str) -> list[str]:
    """Severity, source and text of what was logged, from the line that starts with ``first``."""
    assert isinstance(log.file, io.StringIO)
    found = re.findall(r"^([IE])\d{4} [\d:.]+ +\d+ (\w+\.cpp):1\] (.*)", log.file.getvalue(), re.MULTILINE)
    texts = [text for _, _, text in found]
    at = next(i for i, text in enumerate(texts) if text.startswith(first))
    return [re.sub(r" \([-+.e\d]+ iter/s, [-+.e\d]+s/\d+ iters\)", "", " ".join(line)) for line in found[at:]]


def assert_same_lines(ours: list[str], theirs: list[str]) -> None:
    theirs = [line for line in theirs if "caffe.cpp" not in line]  # the command's own
    assert [NUMBER.sub("N", line) for line in ours] == [NUMBER.sub("N", line) for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        numbers = [[float(n) for n in NUMBER.findall(line)] for line in (a, b)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4), b


def assert_same_state(ours: Path, theirs: Path) -> None:
    a, b = read_solverstate(ours), read_solverstate(theirs)
    assert (a.iter, a.current_step, a.iter_last_event) == (b.iter, b.current_step, b.iter_last_event)
    assert a.minimum_loss == pytest.approx(b.minimum_loss, rel=CLOSE)
    assert max(apart(x, y) for x, y in zip(a.history, b.history, strict=True)) < CLOSE


def test_plateau_follows_ssd(place: Path) -> None:
    run = plateau()
    run.load(["init.caffemodel"])
    run.solve()
    assert_same_lines(lines(run.log, "Solving"), (SSD / "train.log").read_text().splitlines())
    for n in (10, 20):
        assert_same_state(Path(f"snap_iter_{n}.solverstate"), SSD / f"snap_iter_{n}.solverstate")


@pytest.mark.parametrize("end", ["", ".h5"])
def test_plateau_resumes_from_a_state_of_ssd(end: str, place: Path) -> None:
    run = plateau()
    shutil.copy(SSD / "snap_iter_10.caffemodel", place / f"snap_iter_10.caffemodel{end}")  # detected from its bytes
    run.restore(SSD / f"snap_iter_10.solverstate{end}")
    run.solve()
    assert_same_lines(lines(run.log, "Solving"), (SSD / "resumed.log").read_text().splitlines())


@pytest.mark.parametrize("end", ["", ".h5"])
def test_a_state_is_written_as_ssd_writes_it(end: str, tmp_path: Path) -> None:
    theirs, ours = SSD / f"snap_iter_10.solverstate{end}", tmp_path / f"s.solverstate{end}"
    write_solverstate(ours, read_solverstate(theirs), legacy=False)
    if not end:
        assert ours.read_bytes() == theirs.read_bytes()
        return
    import h5py

    with h5py.File(ours) as a, h5py.File(theirs) as b:
        for name in ("iter", "current_step", "iter_last_event", "minimum_loss"):
            assert (a[name].dtype, a[name].shape, a[name][()]) == (b[name].dtype, b[name].shape, b[name][()])


@pytest.mark.parametrize("end", ["", ".h5"])
def test_an_invalid_state_of_plateau_is_refused(end: str, tmp_path: Path) -> None:
    for field, value in (("minimum_loss", float("nan")), ("iter_last_event", -3)):
        state = read_solverstate(SSD / "snap_iter_10.solverstate")
        setattr(state, field, value)
        write_solverstate(tmp_path / f"s.solverstate{end}", state, legacy=False, overwrite=True)
        with pytest.raises(FormatError, match=f"found {field} {value}; the file is damaged"):
            read_solverstate(tmp_path / f"s.solverstate{end}")


def test_plateau_resumes_exactly(place: Path) -> None:
    whole = plateau()
    whole.solve()
    resumed = plateau()
    resumed.restore("snap_iter_10.solverstate")
    resumed.solve()
    assert resumed.state.policy.state == whole.state.policy.state
    assert resumed.state.policy.state["current_step"] > 0
    for a, b in zip(resumed.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_plateau_from_a_state_of_another_policy(place: Path) -> None:
    """As SSD's messages have it: the smallest loss is 1e38, the last event was at 0."""
    run = plateau()
    state = read_solverstate(SSD / "snap_iter_10.solverstate")
    shutil.copy(SSD / "snap_iter_10.caffemodel", place)
    write_solverstate("bvlc.solverstate", SolverHistory(10, "snap_iter_10.caffemodel", state.history), legacy=False)
    run.restore("bvlc.solverstate")
    assert run.state.policy.state == {"current_step": 0, "minimum_loss": 1e38, "iter_last_event": 0}


# -- what each Caffe refuses -------------------------------------------------------------------------------------------


def test_sigmoid_with_a_negative_gamma_follows_noh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork (d9e8494a) ran four solvers for 8 iterations each; rates as its log printed them, losses, parameters."""
    there = EMBEDDED / "noh_sigmoid_rate"
    for name in ("net.prototxt", "t.h5"):
        shutil.copy(there / name, tmp_path)
    (tmp_path / "t.txt").write_text("t.h5\n")
    monkeypatch.chdir(tmp_path)
    numbers = np.load(there / "steps.npz")
    for gamma in ("-2", "-0.5", "0", "0.5"):
        run = caffe_port.SGDSolver(f"""
            net: "net.prototxt" base_lr: 0.5 lr_policy: "sigmoid" gamma: {gamma} stepsize: 3 momentum: 0.9
            weight_decay: 0.01 max_iter: 8 random_seed: 1
        """)
        for i in range(8):
            assert run.lr == pytest.approx(numbers[f"gamma_{gamma}/rate_printed"][i], rel=1e-5)
            run.step(1)
            assert run.net.blobs["loss"].data == pytest.approx(numbers[f"gamma_{gamma}/loss"][i], rel=CLOSE)
            for j in range(2):
                theirs = numbers[f"gamma_{gamma}/ip/{j}"][i + 1]
                assert apart(run.net.params["ip"][j].data.reshape(theirs.shape), theirs) < CLOSE


REFUSED = [  # by BVLC Caffe 1.0 alone (the CHECKs of sgd_solver.cpp); noh and ssd have none
    ('lr_policy: "step" gamma: -0.1 stepsize: 5', "a gamma of 0 or more"),
    ('lr_policy: "exp" gamma: -1', "a gamma of 0 or more"),
    ('lr_policy: "inv" gamma: -1', "a gamma of 0 or more"),
    ('lr_policy: "multistep" gamma: -1', "a gamma of 0 or more"),
    ('lr_policy: "sigmoid" gamma: -1 stepsize: 5', "a gamma of 0 or more"),
    ('lr_policy: "sigmoid" gamma: 1', "a stepsize above 0"),
]


@pytest.mark.parametrize(("fields", "expected"), REFUSED, ids=[fields for fields, _ in REFUSED])
def test_bvlc_refuses_and_noh_runs(fields: str, expected: str) -> None:
    with pytest.raises(CaffeError, match=f"^s.prototxt: expected {expected}"):
        make_policy(fields, BVLC)
    assert make_policy(fields, NOH).next_rate(0, 1.0) != 0


@pytest.mark.parametrize("stepsize", ["", "stepsize: 0", "stepsize: -5"])
def test_a_step_of_0_is_refused(stepsize: str) -> None:
    """noh divides by 0, or counts its steps downwards, which no state file can hold."""
    with pytest.raises(CaffeError, match="expected a stepsize above 0"):
        make_policy(f'lr_policy: "step" gamma: 0.1 {stepsize}', NOH)


@pytest.mark.parametrize(
    ("fields", "iteration", "rate"),
    [
        ('lr_policy: "exp" gamma: 10', 10**6, np.inf),
        ('lr_policy: "poly" power: 0.5 max_iter: 10', 20, np.nan),
        ('lr_policy: "sigmoid" gamma: 1 stepsize: 1000', 0, 0.0),
    ],
)
def test_overflow_and_undefined_are_as_in_cpp(fields: str, iteration: int, rate: float) -> None:
    assert make_policy(fields).learning_rate(iteration) == pytest.approx(rate, nan_ok=True)


# -- a plugin's --------------------------------------------------------------------------------------------------------

PLUGIN = Path(__file__).resolve().parents[1] / "docs" / "examples" / "warmup_lion.py"
QUADRATIC = """
    layer { name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 6 dim: 3 }
      shape { dim: 6 dim: 2 } data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" value: 0.5 } } }
    layer { name: "ip" type: "InnerProduct" bottom: "x" top: "z"
      inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
    layer { name: "loss" type: "EuclideanLoss" bottom: "z" bottom: "y" top: "loss" }
"""
LION = f"""
    net_param {{ {QUADRATIC} }} random_seed: 7 max_iter: 12 snapshot: 5 snapshot_prefix: "s" type: "Lion" base_lr: 0.01
    momentum: 0.9 momentum2: 0.99 lr_policy: "warmup" stepsize: 4 power: 1
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_plugin(PLUGIN)


def test_a_policy_and_a_rule_of_a_plugin(plugin: None) -> None:
    """Against the formulas of the example's docstrings, worked in double precision."""
    run = caffe_port.get_solver(LION)
    weights, m = run.net.params["ip"][0], np.zeros((2, 3))
    for i in range(12):
        rate = 0.01 * ((i + 1) / 4 if i < 4 else 1 - (i - 4) / 8)
        assert run.lr == pytest.approx(rate)
        before = weights.data.astype(float)
        run.step(1)
        g = weights.diff  # the steps
        x, z = run.net.blobs["x"].data.astype(float), run.net.blobs["z"].data.astype(float)
        g = (z - 0.5).T @ x / 6
        step, m = rate * np.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g
        np.testing.assert_allclose(weights.data, before - step, rtol=0, atol=1e-7)


def test_a_rule_of_a_plugin_resumes_exactly(plugin: None) -> None:
    whole = Solver(LION)
    whole.solve()
    resumed = Solver(LION)
    resumed.restore("s_iter_5.solverstate")
    resumed.solve()
    for a, b in zip(resumed.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(a, b)


class Counting(Policy):
    """Drops after each rise of the loss; has a state that Caffe's files cannot hold."""

    initial: ClassVar[dict[str, Any]] = {"last": None, "rises": 0}

    def advance(self, iteration: int, loss: float) -> Any:
        last, self.state["last"] = self.state["last"], loss
        if last is not None and loss > last:
            self.state["rises"] += 1
            yield f"{self.state['rises']} rises"

    def rate(self, iteration: int) -> float:
        return self.param.base_lr * 0.9 ** self.state["rises"]


class Normed(Rule):
    """Divides by the number of updates, which is a state without tensors."""

    histories = 0
    initial: ClassVar[dict[str, Any]] = {"updates": 0}

    def update(self, grads: list[torch.Tensor], histories: list[list[torch.Tensor]], rates: Rates) -> None:
        self.state["updates"] += 1
        torch._foreach_mul_(grads, [r / self.state["updates"] for r in rates.local])


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A solver whose policy and rule have states of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(policy, "classes", policy.classes.copy())
    monkeypatch.setattr(rule, "classes", rule.classes.copy())
    policy("counting")(Counting)
    rule("Normed")(Normed)
    return LION.replace('"Lion"', '"Normed"').replace('"warmup"', '"counting"')


def test_states_of_plugins_are_in_snapshots(own: str) -> None:
    whole = Solver(own)
    whole.solve()
    resumed = Solver(own)
    resumed.restore("s_iter_5.solverstate")
    assert resumed.state.rule.state == {"updates": 5}
    resumed.solve()
    assert resumed.state.policy.state == whole.state.policy.state
    assert whole.state.policy.state["rises"] > 0
    for a, b in zip(resumed.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_policy_after_a_resume_is_logged(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOG_minloglevel", "0")
    Solver(own).solve()
    other = Solver(own.replace('"counting"', '"fixed"'), log=Log(io.StringIO()))
    other.restore("s_iter_5.solverstate")
    assert lines(other.log, "The snapshot's policy was counting, now fixed: its state is reset")


def test_a_state_of_other_names_is_refused(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Solver(own).solve()
    monkeypatch.setattr(Counting, "initial", {"last": None, "falls": 0})
    with pytest.raises(CaffeError, match=r"s_iter_5.resume: .*expected last, falls, found a state of counting with"):
        Solver(own).restore("s_iter_5.solverstate")


def test_a_state_that_json_cannot_hold_is_refused(own: str) -> None:
    run = Solver(own)
    run.step(1)
    run.state.policy.state["last"] = torch.zeros(2)
    with pytest.raises(CaffeError, match="counting: a state that is not JSON: Object of type Tensor"):
        run.snapshot()
    assert not list(Path().glob("*s_iter*"))


def test_registering_is_checked(own: str) -> None:
    with pytest.raises(CaffeError, match=r"a second lr_policy 'fixed'; replace=True"):
        policy("fixed")(Counting)
    with pytest.raises(CaffeError, match="expected a subclass of Rule"):
        rule("Counting")(Counting)  # type: ignore[type-var]
    policy("fixed", replace=True)(Counting)
    assert isinstance(make_policy('lr_policy: "fixed"'), Counting)
    with pytest.raises(CaffeError, match=r"@policy\('quadratic'\) in a --plugin file adds one \(docs/extending.md\)"):
        make_policy('lr_policy: "quadratic"')
