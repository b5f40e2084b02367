"""Faster R-CNN and R-FCN nets in caffe-port detect: what py-faster-rcnn's and py-R-FCN's ``test_net`` made of fixed
scores, and a small net against formulas written out here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference import EMBEDDED

import caffe_port
from caffe_port.data import rcnn_settings
from caffe_port.detection.detector import Detector, detector_of
from caffe_port.detection.regions import RegionDetector
from caffe_port.errors import CaffeError
from caffe_port.tools import detect

WHERE = EMBEDDED / "rcnn_detect"
CASES = json.loads((WHERE / "cases.json").read_text())

HEAD = """
name: "small"
input: "data" input_shape { dim: 1 dim: 3 dim: 32 dim: 32 }
input: "im_info" input_shape { dim: 1 dim: 3 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 12 kernel_size: 4 stride: 4 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "rpn_cls_score" type: "Convolution" bottom: "conv" top: "rpn_cls_score"
  convolution_param { num_output: 6 kernel_size: 1 weight_filler { type: "gaussian" std: 0.4 } } }
layer { name: "rpn_bbox_pred" type: "Convolution" bottom: "conv" top: "rpn_bbox_pred"
  convolution_param { num_output: 12 kernel_size: 1 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "r" type: "Reshape" bottom: "rpn_cls_score" top: "r"
  reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } } }
layer { name: "p" type: "Softmax" bottom: "r" top: "p" }
layer { name: "q" type: "Reshape" bottom: "p" top: "q" reshape_param { shape { dim: 0 dim: 6 dim: -1 dim: 0 } } }
layer { name: "proposal" type: "Python" bottom: "q" bottom: "rpn_bbox_pred" bottom: "im_info" top: "rois"
  python_param { module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "'feat_stride': 4\\n'scales': [2]" } }
layer { name: "pool" type: "ROIPooling" bottom: "conv" bottom: "rois" top: "pool"
  roi_pooling_param { pooled_w: 2 pooled_h: 2 spatial_scale: 0.25 } }
layer { name: "cls_score" type: "InnerProduct" bottom: "pool" top: "cls_score"
  inner_product_param { num_output: 4 weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "bbox_pred" type: "InnerProduct" bottom: "pool" top: "bbox_pred"
  inner_product_param { num_output: %d weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "cls_prob" type: "Softmax" bottom: "cls_score" top: "cls_prob" }
"""
NET = HEAD % 16
FREE = {"TEST.SCALES": (48,), "TEST.MAX_SIZE": 70, "TEST.RPN_MIN_SIZE": 1, "TEST.RPN_POST_NMS_TOP_N": 40}


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Leaves py-faster-rcnn's settings as they were."""
    before, given = dict(rcnn_settings.SETTINGS), set(rcnn_settings._GIVEN)
    yield
    rcnn_settings.SETTINGS.update(before)
    rcnn_settings._GIVEN.intersection_update(given)


@pytest.mark.parametrize("name", CASES)
def test_objects_are_the_originals(name: str) -> None:
    """The net's input, and what is made of its outputs: labels and order equal, numbers to single precision."""
    case = CASES[name]
    rcnn_settings.change(case["cfg"])
    net = caffe_port.Net(HEAD % (4 * case["classes"]))
    with np.load(WHERE / f"{name}.npz") as held:
        theirs = {key: held[key] for key in held.files}
    found = RegionDetector(net, threshold=case["threshold"], most=case["most"])
    data, factor = found.prepared(theirs["picture"][:, :, ::-1])
    assert data.shape == theirs["data"].shape[1:] and np.abs(data - theirs["data"][0]).max() < 1e-4
    assert np.array_equal(np.array([[*data.shape[1:], factor]], np.float32), theirs["im_info"])
    rois = theirs["rois"][:, 1:] / np.float32(factor)
    objects = found.objects(rois, theirs["cls_prob"], theirs["bbox_pred"], theirs["picture"].shape[:2])
    assert [o.score for o in objects] == sorted((o.score for o in objects), reverse=True)
    for label in range(1, case["classes"]):
        ours = np.array([[o.label, *o.box, o.score] for o in objects if o.label == label], np.float32).reshape(-1, 6)
        rows = theirs["found"][theirs["found"][:, 0] == label]
        assert np.array_equal(ours[:, 5], rows[:, 5])
        ours, rows = (sorted(a.tolist(), key=lambda row: (-row[5], *row)) for a in (ours, rows))  # numpy sorts equal
        assert len(ours) == len(rows) and np.abs(np.array(ours) - rows).max(initial=0) < 1e-4  # scores as it likes


def by_hand(net: caffe_port.Net, picture: np.ndarray, threshold: float) -> list[tuple[Any, ...]]:
    """(label, score, box) by loops over boxes and pixels, in double precision; of a picture in BGR."""
    height, width = picture.shape[:2]
    factor = FREE["TEST.SCALES"][0] / min(height, width)
    if round(factor * max(height, width)) > FREE["TEST.MAX_SIZE"]:
        factor = FREE["TEST.MAX_SIZE"] / max(height, width)
    less = picture.astype(np.float64) - [102.9801, 115.9465, 122.7717]
    size = round(height * factor), round(width * factor)
    data = np.zeros((3, *size))
    for y in range(size[0]):
        for x in range(size[1]):
            v, u = ((n + 0.5) / factor - 0.5 for n in (y, x))
            for dy in (0, 1):
                for dx in (0, 1):
                    part = (1 - abs(v - np.floor(v) - dy)) * (1 - abs(u - np.floor(u) - dx))
                    row, column = (int(np.floor(at)) + d for at, d in ((v, dy), (u, dx)))
                    data[:, y, x] += part * less[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    given = {"data": data[None], "im_info": np.array([[*size, factor]])}
    tensors = {name: torch.from_numpy(value).float() for name, value in given.items()}
    made = {n: t.detach().double().numpy() for n, t in net.forward(blobs=["rois"], **tensors).items()}
    found = []
    for label in range(1, 4):
        boxes = []
        for roi, score, moves in zip(made["rois"], made["cls_prob"], made["bbox_pred"], strict=True):
            x1, y1, x2, y2 = roi[1:] / factor
            dx, dy, dw, dh = moves[4 * label : 4 * label + 4]
            w, h = x2 - x1 + 1, y2 - y1 + 1
            cx, cy = dx * w + x1 + w / 2, dy * h + y1 + h / 2
            w, h = w * np.exp(dw), h * np.exp(dh)
            edges = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            box = [min(max(e, 0), n - 1) for e, n in zip(edges, (width, height) * 2, strict=True)]
            if score[label] > threshold:
                boxes.append((score[label], box))
        kept: list[tuple[float, list[float]]] = []
        for score, box in sorted(boxes, key=lambda pair: -pair[0]):
            if all(shared(box, other) < 0.3 for _, other in kept):
                kept.append((score, box))
        found += [(label, score, *box) for score, box in kept]
    return sorted(found, key=lambda row: -row[1])


def shared(a: list[float], b: list[float]) -> float:
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    if min(w, h) <= 0:
        return 0.0
    areas = sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))
    return w * h / (areas - w * h)


def made_net(folder: Path) -> tuple[Path, Path]:
    """The small net's definition and weights, in files."""
    torch.manual_seed(5)
    caffe_port.set_random_seed(5)
    files = folder / "net.prototxt", folder / "net.caffemodel"
    files[0].write_text(NET)
    caffe_port.Net(NET).save(files[1])
    return files


@pytest.mark.parametrize("size", [(30, 44), (61, 40), (24, 60)])
def test_a_small_net_by_hand(size: tuple[int, int], tmp_path: Path) -> None:
    rcnn_settings.change(FREE)
    net = caffe_port.Net(*made_net(tmp_path))
    picture = np.random.default_rng(size[0]).integers(0, 256, (*size, 3)).astype(np.uint8)
    (objects,) = detector_of(net, threshold=0.3)(picture)
    theirs = by_hand(net, picture[:, :, ::-1], 0.3)
    assert [o.label for o in objects] == [row[0] for row in theirs] and len(objects) > 3
    ours = np.array([(o.score, *o.box) for o in objects])
    assert np.abs(ours - np.array(theirs)[:, 1:]).max() < 2e-3


def run(*arguments: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        detect.main([*arguments])
    assert ended.value.code == status


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Arguments: two pictures, the net, its weights, and settings."""
    net, weights = made_net(tmp_path)
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        picture = np.random.default_rng(i).integers(0, 256, (40, 50 + i, 3)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{i}.png")
    lines = (f"  {name.partition('.')[2]}: {list(v) if isinstance(v, tuple) else v}\n" for name, v in FREE.items())
    (tmp_path / "cfg.yml").write_text("TEST:\n" + "".join(lines))
    return [str(tmp_path / "pictures"), "--prototxt", str(net), "--weights", str(weights)]


def test_the_command(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """JSON has the original's coordinates, VOC's files one more (pixels there count from 1)."""
    out = tmp_path / "out"
    cfg = ("--cfg", str(tmp_path / "cfg.yml"))
    run(*files, *cfg, "-o", str(out), "--voc", "--draw", "--threshold", "0.3")
    assert "mean 102.98, 115.947, 122.772, scale 1: py-faster-rcnn's PIXEL_MEANS" in capsys.readouterr().out
    entries = json.loads((out / "detections.json").read_text())
    assert all(entry["objects"] for entry in entries)
    for entry in entries:
        stem = Path(entry["picture"]).stem
        before = np.asarray(Image.open(entry["picture"]))
        assert (np.asarray(Image.open(out / f"{stem}.png")) != before).any()
        for name in ("1", "2", "3"):
            rows = [line.split() for line in (out / f"comp4_det_test_{name}.txt").read_text().splitlines()]
            theirs = [list(map(float, row[2:])) for row in rows if row[0] == stem]
            ours = [np.array(o["box"]) + 1 for o in entry["objects"] if o["class"] == name]
            assert len(ours) == len(theirs) and np.abs(np.array(ours) - theirs).max(initial=0) < 0.006


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", "2"], "--batch: expected 1: as many pictures as the net takes, found 2"),
        (["--input-size", "40x40"], "--input-size"),
        (["--cfg", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str, files: list[str], capsys: pytest.CaptureFixture) -> None:
    run(*files, *arguments, status=2)
    assert says in capsys.readouterr().err.strip().splitlines()[-1]


def test_wrong_nets() -> None:
    rois = (
        "input: 'data' input_shape { dim: 1 dim: 3 dim: 8 dim: 8 } input: 'rois' input_shape { dim: 1 dim: 5 }"
        " layer { name: 'p' type: 'ROIPooling' bottom: 'data' bottom: 'rois' top: 'p'"
        " roi_pooling_param { pooled_w: 2 pooled_h: 2 } }"
    )
    with pytest.raises(CaffeError, match="rois as an input, of proposals made elsewhere"):
        detector_of(caffe_port.Net(rois))
    found = detector_of(caffe_port.Net(HEAD % 12), threshold=0)
    with pytest.raises(CaffeError, match="expected 16, or 8 for all together, found bbox_pred with 12 numbers"):
        found(np.zeros((40, 40, 3), np.uint8))
    assert not isinstance(found, Detector)
    rcnn_settings.change({"TEST.SCALES": (40, 50)})
    with pytest.raises(CaffeError, match="expected one, as the original for such nets, found 2 sizes"):
        detector_of(caffe_port.Net(NET))
