"""The demo, with nets and trainings of no size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caffe_port.formats import open_weights
from caffe_port.segmentation.contact_sheet import contact_sheet
from caffe_port.segmentation.experiment import RECIPES, Training
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.voc import palette, write_labels
from caffe_port.tools import demo


def call(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        demo.main(argv)
    return ended.value.code


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    usual = RECIPES["demo"]
    brief = {name: Training(4, it.rate) for name, it in usual.trainings.items()}
    monkeypatch.setitem(RECIPES, "demo", replace(usual, width="1/32", batch=4, crops=2, passes=2, trainings=brief))
    monkeypatch.setattr(demo, "DRAWN", {"images": 12, "val": 4, "classes": 3, "size": 48, "seed": 1})
    monkeypatch.chdir(tmp_path)
    assert call() == 0
    said = capsys.readouterr().out
    assert said.count(" s  ") == len(demo.WHAT)
    assert [line.split()[0] for line in said.splitlines() if line.startswith(("background", "disc", "mean"))]
    output = tmp_path / "demo_output"
    weights = open_weights(output / "torch" / "decouplednet.safetensors").state_dict()
    assert weights["conv1_1.weight"].shape == (2, 3, 3, 3)
    with Image.open(output / "contact_sheet.png") as sheet:
        assert sheet.size == (4 * 102 + 6, 3 * 102 + 6)
    assert call() == 0
    assert f"{len(demo.WHAT)} of them done before" in capsys.readouterr().out


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
