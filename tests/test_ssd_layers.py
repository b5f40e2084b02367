"""SSD's layers beyond the cases of tests/test_layers_reference.py: recognition, states, worked boxes, wrong input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import cases, needs_shared

import caffe_port
from caffe_port.dialects import SSD
from caffe_port.errors import CaffeError
from caffe_port.layers.ssd_boxes import decode, encode, overlaps, suppress
from caffe_port.schema import read_net, read_solver, schema_of


def dims(shape: tuple[int, ...]) -> str:
    return " ".join(f"dim: {d}" for d in shape)


def net_of(body: str, **shapes: tuple[int, ...]) -> str:
    """A layer over input blobs; its top is called top."""
    inputs = "".join(
        f"layer {{ name: '{n}' type: 'Input' top: '{n}' input_param {{ shape {{ {dims(s)} }} }} }} "
        for n, s in shapes.items()
    )
    return f"{inputs}layer {{ name: 'l' {' '.join(f'bottom: {n!r}' for n in shapes)} top: 'top' {body} }} "


# -- recognition and numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "type: 'Permute'",
        "type: 'Silence' transform_param { expand_param { max_expand_ratio: 4 } }",
        "type: 'Data' transform_param { resize_param { height: 300 width: 300 } }",
    ],
)
def test_an_ssd_net_is_recognised(body: str) -> None:
    assert read_net(f"layer {{ name: 'l' {body} }}").dialect is SSD


def test_an_ssd_solver_is_recognised() -> None:
    param = read_solver("net: 'n' eval_type: 'detection' ap_version: '11point' show_per_class_result: true")
    fields = param.DESCRIPTOR.fields_by_name
    assert [fields[n].number for n in ("eval_type", "ap_version", "plateau_winsize", "show_per_class_result")] == [
        *(41, 42, 43, 44)
    ]
    assert param.ap_version == "11point"


def test_numbers_of_layer_fields() -> None:
    """Those of FORKS.md, section 0; norm_param and not normalize_param."""
    fields = schema_of(SSD).LayerParameter.DESCRIPTOR.fields_by_name
    wanted = {"annotated_data_param": 200, "multibox_loss_param": 201, "permute_param": 202, "prior_box_param": 203}
    wanted |= {"detection_output_param": 204, "detection_evaluate_param": 205, "norm_param": 206}
    wanted |= {"video_data_param": 207}
    assert {name: fields[name].number for name in wanted} == wanted


# -- boxes -------------------------------------------------------------------------------------------------------------


def test_prior_boxes_by_hand() -> None:
    """One cell of a 10 x 20 image: sizes are cut to whole numbers, the second square has sqrt(4 * 9) = 6 pixels."""
    body = (
        "type: 'PriorBox' prior_box_param { min_size: 4.9 max_size: 9.2 aspect_ratio: 4 "
        "variance: [0.1, 0.2, 0.3, 0.4] }"
    )
    made = caffe_port.Net(net_of(body, x=(1, 1, 1, 1), data=(1, 3, 10, 20)))(
        x=torch.zeros(1, 1, 1, 1), data=torch.zeros(1, 3, 10, 20)
    )["top"]
    sizes = [(4, 4), (6, 6), (8, 2), (2, 8)]
    wanted = [[(10 - w / 2) / 20, (5 - h / 2) / 10, (10 + w / 2) / 20, (5 + h / 2) / 10] for w, h in sizes]
    torch.testing.assert_close(made[0, 0].view(4, 4), torch.tensor(wanted))
    assert made[0, 1].view(4, 4).tolist() == [pytest.approx([0.1, 0.2, 0.3, 0.4])] * 4


def test_the_identity_permutation_shares_memory_and_others_do_not() -> None:
    x = torch.randn(2, 3, 4)
    for order, shares in (((0, 1), True), ((1, 0), False)):
        orders = " ".join(f"order: {i}" for i in order)
        y = caffe_port.Net(net_of(f"type: 'Permute' permute_param {{ {orders} }}", x=(2, 3, 4)))(x=x)["top"]
        assert (y.data_ptr() == x.data_ptr()) is shares


@pytest.mark.parametrize("code", ["CORNER", "CENTER_SIZE", "CORNER_SIZE"])
@pytest.mark.parametrize("variances", [None, torch.tensor([0.1, 0.2, 0.3, 0.4])])
def test_coding_and_back(code: str, variances: torch.Tensor | None) -> None:
    low, size = torch.rand(2, 50, 2), torch.rand(2, 50, 2) + 0.1
    priors, boxes = torch.cat((low, low + size), 2)
    there = encode(code, priors, variances, boxes)
    torch.testing.assert_close(decode(code, priors, variances, there), boxes)


def test_overlaps_by_hand() -> None:
    boxes = torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [3, 3, 1, 1], [0.5, 0.5, 1.5, 1.5]])
    found = overlaps(boxes[:1], boxes)[0].tolist()
    assert found == pytest.approx([1, 1 / 7, 0, 0, 1 / 4])  # itself, a corner, an edge, an inverted one, one inside


def one_by_one(boxes: np.ndarray, threshold: float, eta: float) -> list[int]:
    """Suppression as the definition has it, in double precision."""
    kept: list[int] = []
    for i, (a, b, c, d) in enumerate(boxes):
        for k in kept:
            p, q, r, s = boxes[k]
            w, h = min(c, r) - max(a, p), min(d, s) - max(b, q)
            common = w * h if w > 0 and h > 0 else 0.0
            if common / ((c - a) * (d - b) + (r - p) * (s - q) - common) > threshold:
                break
        else:
            kept.append(i)
            threshold *= eta if eta < 1 and threshold > 0.5 else 1
    return kept


@pytest.mark.parametrize("eta", [1.0, 0.9])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("count", [0, 1, 5, 127, 128, 129, 700])
def test_suppression_is_that_of_one_box_after_the_other(count: int, threshold: float, eta: float) -> None:
    rng = np.random.default_rng(count)
    low = rng.random((count, 2))
    boxes = np.concatenate((low, low + 0.05 + 0.5 * rng.random((count, 2))), 1)
    (stays,) = suppress([torch.from_numpy(boxes)], threshold, eta)
    assert stays.tolist() == one_by_one(boxes, threshold, eta)


def test_suppression_of_groups_is_that_of_each() -> None:
    """Groups of any lengths at once, with padding and without."""
    rng = np.random.default_rng(5)
    low = [rng.random((count, 2)) - 0.2 for count in (3, 0, 260, 128, 1, 131)]
    groups = [np.concatenate((at, at + 0.05 + 0.4 * rng.random(at.shape)), 1) for at in low]
    found = suppress([torch.from_numpy(boxes) for boxes in groups], 0.4)
    assert [stays.tolist() for stays in found] == [one_by_one(boxes, 0.4, 1.0) for boxes in groups]


# -- states ------------------------------------------------------------------------------------------------------------

# Losses of five forward passes, a backward pass after the third; boxes move after the first, offsets after the second.
# Computed by the program itself (4817bf8b, CPU) on the inputs of these cases.
PASSES = {
    "multibox_default": [8.36234, 10.0667, 9.50316, 7.0883, 7.0883],
    "multibox_hard": [14.1291, 17.4992, 17.4542, 13.3311, 13.3311],
    "multibox_mine_none": [15.6724, 15.8461, 16.2267, 15.159, 15.159],
    "multibox_center": [13.7243, 20.5011, 20.6878, 17.2198, 17.2198],
}
STATES = [case for case in cases("ssd", "ssd") if case.name in PASSES]


@pytest.mark.parametrize("case", STATES, ids=str)
def test_matches_outlive_forward_passes_until_one_goes_backward(case) -> None:
    net = caffe_port.Net(case.prototxt, phase="TRAIN")
    given, losses = case.reference, []
    for key in given.keys("in", "param"):
        kind, name = key.split("/", 1)
        layer, _, index = name.rpartition("/")
        (net.blobs[name] if kind == "in" else net.params[layer][int(index)]).data[...] = given[key]
    moved = given["in/gt"].copy()
    moved[..., 3:7] += np.float32(0.11)
    moved[..., 1] = 3 - moved[..., 1].clip(1, 2)
    for change in (None, ("gt", moved), ("loc", given["in/loc"][:, ::-1]), "backward", None):
        if change == "backward":
            net.backward()
        elif change is not None:
            net.blobs[change[0]].data[...] = change[1]
        net.forward()
        losses.append(float(net.blobs["loss"].data))
    assert losses == pytest.approx(PASSES[case.name], rel=1e-5)


def test_stale_matches_of_removed_boxes_are_an_error() -> None:
    (case,) = (case for case in STATES if case.name == "multibox_default")
    net = caffe_port.Net(case.prototxt, phase="TRAIN")
    for key in case.reference.keys("in"):
        net.blobs[key[3:]].data[...] = case.reference[key]
    net.forward()
    net.blobs["gt"].data[..., 0] = -1
    with pytest.raises(CaffeError, match=r"item 0 with fewer boxes, while the matches of an earlier forward pass"):
        net.forward()


def test_a_pass_in_which_nothing_counts_clears_matches_too() -> None:
    text = net_of(loss("num_classes: 2"), loc=(1, 8), conf=(1, 4), p=(1, 2, 8), gt=(1, 1, 1, 8))
    scale = "layer { name: 's' type: 'Scale' bottom: 'loc' top: 's' } "
    text = text.replace("layer { name: 'l' bottom: 'loc'", scale + "layer { name: 'l' bottom: 's'")
    net = caffe_port.Net(text, phase="TRAIN")
    net.blobs["p"].data[0] = [[0, 0, 0.5, 0.5, 0.5, 0.5, 1, 1], [0.1] * 8]
    net.blobs["gt"].data[0, 0, 0] = -1
    net.forward()
    assert float(net.blobs["top"].data) == 0
    net.backward()
    net.blobs["gt"].data[0, 0, 0] = [0, 1, 0, 0, 0, 0.5, 0.5, 0]
    net.forward()
    assert float(net.blobs["top"].data) > 0


NORMALIZE = """
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 dim: 4 dim: 5 }} }} }}
layer {{ name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param {{ num_output: 4 kernel_size: 3 }} }}
layer {{ name: "n" type: "Normalize" bottom: "c" top: "c" norm_param {{ {} }} }}
"""

# The sum of the top, and of the scale's diff, as the program itself (4817bf8b) gives them for these numbers.
IN_PLACE = [
    ("", -3.11033, -0.433732),
    ("across_spatial: false channel_shared: false", -10.7714, 5.22823),
    ("across_spatial: false", -7.33263, 0.420092),
]


@pytest.mark.parametrize(("body", "top", "scale"), IN_PLACE)
def test_normalize_in_place_passes_no_gradient_down(body: str, top: float, scale: float) -> None:
    net, rng = caffe_port.Net("force_backward: true" + NORMALIZE.format(body), phase="TRAIN"), np.random.RandomState(0)
    net.blobs["x"].data[...] = rng.randn(2, 3, 4, 5)
    net.params["c"][0].data[...] = rng.randn(4, 3, 3, 3) * 0.3
    net.params["c"][1].data[...] = rng.randn(4)
    net.params["n"][0].data[...] = np.abs(rng.randn(*net.params["n"][0].data.shape)) + 0.5
    net.forward()
    net.blobs["c"].diff[...] = rng.randn(2, 4, 2, 3)
    net.backward()
    found = net.blobs["c"].data.sum(), net.params["n"][0].diff.sum()
    assert found == pytest.approx((top, scale), rel=1e-4)
    assert not net.blobs["c"].diff.any() and not net.blobs["x"].diff.any() and not net.params["c"][0].diff.any()


# -- objects -----------------------------------------------------------------------------------------------------------

OUTPUT = "type: 'DetectionOutput' detection_output_param {{ num_classes: 3 {} }}"
THIN = "nms_param { nms_threshold: 0.5 }"


def objects(body: str, conf: list[list[float]], priors: list[list[float]]) -> list[list[float]]:
    n = len(priors)
    shapes = {"loc": (1, 4 * n), "conf": (1, 3 * n), "p": (1, 2, 4 * n)}
    prior = torch.tensor([priors, [[0.1] * 4] * n]).view(shapes["p"])
    net = caffe_port.Net(net_of(OUTPUT.format(f"{THIN} {body}"), **shapes))
    found = net(loc=torch.zeros(shapes["loc"]), conf=torch.tensor(conf).view(shapes["conf"]), p=prior)["top"]
    return [[round(number, 6) for number in row] for row in found[0, 0].tolist()]


A, B, C = [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.4], [0.5, 0.5, 1.0, 1.0]


def test_objects_by_hand() -> None:
    """B overlaps A by 0.8 and goes; rows are ordered by label, then score."""
    conf = [[0.1, 0.2, 0.7], [0.05, 0.35, 0.6], [0.5, 0.4, 0.1]]
    found = objects("", conf, [A, B, C])
    assert found == [[0, 1, 0.4, *C], [0, 1, 0.35, *B], [0, 2, 0.7, *A], [0, 2, 0.1, *C]]
    assert objects("keep_top_k: 2", conf, [A, B, C]) == [[0, 1, 0.4, *C], [0, 2, 0.7, *A]]
    assert objects("confidence_threshold: 0.4", conf, [A, B, C]) == [[0, 2, 0.7, *A]]  # 0.4 is not above 0.4
    assert objects("keep_top_k: 0", conf, [A, B, C]) == [[0] + [-1] * 6]


def test_of_equal_scores_the_earlier_prior_is_first() -> None:
    assert objects("", [[0.5, 0.5, 0]] * 3, [C, B, A])[:2] == [[0, 1, 0.5, *C], [0, 1, 0.5, *B]]


# -- wrong input -------------------------------------------------------------------------------------------------------

SHAPES = {"loc": (1, 8), "conf": (1, 6), "p": (1, 2, 8)}
LOSS = {**SHAPES, "gt": (1, 1, 1, 8)}
X, FOUND = {"x": (2, 3, 4, 5)}, {"d": (1, 1, 1, 7), "gt": (1, 1, 1, 8)}
FEATURE = {"x": (1, 1, 2, 2), "data": (1, 3, 10, 10)}


def loss(body: str) -> str:
    return f"type: 'MultiBoxLoss' multibox_loss_param {{ {body} }}"


def prior(body: str) -> str:
    return f"type: 'PriorBox' prior_box_param {{ {body} }}"


WRONG = [
    (OUTPUT.format("background_label_id: -1"), SHAPES, "background_label_id -1 with share_location"),
    (OUTPUT.format("nms_param { eta: 0 }"), SHAPES, "eta 0.0"),
    (OUTPUT.format("nms_param { nms_threshold: -1 }"), SHAPES, "nms_threshold -1.0"),
    ("type: 'DetectionOutput'", SHAPES, "found no num_classes"),
    (OUTPUT.format(""), {**SHAPES, "p": (1, 2, 12)}, r"locations of shape \(1, 8\) for 3 priors"),
    (OUTPUT.format(""), {**SHAPES, "conf": (1, 9)}, r"confidences of shape \(1, 9\) for 2 priors"),
    (OUTPUT.format(""), {**SHAPES, "conf": (2, 6)}, "expected as many items in both"),
    (OUTPUT.format(""), {**SHAPES, "p": (1, 1, 8)}, r"priors of shape \(1, 1, 8\)"),
    (loss("num_classes: 3 share_location: false"), {**LOSS, "loc": (1, 24)}, "MAX_NEGATIVE without share_location"),
    (loss("num_classes: 3 do_neg_mining: false"), LOSS, "do_neg_mining false with mining_type MAX_NEGATIVE"),
    (loss("num_classes: 3 background_label_id: 3"), LOSS, "background_label_id 3"),
    (loss("num_classes: 3 map_object_to_agnostic: true"), LOSS, "map_object_to_agnostic with 3 classes"),
    (loss("num_classes: 3 mining_type: HARD_EXAMPLE sample_size: 0"), LOSS, "sample_size 0"),
    (loss(""), LOSS, "found no num_classes"),
    (loss("num_classes: 3"), {**LOSS, "p": (1, 2, 12)}, "for 3 priors"),
    (loss("num_classes: 3"), {**LOSS, "gt": (1, 1, 1, 7)}, r"true boxes of shape \(1, 1, 1, 7\)"),
    (loss("num_classes: 3") + " propagate_down: true", LOSS, "propagate_down"),
    (prior(""), FEATURE, r"min_size \[\]"),
    (prior("min_size: 0"), FEATURE, r"min_size \[0.0\]"),
    (prior("min_size: 3 max_size: 3"), FEATURE, r"max_size \[3.0\]"),
    (prior("min_size: [3, 4] max_size: 5"), FEATURE, r"max_size \[5.0\]"),
    (prior("min_size: 3 variance: [0.1, 0.1]"), FEATURE, "variance"),
    (prior("min_size: 3 variance: -1"), FEATURE, "variance"),
    (prior("min_size: 3 img_size: 5 img_h: 5"), FEATURE, "img_size and img_h or img_w"),
    (prior("min_size: 3 img_h: 5"), FEATURE, "img_h and img_w"),
    (prior("min_size: 3 step: 5 step_w: 5"), FEATURE, "step and step_h or step_w"),
    (prior("min_size: 3 step: 0"), FEATURE, "step "),
    ("type: 'Permute' permute_param { order: 0 order: 0 }", X, r"order \[0, 0\]"),
    ("type: 'Permute' permute_param { order: 4 }", X, r"order \[4\]"),
    ("type: 'Normalize'", {"x": (3,)}, "2 to 4 axes"),
    ("type: 'Normalize'", {"x": (3, 1, 1, 1, 1)}, "2 to 4 axes"),
    ("type: 'SmoothL1Loss'", {"x": (2, 3), "y": (3, 2)}, "expected equal shapes"),
    ("type: 'SmoothL1Loss'", {"x": (2, 3), "y": (2, 3), "w": (2, 3)}, "expected 2 bottoms, found 3 bottoms"),
    ("type: 'DetectionEvaluate'", FOUND, "found no num_classes"),
    ("type: 'DetectionEvaluate' detection_evaluate_param { num_classes: 3 overlap_threshold: 0 }", FOUND, "above 0"),
    ("type: 'DetectionEvaluate' detection_evaluate_param { num_classes: 3 }", {**FOUND, "d": (1, 1, 1, 5)}, "objects"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "shapes", "says"), WRONG, ids=[f"{row[2]} {i}" for i, row in enumerate(WRONG)])
def test_wrong_definitions(body: str, shapes: dict, says: str) -> None:
    with pytest.raises(CaffeError, match=says) as caught:
        caffe_port.Net(net_of(body, **shapes), dialect="ssd")
    assert "\n" not in str(caught.value)


CONFIDENCE = "confidences from .*: expected probabilities|expected probabilities from 0 to 1, found confidences"


@pytest.mark.parametrize("values", [[-0.1, 1, 0], [0.5, 1.2, 0], [0.5, float("nan"), 0], [float("inf"), 0, 0]], ids=str)
def test_confidences_that_are_no_probabilities(values: list[float]) -> None:
    with pytest.raises(CaffeError, match=CONFIDENCE):
        objects("", [values, [1.0, 0, 0]], [A, C])


def run_loss(gt: list[float], body: str = "", priors: tuple = (A, C)) -> None:
    classes = 2 if "num_classes" in body else 3
    body = body if "num_classes" in body else f"num_classes: 3 {body}"
    net = caffe_port.Net(net_of(loss(body), **(LOSS | {"conf": (1, 2 * classes)})), phase="TRAIN")
    prior = torch.tensor([[*priors], [[0.1] * 4] * 2]).view(1, 2, 8)
    net(loc=torch.zeros(1, 8), conf=torch.zeros(1, 2 * classes), p=prior, gt=torch.tensor([[[gt]]]))


@pytest.mark.parametrize(
    ("gt", "body", "priors", "says"),
    [
        ([0.0, 0, 0, *A, 0], "", (A, C), "background label 0"),
        ([0.0, 3, 0, *A, 0], "", (A, C), "labels 3 to 3"),
        ([0.0, 2, 0, *A, 0], "num_classes: 2 map_object_to_agnostic: true", (A, C), "labels 2 to 2"),
        ([0.0, 1, 0, *A, 0], "code_type: CENTER_SIZE", (A, [0.5, 0.5, 0.5, 1.0]), None),
        ([0.0, 1, 0, *B, 0], "code_type: CENTER_SIZE use_prior_for_matching: false", ([0.0, 0, 0, 0], C), None),
    ],
)
def test_wrong_true_boxes(gt: list[float], body: str, priors: tuple, says: str | None) -> None:
    if says is None:  # a prior without width that no box is matched with has no effect
        run_loss(gt, body, priors)
        return
    with pytest.raises(CaffeError, match=says):
        run_loss(gt, body, priors)


@needs_shared("reference/ssd")
@pytest.mark.parametrize("name", ["detout_no_background", "smoothl1_weighted"])
def test_what_the_original_refuses(name: str) -> None:
    from reference import SHARED

    with pytest.raises(CaffeError):
        caffe_port.Net(str(SHARED / "reference" / "ssd" / f"{name}.prototxt"), phase="TRAIN", dialect="ssd")
