"""Layers and nets against the numbers of real Caffe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference import Case, cases

import caffe_port
from caffe_port.tools.compare import FORWARD, compare
from caffe_port.tools.replay import replay

LAYERS = cases("noh_layers", "noh") + cases("bvlc_layers", "bvlc")
CORNERS = cases("noh_corners", "noh") + cases("bvlc_corners", "bvlc")
"""Ties, kinks, states, bounds, negative axes and other corners, each with its "why" in the manifest."""
NOISY = ("mobilenet_ssd_bn_train", "mobilenet_ssd_bn_test")
"""Nets that tests/test_ssd_nets.py compares."""
FORKS = [case for fork in ("segnet", "deeplab2") for suite in (fork, f"{fork}_nets") for case in cases(suite, fork)]
FORKS += [case for suite in ("ssd", "ssd_more", "ssd_nets") for case in cases(suite, "ssd") if case.name not in NOISY]
FORKS += cases("rcnn", "rcnn")
"""The further forks, as far as their numbers are here."""
NETS = cases("noh_nets", "noh")


def wrong(case: Case, *, own_switches: bool = False) -> list[str]:
    """Everything of the case that is not close enough."""
    if case.random_seed is not None:
        caffe_port.set_random_seed(case.random_seed)
    net = caffe_port.Net(case.prototxt, phase=case.phase, dialect=case.dialect)
    compared = replay(net, case.reference, forwards=case.forwards, own_switches=own_switches)
    return [str(c) for c in compared if not c.ok]


DIFFERENT = {
    "segnet/shared_params": "each layer's own diff of a shared parameter; here it is one, their sum",
}
"""Differences on purpose (docs/nets.md)."""


def marked(case: Case):
    why = DIFFERENT.get(str(case))
    return pytest.param(case, marks=pytest.mark.xfail(reason=why) if why else (), id=str(case))


@pytest.mark.parametrize("case", [marked(case) for case in LAYERS + CORNERS + FORKS + NETS])
def test_forward_and_backward(case: Case) -> None:
    assert not wrong(case)


SENSITIVE = {
    *("segnet_nets/segnet_basic_bayesian_deploy", "segnet_nets/segnet_learn_test"),
    *("noh_nets/deconvnet_make_bn_testable", "noh_nets/deconvnet_stage_1"),
}
"""Nets of 20 to 77 such layers of a few channels each, which by default are computed directly: with all of them by
Winograd near ties of max pooling fall the other way, and numbers after them are up to 1.7e-5 off."""


def has_3x3(case: Case) -> bool:
    text = Path(case.prototxt).read_text() if case.prototxt.endswith(".prototxt") else case.prototxt
    return "kernel_size: 3" in text


@pytest.mark.parametrize("setting", ["0", "all"])
@pytest.mark.parametrize("case", [c for c in LAYERS + FORKS + NETS if has_3x3(c) and str(c) not in SENSITIVE], ids=str)
def test_without_winograd_and_with_nothing_else(case: Case, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFFE_PORT_WINOGRAD", setting)
    assert not wrong(case)


@pytest.mark.parametrize("case", [c for c in NETS if c.reference.keys("switch")], ids=str)
def test_forward_strictly_with_the_references_own_switches(case: Case) -> None:
    """Without near ties everything is within the bound."""
    assert not wrong(case, own_switches=True)


@pytest.mark.parametrize("ours", [lambda x: x + 2 * FORWARD, lambda x: x[:-1], lambda x: np.full_like(x, np.nan)])
def test_bounds_can_fail(ours) -> None:
    reference = np.linspace(-1, 1, 5000)
    assert compare("out/x", reference + 0.5 * FORWARD, reference, FORWARD).ok
    assert not compare("out/x", ours(reference), reference, FORWARD).ok
