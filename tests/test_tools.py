"""Caffe's own tools: databases, mean pictures, features, upgraded files, compared with Caffe's arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from google.protobuf import text_format

import caffe_port
from caffe_port.formats import open_weights, write_caffemodel
from caffe_port.formats.meanfile import read_mean
from caffe_port.formats.weights import LayerWeights
from caffe_port.schema import SCHEMA, read_net, read_solver
from caffe_port.tools.commands import main

lmdb = pytest.importorskip("lmdb")
NET = """
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "db" backend: LMDB batch_size: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param { num_output: 3 weight_filler { type: "gaussian" } } }
"""
V1 = """
name: "old" input: "x" input_dim: 1 input_dim: 2 input_dim: 5 input_dim: 5
layers { name: "c" type: CONVOLUTION bottom: "x" top: "y" blobs_lr: 1 blobs_lr: 2
         convolution_param { num_output: 3 kernel_size: 3 } }
layers { name: "r" type: RELU bottom: "y" top: "y" }
"""


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def records(folder: Path) -> dict[str, object]:
    with lmdb.open(str(folder), readonly=True, lock=False) as database, database.begin() as transaction:
        return {key.decode(): SCHEMA.Datum.FromString(value) for key, value in transaction.cursor()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three pictures of 4 x 6, and lists of them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.RandomState(3)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b c.png", "d.PNG"):
        cv2.imwrite(str(tmp_path / "in" / name), rng.randint(0, 256, (4, 6, 3), np.uint8))
    (tmp_path / "list.txt").write_text("a.png 7\nb c.png 0\r\nd.PNG -1\n")
    return tmp_path


def test_records_are_those_of_caffes_tool(here: Path) -> None:
    assert call("convert_imageset", "in/", "list.txt", "db") == 0
    found = records(here / "db")
    assert [*found] == ["00000000_a.png", "00000001_b c.png", "00000002_d.PNG"]
    for (_, datum), name, label in zip(found.items(), ("a.png", "b c.png", "d.PNG"), (7, 0, -1), strict=True):
        picture = cv2.imread(str(here / "in" / name))
        plane = b"".join(bytes(picture[:, :, c].ravel().tolist()) for c in range(3))
        assert (datum.channels, datum.height, datum.width, datum.label, datum.data) == (3, 4, 6, label, plane)
        assert datum.HasField("encoded")
        assert not datum.encoded


@pytest.mark.parametrize(
    ("flags", "shape"),
    [
        (["-gray"], (1, 4, 6)),
        (["--gray=false", "-resize_width=3", "-resize_height", "2"], (3, 2, 3)),
        (["--gray=true", "--resize-width", "3"], (1, 4, 6)),
    ],
)
def test_flags_are_spelled_as_in_caffe(flags: list[str], shape: tuple[int, ...], here: Path) -> None:
    assert call("convert_imageset", *flags, "in/", "list.txt", "db") == 0
    for datum in records(here / "db").values():
        assert (datum.channels, datum.height, datum.width) == shape
        assert len(datum.data) == np.prod(shape)


def test_encoded_pictures_stay_the_files_that_they_are(here: Path) -> None:
    assert call("convert-imageset", "--encoded", "in/", "list.txt", "db") == 0
    found = records(here / "db")
    assert found["00000000_a.png"].data == (here / "in" / "a.png").read_bytes()
    assert all(datum.encoded and not datum.HasField("channels") for datum in found.values())
    assert call("convert-imageset", "--encode_type", "jpg", "in/", "list.txt", "jpg") == 0
    assert all(datum.data.startswith(b"\xff\xd8") for datum in records(here / "jpg").values())


def test_shuffling_is_caffes_and_comes_from_the_seed(here: Path) -> None:
    """Fisher-Yates from the end with boost's uniform_int over mt19937, written out here."""
    (here / "long.txt").write_text("".join(f"a.png {i}\n" for i in range(50)))
    assert call("convert-imageset", "--shuffle", "--seed", "5", "in/", "long.txt", "db") == 0
    words, order = np.random.RandomState(5), list(range(50))
    for i in range(49, 0, -1):
        while True:
            j = int(words.randint(0, 2**32, dtype=np.uint64)) // (2**32 // (i + 1))
            if j <= i:
                break
        order[i], order[j] = order[j], order[i]
    assert [datum.label for datum in records(here / "db").values()] == order


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ("a.png", ["in/", "list.txt", "db"], "list.txt:1: expected NAME LABEL"),
        ("a.png x", ["in/", "list.txt", "db"], "expected NAME LABEL"),
        ("a.png 3000000000", ["in/", "list.txt", "db"], "a number of 32 bits"),
        ("", ["in/", "list.txt", "db"], "an empty list"),
        ("nowhere.png 1", ["in/", "list.txt", "db"], "no picture that can be read"),
        ("a.png 1", ["in/", "list.txt", "in"], "in: expected the name of a new database, found exists already"),
        ("a.png 1", ["in/", "list.txt", "no/db"], "there is no folder no"),
        ("a.png 1", ["in/", "none.txt", "db"], "none.txt: no such file"),
        ("a.png 1", ["--encode-type", "odd", "in/", "list.txt", "db"], "expected one that OpenCV writes"),
    ],
)
def test_wrong_lists_leave_nothing(
    change: str, arguments: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "list.txt").write_text(change)
    before = sorted(p.name for p in here.iterdir())
    assert call("convert-imageset", *arguments) == 2
    assert said in capsys.readouterr().err
    assert sorted(p.name for p in here.iterdir()) == before


def test_the_mean_is_summed_as_caffe_sums(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Single precision, record by record; a channel's mean pixel by pixel."""
    assert call("convert-imageset", "-q", "in/", "list.txt", "db") == 0
    assert call("compute_image_mean", "--json", "db", "mean.binaryproto") == 0
    total = np.zeros((3, 4, 6), np.float32)
    for name in ("a.png", "b c.png", "d.PNG"):
        total = (total + cv2.imread(str(here / "in" / name)).transpose(2, 0, 1)).astype(np.float32)
    total = total / np.float32(3)
    assert (read_mean("mean.binaryproto") == total).all()
    means = []
    for channel in total:
        mean = np.float32(0)
        for pixel in channel.ravel():
            mean = np.float32(mean + pixel)
        means.append(float(mean / np.float32(24)))
    assert json.loads(capsys.readouterr().out)["means"] == means
    assert call("compute-image-mean", "db", "mean.binaryproto") == 2, "it is there"


def test_features_are_the_nets(here: Path) -> None:
    assert call("convert-imageset", "-q", "in/", "list.txt", "db") == 0
    (here / "net.prototxt").write_text(NET)
    net = caffe_port.Net("net.prototxt")
    net.save("w.caffemodel")
    assert call("extract_features", "w.caffemodel", "net.prototxt", "ip,label", "f,l", "2", "lmdb", "CPU") == 0
    rows = []
    for _ in range(2):
        net.forward()
        rows += list(net.blobs["ip"].data.copy())
    found = records(here / "f")
    assert [*found] == [f"{i:010d}" for i in range(4)]
    for datum, row in zip(found.values(), rows, strict=True):
        assert (datum.channels, datum.height, datum.width) == (3, 1, 1)
        assert (np.array(datum.float_data, np.float32) == row).all()
    assert [datum.float_data[0] for datum in records(here / "l").values()] == [7, 0, -1, 7]


def test_features_of_no_blob_leave_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("convert-imageset", "-q", "in/", "list.txt", "db") == 0
    (here / "net.prototxt").write_text(NET)
    caffe_port.Net("net.prototxt").save("w.caffemodel")
    assert call("extract-features", "w.caffemodel", "net.prototxt", "ipp", "f", "2", "lmdb") == 2
    assert "no blob 'ipp'; near: ip" in capsys.readouterr().err
    assert not (here / "f").exists()


def test_upgraded_definitions_mean_the_same(here: Path) -> None:
    (here / "old.prototxt").write_text(V1)
    assert call("upgrade_net_proto_text", "old.prototxt", "new.prototxt") == 0
    text = (here / "new.prototxt").read_text()
    net = text_format.Parse(text, SCHEMA.NetParameter())
    assert not net.layers
    assert not net.input
    assert [layer.type for layer in net.layer] == ["Input", "Convolution", "ReLU"]
    assert [spec.lr_mult for spec in net.layer[1].param] == [1, 2]
    assert read_net("new.prototxt").net.layer == read_net("old.prototxt").net.layer
    (here / "s.prototxt").write_text('net: "n" solver_type: ADAM base_lr: 0.5')
    assert call("upgrade_solver_proto_text", "s.prototxt", "t.prototxt") == 0
    assert 'type: "Adam"' in (here / "t.prototxt").read_text()
    assert read_solver("t.prototxt").base_lr == 0.5


def test_upgraded_weights_are_the_same(here: Path) -> None:
    blobs = [np.random.RandomState(0).randn(3, 2, 3, 3).astype(np.float32), np.ones(3, np.float32)]
    write_caffemodel("old.caffemodel", [LayerWeights("c", "Convolution", blobs)], generation=1)
    assert call("upgrade_net_proto_binary", "old.caffemodel", "new.caffemodel") == 0
    old, new = open_weights("old.caffemodel"), open_weights("new.caffemodel")
    assert (old.generation, new.generation) == (1, 2)
    assert new.layers[0].type == "Convolution"
    for array, name in zip(blobs, ("c.weight", "c.bias"), strict=True):
        assert (new.state_dict()[name] == array).all()


@pytest.mark.parametrize("content", [b"", b"\0\1\2", b"<html>", b"layer {"])
def test_what_cannot_be_upgraded_is_one_line(content: bytes, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "x").write_bytes(content)
    assert call("upgrade", "x", "y") == 2
    said = capsys.readouterr().err
    assert said.startswith("caffe-port upgrade: error: x")
    assert said.count("\n") == 1
    assert not (here / "y").exists()


def test_convert_prints_the_next_step(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_caffemodel("m.caffemodel", [LayerWeights("c", "Bias", [np.ones(3, np.float32)])], generation=2)
    assert call("convert", "m.caffemodel") == 0
    said = capsys.readouterr().out
    assert "wrote m.safetensors\n\nnext:\n" in said
    for command in (
        "caffe-port info NET.prototxt m.caffemodel",
        "caffe-port view NET.prototxt m.caffemodel -o net.html",
        "caffe-port export NET.prototxt m.caffemodel -o m.onnx",
        "caffe-port export NET.prototxt m.caffemodel -o net.py",
        "caffe-port parity NET.prototxt m.caffemodel REFERENCE.npz",
        "caffe-port torch2caffe m.safetensors --prototxt NET.prototxt",
    ):
        assert command in said
    assert call("convert", "m.caffemodel", "-f", "-q") == 0
    assert capsys.readouterr().out == ""


def test_classify(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A net that sums a picture's blue channel, over its centre."""
    (here / "n.prototxt").write_text(
        'input: "data" input_shape { dim: [1, 3, 2, 4] }'
        'layer { name: "p" type: "Pooling" bottom: "data" top: "m" pooling_param { pool: AVE global_pooling: true } }'
        'layer { name: "f" type: "Flatten" bottom: "m" top: "s" }'
        'layer { name: "b" type: "Bias" bottom: "s" top: "s2" }'
    )
    write_caffemodel("n.caffemodel", [LayerWeights("b", "Bias", [np.array([0, 0, 500], np.float32)])], generation=2)
    (here / "names.txt").write_text("blue\ngreen\nred\n")
    words = ["--model_def", "n.prototxt", "--pretrained-model", "n.caffemodel", "--images-dim", "4,6", "--center-only"]
    assert call("classify", "in/a.png", *words, "--labels", "names.txt", "--mean", "1,2,3", "--json") == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    middle = cv2.imread(str(here / "in" / "a.png"))[1:3, 1:5].reshape(-1, 3).mean(0) - [1, 2, 3]
    assert next(iter(classes)) == "red"
    assert classes["blue"] == pytest.approx(middle[0], abs=1e-3)
    assert classes["red"] == pytest.approx(middle[2] + 500, abs=1e-3)


def test_draw(here: Path) -> None:
    (here / "n.prototxt").write_text(V1)
    assert call("draw_net", "n.prototxt", "n.gv") == 0
    drawn = (here / "n.gv").read_text()
    assert drawn.startswith("digraph")
    assert "Convolution" in drawn
    assert call("draw", "n.prototxt", "n.gv") == 2, "it is there"
