"""Layers of further forks at one size each, as ``layer_rows`` has those of BVLC and the 2015 fork."""

from __future__ import annotations

from functools import partial
from math import ceil, floor, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.layer_rows import MAP, Hold, Row, below, normal, positive, switches

__all__ = ["LEFT_OUT", "ROWS"]


def rois(shape: tuple[int, ...]) -> Tensor:
    """Of item 0, 16 x 12 pixels each, inside a map of 28 x 28."""
    x, y = torch.arange(shape[0]) % 13, torch.arange(shape[0]) % 17
    return torch.stack((torch.zeros(shape[0]), x, y, x + 15, y + 11), 1)


def roi_pooling(x: Tensor, boxes: Tensor) -> Tensor:
    corners = boxes[:, 1:].long().tolist()
    return torch.stack([F.adaptive_max_pool2d(x[0, :, b : d + 1, a : c + 1], 7) for a, b, c, d in corners])


def smooth_l1(x: Tensor, y: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    return (F.smooth_l1_loss(x * inside, y * inside, beta=1 / 9, reduction="none") * outside).sum() / len(x)


def position_sensitive(x: Tensor, boxes: Tensor) -> Tensor:
    """Bins of 7 x 7, each with its own channel of every class, one roi after the other."""
    planes, height, width = x[0].view(-1, 7, 7, *x.shape[2:]), *x.shape[2:]
    pooled = []
    for a, b, c, d in (0.0625 * (boxes[:, 1:].round() + torch.tensor([0, 0, 1, 1]))).tolist():
        across, down = max(c - a, 0.1) / 7, max(d - b, 0.1) / 7
        for i in range(7):
            for j in range(7):
                top, low = (
                    min(max(round_to(i * down + b + more), 0), height) for round_to, more in ((floor, 0), (ceil, down))
                )
                left, right = (
                    min(max(round_to(j * across + a + more), 0), width)
                    for round_to, more in ((floor, 0), (ceil, across))
                )
                pooled.append(planes[:, i, j, top:low, left:right].mean((1, 2)))
    return torch.stack(pooled).view(len(boxes), 7, 7, -1).permute(0, 3, 1, 2)


def rois_of_a_picture(shape: tuple[int, ...]) -> Tensor:
    """Of item 0, inside 600 x 600 pixels; no edge of a bin is a whole cell, which rounding would move."""
    near, far = (16 * torch.randint(low, low + 18, (shape[0], 2)) for low in (0, 19))
    return torch.cat((torch.zeros(shape[0], 1), near + 8, far + 7), 1)


def recursive(x: Tensor, edge: Tensor, size: Tensor, least: float | None = 0.0) -> Tensor:
    """Three rounds along rows and columns, both ways, one column or row after the other."""
    for i in range(3):
        sigma = 50 * sqrt(3) * 2 ** (2 - i) / sqrt(4**3 - 1)
        weight = torch.exp(-sqrt(2) / sigma * (1 + 10 * edge))
        weight = weight if least is None else weight.clamp(least, 1)
        for axis in (3, 2):
            lines, weights = list(x.unbind(axis)), weight.unbind(axis)
            for j in range(1, len(lines)):
                lines[j] = lines[j] + weights[j] * (lines[j - 1] - lines[j])
            for j in reversed(range(len(lines) - 1)):
                lines[j] = lines[j] + weights[j + 1] * (lines[j + 1] - lines[j])
            x = torch.stack(lines, axis)
    return x


def whole(shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, 65.0)


def counted(x: Tensor, label: Tensor) -> Tensor:
    """Pixel accuracy, mean recall, mean intersection over union; without ties and absent classes."""
    classes, truth, found = x.shape[1], label.long().flatten(), x.argmax(1).flatten()
    counts = (truth * classes + found).bincount(minlength=classes**2).view(classes, classes).float()
    right = counts.diag()
    shares = (
        right.sum() / counts.sum(),
        (right / counts.sum(1)).mean(),
        (right / (counts.sum(0) + counts.sum(1) - right)).mean(),
    )
    return torch.stack(shares).view(1, 1, 1, 3)


def constant(*values: float) -> Hold:
    """The same numbers, whatever the shape."""
    return lambda shape: torch.tensor(values, dtype=torch.float32).expand(shape).clone()


def corners(shape: tuple[int, ...], width: int = 600, height: int = 600) -> Tensor:
    """(n, 4) boxes inside a picture."""
    near = torch.rand(shape[0], 2) * torch.tensor([width, height]) * 0.6
    return torch.cat((near, near + 30 + torch.rand(shape[0], 2) * 0.35 * torch.tensor([width, height])), 1)


def numbered(shape: tuple[int, ...]) -> Tensor:
    """(n, 5) rois of item 0."""
    return torch.cat((torch.zeros(shape[0], 1), corners(shape)), 1)


def labelled(shape: tuple[int, ...]) -> Tensor:
    """(n, 5) true boxes with their labels."""
    return torch.cat((corners(shape), 1 + torch.arange(shape[0])[:, None] % 20), 1)


def chosen_rois(shape: tuple[int, ...]) -> Tensor:
    return numbered(shape).view(shape)


_CELLS = (38, 38)
_ANCHORS = ((1, 18, *_CELLS), (8, 5), (1, 3), (1, 3, 600, 600))
_YOLO3 = " ".join(
    [
        *(f"biases: {n}" for n in (10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326)),
        *(f"mask: {n}" for n in (6, 7, 8, 3, 4, 5, 0, 1, 2)),
        *(f"anchors_scale: {n}" for n in (32, 16, 8)),
        "confidence_threshold: 0.6",
    ]
)
_YOLO = " ".join(f"biases: {n}" for n in (1.1, 1.2, 3.2, 4.0, 5.1, 8.0, 9.5, 4.8, 11.2, 10.0))


def module(name: str, settings: str) -> str:
    package, _, kind = name.rpartition(".")
    return f"python_param {{ module: '{package}' layer: '{kind}' param_str: \"{settings}\" }}"


_DOMAIN = ((1, 21, 65, 65), (1, 1, 65, 65), (1, 1, 1, 2))

ROWS: list[Row] = [
    Row(
        "PSROIPooling",
        ((1, 21 * 49, 38, 38), (60, 5)),
        position_sensitive,
        "psroi_pooling_param { spatial_scale: 0.0625 output_dim: 21 group_size: 7 }",
        (normal, rois_of_a_picture),
        dialect="rcnn",
    ),
    Row("DomainTransform", _DOMAIN, recursive, holds=(normal, positive, whole), dialect="deeplab2"),
    Row(
        "DomainTransformForwardOnly",
        _DOMAIN,
        partial(recursive, least=None),
        holds=(normal, positive, whole),
        dialect="deeplab2",
        backward=False,
    ),
    Row(
        "SegAccuracy",
        ((2, 21, 321, 321), (2, 1, 321, 321)),
        counted,
        holds=(normal, below(21)),
        dialect="deeplab2",
        backward=False,
    ),
    Row(
        "Upsample",
        MAP * 2,
        lambda x, s: F.max_unpool2d(x, s.long(), 2),
        "upsample_param { scale: 2 }",
        (normal, switches),
        dialect="segnet",
    ),
    Row(
        "Interp",
        MAP,
        lambda x: F.interpolate(x, scale_factor=None, size=(55, 55), mode="bilinear", align_corners=True),
        "interp_param { zoom_factor: 2 }",
        dialect="deeplab2",
    ),
    Row(
        "ROIPooling",
        ((4, 64, 28, 28), (60, 5)),
        roi_pooling,
        "roi_pooling_param { pooled_h: 7 pooled_w: 7 }",
        (normal, rois),
        dialect="rcnn",
    ),
    Row(
        "SmoothL1Loss",
        ((128, 84),) * 4,
        smooth_l1,
        "smooth_l1_loss_param { sigma: 3 }",
        dialect="rcnn",
    ),
    Row(
        "SmoothL1LossOHEM",
        ((128, 84),) * 2,
        lambda x, y: F.smooth_l1_loss(x, y, reduction="sum") / len(x),
        dialect="rcnn",
    ),
    Row(
        "SoftmaxWithLossOHEM",
        ((300, 81), (300,)),
        lambda x, y: F.cross_entropy(x, y.long()),
        holds=(normal, below(81)),
        dialect="rcnn",
    ),
    Row(
        "SpatialProduct",
        ((4, 64, 28, 28), (4, 1, 28, 28)),
        lambda x, s: x * s,
        dialect="deeplab2",
    ),
]


def hard_swish(x: Tensor) -> Tensor:
    return F.hardswish(x)


_DEPTHWISE = "convolution_param { num_output: 64 kernel_size: 3 pad: 1 group: 64 bias_term: false }"
ROWS += [
    *(
        Row(name, MAP, lambda x, w: F.conv2d(x, w, None, 1, 1, groups=64), _DEPTHWISE)
        for name in ("ConvolutionDepthwise", "DepthwiseConv", "DepthwiseConvolution")
    ),
    Row("Axpy", ((4, 64, 1, 1), *MAP, *MAP), lambda a, x, y: torch.addcmul(y, a, x)),
    Row("HardSwish", MAP, hard_swish),
    Row("Mul", (*MAP, (4, 64, 1, 1)), lambda x, a: x * a),
    Row("Pad", MAP, lambda x: F.pad(x, (1, 1, 1, 1)), f"pad_param {{ {'paddings: 0 ' * 4}{'paddings: 1 ' * 4} }}"),
    Row(
        "Padding", MAP, lambda x: F.pad(x, (1, 2, 1, 2)), "padding_param { pad_beg: 1 pad_end: 2 }", dialect="deeplab1"
    ),
    Row("ReLU6", MAP, F.relu6),
    Row("Reorg", MAP, lambda x: F.pixel_unshuffle(x, 2), "reorg_param { stride: 2 }", draws=True, backward=False),
    Row(
        "ResizeNearestNeighbor",
        MAP,
        lambda x: F.interpolate(x, scale_factor=2),
        "resize_nearest_neighbor_param { data_format: 'NCHW' output_height: 56 output_width: 56 }",
    ),
    Row("ShuffleChannel", MAP, lambda x: F.channel_shuffle(x, 4), "shuffle_channel_param { group: 4 }"),
    Row("Squeeze", ((64, 1, 1000),), lambda x: x.squeeze(1), "squeeze_param { axis: 1 }", view=True),
    Row("UpsampleDarknet", MAP, lambda x: F.interpolate(x, scale_factor=2), "upsample_darknet_param { stride: 2 }"),
]

ROWS += [
    Row(
        "BoxAnnotatorOHEM",
        ((300, 5, 1, 1), (300, 1, 1, 1), (300, 1, 1, 1), (300, 8, 1, 1)),
        None,
        "box_annotator_ohem_param { roi_per_img: 128 }",
        (chosen_rois, positive, below(21), normal),
        tops=2,
        dialect="rcnn",
        backward=False,
        note="sorting",
    ),
    Row(
        "DenseCRF",
        ((1, 21, 321, 321), (1, 1, 1, 2), (1, 3, 321, 321)),
        None,
        "dense_crf_param { max_iter: 10 pos_w: 3 pos_xy_std: 3 bi_w: 4 bi_xy_std: 49 bi_rgb_std: 5 }",
        (normal, constant(321, 321), below(256)),
        dialect="deeplab2",
        backward=False,
    ),
    Row(
        "YoloDetectionOutput",
        ((1, 125, 13, 13),),
        None,
        f"yolo_detection_output_param {{ num_classes: 20 num_box: 5 {_YOLO} }}",
        backward=False,
        note="suppression",
    ),
    Row(
        "Yolov3DetectionOutput",
        ((1, 255, 13, 13), (1, 255, 26, 26), (1, 255, 52, 52)),
        None,
        f"yolov3_detection_output_param {{ num_classes: 80 num_box: 3 mask_group_num: 3 {_YOLO3} }}",
        (lambda shape: torch.randn(shape) - 1,),
        backward=False,
        note="suppression",
    ),
    Row(
        "Python rpn.anchor_target_layer.AnchorTargetLayer",
        _ANCHORS,
        None,
        module("rpn.anchor_target_layer.AnchorTargetLayer", "'feat_stride': 16"),
        (normal, labelled, constant(600, 600, 1), normal),
        tops=4,
        phase="TRAIN",
        dialect="rcnn",
        backward=False,
        note="numpy, as the original",
    ),
    Row(
        "Python rpn.proposal_layer.ProposalLayer",
        ((1, 18, *_CELLS), (1, 36, *_CELLS), (1, 3)),
        None,
        module("rpn.proposal_layer.ProposalLayer", "'feat_stride': 16"),
        (positive, normal, constant(600, 600, 1)),
        dialect="rcnn",
        backward=False,
        note="suppression",
    ),
    Row(
        "Python rpn.proposal_target_layer.ProposalTargetLayer",
        ((2000, 5), (8, 5)),
        None,
        module("rpn.proposal_target_layer.ProposalTargetLayer", "'num_classes': 21"),
        (numbered, labelled),
        tops=5,
        phase="TRAIN",
        dialect="rcnn",
        backward=False,
        note="numpy, as the original",
    ),
]

LEFT_OUT: dict[str, str] = {
    "MatRead": "it reads files",
    "MatWrite": "it writes files",
    "Python roi_data_layer.layer.RoIDataLayer": "it reads pictures",
}
"""Types without a row, and why."""
