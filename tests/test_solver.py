"""Rates and updates compared with their formulas in double precision, and errors of solvers."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffe_port.dialects import BVLC, NOH, dialect
from caffe_port.errors import CaffeError
from caffe_port.schema import read_solver
from caffe_port.solver import Policy, Solver, optimizers, policy, rule

BASE = 'net: "n" base_lr: 0.02 '

RATES = [
    ('lr_policy: "fixed"', [0, 7, 1000], lambda i: 0.02),
    ('lr_policy: "step" gamma: 0.1 stepsize: 5', [0, 4, 5, 9, 10, 23], lambda i: 0.02 * 0.1 ** (i // 5)),
    ('lr_policy: "exp" gamma: 0.97', [0, 1, 50], lambda i: 0.02 * 0.97**i),
    ('lr_policy: "inv" gamma: 0.01 power: 0.75', [0, 1, 300], lambda i: 0.02 * (1 + 0.01 * i) ** -0.75),
    ('lr_policy: "poly" power: 0.9 max_iter: 40', [0, 1, 39, 40], lambda i: 0.02 * (1 - i / 40) ** 0.9),
    ('lr_policy: "sigmoid" gamma: 0.3 stepsize: 20', [0, 20, 45], lambda i: 0.02 / (1 + exp(-0.3 * (i - 20)))),
]


@pytest.mark.parametrize(("fields", "iterations", "formula"), RATES, ids=[row[0] for row in RATES])
def test_rate(fields: str, iterations: list[int], formula: Any) -> None:
    one = make_policy(fields)
    for i in iterations:
        assert not list(one.advance(i, 1.0))
        assert one.learning_rate(i) == pytest.approx(formula(i), rel=2e-6, abs=1e-12)


def make_policy(fields: str, dialect: Any = BVLC) -> Policy:
    return policy.make(read_solver(BASE + fields), dialect, "s.prototxt")


@pytest.mark.parametrize(
    ("values", "start", "before", "expected"),
    [
        ([3, 6], 0, 0, [0, 0, 0, 1, 1, 1, 2, 2, 2]),
        ([2, 2], 0, 0, [0, 0, 1, 2, 2]),  # one step an iteration, at most
        ([3, 6], 5, 1, [1, 2, 2]),  # after a resume
        ([3, 6], 9, 0, [1, 2, 2]),  # from a state that did not know of the steps
        ([], 0, 0, [0, 0]),
    ],
)
def test_steps_of_multistep(values: list[int], start: int, before: int, expected: list[int]) -> None:
    one, found = make_policy('lr_policy: "multistep" gamma: 0.5 ' + " ".join(f"stepvalue: {v}" for v in values)), []
    one.state["current_step"] = before
    for i in range(start, start + len(expected)):
        lines = list(one.advance(i, 1.0))
        steps = one.state["current_step"]
        assert lines == [f"MultiStep Status: Iteration {i}, step = {steps}"] * (steps > (found or [before])[-1])
        found.append(steps)
        assert one.learning_rate(i) == pytest.approx(0.02 * 0.5**steps)
    assert found == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('lr_policy: "stepp"', "did you mean step"),
        ("", "expected fixed, step, exp, inv, multistep, poly, sigmoid, plateau"),
        ('lr_policy: "step" gamma: 0.1', "stepsize"),
        ('lr_policy: "exp" gamma: -1', "gamma"),
    ],
)
def test_wrong_policy(fields: str, message: str) -> None:
    with pytest.raises(CaffeError, match=message):
        make_policy(fields)


@pytest.mark.parametrize("name", ["noh", "segnet", "ssd", "deeplab2"])
def test_forks_run_a_negative_gamma(name: str) -> None:
    """Rates of noh's own log; the sources of the others have no check either."""
    one = make_policy('lr_policy: "sigmoid" gamma: -0.5 stepsize: 3', dialect(name))
    rates = [one.learning_rate(i) / 0.02 * 0.5 for i in range(6)]
    assert rates == pytest.approx([0.408787, 0.365529, 0.311230, 0.25, 0.188770, 0.134471], abs=5e-7)
    assert make_policy('lr_policy: "exp" gamma: -0.9', dialect(name)).learning_rate(3) == pytest.approx(
        0.02 * -0.729, rel=2e-6
    )


# -- updates -----------------------------------------------------------------------------------------------------------


def expected(kind: str, p: Any, w: Any, g: Any, history: list[Any], rate: float, i: int) -> tuple[Any, list[Any]]:
    """One update of one parameter in double precision: the parameter, the histories (Caffe's solver papers)."""
    if kind == "SGD":
        v = p.momentum * history[0] + rate * g
        return w - v, [v]
    if kind == "Nesterov":
        v = p.momentum * history[0] + rate * g
        return w - ((1 + p.momentum) * v - p.momentum * history[0]), [v]
    if kind == "AdaGrad":
        h = history[0] + g**2
        return w - rate * g / (np.sqrt(h) + p.delta), [h]
    if kind == "RMSProp":
        h = p.rms_decay * history[0] + (1 - p.rms_decay) * g**2
        return w - rate * g / (np.sqrt(h) + p.delta), [h]
    if kind == "AdaDelta":
        h = p.momentum * history[0] + (1 - p.momentum) * g**2
        step = g * np.sqrt((history[1] + p.delta) / (h + p.delta))
        return w - rate * step, [h, p.momentum * history[1] + (1 - p.momentum) * step**2]
    m = p.momentum * history[0] + (1 - p.momentum) * g
    v = p.momentum2 * history[1] + (1 - p.momentum2) * g**2
    corrected = rate * np.sqrt(1 - p.momentum2 ** (i + 1)) / (1 - p.momentum ** (i + 1))
    return w - corrected * m / (np.sqrt(v) + p.delta), [m, v]


FIELDS = {
    "SGD": "momentum: 0.9",
    "Nesterov": "momentum: 0.9",
    "AdaGrad": "delta: 1e-4",
    "RMSProp": "delta: 1e-4 rms_decay: 0.95",
    "AdaDelta": "delta: 1e-4 momentum: 0.95",
    "Adam": "delta: 1e-4 momentum: 0.9 momentum2: 0.999",
}


@pytest.mark.parametrize("kind", FIELDS)
def test_updates(kind: str) -> None:
    """Four in a row, for two parameters of different rates at once."""
    param = read_solver(f'{BASE} lr_policy: "fixed" type: "{kind}" {FIELDS[kind]}')
    one, random = rule.make(param, BVLC, "s"), np.random.RandomState(2)
    shapes, rates = [(2, 3, 5), (7,)], [0.02, 0.04]
    weights = [random.randn(*shape) for shape in shapes]
    histories = [[np.zeros(shape) for _ in range(one.histories)] for shape in shapes]
    ours = [torch.tensor(w, dtype=torch.float32) for w in weights]
    kept = [[torch.zeros(shape) for shape in shapes] for _ in range(one.histories)]
    for i in range(4):
        gradients = [random.randn(*shape) for shape in shapes]
        steps = [torch.tensor(g, dtype=torch.float32) for g in gradients]
        one.update(steps, kept, optimizers.Rates(rates, i))
        torch._foreach_sub_(ours, steps)
        for j in range(2):
            weights[j], histories[j] = expected(kind, param, weights[j], gradients[j], histories[j], rates[j], i)
            np.testing.assert_allclose(ours[j], weights[j], rtol=1e-5, atol=1e-6)
            for k, h in enumerate(histories[j]):
                np.testing.assert_allclose(kept[k][j], h, rtol=1e-5, atol=1e-6)


def test_pieces_hold_every_number_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors together, large ones split, and those of other memory layouts separately."""
    monkeypatch.setattr(optimizers, "_PIECE", 12)
    lists = [
        [torch.zeros(2, 3), torch.zeros(5), torch.zeros(5, 7), torch.zeros(3, 5).t(), torch.zeros(1)] for _ in range(2)
    ]
    lists[1][2] = torch.zeros(7, 5).t()
    found = [places for places, _ in optimizers.pieces(*lists)]
    assert found == [[0, 1], [2], [3], [4]]
    lists[1][2] = torch.zeros(5, 7)
    found = []
    for places, parts in optimizers.pieces(*lists):
        found.append([(i, t.numel()) for i, t in zip(places, parts[0], strict=True)])
        for some in parts:
            torch._foreach_add_(some, 1)
    assert found == [[(0, 6), (1, 5)], [(2, 12)], [(2, 12)], [(2, 11)], [(3, 15)], [(4, 1)]]
    assert all(bool((t == 1).all()) for some in lists for t in some)


@pytest.mark.parametrize(
    ("fields", "dialect", "formula"),
    [
        ("weight_decay: 0.1", BVLC, lambda g, w, d: g + d * w),
        ('weight_decay: 0.1 regularization_type: "L1"', BVLC, lambda g, w, d: g + d * np.sign(w)),
        ("weight_decay: 0.1 iter_size: 4", BVLC, lambda g, w, d: g / 4 + d * w),
        ("weight_decay: 0.1 iter_size: 4", NOH, lambda g, w, d: g + d * w),  # the rate is divided later
        ("iter_size: 4", BVLC, lambda g, w, d: g / 4),
        ("", NOH, lambda g, w, d: g),
    ],
    ids=["L2", "L1", "iter_size_bvlc", "iter_size_noh", "iter_size", "nothing"],
)
def test_decay_and_normalisation(fields: str, dialect: Any, formula: Any) -> None:
    param, random = read_solver(BASE + fields), np.random.RandomState(3)
    weights, gradients = ([random.randn(2, 3), random.randn(5)] for _ in range(2))
    decays = [param.weight_decay, 0.0]  # decay_mult 1 and 0
    found = [torch.tensor(g, dtype=torch.float32) for g in gradients]
    optimizers.prepare(param, dialect, [torch.tensor(w, dtype=torch.float32) for w in weights], found, decays)
    for f, g, w, d in zip(found, gradients, weights, decays, strict=True):
        np.testing.assert_allclose(f, formula(g, w, d), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("limit", "scaled"), [(-1, False), (100, False), (2, True)])
def test_clipping_is_of_the_norm_of_all(limit: float, scaled: bool) -> None:
    param, random = read_solver(f"{BASE} clip_gradients: {limit}"), np.random.RandomState(4)
    gradients = [random.randn(4, 3), random.randn(5)]
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    found = [torch.tensor(g, dtype=torch.float32) for g in gradients]
    clipped = optimizers.clip(param, found)
    factor = limit / norm if scaled else 1
    assert clipped == (pytest.approx((norm, factor)) if scaled else None)
    for f, g in zip(found, gradients, strict=True):
        np.testing.assert_allclose(f, factor * g, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "dialect", "message"),
    [
        ('type: "Adams"', BVLC, "did you mean Adam"),
        ('type: "Adam"', NOH, "noh does not have; --dialect bvlc"),
        ('type: "AdaGrad" momentum: 0.9', BVLC, "expected no momentum"),
        ('type: "RMSProp" momentum: 0.9', BVLC, "expected no momentum"),
        ('type: "RMSProp" rms_decay: 1', BVLC, "0 or more and below 1"),
        ('type: "Adam" momentum: 1', BVLC, "a magnitude below 1"),
        ('type: "Adam" momentum2: 1.5', BVLC, "a magnitude of at most 1"),
    ],
)
def test_wrong_type(fields: str, dialect: Any, message: str) -> None:
    with pytest.raises(CaffeError, match=message):
        rule.make(read_solver(BASE + fields), dialect, "s.prototxt")


# -- the solver --------------------------------------------------------------------------------------------------------

NET = """
layer { name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 4 dim: 3 dim: 6 dim: 5 }
  shape { dim: 4 } data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" value: 1 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "z" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "z" top: "z" }
layer { name: "drop" type: "Dropout" bottom: "z" top: "z" }
layer { name: "ip" type: "InnerProduct" bottom: "z" top: "s" inner_product_param { num_output: 3
  weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "s" bottom: "y" top: "loss" }
"""
SETTINGS = 'base_lr: 0.1 lr_policy: "multistep" gamma: 0.5 stepvalue: 2 stepvalue: 5 weight_decay: 0.01 random_seed: 4 '


def fresh(folder: Path, fields: str, **options: Any) -> Solver:
    (folder / "net.prototxt").write_text(NET)
    text = f'net: "{folder}/net.prototxt" snapshot_prefix: "{folder}/s" {SETTINGS} {fields}\n'
    return Solver(text, **options)


def state(solver: Solver) -> list[torch.Tensor]:
    """All that training has moved."""
    blobs = [blob for _, layer in solver.net.nodes for blob in layer.caffe_blobs]
    return [b.detach().clone() for b in blobs] + [h.clone() for histories in solver.state.history for h in histories]


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("kind", FIELDS)
def test_twice_n_is_n_and_n_resumed(kind: str, form: str, tmp_path: Path) -> None:
    fields = f'type: "{kind}" {FIELDS[kind]} iter_size: 2 snapshot_format: {form}'
    whole = fresh(tmp_path, fields)
    whole.step(6)
    half = fresh(tmp_path, fields)
    half.step(3)
    saved = half.snapshot()
    resumed = fresh(tmp_path, fields)
    resumed.restore(saved)
    resumed.step(3)
    assert (resumed.iter, resumed.state.policy.state) == (6, {"current_step": 2})
    for ours, theirs in zip(state(resumed), state(whole), strict=True):
        assert torch.equal(ours, theirs)


def test_a_position_undoes_what_passes_move(tmp_path: Path) -> None:
    one = fresh(tmp_path, "momentum: 0.9")
    one.state.mark()
    one._train_pass()
    one._train_pass()
    one.state.undo()
    one.step(3)
    other = fresh(tmp_path, "momentum: 0.9")
    other.step(3)
    assert all(torch.equal(a, b) for a, b in zip(state(one), state(other), strict=True))


@pytest.mark.parametrize(
    ("options", "bound"),
    [({"precision": "bf16"}, 2e-2), ({"channels_last": True}, 1e-5)],
    ids=["bf16", "channels_last"],
)
def test_other_ways_to_compute_come_close(options: dict[str, Any], bound: float, tmp_path: Path) -> None:
    plain = fresh(tmp_path, "momentum: 0.9")
    plain.step(4)
    other = fresh(tmp_path, "momentum: 0.9", **options)
    other.step(4)
    assert {p.parameter.dtype for p in other.state.learnable} == {torch.float32}
    for mine, theirs in zip(other.state.learnable, plain.state.learnable, strict=True):
        difference = (mine.parameter - theirs.parameter).abs().max() / theirs.parameter.abs().max()
        assert difference < bound or mine.name == "conv.bias"  # of which batch statistics leave rounding alone
    saved = other.snapshot()
    plain.restore(saved)
    assert all(torch.equal(a, b) for a, b in zip(state(plain), state(other), strict=True))
