"""benchmarks/peers.py: its nets are the published ones, and its errors are the numbers' own."""

from __future__ import annotations

import os
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peer_nets, peers
from benchmarks.turns import take_turns
from caffe_port.schema import read_net
from caffe_port.spec.infer import infer

ROOT = Path(__file__).resolve().parents[1]

COUNTS = {
    "LeNet": 431_080,
    "CaffeNet": 60_965_224,
    "VGG-16": 138_357_544,
    "GoogLeNet": 6_998_552,
    "ResNet-50": 25_557_032,
    "SqueezeNet": 1_248_424,
    "MobileNet": 4_231_976,
    "MobileNet-v2": 3_504_872,
    "P-Net": 6_632,
    "R-Net": 100_178,
    "O-Net": 389_040,
    "FCN-8s": 138_357_544 - 4_097_000 + 21 * (4097 + 513 + 257) + 21 * 21 * (2 * 4 * 4 + 16 * 16),
}
"""Learned parameters of the published nets; of FCN-8s VGG-16's, with its three scores and upsamplings."""


@pytest.mark.parametrize("name", COUNTS)
def test_nets_have_the_published_numbers_of_parameters(name: str) -> None:
    net = infer(read_net(peer_nets.definition(name, 2)))
    shapes = [s for layer in net.layers if layer.message.type != "BatchNorm" for s in layer.params.values()]
    assert sum(map(prod, shapes)) == COUNTS[name]


def test_an_error_is_a_share_of_the_outputs_largest_value(tmp_path: Path) -> None:
    expected = np.arange(-8.0, 8).reshape(2, 8)
    np.savez(tmp_path / "expected.npz", a=expected, b=expected / 100)
    np.savez(tmp_path / "MNN.npz", a=expected.reshape(2, 8, 1, 1) + 0.008, b=expected / 100 + 0.0004)
    assert peers.error(tmp_path, "MNN") == pytest.approx(0.0004 / 0.08)
    np.savez(tmp_path / "MNN.npz", a=expected * np.nan, b=expected / 100)
    assert peers.error(tmp_path, "MNN") == float("inf")
    np.savez(tmp_path / "MNN.npz", a=expected)
    with pytest.raises(SystemExit, match="no output b, only a"):
        peers.error(tmp_path, "MNN")


def test_a_row_of_the_table(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/peers.py"), "--folder", str(tmp_path), "--peers", "--rounds", "1"]
    command += ["--nets", "P-Net", "--batches", "3", "--threads", "1", "--rows", str(tmp_path / "rows")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    again = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    assert again.stdout == done.stdout
    assert "round" in done.stderr
    assert "round" not in again.stderr  # the row is in the file
    head, _, row, *_ = done.stdout.splitlines()
    assert head == "| net | batch | threads | caffe_port | ratio |"
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["P-Net", "3", "1"]
    assert float(cells[3].split("(")[1].strip(")")) < 1e-5


def test_a_program_that_stops_is_left_out() -> None:
    answer = "import sys\nfor line in sys.stdin: print(2.5, flush=True)"
    commands = {"a": [sys.executable, "-c", answer], "b": [sys.executable, "-c", "raise SystemExit(3)"]}
    options = {"rounds": 9, "warm": 1, "threads": 1, "cwd": ROOT}
    times, _ = take_turns(commands, seconds=0, may_stop=True, **options)
    assert times == {"a": [2.5] * 3}
    with pytest.raises(SystemExit, match="b stopped with status 3"):
        take_turns(commands, **options)


def test_the_summary_counts_rows() -> None:
    kinds = [("LeNet", 1, 0.7), ("P-Net", 1, 0.6), ("LeNet", 10, 0.7), ("VGG-16", 1, 1.5)]
    table = [
        {"net": net, "batch": batch, "ratio": ratio, "medians": {"MNN": 3.0, peers.OURS: 4 * ratio}}
        for net, batch, ratio in kinds
    ]
    said = "median ratio 0.70; 1 of 2 rows are level with the fastest exact program; "
    said += "1 of 2 of small nets at batch 1 are within 1.5 times; ahead of MNN on 3 of 4"
    assert peers.summary(table).strip() == said
