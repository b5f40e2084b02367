"""Layers of further forks at one size each, as ``layer_rows`` has those of BVLC and the 2015 fork."""

from __future__ import annotations

from functools import partial
from math import ceil, floor, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.layer_rows import MAP, Row, below, normal, positive, switches

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

LEFT_OUT: dict[str, str] = {
    "BoxAnnotatorOHEM": "it chooses examples",
    "DenseCRF": "the lattice of segmentation's CRF, which docs/segmenting.md times",
    "DetectionEvaluate": "it counts, on the CPU",
    "MatRead": "it reads files",
    "MatWrite": "it writes files",
    "Python rpn.anchor_target_layer.AnchorTargetLayer": "numpy, as the original",
    "Python rpn.proposal_layer.ProposalLayer": "numpy, as the original",
    "Python rpn.proposal_target_layer.ProposalTargetLayer": "numpy, as the original",
    "Python roi_data_layer.layer.RoIDataLayer": "it reads pictures",
    "YoloDetectionOutput": "it tells objects",
    "Yolov3DetectionOutput": "it tells objects",
}
"""Types without a row, and why."""
