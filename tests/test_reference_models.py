"""Trained models of other people against the values that BVLC Caffe has for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from reference import SHARED, needs_shared

import caffe_port
from caffe_port.tools.replay import Reference, replay

MODELS = sorted(path.parent for path in SHARED.glob("models/*/expected.npz"))


@needs_shared("models")
@pytest.mark.parametrize("model", MODELS or [Path("none")], ids=lambda path: path.name)
def test_model(model: Path) -> None:
    (weights,) = model.glob("weights.*")
    net = caffe_port.Net(
        model / "net.prototxt", caffe_port.TEST, weights=weights, dialect="ssd" if model.name == "res10_ssd" else "bvlc"
    )
    account = net.accounts[0]
    assert account.copied
    assert not account.missing
    assert not account.mismatched
    assert [str(c) for c in replay(net, Reference(model / "expected.npz")) if not c.ok] == []
