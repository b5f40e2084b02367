"""caffe-port: Caffe's own command with Caffe's flags and outputs, and the entry point of the other commands."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import EMBEDDED

from caffe_port.tools import caffe

SOLVERS = EMBEDDED / "bvlc_solvers"
NET = """
name: "small"
layer { name: "data" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "list.txt" batch_size: 6 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "frozen" type: "InnerProduct" bottom: "pool" top: "h" inner_product_param { num_output: 10 } }
layer { name: "tanh" type: "TanH" bottom: "h" top: "h" }
layer { name: "score" type: "InnerProduct" bottom: "h" top: "score" inner_product_param { num_output: 5 } }
layer { name: "acc" type: "Accuracy" bottom: "score" bottom: "label" top: "acc" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" loss_weight: 2 }
layer { name: "staged" type: "Power" bottom: "score" top: "staged" include { stage: "deep" } }
"""
REAL = """\
Batch 0, acc = 0.166667
Batch 0, loss = 2.09037
Batch 1, acc = 0.166667
Batch 1, loss = 2.13155
Loss: 4.22192
acc = 0.166667
loss = 2.11096 (* 2 = 4.22192 loss)
"""
"""BVLC Caffe's output for two batches; with the loss weight 1 that it had, its loss was 2.11096."""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the command in a folder with a net, its weights and data: status, what it printed, what it logged."""
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "list.txt").write_text(f"{SOLVERS / 'data.h5'}\n")
    (tmp_path / "init.caffemodel").symlink_to(SOLVERS / "init.caffemodel")
    (tmp_path / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 3 display: 1 snapshot_prefix: "s"'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOG_minloglevel", "0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            caffe.main(arguments)
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, re.sub(r"(?m)^[IE]\d{4} \S+ +\d+ \w+\.cpp:\d+\] ", "", err)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran"], "no command 'tran' (near: train)"),
        (["train"], "required: --solver"),
        (["test", "-model", "net.prototxt"], "required: --weights"),
        (["test", "-model", "net.prototxt", "-weights", "none"], "none"),
        (["time", "-model", "net.prototxt", "-iterations", "0"], "expected 1 or more, found 0"),
        (["time", "-model", "net.prototxt", "-gpu", "first"], "expected device ids"),
        (["time", "-model", "net.prototxt", "-phase", "DEPLOY"], "invalid choice"),
        (["train", "-solver", "solver.prototxt", "-gpu", "0,1"], "torchrun --nproc_per_node=2 -m caffe_port.solver s"),
        (["train", "-solver", "solver.prototxt", "-gpu", "99"], "GPUs usable by torch"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, run: Run) -> None:
    status, _, err = run(*arguments)
    assert status == 2
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize(
    "flags",
    [
        ["-model", "net.prototxt", "-weights", "init.caffemodel", "-iterations", "2"],
        ["-model=net.prototxt", "-weights=init.caffemodel", "-iterations=2"],
        ["--model", "net.prototxt", "--weights=init.caffemodel", "--iterations", "2"],
    ],
)
def test_scores_are_those_of_real_caffe(flags: list[str], run: Run) -> None:
    status, _, err = run("test", *flags)
    assert status == 0
    assert err.startswith("Use CPU.\n")
    assert err.split("Running for 2 iterations.\n")[1] == REAL


def test_stages(run: Run) -> None:
    flags = ["-model", "net.prototxt", "-weights", "init.caffemodel", "-iterations", "1"]
    assert "staged" not in run("test", *flags)[2]
    assert run("test", *flags, "-stage", "deep,other")[2].count("Batch 0, staged = ") == 30


def test_train(run: Run) -> None:
    status, _, err = run("train", "-solver=solver.prototxt", "-weights=init.caffemodel")
    assert status == 0
    for line in ("Use CPU.", "Starting Optimization", "Solving small", "Iteration 2, lr = 0.1"):
        assert f"{line}\n" in err
    assert err.endswith("Optimization Done.\nOptimization Done.\n")
    _, _, err = run("train", "-solver=solver.prototxt", "-snapshot=s_iter_3.solverstate")
    assert "Resuming from s_iter_3.solverstate\n" in err


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_time_reports_every_layer(phase: str, run: Run) -> None:
    status, _, err = run("time", "-model", "net.prototxt", "-iterations", "3", "-phase", phase)
    assert status == 0
    lines = err[err.index("Performing Forward") :].splitlines()
    number = r"[\d.e+-]+"
    expected = ["Performing Forward", f"Initial loss: {number}", "Performing Backward"]
    expected += [r"\*\*\* Benchmark begins \*\*\*", "Testing for 3 iterations."]
    expected += [rf"Iteration: {i} forward-backward time: {number} ms\." for i in (1, 2, 3)]
    expected += ["Average time per layer: "]
    layers = ["data", "conv", "relu", "pool", "frozen", "tanh", "score", "loss"]
    if phase == "TEST":
        layers[1:1] = ["label_data_1_split"]
        layers[-1:] = ["score_score_0_split", "acc", "loss"]
    for name in layers:
        expected += [rf" *{name}\t{way}: {number} ms\." for way in ("forward", "backward")]
    expected += [rf"Average {what}: {number} ms\." for what in ("Forward pass", "Backward pass", "Forward-Backward")]
    expected += [rf"Total Time: {number} ms\.", r"\*\*\* Benchmark ends \*\*\*"]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    parts = re.findall(rf"\t\w+: ({number}) ms", err)
    whole = re.findall(rf"Average \w+ pass: ({number}) ms", err)
    assert sum(map(float, parts)) <= 1.01 * np.sum(np.array(whole, float))


def test_device_query(run: Run) -> None:
    status, _, err = run("device_query")
    assert status == 0
    assert err.startswith("Querying GPUs all\n")
    assert err.count("Device id:") == torch.cuda.device_count()
