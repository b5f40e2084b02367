"""Hostile files end in one line. A few seconds for each reader; ``make fuzz`` runs many more."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from random import Random

import pytest
from fuzzing import READERS, Reader, check, load, run, write_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caffe_port.errors import CaffeError, FormatError

load()
EXAMPLES = 60


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_hostile_files_end_in_one_line(name: str, rng: Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(READERS[name], write_case(READERS[name], rng, Path(folder))[0])


def _bomb(path: Path) -> None:
    what = path.read_text()
    if what == "type":
        raise TypeError("no")
    if what == "lines":
        raise FormatError("x", "two\nlines")
    if what == "refused":
        raise CaffeError("x", "no")


@pytest.mark.parametrize(
    ("content", "raises"), [("type", TypeError), ("refused", None), ("accepted", None), ("lines", None)]
)
def test_the_engine_distinguishes_faults_from_errors(content: str, raises: type | None, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(content)
    reader = Reader("bomb", _bomb, lambda rng, folder: path)
    if raises:
        with pytest.raises(raises):
            check(reader, path)
    else:
        assert bool(check(reader, path)) == (content != "accepted")


CHILD = """
import mmap, os, sys
sys.path[:0] = {path!r}
import fuzzing
def read(path):
    number = int(path.read_text())
    if number == 1: raise TypeError("one")
    if number == 2: os.abort()
    if number == 3:
        while True: pass
    if number == 4: mmap.mmap(-1, 1_200_000_000)
    if number == 5: bytearray(40_000_000_000)
numbers = iter([0, *range(int(sys.argv[3]), 100)])
def make(rng, folder):
    (folder / "x").write_text(str(next(numbers)))
    return folder / "x"
fuzzing.register(fuzzing.Reader("child", read, make, damage=False))
fuzzing.SECONDS = 1
fuzzing.main(sys.argv[1:])
"""


def test_the_engine_counts_crashes_memory_and_time(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    here = Path(__file__).resolve().parent
    script.write_text(CHILD.format(path=[str(here), str(here.parent)]))
    report = run("child", 7, 1, [sys.executable, str(script)], say=lambda line: None)
    assert (report.cases, report.structured, report.accepted) == (7, 6, 2)
    faults = dict(report.faults)
    assert set(faults) == {1, 2, 3, 4, 5}
    assert "TypeError: one" in faults[1]
    assert "status -6" in faults[2]
    assert "more than 1 s" in faults[3]
    assert "1.2 GB" in faults[4]
    assert "MemoryError" in faults[5]
