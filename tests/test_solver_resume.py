"""A run that is killed and resumed is the run that was never killed, bit for bit."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from killing import NETS, SOLVER, NumbersLog, train, write_nets_and_data
from trainer import ENDS, Trainer, same, same_files

import caffe_port
from caffe_port.errors import CaffeError, FileError, FormatError, WeightsError
from caffe_port.formats.solverstate import read_solverstate, write_solverstate
from caffe_port.random import CRand, c_rand
from caffe_port.solver import Solver, snapshot


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    one = Trainer(tmp_path_factory.mktemp("killing"))
    for net in NETS:
        assert not one.train(net, f"whole_{net}")
    yield one
    one.end()


@pytest.mark.parametrize("net", NETS)
def test_killed_at_random_moments(net: str, trainer: Trainer) -> None:
    moments, kills, begun = Random(8), 0, time.monotonic()
    trainer.train(net, f"timed_{net}")
    whole = time.monotonic() - begun
    while kills < 10:
        folder = f"kil{kills:02d}_{net}"
        while kills < 10 and trainer.train(net, folder, {"after": moments.uniform(0, 0.8 * whole)}):
            kills += 1
        trainer.train(net, folder)
        same(trainer.place, folder, f"whole_{net}")


@pytest.mark.parametrize("net", NETS)
def test_a_finished_run_continues(net: str, trainer: Trainer) -> None:
    """Its last snapshot lies off the interval, and the fork numbers that one too high."""
    trainer.train(net, f"ended_{net}", iterations=5)
    trainer.train(net, f"ended_{net}")
    same_files(trainer.place, f"ended_{net}", f"whole_{net}")


@pytest.mark.parametrize("before", ["", "old"], ids=["new", "over_another_run's"])
def test_killed_at_every_step_of_a_snapshot(before: str, trainer: Trainer) -> None:
    """Before each file that is opened, renamed or removed."""
    place, event, killed = trainer.place, 0, True
    trainer.train("noh", "whole6_noh", iterations=6)
    whole = {end: (place / "whole6_noh" / f"snap_iter_4{end}").read_bytes() for end in ENDS}
    while killed:
        event += 1
        folder = place / f"cut{before}_{event:0{6 - len(before)}}"
        if before:
            trainer.train("noh", folder.name, iterations=4, seed=6)
            (folder / "diary").unlink()
        earlier = contents(folder)
        killed = trainer.train("noh", folder.name, {"event": event, "of": 4}, iterations=6, anew=True)
        left = contents(folder)
        assert left in ({}, earlier) or left == {
            k: v.replace(b"whole6_noh", folder.name.encode()) for k, v in whole.items()
        }
        assert not trainer.train("noh", folder.name, iterations=6)
        same(place, folder.name, "whole6_noh", 6)
        assert not [path.name for path in folder.glob(".*")]
    assert event > 8


def contents(folder: Path) -> dict[str, bytes]:
    """The snapshot of iteration 4 as far as it would be accepted: none of it, or all."""
    files = {end: folder / f"snap_iter_4{end}" for end in ENDS}
    resume = folder / "snap_iter_4.resume"
    if not resume.exists():
        assert not files[".solverstate"].exists(), "a state without a resume file counts as real Caffe's"
        return {}
    found = {end: path.read_bytes() for end, path in files.items() if path.exists()}
    sums = {files[end].name: blake2b(content).hexdigest() for end, content in found.items()}
    return found if sums == json.loads(resume.read_text())["files"] else {}


# -- what is refused, by name ------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run's snapshots at 2 and 4."""
    monkeypatch.chdir(tmp_path)
    write_nets_and_data(tmp_path)
    train("noh", Path("run"), 4)
    return Path("run")


def fresh(**changes: Any) -> Solver:
    """A solver as in a process of its own, where rand() starts from the same number."""
    c_rand().set_state(CRand().get_state())
    return Solver(
        SOLVER.format(**{"net": "noh", "folder": "run", "iterations": 6, "seed": 5} | changes), log=NumbersLog("log")
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
@pytest.mark.parametrize("end", [".caffemodel", ".solverstate"])
def test_a_damaged_snapshot_is_refused_and_another_offered(harm: Callable[[Path], Any], end: str, run: Path) -> None:
    hurt = run / f"snap_iter_4{end}"
    harm(hurt)
    assert snapshot.latest(run / "snap") == run / "snap_iter_2.solverstate"
    with pytest.raises(FormatError, match=rf"{hurt}: .*the last whole snapshot is {run}/snap_iter_2.solverstate"):
        fresh().restore(run / "snap_iter_4.solverstate")
    harm(run / f"snap_iter_2{end}")
    assert snapshot.latest(run / "snap") is None
    with pytest.raises(FormatError, match=rf"^{hurt}: (?!.*the last whole)"):
        fresh().restore(run / "snap_iter_4.solverstate")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"iter": 4, "written": 0, "files": [], "positions": []}', "\0"])
def test_a_damaged_resume_file_is_refused(text: str, run: Path) -> None:
    (run / "snap_iter_4.resume").write_text(text)
    assert snapshot.latest(run / "snap") == run / "snap_iter_2.solverstate"
    with pytest.raises(FormatError, match=r"snap_iter_4.resume: .*resume file"):
        fresh().restore(run / "snap_iter_4.solverstate")


@pytest.mark.parametrize("gone", [True, False], ids=["deleted_first", "replaced"])
def test_a_resume_file_of_a_snapshot_that_another_program_replaced_is_set_aside(gone: bool, run: Path) -> None:
    """Real Caffe's files of the same name; here those of iteration 2, as if it had written them."""
    if gone:
        for end in ENDS:
            (run / f"snap_iter_4{end}").unlink()
    weights = (run / "snap_iter_2.caffemodel").read_bytes()
    state = (run / "snap_iter_2.solverstate").read_bytes().replace(b"snap_iter_2", b"snap_iter_4")
    (run / "snap_iter_4.caffemodel").write_bytes(weights)
    (run / "snap_iter_4.solverstate").write_bytes(state)
    solver = fresh()
    lines = listen(solver)
    solver.restore(run / "snap_iter_4.solverstate")
    assert solver.iter == 2
    assert lines[0] == (
        "snap_iter_4.resume belongs to another snapshot: no exact resume, "
        "data and random numbers start from the beginning"
    )
    assert np.array_equal(
        solver.net.params["conv"][0].data,
        caffe_port.Net("noh.prototxt", run / "snap_iter_2.caffemodel").params["conv"][0].data,
    )
    assert snapshot.latest(run / "snap") == run / "snap_iter_2.solverstate"


def test_a_resume_file_of_the_other_format_is_set_aside(run: Path) -> None:
    """A state in HDF5 beside a binary snapshot of the same iteration."""
    state = read_solverstate(run / "snap_iter_4.solverstate")
    write_solverstate(run / "snap_iter_4.solverstate.h5", state, legacy=True)
    solver = fresh()
    lines = listen(solver)
    solver.restore(run / "snap_iter_4.solverstate.h5")
    assert solver.iter == 4
    assert "no exact resume" in lines[0]


def listen(solver: Solver) -> list[str]:
    """The lines that the solver logs from now on."""
    lines: list[str] = []
    solver.log.line = lambda text, *_, **__: lines.append(text)  # type: ignore[method-assign]
    return lines


def pycaffe_solver(**changes: Any) -> caffe_port.SGDSolver:
    text = SOLVER.format(**{"net": "noh", "folder": "run", "iterations": 6, "seed": 5} | changes)
    return caffe_port.SGDSolver(text, log=NumbersLog("log"))


def test_solvers_of_pycaffe_write_a_resume_file_where_asked(run: Path) -> None:
    solver = pycaffe_solver()
    before = {path.name for path in run.iterdir()}
    solver.step(1)
    solver.snapshot()
    assert {path.name for path in run.iterdir()} - before == {"snap_iter_1.caffemodel", "snap_iter_1.solverstate"}
    solver.snapshot(resume=True)
    assert (run / "snap_iter_1.resume").exists()
    assert snapshot.latest(run / "snap") == run / "snap_iter_1.solverstate"
    other = pycaffe_solver()
    other.restore(run / "snap_iter_1.solverstate")
    assert other.state.facts() == solver.state.facts()


def test_a_snapshot_without_a_resume_file_replaces_one_with(run: Path) -> None:
    solver = pycaffe_solver()
    solver.step(4)  # at 2 and 4 it writes over the run's
    assert not list(run.glob("*.resume"))
    again = pycaffe_solver()
    again.restore(run / "snap_iter_4.solverstate")
    assert again.iter == 4


def test_changed_data_are_noticed(run: Path) -> None:
    with Path("masks.txt").open("a") as file:
        file.write("0.png 0_mask.png\n")
    message = r"snap_iter_4.resume: .*pictures.*7 shuffled items.*start from the beginning, as in Caffe"
    with pytest.raises(CaffeError, match=message):
        fresh().restore(run / "snap_iter_4.solverstate")
    (run / "snap_iter_4.resume").unlink()
    solver = fresh()
    solver.restore(run / "snap_iter_4.solverstate")
    assert solver.iter == 4


def test_another_net_is_noticed(run: Path) -> None:
    Path("less.prototxt").write_text(re.sub(r'layers {\n  name: "norm".*\n.*\n}\n', "", NETS["noh"]))
    with pytest.raises(WeightsError, match=r"expected 4 \(SGD, 4 parameters\), found 6 histories"):
        fresh(net="less").restore(run / "snap_iter_4.solverstate")


def test_a_full_disk_leaves_the_earlier_snapshot(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in run.iterdir()}
    solver = fresh()
    solver.restore(run / "snap_iter_4.solverstate")

    def full(*_: Any, **__: Any) -> None:
        raise FileError("here", "cannot be written: No space left on device")

    monkeypatch.setattr(snapshot, "write_solverstate", full)
    with pytest.raises(FileError, match="No space left"):
        solver.snapshot()
    assert {path: path.read_bytes() for path in run.iterdir()} == before


# -- snapshots between the lines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("answers", "at"), [(1, 0), (6, 3)])
def test_a_snapshot_asked_for_during_a_test_resumes_before_it(net: str, answers: int, at: int, run: Path) -> None:
    """Signals may come at any time; a test has then moved data and random numbers on, and will be repeated."""
    for folder in ("whole", "asked"):
        Path(folder).mkdir()
    fresh(net=net, folder="whole").solve()
    solver = fresh(net=net, folder="asked")
    given = iter(["none"] * answers + ["snapshot", "stop"])
    solver.requested = lambda: next(given, "none")
    solver.solve()
    assert (solver.iter, solver.stopped) == (at, True)
    solver = fresh(net=net, folder="asked")
    solver.restore(f"asked/snap_iter_{at}.solverstate")
    solver.solve()
    for end in ENDS:
        state, expected = (Path(folder, f"snap_iter_6{end}").read_bytes() for folder in ("asked", "whole"))
        assert state.replace(b"asked", b"whole") == expected


def test_snapshots_are_of_one_prefix(run: Path) -> None:
    """What else begins like it is another's."""
    for name in ("snap_iter_9x", "snap_iter_", "snap_more_iter_9", "other_iter_9"):
        (run / f"{name}.resume").write_bytes((run / "snap_iter_2.resume").read_bytes())
    assert snapshot.latest(run / "snap") == run / "snap_iter_4.solverstate"
    assert snapshot.latest(run / "snap_iter_2.caffemodel") == run / "snap_iter_4.solverstate"
    assert snapshot.latest(run / "none") is None
