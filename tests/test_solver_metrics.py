"""A training's outputs besides snapshots: tables, TensorBoard's events, plots, the progress bar."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import builtins
import csv
import io
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
from solver_folder import Solve, at, place, solve  # noqa: F401

from caffe_port.tools.train import main


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def logged(said: str, what: str) -> list[tuple[str, str]]:
    """Each ``name = number`` of net outputs in the log."""
    return re.findall(rf"{what} net output #\d+: (\w+) = (\S+)", said)


def test_tables_hold_the_logs_numbers(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    status, said = solve("--log-dir", "out")
    assert status == 0
    assert "no package tensorboard (pip install tensorboard): only CSV files are written" in said
    train, test = rows("out/train.csv"), rows("out/test.csv")
    assert [*train[0]] == ["NumIters", "Seconds", "LearningRate", "Loss", "loss"]
    assert [row["NumIters"] for row in train] == ["0", "2", "4", "6"]
    assert [row["LearningRate"] for row in train] == ["0.01", "0.01", "0.01", "0.001"]
    assert [row["Loss"] for row in train] == re.findall(r"Iteration \d+ \(.*\), loss = (\S+)", said)
    assert [("loss", row["loss"]) for row in train] == logged(said, "Train")
    assert [*test[0]] == ["NumIters", "Seconds", "accuracy", "loss"]
    assert [row["NumIters"] for row in test] == ["0", "4", "8"]
    assert [(n, row[n]) for row in test for n in ("accuracy", "loss")] == logged(said, "Test")
    seconds = [float(row["Seconds"]) for row in train]
    assert sorted(seconds) == seconds


def test_tables_continue_with_a_resumed_run(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """A stderr that reports to be a terminal."""

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
    assert re.search(r"6/6 \[\d\d:\d\d<\d\d:\d\d, .*loss [\d.]+, rate 0\.001, [\d.]+ images/s\]", text)
    assert re.search(r"^I\d{4} .*\] Iteration 4, lr = 0\.01$", text.replace("\r", "\n"), re.MULTILINE)


def test_no_bar_elsewhere(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **options: Any) -> Any:
        assert name != "tqdm"
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert solve("--set", "max_iter=1")[0] == 0


Lines = dict[str, tuple[list[float], list[float]]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[Lines]]:
    """The lines of every plot: for each of its panels, x and y by label."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    plots: list[list[Lines]] = []
    save = figure.savefig

    def spy(self: Any, *arguments: Any, **options: Any) -> Any:
        plots.append(
            [
                {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.get_lines()}
                for panel in self.axes
            ]
        )
        return save(self, *arguments, **options)

    monkeypatch.setattr(figure, "savefig", spy)
    return plots


def test_a_resumed_plot_has_no_false_step(
    solve: Solve, drawn: list[list[Lines]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at iteration 8, resumed from 6: the lines are those of a run without a break, on all panels."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    more = ["--set", "display=1", "--set", "snapshot=3", "--set", "average_loss=4", "--set", "test_interval=2"]
    assert solve(*more, "--log-dir", "whole", "--plot", "out.png", "--set", "max_iter=11")[0] == 0
    for path in Path().glob("s_iter_*"):
        path.unlink()
    whole, drawn[:] = drawn[-1], []
    assert solve(*more, "--log-dir", "out", "--plot", "out.png", "--set", "max_iter=8")[0] == 0
    for path in Path().glob("s_iter_8*"):
        path.unlink()
    resumed = len(drawn)
    assert solve(*more, "--log-dir", "out", "--plot", "out.png", "--set", "max_iter=11", "--resume")[0] == 0
    for panel, wanted in zip(drawn[-1], whole, strict=True):
        for label, (x, y) in wanted.items():
            assert panel[label][0] == x
            assert panel[label][1] == pytest.approx(y, rel=1e-5)  # tables hold six digits
    for panels in drawn[resumed:]:
        assert [set(panel) for panel in panels] == [set(panel) for panel in whole]
        for x, _ in (line for panel in panels for line in panel.values()):
            assert x == sorted(set(x))
    assert len(whole[0]["loss (train)"][0]) == 11


def test_a_plot_of_a_run_that_is_over_shows_losses_as_losses(solve: Solve, drawn: list[list[Lines]]) -> None:
    """Nothing is displayed any more, so that only the definition tells which outputs are losses."""
    assert solve("--log-dir", "out", "--plot", "out.png", "--set", "test_interval=3")[0] == 0
    assert solve("--log-dir", "out", "--plot", "out.png", "--set", "test_interval=3", "--resume")[0] == 0
    assert [set(panel) for panel in drawn[-1]] == [set(panel) for panel in drawn[-2]]
    assert "loss (test)" in drawn[-1][0]
