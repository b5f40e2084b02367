"""Fast R-CNN's, Faster R-CNN's and R-FCN's forks: what their Python layers give, hand-worked numbers, wrong input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import EMBEDDED

import caffe_port
from caffe_port.data import rcnn_boxes, rcnn_settings
from caffe_port.dialects import RCNN, RFCN
from caffe_port.errors import CaffeError
from caffe_port.schema import read_net, schema_of

CASES = json.loads((EMBEDDED / "rcnn_python" / "manifest.json").read_text())


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Leaves py-faster-rcnn's settings as they were."""
    before, given = dict(rcnn_settings.SETTINGS), set(rcnn_settings._GIVEN)
    yield
    rcnn_settings.SETTINGS.update(before)
    rcnn_settings._GIVEN.intersection_update(given)


def python_net(
    kind: str, shapes: dict[str, tuple[int, ...]], tops: list[str], params: str, phase: str, more: str = ""
) -> caffe_port.Net:
    """A net of one layer of "module.Class" over inputs of these shapes."""
    module, _, name = kind.rpartition(".")
    dims = {b: " ".join(f"dim: {n}" for n in shape) for b, shape in shapes.items()}
    text = "".join(f"input: '{b}' input_shape {{ {dim} }}\n" for b, dim in dims.items())
    blobs = " ".join([*(f"bottom: '{b}'" for b in shapes), *(f"top: '{t}'" for t in tops)])
    quoted = params.replace("'", r"\'").replace("\n", r"\n")
    text += (
        f"layer {{ name: 'l' type: 'Python' {blobs} python_param {{ module: '{module}' layer: '{name}' "
        f"param_str: '{quoted}' }} }}"
    )
    return caffe_port.Net(text + more, phase=phase)


@pytest.mark.parametrize("name", CASES)
def test_python_layers_give_the_originals_numbers(name: str) -> None:
    """Equal to the last bit, draws included; no Python of the definition runs."""
    case = CASES[name]
    rcnn_settings.change(case["cfg"])
    with np.load(EMBEDDED / "rcnn_python" / f"{name}.npz") as theirs:
        inputs = {key.replace("/", "_"): theirs[key] for key in theirs.files if key.startswith("in/")}
        shapes = {blob: array.shape for blob, array in inputs.items()}
        net = python_net(f"{case['module']}.{case['layer']}", shapes, case["tops"], case["param_str"], case["phase"])
        assert net.dialect is RCNN
        if "numpy_seed" in case:
            np.random.seed(case["numpy_seed"])
        for i in range(case.get("passes", 1)):
            for blob, array in inputs.items():
                net.blobs[blob].data[...] = array
            net.forward()
            for top in case["tops"]:
                key = f"out/{top}" + (f"/{i}" if "passes" in case else "")
                np.testing.assert_array_equal(net.blobs[top].data, theirs[key])


def greedy(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """One box after the other, as in cpu_nms.pyx."""
    one = np.float32(1)
    order, kept = list(np.argsort(scores, kind="stable")[::-1]), []
    while order:
        i, order = order[0], order[1:]
        kept.append(int(i))
        rest = []
        for j in order:
            w, h = (
                max(min(boxes[i, k + 2], boxes[j, k + 2]) - max(boxes[i, k], boxes[j, k]) + one, np.float32(0))
                for k in (0, 1)
            )
            areas = [(b[2] - b[0] + one) * (b[3] - b[1] + one) for b in (boxes[i], boxes[j])]
            if float(w * h / (areas[0] + areas[1] - w * h)) < threshold:
                rest.append(j)
        order = rest
    return kept


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("ties", [False, True])
def test_suppression_in_blocks_is_that_of_one_after_the_other(threshold: float, ties: bool) -> None:
    r = np.random.RandomState(int(threshold * 10))
    corners = r.randint(0, 60, (700, 2))
    boxes = np.hstack((corners, corners + r.randint(3, 40, (700, 2)))).astype(np.float32)
    scores = (r.randint(0, 5, 700) if ties else r.permutation(700)).astype(np.float32)
    wanted = greedy(boxes, scores, threshold)
    assert rcnn_boxes.suppress(boxes, scores, threshold).tolist() == wanted
    assert rcnn_boxes.suppress(boxes, scores, threshold, 7).tolist() == wanted[:7]


def test_the_nine_anchors() -> None:
    """As in the comment of generate_anchors.py, less one: it counts from 1."""
    first = rcnn_boxes.anchors((8, 16, 32), (0.5, 1, 2))[[0, 4, 8]]
    assert first.tolist() == [[-84, -40, 99, 55], [-120, -120, 135, 135], [-168, -344, 183, 359]]


X = "input: 'x' input_shape { %s } "
ROI = X % "dim: 1 dim: 4 dim: 5 dim: 6" + "input: 'r' input_shape { dim: 2 dim: 5 } "


def test_hardest_examples() -> None:
    """Worked by hand: of picture 0 the two largest losses, the earlier of equal ones; of picture 1 its only two."""
    net = caffe_port.Net(
        "input: 'r' input_shape { dim: 6 dim: 5 } input: 'l' input_shape { dim: 6 } input: 'y' input_shape { dim: 6 } "
        "input: 'w' input_shape { dim: 6 dim: 4 } layer { name: 'o' type: 'BoxAnnotatorOHEM' bottom: 'r' bottom: 'l' "
        "bottom: 'y' bottom: 'w' top: 'labels' top: 'weights' box_annotator_ohem_param { roi_per_img: 2 } }"
    )
    net.blobs["r"].data[:, 0] = [0, 0, 1, 0, 0, 1]
    net.blobs["l"].data[...] = [1, 3, 0, 3, 3, 0]
    net.blobs["y"].data[...] = [1, 2, 3, 4, 5, 6]
    net.blobs["w"].data[...] = 2
    net.forward()
    assert net.blobs["labels"].data.ravel().tolist() == [-1, 2, 3, 4, -1, 6]
    assert net.blobs["weights"].data[:, 0].ravel().tolist() == [0, 2, 2, 2, 0, 2]


LOSSES = X % "dim: 2 dim: 3" + "input: 't' input_shape { dim: 2 dim: 3 } input: 'w' input_shape { dim: 2 dim: 3 } "


@pytest.mark.parametrize(
    ("layer", "loss", "own"),
    [
        # |d| = 0, 1, 2: 0, 0.5, 1.5 an item, times weights of 1 and 2 inside: 0, 0.5, 1.5; 0, 1.5, 3.5
        ("type: 'SmoothL1LossOHEM' loss_param { normalization: PRE_FIXED pre_fixed_normalizer: 4 }", 7 / 4, [2, 5]),
        ("type: 'SmoothL1LossOHEM' loss_param { normalization: NONE }", 7, [2, 5]),
        ("type: 'SmoothL1LossOHEM'", 3.5, [2, 5]),
        ("type: 'SmoothL1Loss'", 3.5, [2, 5]),
    ],
)
def test_smooth_losses_of_rfcn(layer: str, loss: float, own: list[float]) -> None:
    mark = "" if "OHEM" in layer else "smooth_l1_loss_param { }"
    net = caffe_port.Net(
        LOSSES + f"layer {{ name: 'l' {layer} {mark} bottom: 'x' bottom: 't' bottom: 'w' top: 'y' top: 'own' }}"
    )
    net.blobs["x"].data[...] = [[0, 1, 2], [0, 1, 2]]
    net.blobs["w"].data[...] = [[1], [2]]
    net.forward()
    assert net.blobs["y"].data == loss
    assert net.blobs["own"].data.ravel().tolist() == own
    assert net.blob_loss_weights["y"] == 0


def test_softmax_loss_with_the_losses_of_pixels() -> None:
    """Against SoftmaxWithLoss, which real Caffe's numbers hold."""
    text = (
        X
        % "dim: 3 dim: 4 dim: 2"
        + "input: 'y' input_shape { dim: 3 dim: 1 dim: 2 } layer { name: 'l' type: '%s' bottom: "
        "'x' bottom: 'y' top: 'loss' top: 'p' %s loss_param { ignore_label: 1 } }"
    )
    numbers = torch.randn(3, 4, 2), torch.tensor([[[0, 1]], [[2, 3]], [[1, 1]]]).float()
    hard, plain = (
        caffe_port.Net(text % kind, phase="TRAIN", dialect="rcnn")
        for kind in (("SoftmaxWithLossOHEM", "top: 'own'"), ("SoftmaxWithLoss", ""))
    )
    for net in (hard, plain):
        for blob, array in zip(("x", "y"), numbers, strict=True):
            net.blobs[blob].data[...] = array
        net.forward()
        net.backward()
    np.testing.assert_allclose(hard.blobs["loss"].data, plain.blobs["loss"].data, rtol=1e-6)
    np.testing.assert_allclose(hard.blobs["p"].data, plain.blobs["p"].data, rtol=1e-6)
    np.testing.assert_allclose(hard.blobs["x"].diff, plain.blobs["x"].diff, atol=1e-7)
    own = hard.blobs["own"].data
    assert own.shape == (3, 1, 2)
    assert (own.ravel() == 0).tolist() == [False, True, False, False, True, True]
    np.testing.assert_allclose(own.sum() / 3, hard.blobs["loss"].data, rtol=1e-6)


RPN = "rpn.proposal_layer.ProposalLayer"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ROI + "layer { name: 'l' type: 'ROIPooling' bottom: 'x' bottom: 'r' top: 'y' }", "expected more than 0"),
        (
            ROI + "layer { name: 'l' type: 'PSROIPooling' bottom: 'x' bottom: 'r' top: 'y' psroi_pooling_param "
            "{ spatial_scale: 1 output_dim: 3 group_size: 2 } }",
            "expected 12: output_dim",
        ),
        (
            X % "dim: 2" + "layer { name: 'l' type: 'SmoothL1Loss' bottom: 'x' bottom: 'x' bottom: 'x' top: 'y' "
            "smooth_l1_loss_param { sigma: 3 } }",
            "expected one form",
        ),
        (ROI + "layer { name: 'l' type: 'Python' bottom: 'x' bottom: 'r' bottom: 'r' top: 'y' python_param { module: "
         "'rpn.proposal_layer' layer: 'ProposalLayer' param_str: '' } }", "'feat_stride': an integer"),
        (ROI + "layer { name: 'l' type: 'Python' bottom: 'x' bottom: 'r' bottom: 'r' top: 'y' python_param { module: "
         "'rpn.proposal_layer' layer: 'ProposalLayer' param_str: '*a' } }", "YAML of names, numbers and lists"),
    ],
)  # fmt: skip
def test_wrong_definitions(text: str, says: str) -> None:
    with pytest.raises(CaffeError, match=says):
        caffe_port.Net(text)


@pytest.mark.parametrize(
    ("rows", "says"),
    [([[7, 0, 0, 1, 1], [0] * 5], "rois of items 0 to 7"), ([[-1, 0, 0, 1, 1], [0] * 5], "0, the items of the map")],
)
def test_rois_of_missing_items(rows: list[list[float]], says: str) -> None:
    net = caffe_port.Net(
        ROI + "layer { name: 'l' type: 'ROIPooling' bottom: 'x' bottom: 'r' top: 'y' roi_pooling_param "
        "{ pooled_h: 2 pooled_w: 2 } }"
    )
    net.blobs["r"].data[...] = rows
    with pytest.raises(CaffeError, match=says):
        net.forward()


def test_maps_of_another_number_of_anchors() -> None:
    shapes = {"s": (1, 12, 2, 2), "d": (1, 24, 2, 2), "i": (1, 3)}
    net = python_net(RPN, shapes, ["rois"], "'feat_stride': 16", "TEST")
    with pytest.raises(CaffeError, match=r"expected \(1, 18, height, width\), found scores of shape \(1, 12, 2, 2\)"):
        net.forward()


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("layer { type: 'ROIPooling' } layer { type: 'SmoothL1Loss' }", "rcnn"),
        ("layer { type: 'SmoothL1Loss' smooth_l1_loss_param { sigma: 3 } }", "rcnn"),
        ("layer { type: 'SmoothL1Loss' } layer { type: 'PSROIPooling' }", "rfcn"),
        ("layer { type: 'ROIPooling' } layer { type: 'BoxAnnotatorOHEM' }", "rfcn"),
        ("layer { type: 'Python' python_param { module: 'rpn.anchor_target_layer' } }", "rcnn"),
        ("layer { type: 'Python' python_param { module: 'mine' } }", "bvlc"),
        ("layer { type: 'Dropout' dropout_param { scale_train: false } }", "rcnn"),
    ],
)
def test_which_fork(text: str, dialect: str) -> None:
    assert read_net(text).dialect.name == dialect


def test_a_file_is_read_with_the_forks_numbers() -> None:
    fields = schema_of(RCNN).LayerParameter.DESCRIPTOR.fields_by_name
    numbers = {name: fields[name].number for name in RCNN_FIELDS}
    assert numbers == RCNN_FIELDS


RCNN_FIELDS = {
    "box_annotator_ohem_param": 10000,
    "psroi_pooling_param": 10001,
    "roi_pooling_param": 8266711,
    "smooth_l1_loss_param": 8266712,
}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("'feat_stride': 16", {"feat_stride": 16}),
        ("'a': 1 \n'scales': !!python/tuple [4, 8.5, -2]", {"a": 1, "scales": [4, 8.5, -2]}),
        ("{'stride': 16, 'scales': [2, 4], 'x': {y: true}}", {"stride": 16, "scales": [2, 4], "x": {"y": True}}),
        (
            "TRAIN:\n  HAS_RPN: True # yes\n  STDS: (1, 2)\nTEST:\n  NMS: 0.3\n",
            {"TRAIN": {"HAS_RPN": True, "STDS": [1, 2]}, "TEST": {"NMS": 0.3}},
        ),
        ("a:\n- 1\n- b\nc: ~", {"a": [1, "b"], "c": None}),
        ("", {}),
    ],
)  # fmt: skip
def test_yaml(text: str, values: dict) -> None:
    assert rcnn_settings.parse_yaml(text, "here") == values


@pytest.mark.parametrize("text", ["a", "a: [1", "{a: 1", "a: b: c", "{a}", "a: ]", "- 1"])
def test_unsupported_yaml(text: str) -> None:
    with pytest.raises(CaffeError, match="YAML of names, numbers and lists"):
        rcnn_settings.parse_yaml(text, "here")


def test_settings_of_a_cfg_file(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("EXP_DIR: x\nTRAIN:\n  HAS_RPN: True\n  IMS_PER_BATCH: 1\n  SCALES: [400]\n")
    rcnn_settings.read(tmp_path / "a.yml")
    assert rcnn_settings.of_phase("TRAIN").SCALES == (400,)
    with pytest.raises(CaffeError, match=r"near: TRAIN.RPN_BATCHSIZE"):
        rcnn_settings.change({"TRAIN.RPN_BATCHSIZES": 1})


def test_targets_of_rfcn() -> None:
    """From source: what py-faster-rcnn's layer gives, all of it, with four axes, and one box for all classes."""
    rcnn_settings.change({"TRAIN.BATCH_SIZE": -1, "TRAIN.AGNOSTIC": True, "TRAIN.BG_THRESH_LO": 0.0})
    tops = ["rois", "labels", "targets", "inside", "outside"]
    shapes = {"r": (3, 5), "g": (1, 5)}
    text = "layer { type: 'PSROIPooling' name: 'p' bottom: 'm' bottom: 'rois' top: 'p' psroi_pooling_param { "
    text += "spatial_scale: 1 output_dim: 1 group_size: 1 } } input: 'm' input_shape { dim: 1 dim: 1 dim: 9 dim: 9 } "
    net = python_net(
        "rpn.proposal_target_layer.ProposalTargetLayer", shapes, tops, "'num_classes': 2", "TRAIN", more=text
    )
    assert net.dialect is RFCN
    net.blobs["g"].data[...] = [[0, 0, 9, 9, 7]]
    net.blobs["r"].data[...] = [[0, 0, 0, 9, 9], [0, 0, 0, 9, 4], [0, 50, 50, 59, 59]]
    net.forward()
    assert net.blobs["rois"].data.shape == (4, 5, 1, 1)
    assert sorted(net.blobs["labels"].data.ravel().tolist()) == [0, 7, 7, 7]
    assert net.blobs["inside"].data.reshape(4, 2, 4)[:3, 1].all()
    assert not net.blobs["inside"].data.reshape(4, 2, 4)[:, 0].any()


def roidb(folder: Path) -> list[dict]:
    """Two pictures of 40 x 30 and 30 x 40 with a box each."""
    import cv2

    records = []
    for i, (w, h) in enumerate(((40, 30), (30, 40))):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((h, w, 3), 50 * i, np.uint8))
        boxes = np.array([[2, 3, 20, 22], [4, 4, 12, 12]])
        records.append(
            {
                "image": folder / f"{i}.png",
                "width": w,
                "height": h,
                "flipped": bool(i),
                "boxes": boxes,
                "gt_classes": np.array([3, 0]),
                "max_classes": np.array([3, 0]),
                "max_overlaps": np.array([1.0, 0.2]),
                "bbox_targets": np.array([[3, 0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0, 0]]),
            }
        )
    return records


@pytest.mark.parametrize("tops", [["data", "rois", "labels"], ["data", "rois", "labels", "targets", "weights"]])
def test_roi_data_of_the_older_fast_rcnn(tmp_path: Path, tops: list[str]) -> None:
    rcnn_settings.change({"TRAIN.SCALES": [60], "TRAIN.BATCH_SIZE": 4, "TRAIN.FG_FRACTION": 0.5})
    net = python_net("roi_data_layer.layer.RoIDataLayer", {}, tops, "'num_classes': 5", "TRAIN")
    net.layers[0].set_roidb(roidb(tmp_path))
    net.forward()
    assert [net.blobs[top].data.shape for top in tops[1:]] == [(4, 5), (4,), (4, 20), (4, 20)][: len(tops) - 1]


@pytest.mark.parametrize("has_rpn", [True, False])
def test_roi_data(tmp_path: Path, has_rpn: bool) -> None:
    """From source: sizes by SCALES and MAX_SIZE, boxes scaled with the picture, means subtracted."""
    rcnn_settings.change({"TRAIN.SCALES": [60], "TRAIN.MAX_SIZE": 70, "TRAIN.BATCH_SIZE": 4, "TRAIN.FG_FRACTION": 0.5})
    tops = (
        ["data", "im_info", "gt_boxes"]
        if has_rpn
        else ["data", "rois", "labels", "bbox_targets", "bbox_inside_weights", "bbox_outside_weights"]
    )
    net = python_net("roi_data_layer.layer.RoIDataLayer", {}, tops, "'num_classes': 5", "TRAIN")
    assert net.blobs["data"].data.shape == (1 if has_rpn else 2, 3, 60, 70)
    with pytest.raises(CaffeError, match="no roidb"):
        net.forward()
    np.random.seed(1)
    net.layers[0].set_roidb(roidb(tmp_path))
    net.forward()
    blobs = {name: blob.data for name, blob in net.blobs.items()}
    scale = 70 / 40  # 60 / 30 would make the longer side 80
    assert set(blobs["data"].shape[2:]) <= {52, 53, 70}
    if has_rpn:
        assert blobs["im_info"][0, 2] == np.float32(scale)
        np.testing.assert_allclose(blobs["gt_boxes"], [[*np.array([2, 3, 20, 22]) * scale, 3]], rtol=1e-6)
        return
    assert blobs["rois"].shape == (4, 5)
    assert blobs["labels"].tolist() == [3, 0, 3, 0]
    np.testing.assert_allclose(blobs["bbox_targets"][0], [0] * 12 + [0.1, 0.2, 0.3, 0.4] + [0] * 4, rtol=1e-6)
    assert blobs["bbox_outside_weights"].sum() == 8
    assert {round(float(b[0].max()), 3) for b in blobs["data"]} <= {0.0, round(50 - 102.9801, 3)}
