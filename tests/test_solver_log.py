"""The log's lines are those that the two real programs wrote for the same training, number by number.

``tests/reference/solver_logs`` holds two trainings (rates in steps, clipping, several passes an iteration, tests with
their loss, ``debug_info``) and what real Caffe said of them, without times.
"""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
from reference import EMBEDDED

from caffe_port import console
from caffe_port.solver import Solver
from caffe_port.solver.log import Log

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
