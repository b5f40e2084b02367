"""``make oracle`` runs the suites in another Caffe; here in a module named caffe that is ours."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from reference import EMBEDDED, Case, cases

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import oracle  # noqa: E402


@pytest.fixture
def caffe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "caffe.py").write_text("from caffe_port import TEST, TRAIN, Net, set_mode_cpu\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")


def only(*names: str) -> list[Case]:
    return [case for case in cases("bvlc_layers", "bvlc") if case.name in names]


def test_known_and_unexpected(caffe: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    some = only("absval", "batchnorm_train", "clip")
    others = EMBEDDED / "bvlc_layers" / "power_frac.npz"  # inputs of the same shape, numbers of another layer
    some.append(Case("bvlc_layers", "power_linear", only("power_linear")[0].prototxt, others, "TRAIN", "bvlc"))
    monkeypatch.setattr(oracle, "cases", lambda *_: some)
    assert oracle.main(["--python", sys.executable, "--suite", "bvlc_layers"]) == 1
    text = capfd.readouterr().out
    assert "bvlc_layers: 4 cases" in text
    assert "batchnorm_train: equal (BatchNorm normalises" in text  # listed as known, and not so here
    assert "clip: equal (there is no Clip)" in text
    assert re.search(r"power_linear: (out/y|diff/x) is \S+ from stored \(UNEXPECTED\)", text)
    assert "1 within bounds, 3 not" in text


def test_a_case_that_fails(caffe: None, tmp_path: Path) -> None:
    case = Case("s", "bad", "layer { name: 'x' type: 'Nothing' }\n", only("absval")[0].npz, "TRAIN", "bvlc")
    log = oracle.run([case, *only("absval")], sys.executable, tmp_path)
    assert "Nothing" in log["bad"]
    assert log["absval"] == ""
    assert {"out/y", "diff/x"} <= set(np.load(tmp_path / "absval.npz").files)
