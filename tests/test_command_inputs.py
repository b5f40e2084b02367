"""Inputs that are missing, folders or unreadable: every command names them, before it does anything."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from caffe_port.net import Net
from caffe_port.tools import cli
from caffe_port.tools.commands import COMMANDS, main

NET = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 4 } }
"""
SOLVER = 'net: "net.prototxt" base_lr: 1 lr_policy: "fixed" max_iter: 1 snapshot_after_train: false'

LINES = {  # with every argument that names a file; from the parser it is known which, and whether it is read or written
    "info": "net.prototxt --proto empty.proto --plugin empty.py",
    "draw": "net.prototxt o.png",
    "view": "net.prototxt w.npz --picture a.png --reference r.npz -o o.html",
    "parity": "net.prototxt w.npz r.npz --noise noise.json --html o.html",
    "layers-table": "--cases folder",
    "convert": "w.npz --prototxt net.prototxt -o o.npz",
    "caffe2torch": "w.npz --prototxt net.prototxt -o o.npz",
    "torch2caffe": "w.npz --prototxt net.prototxt -o o.caffemodel",
    "export": "net.prototxt w.npz --reference r.npz --calibrate folder -o o.onnx",
    "fp-bp": "w.npz --prototxt net.prototxt -o o.caffemodel",
    "upgrade": "net.prototxt o.prototxt",
    "test": "--model net.prototxt --weights w.npz,w2.npz",
    "time": "--model net.prototxt",
    "extract-features": "w.npz net.prototxt y,y db,db2 1 lmdb",
    "classify": "a.png -o o.npy --model-def net.prototxt --pretrained-model w.npz --mean-file m.npy --labels list.txt",
    "segment": "a.png -o out --prototxt net.prototxt --weights w.npz --with net2.prototxt w2.npz --palette p.png"
    " --model m.yml",
    "detect": "a.png -o out --prototxt net.prototxt --weights w.npz --labels list.txt --annotations folder"
    " --cfg noise.json",
    "train": "--solver solver.prototxt --snapshot s.solverstate --weights w.npz,w2.npz --log-dir log --plot o.png",
    "make-shapes": "-o out",
    "prepare": "voc -o out --model m.yml",
    "convert-imageset": "folder/ list.txt db",
    "compute-image-mean": "folder o.binaryproto",
    "vgg16": "w.npz -o o.caffemodel",
    "keep-features": "net.prototxt w.npz -o out --items 1",
    "train-classifier": "solver.prototxt --init w2.npz --snapshot s.solverstate --weights w.npz,w2.npz --log-dir log"
    " --plot o.png -o o.caffemodel",
    "train-segmentation": "Full --nets folder --classifier w.npz --init w2.npz --snapshot s.solverstate"
    " --weights w2.npz --log-dir log --plot o.png -o o.caffemodel",
    "fold": "net.prototxt w.npz --source list.txt --root-folder folder -o o.caffemodel",
    "evaluate": "folder x=voc --truth voc2 --pictures folder2 --markdown o.md --confusion o.csv --html o.html",
    "experiment": "voc --init w.npz -o out",
    "dump-reference": "-o o.py",
    "build": "-o out",
    "as-caffe": "script.py",
    "demo": "-o out --make-weights shapes.npz",
    "demo-parity": "-o out",
}
WITHOUT = {"device-query", "completion"}
OWN = {  # what commands look at themselves: lists by name or path, and the files of a command that goes on to the next
    "info": ["BAD"],
    "segment": ["folder -o no/o --prototxt net.prototxt --weights w.npz --list BAD"],
    "prepare": ["voc -o no/o --train BAD", "voc -o no/o --val BAD", "voc -o no/o --levels x:BAD"],
    "evaluate": ["folder --truth folder --list BAD", "folder --truth voc --list BAD"],
}
NO_PATHS = {
    *("level", "stage", "gpu", "mean", "input_size", "case", "outputs", "blobs", "images_dim", "channel_swap"),
    *("device", "encode_type", "set", "names", "width", "decoder_width", "fc_width", "arguments", "classes"),
    *("data_root", "kept"),  # written into definitions as they are
}
"""Texts that are no files: numbers and names."""
NAMES_OR_PATHS = {("info", "files"), ("segment", "list"), ("segment", "classes"), ("evaluate", "list")} | {
    *(("prepare", name) for name in ("train", "val", "levels")),
    *(("experiment", "levels"), ("train-segmentation", "annotations")),
}


class _FoundError(Exception):
    pass


def parser_of(command: str) -> cli.Parser:
    """The parser that a command makes."""

    def found(self: cli.Parser, *_: object) -> None:
        raise _FoundError(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.Parser, "parse_args", found)
        with pytest.raises(_FoundError) as error:
            main([command])
    return error.value.args[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(SOLVER)
    (folder / "list.txt").write_text("a.png 0\n")
    np.savez(folder / "w.npz", **{k: v.numpy() for k, v in Net(NET).state_dict().items()})
    np.savez(folder / "r.npz", **{"in/x": np.zeros((2, 3), np.float32), "out/y": np.zeros((2, 4), np.float32)})
    cv2.imwrite(str(folder / "a.png"), np.zeros((4, 4, 3), np.uint8))
    for name in ("voc/JPEGImages", "voc2", "folder", "folder2"):
        (folder / name).mkdir(parents=True)
    for name in ("net2.prototxt", "w2.npz", "noise.json", "empty.proto", "empty.py", "script.py", "m.npy", "m.yml"):
        (folder / name).write_text("")
    for name in ("p.png", "s.solverstate", "voc/ImageSets/train.txt", "voc/ImageSets/val.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("a\n")
    (folder / "closed").write_text("x")
    (folder / "closed").chmod(0)
    return folder


def ends_in_one_line(command: str, words: list[str], bad: str, place: Path, capsys: Any) -> str:
    """The line, which begins with the bad path; nothing was written."""
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as end:
        main([command, *words])
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2, words
    assert len(said) == 1, (words, said)
    assert said[0].startswith(f"caffe-port {command}: error: {bad.rstrip('/')}"), (words, said)
    assert sorted(place.rglob("*")) == before
    return said[0]


def bad_values(place: Path, path: cli.Path) -> list[str]:
    if path.written:
        return ["a.png/o"] if path.kind == cli.FOLDER else ["nowhere/o", "folder"]
    bad = ["nowhere/absent.caffemodel", {cli.FILE: "folder", cli.FOLDER: "a.png/"}.get(path.kind, "nowhere")]
    return bad + ["closed"] * (path.kind != cli.FOLDER and not os.access(place / "closed", os.R_OK))


@pytest.mark.parametrize("command", LINES)
def test_every_path_of_a_command(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    parser, words = parser_of(command), LINES[command].split()
    if "proto" in parser.paths and "--proto" not in words:
        words += ["--proto", "empty.proto", "--plugin", "empty.py"]
    given = vars(argparse.ArgumentParser.parse_args(parser, words))
    tried = set()
    for i, word in enumerate(words):
        if word.startswith("-"):
            continue
        for part in word.partition("=")[2].split(",") if "=" in word else word.split(","):
            changed = [*words[:i], word.replace(part, "BAD"), *words[i + 1 :]]
            try:
                now = vars(argparse.ArgumentParser.parse_args(parser, changed))
            except SystemExit:
                capsys.readouterr()
                continue
            for name in [name for name in parser.paths if now[name] != given[name]]:
                tried.add(name)
                for bad in bad_values(place, parser.paths[name]):
                    row = [*words[:i], word.replace(part, bad), *words[i + 1 :]]
                    named = parser.paths[name].part(bad)
                    ends_in_one_line(command, row, named if isinstance(named, str) else bad, place, capsys)
    assert tried == parser.paths.keys()


@pytest.mark.parametrize("command", sorted([*LINES, *WITHOUT]))
def test_every_argument_is_a_path_or_none(command: str) -> None:
    parser = parser_of(command)
    for action in parser._actions:
        if action.nargs == 0 or action.choices or action.type not in (None, Path):
            continue  # a switch, a choice, a number
        if action.dest not in parser.paths and (command, action.dest) not in NAMES_OR_PATHS:
            assert action.dest in NO_PATHS, f"{command}: {action.dest}: is it a file? Then parser.reads or .writes"


@pytest.mark.parametrize("bad", ["nowhere/absent.caffemodel", "folder", "closed"])
@pytest.mark.parametrize(("command", "arguments"), [(c, row) for c, rows in OWN.items() for row in rows])
def test_what_commands_look_at_themselves(
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
    ends_in_one_line(command, arguments.replace("BAD", bad).split(), bad, place, capsys)


def test_inputs_are_named_before_outputs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = ["absent.caffemodel", "-o", "nowhere/o.npz"]
    ends_in_one_line("convert", words, "absent.caffemodel: no such file", place, capsys)


@pytest.mark.parametrize("root", ["nowhere/", "nowhere/x", "a.png/"])
def test_a_root_of_pictures_that_is_missing(
    root: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit):
        main(["convert-imageset", root, "list.txt", "no/db"])
    assert capsys.readouterr().err.startswith(f"caffe-port convert-imageset: error: {root.rpartition('/')[0]}: ")


def test_every_command_has_a_row() -> None:
    names = {command.name for group in COMMANDS.values() for command in group}
    assert names == LINES.keys() | WITHOUT
