"""A solver with eval_type: detection against what SSD's own (4817bf8b) prints; average precision by hand."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from reference import EMBEDDED

from caffe_port.detection.precision import average_precision
from caffe_port.errors import CaffeError
from caffe_port.solver import Solver
from caffe_port.solver.log import Log

RECORDED = json.loads((EMBEDDED / "ssd_eval" / "runs.json").read_text())
"""Solvers, their nets, and the log's lines from the first test on."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLOG_minloglevel", "0")
    monkeypatch.chdir(tmp_path)
    for path in (EMBEDDED / "ssd_eval").glob("*.h5"):
        shutil.copy(path, tmp_path)
        path_of = tmp_path / f"{path.stem}.txt"
        path_of.write_text(f"{path.name}\n")
    for name, text in RECORDED["nets"].items():
        (tmp_path / f"{name}_net.prototxt").write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", RECORDED["runs"])
def test_the_log_is_ssds(name: str, place: Path) -> None:
    """Line by line and digit by digit."""
    run = RECORDED["runs"][name]
    solver = Solver(run["solver"], log=Log(io.StringIO()))
    assert solver.dialect.name == "ssd"
    solver.solve()
    assert isinstance(solver.log.file, io.StringIO)
    found = re.findall(r"^([IW])\d{4} [\d:.]+ +\d+ (\w+\.cpp):1\] (.*)", solver.log.file.getvalue(), re.MULTILINE)
    lines = [" ".join(line) for line in found]
    first = next(i for i, line in enumerate(lines) if "Iteration 0, Testing" in line)
    assert lines[first:] == run["log"]


@pytest.mark.parametrize(
    ("line", "says"),
    [("eval_type: 'segmentation'", "eval_type 'segmentation'"), ("ap_version: '12point'", "ap_version '12point'")],
)
def test_unknown_settings(line: str, says: str, place: Path) -> None:
    text = RECORDED["runs"]["good_11point"]["solver"]
    field = line.partition(":")[0]
    with pytest.raises(CaffeError, match=says):
        Solver(re.sub(rf"{field}: .*", line, text), log=Log(io.StringIO()))


def test_an_output_of_another_layer_is_an_error(place: Path) -> None:
    net = place / "good_net.prototxt"
    net.write_text(net.read_text().replace("DetectionEvaluate", "EuclideanLoss").replace('"eval" type', '"e" type'))
    text = RECORDED["runs"]["good_11point"]["solver"]
    net.write_text(re.sub(r'layer \{ name: "e" .*', 'layer { name: "e" type: "Power" bottom: "det" top: "e" }\n'
                          'layer { name: "s" type: "Silence" bottom: "gt" include { phase: TEST } }',
                          net.read_text()).replace('top: "e" }', 'top: "e" include { phase: TEST } }'))  # fmt: skip
    with pytest.raises(CaffeError, match=r"test net output e: expected \(1, 1, n, 5\)"):
        Solver(text, log=Log(io.StringIO())).solve()


# -- by hand -----------------------------------------------------------------------------------------------------------

# scores, which are right, how many there are, and the three average precisions
CASES = [
    # precision 1, 1/2, 2/3 at recalls 1/2, 1/2, 1: of 11 points, six (0 to 0.5) have 1 and five 2/3
    ([0.9, 0.8, 0.7], [1, 0, 1], 2, (6 + 5 * 2 / 3) / 11, 1 / 2 + 1 / 3, 1 / 2 + 1 / 3),
    # the same, given in another order
    ([0.7, 0.9, 0.8], [1, 1, 0], 2, (6 + 5 * 2 / 3) / 11, 1 / 2 + 1 / 3, 1 / 2 + 1 / 3),
    # precision 0, 1/2, 2/3 at recalls 0, 1/3, 2/3: seven points (0 to 0.6) have 2/3, the rest nothing
    ([0.9, 0.8, 0.7], [0, 1, 1], 3, 7 * 2 / 3 / 11, 2 / 3 * 2 / 3, (1 / 2 + 2 / 3) / 3),
    # everything wrong; nothing found; nothing to find
    ([0.9, 0.8], [0, 0], 4, 0, 0, 0),
    ([], [], 3, 0, 0, 0),
    ([0.9], [0], 0, 0, 0, 0),
    # everything right
    ([0.9, 0.8], [1, 1], 2, 1, 1, 1),
    # of equal scores the first counts first: precision 1, 1/2 at recall 1
    ([0.5, 0.5], [1, 0], 1, 1, 1, 1),
    ([0.5, 0.5], [0, 1], 1, 1 / 2, 1 / 2, 1 / 2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_average_precision_by_hand(case: tuple) -> None:
    scores, right, positives, *wanted = case
    found = [
        average_precision(np.array(scores), np.array(right), positives, version)
        for version in ("11point", "MaxIntegral", "Integral")
    ]
    assert found == pytest.approx(wanted, abs=1e-6)
