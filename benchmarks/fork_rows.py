"""Layers of further forks at one size each, as ``layer_rows`` has those of BVLC and the 2015 fork."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.layer_rows import MAP, Row, below, normal, switches

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


ROWS: list[Row] = [
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
    "DomainTransform": "a recursion along every row and column: torch has nothing to compare it with",
    "DomainTransformForwardOnly": "as DomainTransform",
    "MatRead": "it reads files",
    "MatWrite": "it writes files",
    "PSROIPooling": "torch has nothing like it without torchvision, whose own differs",
    "Python rpn.anchor_target_layer.AnchorTargetLayer": "numpy, as the original",
    "Python rpn.proposal_layer.ProposalLayer": "numpy, as the original",
    "Python rpn.proposal_target_layer.ProposalTargetLayer": "numpy, as the original",
    "Python roi_data_layer.layer.RoIDataLayer": "it reads pictures",
    "YoloDetectionOutput": "it tells objects",
    "Yolov3DetectionOutput": "it tells objects",
    "SegAccuracy": "a count of pixels by class",
}
"""Types without a row, and why."""
