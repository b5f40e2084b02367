"""python -m caffe_port.solver, from its arguments to what it leaves: no error and no signal loses a run."""

from __future__ import annotations

import builtins
import csv
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from caffe_port.solver.callbacks import Iteration
from caffe_port.solver.metrics import Records
from caffe_port.solver.signals import Signals
from caffe_port.solver.solver import Solver
from caffe_port.tools.train import main

NET = """
name: "pictures"
layer { name: "data" type: "ImageData" top: "data" top: "label" image_data_param { source: "list.txt" batch_size: 2
  shuffle: true new_height: 8 new_width: 9 } transform_param { mirror: true crop_size: 6 scale: 0.01 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 3 kernel_size: 3
  weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.01 lr_policy: "step" gamma: 0.1 stepsize: 5 momentum: 0.9 random_seed: 3 iter_size: 2
max_iter: 8 display: 2 test_iter: 2 test_interval: 4 snapshot: 100 snapshot_prefix: "s"
"""
PICTURES = 10
JUST_WRITE = ["--set", "max_iter=0", "--set", "snapshot=0"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to train in, which is where we are; signals are as before in the end."""
    random = np.random.RandomState(0)
    for i in range(PICTURES):
        cv2.imwrite(str(tmp_path / f"{i}.png"), random.randint(0, 255, (8, 9, 3), np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i % 3}\n" for i in range(PICTURES)))
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOG_minloglevel", "0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def solve(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command: its status and what it said on stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["solver.prototxt", *arguments])
        return int(end.value.code or 0), capsys.readouterr().err

    return run


Solve = Callable[..., tuple[int, str]]


def at(iteration: int, does: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments with which ``does`` is called once, when so many iterations are done."""
    left = [does]

    def hear(records: Records, solver: Solver, done: Iteration) -> None:
        if solver.iter == iteration and left:
            left.pop()()

    monkeypatch.setattr(Records, "on_iteration", hear)
    return ["--log-dir", "heard"]


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--snapshot", "a", "--weights", "b"],
            "expected a snapshot to resume from, or weights to finetune, found both",
        ),
        (["--snapshot", "a", "--resume"], "not allowed with"),
        (["--snapshot", "s_iter_1.solverstate"], "s_iter_1.solverstate: no such file"),
        (["--weights", "none.caffemodel"], "none.caffemodel"),
        (["--set", "bse_lr=1"], "near: base_lr"),
        (["--set", "snapshot_prefix=nowhere/s"], "no folder nowhere; make the folder"),
        (["--sigint_effect=pause"], "invalid choice"),
        (["--device", "tpu"], "expected cpu, cuda, cuda:N or auto, found tpu"),
        (["--device", "cuda:99"], "GPUs that torch can use"),
        (["--dialect", "noh", "--set", "type=Adam"], "noh does not have"),
        (["--plot", "nowhere/p.png"], "nowhere"),
        (["--sigint_efect=none"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, solve: Solve) -> None:
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
def test_options_are_spelled_as_anyone_likes(spelling: list[str], solve: Solve) -> None:
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


# -- going on ----------------------------------------------------------------------------------------------------------


def test_resume_says_where_from(solve: Solve) -> None:
    status, said = solve("--resume", "--set", "max_iter=3")
    assert status == 0
    assert "No whole snapshot s_iter_*: starting anew" in said
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
    """A snapshot of real Caffe has no resume file: whether to go on from it is for its owner to say."""
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
def test_a_picture_that_vanishes_in_the_midst(iteration: int, solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pictures go at once, so that the next batches fail, also those of a test; the run goes on bit for bit."""
    expected = whole(solve)
    away = Path("away")
    away.mkdir()

    def vanish() -> None:
        for picture in Path().glob("*.png"):
            picture.rename(away / picture.name)

    with monkeypatch.context() as patch:
        status, said = solve(*at(iteration, vanish, patch))
    assert status == 2
    state = re.search(r"go on with --snapshot s_iter_(\d)\.solverstate$", said.splitlines()[-1])
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
    assert re.search(r"No space left on device; go on with --snapshot s_iter_3\.solverstate$", said.splitlines()[-1])
    assert sorted(p.name for p in Path().glob("*iter*")) == [
        f"s_iter_3.{end}" for end in ("caffemodel", "resume", "solverstate")
    ]


# -- numbers that are none ---------------------------------------------------------------------------------------------

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
def test_a_loss_that_is_no_number(seed: int, iteration: int, turn: int, solve: Solve) -> None:
    """The logarithm of a negative number comes sooner or later; where it came first is named, and nothing is lost."""
    Path("log.prototxt").write_text(LOG)
    status, said = solve(*DIVERGING, "--set", f"random_seed={seed}")
    assert status == 2
    last = said.splitlines()[-1]
    assert f"iteration {iteration}: the loss is nan; " in last
    assert f" nan among 12 in blob log of layer log (Log, log.prototxt:5), pass {turn} of 2; " in last
    if iteration:
        assert last.endswith(f"go on with --snapshot s_iter_{iteration}.solverstate")
        assert solve(*DIVERGING, "--resume")[1].splitlines()[-1] == last
    assert solve(*DIVERGING, "--set", f"random_seed={seed}", "--keep-going")[0] == 0


def test_parameters_that_are_no_numbers_are_not_written(solve: Solve) -> None:
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


# -- tables, pictures, the bar -----------------------------------------------------------------------------------------


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def told(said: str, what: str) -> list[tuple[str, str]]:
    """Each ``name = number`` that the log tells of net outputs."""
    return re.findall(rf"{what} net output #\d+: (\w+) = (\S+)", said)


def test_tables_hold_what_the_log_says(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    status, said = solve("--log-dir", "out")
    assert status == 0
    assert "no tensorboard package here (pip install tensorboard): CSV files only" in said
    train, test = rows("out/train.csv"), rows("out/test.csv")
    assert [*train[0]] == ["NumIters", "Seconds", "LearningRate", "Loss", "loss"]
    assert [row["NumIters"] for row in train] == ["0", "2", "4", "6"]
    assert [row["LearningRate"] for row in train] == ["0.01", "0.01", "0.01", "0.001"]
    assert [row["Loss"] for row in train] == re.findall(r"Iteration \d+ \(.*\), loss = (\S+)", said)
    assert [("loss", row["loss"]) for row in train] == told(said, "Train")
    assert [*test[0]] == ["NumIters", "Seconds", "accuracy", "loss"]
    assert [row["NumIters"] for row in test] == ["0", "4", "8"]
    assert [(n, row[n]) for row in test for n in ("accuracy", "loss")] == told(said, "Test")
    seconds = [float(row["Seconds"]) for row in train]
    assert sorted(seconds) == seconds


def test_tables_go_on_with_a_run(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    solve("--log-dir", "out", "--set", "snapshot=5")
    whole = rows("out/train.csv"), rows("out/test.csv")
    for path in Path().glob("s_iter_8*"):
        path.unlink()
    solve("--log-dir", "out", "--resume")
    again = rows("out/train.csv"), rows("out/test.csv")
    for ours, theirs in zip(again, whole, strict=True):
        assert [{**row, "Seconds": ""} for row in ours] == [{**row, "Seconds": ""} for row in theirs]
        assert sorted(float(row["Seconds"]) for row in ours) == [float(row["Seconds"]) for row in ours]
    solve("--log-dir", "out", "--set", "max_iter=1")
    assert len(rows("out/train.csv")) == 1
    assert len(rows("out/train.csv.old")) == 4


def test_events_for_tensorboard(solve: Solve) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert solve("--log-dir", "out")[0] == 0
    found = events.EventAccumulator("out").Reload()
    assert {"train/Loss", "train/LearningRate", "train/loss", "test/accuracy", "test/loss"} <= {
        *found.Tags()["scalars"]
    }
    assert [e.step for e in found.Scalars("train/Loss")] == [0, 2, 4, 6]


def test_a_plot(solve: Solve) -> None:
    pytest.importorskip("matplotlib")
    status, _ = solve("--plot", "out.png")
    assert status == 0
    picture = cv2.imread("out.png")
    assert picture is not None
    assert picture.shape[:2] == (960, 900)
    assert 0.5 < (picture == 255).mean() < 0.99


def test_a_plot_without_matplotlib(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, said = solve("--plot", "out.png")
    assert status == 2
    assert "no matplotlib here; pip install matplotlib" in said.splitlines()[-1]


class Terminal(io.StringIO):
    """A stderr that says it is one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(SystemExit) as end:
        main(["solver.prototxt", "--set", "max_iter=6"])
    assert not end.value.code
    text = terminal.getvalue()
    assert re.search(r"6/6 \[\d\d:\d\d<\d\d:\d\d, .*loss [\d.]+, rate 0\.001, \d+ images/s\]", text)
    assert re.search(r"^I\d{4} .*\] Iteration 4, lr = 0\.01$", text.replace("\r", "\n"), re.MULTILINE)


def test_no_bar_elsewhere(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **options: Any) -> Any:
        assert name != "tqdm"
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert solve("--set", "max_iter=1")[0] == 0
