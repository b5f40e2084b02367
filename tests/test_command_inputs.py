"""Inputs that are missing, folders or unreadable: every command names them, before it does anything."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_port.net import Net
from caffe_port.tools.commands import COMMANDS, main

NET = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 4 } }
"""
SOLVER = 'net: "net.prototxt" base_lr: 1 lr_policy: "fixed" max_iter: 1 snapshot_after_train: false'
ROWS = {  # BAD is the input; outputs lie in a folder that is missing, or have a name that would be made from BAD's
    "info": ["BAD", "net.prototxt --proto BAD"],
    "draw": ["BAD no/o.png"],
    "view": [
        "BAD -o no/o.html",
        "net.prototxt BAD -o no/o.html",
        "net.prototxt w.npz --picture BAD -o no/o.html",
        "net.prototxt w.npz --reference BAD -o no/o.html",
    ],
    "parity": [
        "BAD w.npz r.npz",
        "net.prototxt BAD r.npz",
        "net.prototxt w.npz BAD",
        "net.prototxt w.npz r.npz --noise BAD",
    ],
    "convert": ["BAD", "w.npz --prototxt BAD -o no/o.npz", "w.npz --prototxt net.prototxt --proto BAD -o no/o.npz"],
    "caffe2torch": ["BAD", "BAD -o no/o.npz", "w.npz --prototxt BAD -o no/o.npz"],
    "torch2caffe": ["BAD --prototxt net.prototxt", "w.npz --prototxt BAD -o no/o.caffemodel"],
    "export": ["BAD w.npz -o no/o.onnx", "net.prototxt BAD", "net.prototxt w.npz --reference BAD -o no/o.onnx"],
    "vgg16": ["BAD", "BAD -o no/o.caffemodel"],
    "fp-bp": ["BAD", "w.npz --prototxt BAD -o no/o.caffemodel"],
    "upgrade": ["BAD no/o.prototxt"],
    "test": [
        "--model BAD --weights w.npz",
        "--model net.prototxt --weights BAD",
        "--model net.prototxt --weights w.npz,BAD",
    ],
    "time": ["--model BAD"],
    "extract-features": ["BAD net.prototxt y no/out 1 lmdb", "w.npz BAD y out 1 lmdb"],
    "classify": [
        "BAD -o no/o.npy --model-def net.prototxt --pretrained-model w.npz",
        "a.png -o no/o.npy --model-def BAD --pretrained-model w.npz",
        "a.png -o no/o.npy --model-def net.prototxt --pretrained-model BAD",
        "a.png -o no/o.npy --model-def net.prototxt --pretrained-model w.npz --mean-file BAD",
        "a.png -o no/o.npy --model-def net.prototxt --pretrained-model w.npz --labels BAD",
    ],
    "segment": [
        "BAD -o no/o --prototxt net.prototxt --weights w.npz",
        "a.png -o no/o --prototxt BAD --weights w.npz",
        "a.png -o no/o --prototxt net.prototxt --weights BAD",
        "a.png -o no/o --prototxt net.prototxt --weights w.npz --with net.prototxt BAD",
        "a.png -o no/o --prototxt net.prototxt --weights w.npz --palette BAD",
        "a.png -o no/o --prototxt net.prototxt --weights w.npz --model BAD",
    ],
    "detect": [
        "BAD --prototxt net.prototxt --weights w.npz",
        "a.png --prototxt BAD --weights w.npz",
        "a.png --prototxt net.prototxt --weights BAD",
        "a.png --prototxt net.prototxt --weights w.npz --labels BAD",
    ],
    "train": ["--solver BAD", "--solver solver.prototxt --snapshot BAD", "--solver solver.prototxt --plugin BAD"],
    "prepare": ["BAD -o no/o", "voc -o no/o --train BAD", "voc -o no/o --model BAD"],
    "convert-imageset": ["./ BAD no/db"],
    "compute-image-mean": ["BAD no/o.binaryproto"],
    "train-classifier": ["BAD", "solver.prototxt --snapshot BAD", "solver.prototxt --init BAD"],
    "keep-features": ["BAD w.npz -o no/o --items 1", "net.prototxt BAD -o no/o --items 1"],
    "train-segmentation": ["Full --classifier BAD"],
    "fold": ["BAD w.npz -o no/o", "net.prototxt BAD -o no/o", "net.prototxt w.npz --source BAD -o no/o"],
    "evaluate": ["BAD --truth .", ". --truth BAD"],
    "experiment": ["BAD", "--init BAD"],
    "as-caffe": ["BAD"],
}
WITHOUT = {
    "layers-table",
    "make-shapes",
    "device-query",
    "dump-reference",
    "build",
    "demo",
    "demo-parity",
    "completion",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(SOLVER)
    (folder / "list.txt").write_text("a.png 0\n")
    np.savez(folder / "w.npz", **{k: v.numpy() for k, v in Net(NET).state_dict().items()})
    np.savez(folder / "r.npz", **{"in/x": np.zeros((2, 3), np.float32), "out/y": np.zeros((2, 4), np.float32)})
    cv2.imwrite(str(folder / "a.png"), np.zeros((4, 4, 3), np.uint8))
    for name in ("voc/JPEGImages", "folder"):
        (folder / name).mkdir(parents=True)
    (folder / "closed").write_text("x")
    (folder / "closed").chmod(0)
    return folder


@pytest.mark.parametrize("bad", ["nowhere/absent.caffemodel", "folder", "closed"])
@pytest.mark.parametrize(("command", "arguments"), [(c, row) for c, rows in ROWS.items() for row in rows])
def test_an_input_that_cannot_be_read(
    command: str,
    arguments: str,
    bad: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if bad == "closed" and os.access(place / bad, os.R_OK):
        pytest.skip("this user may read everything")
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as end:
        main([command, *arguments.replace("BAD", bad).split()])
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert len(said) == 1, said
    assert said[0].startswith(f"caffe-port {command}: error: {bad}"), said
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("root", ["nowhere/", "nowhere/x", "a.png/"])
def test_a_root_of_pictures_that_is_missing(
    root: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit):
        main(["convert-imageset", root, "list.txt", "no/db"])
    assert capsys.readouterr().err.startswith(f"caffe-port convert-imageset: error: {root}: ")


def test_every_command_has_a_row() -> None:
    names = {command.name for group in COMMANDS.values() for command in group}
    assert names == ROWS.keys() | WITHOUT
