"""NAME=VALUE in place of a solver's fields: a value of the field's type, or an error with a remedy."""

from __future__ import annotations

import pytest

from caffe_port.errors import DefinitionError
from caffe_port.schema import SCHEMA, parse_text, read_solver

TEXT = 'net: "a.prototxt" base_lr: 1 stepvalue: 7 stepvalue: 9 train_state { stage: "x" }'

GOOD = [
    ("base_lr=0.5", "base_lr: 0.5"),
    ("max_iter = 20", "max_iter: 20"),
    ("stepvalue=1, 2,3", "stepvalue: [1, 2, 3]"),
    ("stepvalue=", ""),
    ("weights=a.caffemodel,b.h5", 'weights: ["a.caffemodel", "b.h5"]'),
    ('net=C:\\"x"', 'net: "C:\\\\\\"x\\""'),
    ("snapshot_diff=true", "snapshot_diff: true"),
    ("solver_mode=CPU", "solver_mode: CPU"),
    ("solver_type=ADAM", 'type: "Adam"'),
    ("train_state.level=4", 'train_state { stage: "x" level: 4 }'),
    ("train_state.stage=a,b", 'train_state { stage: ["a", "b"] }'),
    ("train_state=level: 2", "train_state { level: 2 }"),
    ("test_state=level: 2", "test_state { level: 2 }"),
]


@pytest.mark.parametrize(("setting", "expected"), GOOD, ids=[row[0] for row in GOOD])
def test_a_setting(setting: str, expected: str) -> None:
    changed = read_solver(TEXT, settings=[setting])
    wanted = parse_text(expected, SCHEMA.SolverParameter, "expected")
    names = [field.name for field, _ in wanted.ListFields()] or ["stepvalue"]
    assert all(getattr(changed, name) == getattr(wanted, name) for name in names)
    for name in {"net", "base_lr", "stepvalue", "train_state"} - set(names):
        assert getattr(changed, name) == getattr(read_solver(TEXT), name)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("base_lr", "NAME=VALUE"),
        ("bse_lr=1", "unknown field 'bse_lr' of SolverParameter (near: base_lr)"),
        ("max_iter=soon", "soon"),
        ("display=1.5", "1.5"),
        ("snapshot_diff=yes", '"true" or "false", found yes'),
        ("solver_mode=TPU", "one of CPU, GPU, found TPU"),
        ("train_state.stag=a", "unknown field 'stag' of NetState (near: stage)"),
        ("base_lr.x=1", "base_lr has no fields"),
        ("test_state.level=1", "a message that occurs once"),
    ],
)
def test_a_wrong_setting(setting: str, message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        read_solver(TEXT, settings=[setting])
    assert str(caught.value).startswith(f"--set {setting}: ")
    assert message in str(caught.value)


def test_settings_apply_in_order() -> None:
    assert read_solver(TEXT, settings=["base_lr=2", "base_lr=3"]).base_lr == 3
