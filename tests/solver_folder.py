"""A folder with a net, its pictures and a solver, and the command run in it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from caffe_port.solver.callbacks import Iteration
from caffe_port.solver.metrics import Metrics
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
    """Runs the command; returns its status and its stderr."""

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

    def record(metrics: Metrics, solver: Solver, done: Iteration) -> None:
        if solver.iter == iteration and left:
            left.pop()()

    monkeypatch.setattr(Metrics, "on_iteration", record)
    return ["--log-dir", "heard"]
