"""python -m caffe_port.solver, from its arguments to what it leaves: no error and no signal loses a run."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from solver_folder import JUST_WRITE, Solve, at, place, solve  # noqa: F401

from caffe_port.solver.signals import Signals

# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--snapshot", "a", "--weights", "b"],
            "expected one: a snapshot to resume from, or weights to finetune, found both",
        ),
        (["--snapshot", "a", "--resume"], "not allowed with"),
        (["--snapshot", "s_iter_1.solverstate"], "s_iter_1.solverstate: no such file"),
        (["--weights", "none.caffemodel"], "none.caffemodel"),
        (["--set", "bse_lr=1"], "near: base_lr"),
        (["--set", "snapshot_prefix=nowhere/s"], "no folder nowhere; make the folder"),
        (["--sigint_effect=pause"], "invalid choice"),
        (["--device", "tpu"], "expected cpu, cuda, cuda:N or auto, found tpu"),
        (["--device", "cuda:99"], "GPUs usable by torch"),
        (["--dialect", "noh", "--set", "type=Adam"], "noh does not have"),
        (["--plot", "nowhere/p.png"], "nowhere"),
        (["--sigint_efect=none"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, solve: Solve) -> None:
    for name in "ab":
        Path(name).touch()
    status, said = solve(*arguments)
    assert status == 2
    assert message in said.splitlines()[-1]
    assert not [*Path().glob("s_iter*")]


@pytest.mark.parametrize(
    "spelling",
    [
        ["--sigint-effect", "none", "--keep-going"],
        ["--sigint_effect=none", "--keep_going"],
        ["-sigint_effect=none", "-keep_going"],
        ["-sigint-effect", "none", "-keep-going"],
    ],
)
def test_spellings_of_options(spelling: list[str], solve: Solve) -> None:
    assert solve(*spelling, "-set", "max_iter=1")[0] == 0


def test_it_runs_as_a_module(place: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "caffe_port.solver",
        "solver.prototxt",
        "--set",
        "max_iter=2",
        "--set",
        "display=1",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert "Iteration 1" in done.stderr
    assert done.stderr.endswith("caffe.cpp:1] Optimization Done.\n")


def test_weights_to_start_from(solve: Solve) -> None:
    assert solve("--set", "max_iter=1")[0] == 0
    status, said = solve("--weights", "s_iter_1.caffemodel,s_iter_1.caffemodel", *JUST_WRITE)
    assert status == 0
    assert said.count("] Finetuning from s_iter_1.caffemodel") == 4
    ours, theirs = (Path(f"s_iter_{i}.caffemodel").read_bytes() for i in (0, 1))
    assert ours == theirs


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_resume_logs_its_snapshot(solve: Solve) -> None:
    status, said = solve("--resume", "--set", "max_iter=3")
    assert status == 0
    assert "No complete snapshot s_iter_*: starting from the beginning" in said
    status, said = solve("--resume")
    assert status == 0
    assert "] Resuming from s_iter_3.solverstate" in said
    assert "] SGDSolver: restoring history" in said
    assert Path("s_iter_8.solverstate").exists()


def test_resume_takes_the_newest_whole_one(solve: Solve) -> None:
    solve("--set", "snapshot=2")
    Path("s_iter_8.resume").write_text("{")
    Path("s_iter_6.caffemodel").write_bytes(b"half")
    assert "] Resuming from s_iter_4.solverstate" in solve("--resume")[1]


def test_resume_writes_over_nothing(solve: Solve) -> None:
    """A snapshot of real Caffe has no resume file: continuing from it needs an explicit option."""
    solve("--set", "max_iter=3")
    Path("s_iter_3.resume").unlink()
    before = {path: path.read_bytes() for path in Path().glob("s_iter*")}
    status, said = solve("--resume")
    assert status == 2
    assert "s_iter_3.solverstate: " in said.splitlines()[-1]
    assert {path: path.read_bytes() for path in Path().glob("s_iter*")} == before
    assert solve("--snapshot", "s_iter_3.solverstate")[0] == 0


def whole(solve: Solve) -> bytes:
    """The weights of a run that nothing has stopped; its snapshot is gone."""
    assert solve()[0] == 0
    weights = Path("s_iter_8.caffemodel").read_bytes()
    for path in Path().glob("s_iter*"):
        path.unlink()
    return weights


@pytest.mark.parametrize("harm", ["gone", "not a picture"])
def test_a_picture_that_cannot_be_read(harm: str, solve: Solve) -> None:
    expected, picture = whole(solve), Path("4.png")
    content = picture.read_bytes()
    if harm == "gone":
        picture.unlink()
    else:
        picture.write_bytes(content[:40])
    status, said = solve()
    assert status == 2
    assert "list.txt:5" in said.splitlines()[-1]
    picture.write_bytes(content)
    assert solve("--resume")[0] == 0
    assert Path("s_iter_8.caffemodel").read_bytes() == expected


@pytest.mark.parametrize("iteration", [1, 4, 5])
def test_a_picture_deleted_during_training(iteration: int, solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pictures go at once, so that the next batches fail, also those of a test; the run continues bit for bit."""
    expected = whole(solve)
    away = Path("away")
    away.mkdir()

    def vanish() -> None:
        for picture in Path().glob("*.png"):
            picture.rename(away / picture.name)

    with monkeypatch.context() as patch:
        status, said = solve(*at(iteration, vanish, patch))
    assert status == 2
    state = re.search(r"resume with --snapshot s_iter_(\d)\.solverstate$", said.splitlines()[-1])
    assert state is not None
    assert int(state[1]) in (iteration, iteration + 1)  # a batch may have been read ahead
    for picture in away.iterdir():
        picture.rename(picture.name)
    assert solve("--resume")[0] == 0
    assert Path("s_iter_8.caffemodel").read_bytes() == expected


def test_a_full_disk(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if "x" in mode and "iter_6" in path.name:
            raise OSError(28, "No space left on device")
        return real(path, mode, *more, **options)

    monkeypatch.setattr(Path, "open", full)
    status, said = solve("--set", "snapshot=3")
    assert status == 2
    assert re.search(r"No space left on device; resume with --snapshot s_iter_3\.solverstate$", said.splitlines()[-1])
    assert sorted(p.name for p in Path().glob("*iter*")) == [
        f"s_iter_3.{end}" for end in ("caffemodel", "resume", "solverstate")
    ]


# -- NaN ---------------------------------------------------------------------------------------------------------------

LOG = """
name: "logarithm"
layer { name: "data" type: "DummyData" top: "data" top: "target" dummy_data_param { shape { dim: 4 dim: 3 }
  shape { dim: 4 dim: 2 } data_filler { type: "uniform" min: -0.02 max: 1 } data_filler { type: "gaussian" std: 1 } } }
layer { name: "log" type: "Log" bottom: "data" top: "log" }
layer { name: "ip" type: "InnerProduct" bottom: "log" top: "ip" inner_product_param { num_output: 2
  weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "target" top: "loss" }
"""
DIVERGING = ["--set", "net=log.prototxt", "--set", "test_iter=", "--set", "max_iter=50", "--set", "display=0"]


@pytest.mark.parametrize(("seed", "iteration", "turn"), [(1, 1, 2), (2, 3, 2), (3, 0, 1)])
def test_a_loss_that_is_not_finite(seed: int, iteration: int, turn: int, solve: Solve) -> None:
    """The logarithm of a negative number comes sooner or later; where it came first is named, and nothing is lost."""
    Path("log.prototxt").write_text(LOG)
    status, said = solve(*DIVERGING, "--set", f"random_seed={seed}")
    assert status == 2
    last = said.splitlines()[-1]
    assert f"iteration {iteration}: the loss is nan; " in last
    assert f" nan among 12 in blob log of layer log (Log, log.prototxt:5), pass {turn} of 2; " in last
    if iteration:
        assert last.endswith(f"resume with --snapshot s_iter_{iteration}.solverstate")
        assert solve(*DIVERGING, "--resume")[1].splitlines()[-1] == last
    assert solve(*DIVERGING, "--set", f"random_seed={seed}", "--keep-going")[0] == 0


def test_parameters_that_are_not_finite_are_not_written(solve: Solve) -> None:
    status, said = solve("--set", "base_lr=1e38", "--set", "snapshot=1", "--set", "test_iter=")
    assert status == 2
    assert re.search(r"(inf|nan) among \d+ in (parameter|blob) \w+ of layer", said)
    for path in Path().glob("*.caffemodel"):
        assert solve("--weights", str(path), *JUST_WRITE)[0] == 0


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "options", "stops", "snapshots"),
    [
        (signal.SIGINT, [], True, [3]),
        (signal.SIGHUP, [], False, [3, 8]),
        (signal.SIGTERM, [], True, [3]),
        (signal.SIGINT, ["--sigint_effect=snapshot"], False, [3, 8]),
        (signal.SIGINT, ["--sigint_effect=none"], False, [8]),
        (signal.SIGHUP, ["--sighup_effect=stop"], True, [3]),
        (signal.SIGINT, ["--set", "snapshot_after_train=false"], True, [3]),
    ],
)
def test_signals(
    number: signal.Signals,
    options: list[str],
    stops: bool,
    snapshots: list[int],
    solve: Solve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, said = solve(*at(3, lambda: signal.raise_signal(number), monkeypatch), *options)
    assert status == 0
    assert ("] Optimization stopped early." in said) == stops
    assert sorted(int(p.stem.split("_")[2]) for p in Path().glob("s_iter_*.resume")) == snapshots


def test_a_second_signal_stops_at_once(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    status, said = solve(*at(3, twice, monkeypatch))
    assert status == 130
    assert said.endswith("interrupted\n")
    assert not [*Path().glob("s_iter*")]


def test_stopped_and_resumed_is_never_stopped(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole(solve)
    with monkeypatch.context() as patch:
        solve(*at(5, lambda: signal.raise_signal(signal.SIGINT), patch))
    assert solve("--resume")[0] == 0
    assert Path("s_iter_8.caffemodel").read_bytes() == expected


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with Signals() as signals:
        assert signals.requested() == "none"
        signal.raise_signal(signal.SIGHUP)
        assert [signals.requested(), signals.requested()] == ["snapshot", "none"]
    assert signal.getsignal(signal.SIGHUP) == before
