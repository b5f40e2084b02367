"""DetectionOutput's files against those that SSD (4817bf8b) wrote, pass by pass; and DetectionEvaluate in pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import EMBEDDED

import caffe_port
from caffe_port.errors import CaffeError
from caffe_port.layers.ssd_pixels import Resized

RECORDED = json.loads((EMBEDDED / "ssd_output" / "runs.json").read_text())
UNORDERED = {("voc_keep", 3)}
"""Passes in which keep_top_k cuts between equal scores, which the original sorts in no defined order."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in RECORDED["names"].items():
        (tmp_path / name).write_text(text)
    return tmp_path


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*"))}


@pytest.mark.parametrize("name", RECORDED["runs"])
def test_files_are_ssds(name: str, place: Path) -> None:
    """After set-up and each of three passes; scores are any numbers, which the layer's forward would refuse."""
    run = RECORDED["runs"][name]
    net = caffe_port.Net(RECORDED["inputs"] + run["net"], allow_writes=True)
    layer = net.nodes[-1][1]
    with np.load(EMBEDDED / "ssd_output" / "arrays.npz") as arrays:
        inputs = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    known: dict[str, str] = {}
    for k, files in enumerate(run["files"]):
        if k:
            given = (inputs[f"in/loc/{k - 1}"], inputs[f"in/conf/{k - 1}"], inputs["in/prior"])
            layer.save(layer.detect(*given))
        known = files if files is not None else known  # None: as after the pass before
        if (name, k) not in UNORDERED:
            assert written(place / "out" / name) == known


def test_nothing_is_written_that_is_not_allowed(place: Path) -> None:
    run = RECORDED["runs"]["voc_plain"]
    with pytest.raises(CaffeError, match=r"it writes 'out/voc_plain'; .*--allow-writes"):
        caffe_port.Net(RECORDED["inputs"] + run["net"])
    assert not (place / "out").exists()
    caffe_port.Net(RECORDED["inputs"] + RECORDED["runs"]["no_names"]["net"])  # which writes nothing anyway


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("names.txt", "a 3\n", "1 to as many as there are"),
        ("names.txt", "a three 4\n", "names.txt: a"),
        ("labelmap.prototxt", "item { label: 1 name: 'a' } item { label: 1 name: 'b' }", "a label that occurs twice"),
        ("labelmap.prototxt", "items { }", "labelmap.prototxt:1"),
        ("labelmap.prototxt", None, "labelmap.prototxt: expected a label map, found no such file"),
    ],
)
def test_wrong_files(file: str, text: str | None, says: str, place: Path) -> None:
    (place / file).unlink()
    if text is not None:
        (place / file).write_text(text)
    with pytest.raises(CaffeError, match=says):
        caffe_port.Net(RECORDED["inputs"] + RECORDED["runs"]["voc_plain"]["net"], allow_writes=True)


def test_boxes_in_pixels_by_hand() -> None:
    """Half of a picture of 10 x 20: (20 / 2 + 1) by (10 / 2 + 1) pixels."""
    boxes, areas = Resized(None, None).boxes(np.array([[0, 0.5, 0.5, 1.5]], np.float32), 10, 20)  # type: ignore[arg-type]
    assert (boxes.tolist(), areas.tolist()) == ([[0, 5, 10, 10]], [11 * 6])


def test_evaluation_in_pixels(place: Path) -> None:
    """Two pictures of 2 x 2 pixels in turn: disjoint boxes share one pixel, as in the original."""
    (place / "sizes.txt").write_text("a 2 2\nb 100 100\n")
    body = "num_classes: 2 overlap_threshold: 0.12 name_size_file: 'sizes.txt'"
    net = caffe_port.Net(
        "layer { name: 'd' type: 'Input' top: 'd' top: 'gt' input_param { shape { dim: 1 dim: 1 dim: 1 dim: 7 }"
        " shape { dim: 1 dim: 1 dim: 1 dim: 8 } } }"
        " layer { name: 'l' type: 'DetectionEvaluate' bottom: 'd' bottom: 'gt' top: 'y'"
        f" detection_evaluate_param {{ {body} }} }}"
    )
    found = torch.tensor([0, 1, 0.9, 0, 0, 0.5, 0.5]).view(1, 1, 1, 7)
    truth = torch.tensor([0, 1, 0, 0.6, 0.6, 1, 1, 0]).view(1, 1, 1, 8)
    # 4 and 3.24 pixels; one shared: 1 / 6.24 = 0.16. In 100 x 100 pixels: 1 / 4281. Then the first picture again.
    rights = [net(d=found, gt=truth)["y"][0, 0, -1, 3].item() for _ in range(3)]
    assert rights == [1, 0, 1]
