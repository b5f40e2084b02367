"""The log's lines are those that the two real programs wrote for the same training, number by number.

``tests/reference/solver_logs`` holds two trainings (rates in steps, clipping, several passes an iteration, tests with
their loss, ``debug_info``) and what real Caffe said of them, without times.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reference import EMBEDDED

from caffe_port import console
from caffe_port.solver import Solver
from caffe_port.solver.log import Log
from caffe_port.solver.scores import Scores

LOGS = EMBEDDED / "solver_logs"
PREFIX = re.compile(r"([IE])\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \w+\.cpp:\d+\] (.*)")
SPEED = re.compile(r" \([-+.e\d]+ iter/s, [-+.e\d]+s/\d+ iters\)")
NUMBER = re.compile(r"(?<![\w#])-?\d+(?:\.\d+)?(?:e[-+]\d+)?(?!\w)")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setenv("GLOG_minloglevel", "0")
    return Log(io.StringIO())


def lines(log: Log) -> list[str]:
    """What was logged: severity and text, without the speed."""
    assert isinstance(log.file, io.StringIO)
    text = log.file.getvalue().splitlines()
    found = [PREFIX.fullmatch(line) for line in text[next(i for i, t in enumerate(text) if "] Solving " in t) :]]
    return [f"{m[1]} {SPEED.sub('', m[2])}" for m in found if m]


@pytest.mark.parametrize("dialect", ["bvlc", "noh"])
def test_lines_are_those_of_real_caffe(dialect: str, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(LOGS, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Solver(f"{dialect}.prototxt", dialect=dialect, log=log).solve()
    ours = lines(log)
    theirs = (LOGS / f"{dialect}.log").read_text().splitlines()[:-1]  # the last one is the command's
    assert [NUMBER.sub("N", line) for line in ours] == [NUMBER.sub("N", line) for line in theirs]
    for mine, line in zip(ours, theirs, strict=True):
        numbers = [[float(n) for n in NUMBER.findall(one)] for one in (mine, line)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4, abs=1e-7), line


def test_a_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes write to one stderr: a line and its end in two writes would mix."""
    written: list[str] = []
    stream = io.StringIO()
    monkeypatch.setattr(stream, "write", written.append)
    monkeypatch.setenv("GLOG_minloglevel", "0")
    Log(stream).line("one")
    monkeypatch.setattr("sys.stderr", stream)
    console.info("two")
    assert [text[-4:] for text in written] == ["one\n", "two\n"]


def test_the_speed_of_bvlc(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(LOGS, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Solver("bvlc.prototxt", dialect="bvlc", log=log).solve()
    assert isinstance(log.file, io.StringIO)
    assert len(SPEED.findall(log.file.getvalue())) == 3


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.1, "0.1"),
        (2.029658, "2.02966"),
        (1e-4, "0.0001"),
        (1.5e-5, "1.5e-05"),
        (123456.0, "123456"),
        (1234567.0, "1.23457e+06"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_are_as_streams_write_them(number: float, text: str) -> None:
    assert Log.number(number) == text


def test_silenced_as_glog_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOG_minloglevel", "1")
    silent = Log(io.StringIO())
    silent.line("nothing")
    assert isinstance(silent.file, io.StringIO)
    assert not silent.file.getvalue()


@pytest.mark.parametrize(
    ("x", "form", "text"),
    [
        (-0.0, "g", "0"),
        (0.0, "g", "0"),
        (-0.001, ".2f", "0.00"),
        (-0.01, ".2f", "-0.01"),
        (-1e-9, "g", "-1e-09"),
        (-0.0, ".1e", "0.0e+00"),
        (float("nan"), "g", "nan"),
        (float("-inf"), "g", "-inf"),
    ],
)
def test_a_zero_has_no_sign(x: float, form: str, text: str) -> None:
    assert console.number(x, form) == text


def test_the_log_prints_no_negative_zero(log: Log) -> None:
    log.loss(-0, -0.0, speed=(-0.0, 0.0, 1))
    log.rate(0, -0.0)
    log.scores("Train", [Scores("loss", -1.0, 0.0), Scores("sum", 0.0, -0.0)])
    assert isinstance(log.file, io.StringIO)
    assert not re.search(r"-0(?![\d.])", log.file.getvalue())


TELLS = """
import sys
from caffe_port.console import info
from caffe_port.solver.log import Log
for i in range(300):
    Log().line("x" * 900 + sys.argv[1])
    info("y" * 900 + sys.argv[1])
"""


def test_lines_of_several_processes_stay_apart(tmp_path: Path) -> None:
    """Three processes write into one file at the same time, as torchrun has them."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "GLOG_minloglevel": "0"}
    with (tmp_path / "log").open("ab") as file:
        running = [
            subprocess.Popen([sys.executable, "-c", TELLS, str(i)], stderr=file, env=environment) for i in range(3)
        ]
        assert [process.wait(100) for process in running] == [0, 0, 0]
    written = (tmp_path / "log").read_text().splitlines()
    assert len(written) == 3 * 600
    assert all(re.fullmatch(r"I\d{4} .*\] x{900}[012]|y{900}[012]", line) for line in written)
