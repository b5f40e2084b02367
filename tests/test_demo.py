"""The demo, with nets and trainings of no size."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import prod
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caffe_port.definitions.definition import Setting
from caffe_port.definitions.shapes import infer
from caffe_port.formats import open_weights
from caffe_port.segmentation.contact_sheet import contact_sheet
from caffe_port.segmentation.experiment import RECIPES
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.voc import palette, write_labels
from caffe_port.tools import demo
from caffe_port.tools.build import definitions


def call(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        demo.main(argv)
    return ended.value.code


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for recipe in ("demo", "demo-weights"):
        usual = RECIPES[recipe]
        brief = {name: replace(it, iterations=4) for name, it in usual.trainings.items()}
        monkeypatch.setitem(RECIPES, recipe, replace(usual, width="1/32", batch=4, crops=2, passes=2, trainings=brief))
    monkeypatch.setattr(demo, "DRAWN", demo.DRAWN | {"images": 12, "val": 4, "size": 48})
    monkeypatch.setattr(demo, "OTHERS", demo.OTHERS | {"images": 12, "val": 4, "size": 48})
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path / "start.npz")
    monkeypatch.chdir(tmp_path)
    assert call("--make-weights", "start.npz", "-o", "made") == 0
    others = (tmp_path / "made" / "data" / "classes.txt").read_text().split()
    start = open_weights(tmp_path / "start.npz").state_dict()
    assert {blob.dtype for blob in start.values()} == {np.dtype(np.float16)}
    assert not [name for name in start if name.startswith("cls-score")]

    capsys.readouterr()
    assert call() == 0
    said = capsys.readouterr().out
    output = tmp_path / "demo_output"
    assert not {*others} & {*(output / "data" / "classes.txt").read_text().split()}
    assert said.count(" s  ") == len(demo.WHAT)
    rows = [line.split() for line in said.splitlines() if line.startswith(("background", "fish", "mean"))]
    assert [(name, len(numbers)) for name, *numbers in rows] == [("background", 2), ("fish", 2), ("mean", 2)]
    for step, names in (
        ("classifier", ("conv3_2.weight", "bn4_2.scale")),
        ("decouplednet-Full", ("deconv1_1.weight", "fc6-seg.weight", "debn3_2.scale")),
    ):
        before = open_weights(output / f"{step}-untrained" / "trained.caffemodel").state_dict()
        for name in names:
            np.testing.assert_array_equal(before[name].ravel(), start[name].ravel().astype(np.float32))
    weights = open_weights(output / "safetensors" / "decouplednet.safetensors").state_dict()
    assert weights["conv1_1.weight"].shape == (2, 3, 3, 3)
    assert "gives the numbers of this net" in said
    assert (output / "onnx" / "decouplednet.onnx").is_file()
    with Image.open(output / "contact_sheet.png") as sheet:
        assert sheet.size == (132 + 4 * 102, 4 * 102 + 6)
    assert call() == 0
    steps = int(said.split()[0])
    assert f"{steps} of them done before" in capsys.readouterr().out


def test_shipped_weights() -> None:
    """Those of every layer but the classes' scores and what is made of the classification net's; under 3 MB."""
    assert demo.WEIGHTS.stat().st_size < 3_000_000
    paths = ["classification/train_cls_voc.prototxt", "decouplednet/002_train_seg_Full_anno.prototxt"]
    wanted: dict[str, list[int]] = {}
    for net in definitions(Setting(Fraction(1, 8), 64, norm=True), paths).values():
        wanted |= {name: sorted(map(prod, blobs)) for name, blobs in infer(net).params.items()}
    found: dict[str, list[int]] = {}
    for name, blob in open_weights(demo.WEIGHTS).state_dict().items():
        assert blob.dtype == np.float16
        assert np.isfinite(blob).all()
        found.setdefault(name.rpartition(".")[0], []).append(blob.size)
    assert {name: sorted(sizes) for name, sizes in found.items()} == {
        name: sizes for name, sizes in wanted.items() if not name.startswith("cls-score") and not name.endswith("-bp")
    }


@pytest.mark.parametrize("several", [False, True])
def test_contact_sheet(tmp_path: Path, several: bool) -> None:
    """Every pixel of every picture, twice as large: the picture, its true mask, its results."""
    root, rng = tmp_path / "folder", np.random.default_rng(0)
    for part in ("JPEGImages", "SegmentationClass", "ImageSets", "results"):
        (root / part).mkdir(parents=True)
    shown = {"a": [1], "b": [1, 2], "c": []}
    (root / "classes.txt").write_text("one\ntwo\n")
    names = ["", "one", "two"]
    (root / "ImageSets" / "labels.txt").write_text(
        "".join(f"{name} {' '.join(names[k] for k in labels)}\n" for name, labels in shown.items())
    )
    (root / "ImageSets" / "val.txt").write_text("a\nb\nc\n")
    pictures, truths, results = {}, {}, {}
    for name in shown:
        pictures[name] = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pictures[name]).save(root / "JPEGImages" / f"{name}.png")
        for masks, place in ((truths, "SegmentationClass"), (results, "results")):
            masks[name] = rng.integers(0, 3, (16, 20), dtype=np.uint8)
            write_labels(root / place / f"{name}.png", masks[name])
    folders = {"one": root / "results"} | ({"other": root / "SegmentationClass"} if several else {})
    contact_sheet(Folder(root), ["b", "a"], folders, tmp_path / "sheet.png", side=20)
    edge = 132 if several else 6
    with Image.open(tmp_path / "sheet.png") as sheet:
        page = np.asarray(sheet.convert("RGB"))
    assert page.shape == (6 + (4 if several else 3) * 46, edge + 2 * 46, 3)
    assert (page[:, :edge].min() < 128) == several, "names of rows"
    for column, name in enumerate(("b", "a")):
        rows = [pictures[name], palette()[truths[name]], palette()[results[name]]]
        for row, pixels in enumerate([*rows, rows[1]] if several else rows):
            top, left = 6 + row * 46, edge + column * 46
            assert (page[top : top + 32 : 2, left : left + 40 : 2] == pixels).all()
