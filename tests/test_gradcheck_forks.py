"""Gradients of the forks' layers against differences of their own forward passes, as test_gradcheck has them."""

from __future__ import annotations

import pytest
import test_gradcheck
import torch
from test_gradcheck import EXEMPT, XY, Row, X, distinct, holds, labels, normal, off_halves, positive
from torch import Tensor

from caffe_port.layers import REGISTRY


def rois(shape: tuple[int, ...]) -> Tensor:
    """Of two items, inside a map of 6 x 7 pixels."""
    corners = ((0, 1, 1, 5, 4), (1, 0, 2, 6, 5), (0, 2, 0, 3, 5))
    return torch.tensor([corners[i % 3] for i in range(shape[0])]).double()


MAP = ((2, 8, 6, 7), (3, 5))
ROWS = [
    Row(
        "ROIPooling",
        MAP,
        "roi_pooling_param { pooled_h: 3 pooled_w: 2 }",
        (distinct, rois),
        kink="equal numbers in a bin",
        dialect="rcnn",
    ),
    Row(
        "PSROIPooling",
        MAP,
        "psroi_pooling_param { spatial_scale: 0.9 output_dim: 2 group_size: 2 }",
        (normal, rois),
        dialect="rcnn",
    ),
    Row("SmoothL1Loss", XY * 2, "smooth_l1_loss_param { sigma: 2 }", kink="differences of 1/4", dialect="rcnn"),
    Row("SmoothL1Loss", XY, kink="differences of 1", tops=2, dialect="rcnn"),
    Row("SmoothL1LossOHEM", (*XY, XY[0]), kink="differences of 1", tops=2, dialect="rcnn"),
    Row(
        "SoftmaxWithLossOHEM",
        ((2, 5, 3), (2, 1, 3)),
        "loss_param { ignore_label: 3 normalization: PRE_FIXED pre_fixed_normalizer: 7 }",
        (normal, labels(5)),
        tops=3,
        dialect="rcnn",
    ),
    Row("Dropout", X, "dropout_param { dropout_ratio: 0.4 scale_train: false }", dialect="rcnn"),
    Row("Dropout", X, "dropout_param { dropout_ratio: 0.4 scale_train: false }", phase="TRAIN", dialect="rcnn"),
]

DEPTHWISE = "convolution_param { num_output: 3 kernel_size: 3 stride: 2 %s }"
POOLED = "pooling_param { pool: %s kernel_size: 3 stride: 2 pad_t: 1 pad_r: 2 ceil_mode: false }"
ROWS += [
    Row("Axpy", ((2, 3, 1, 1), X[0], X[0])),
    Row("BN", X, phase="TRAIN", dialect="pspnet"),
    Row("BN", X, "bn_param { frozen: true }", dialect="pspnet", params={"variance": positive}),
    Row("BatchNorm", ((4, 3, 2),), "batch_norm_param { scale_bias: true }", phase="TRAIN"),
    Row(
        "Convolution", ((2, 4, 5, 7),), "convolution_param { num_output: 6 kernel_size: 3 group: 2 pad_l: 2 pad_b: 1 }"
    ),
    Row("ConvolutionDepthwise", X, DEPTHWISE % "pad: 1"),
    Row("DepthwiseConv", X, DEPTHWISE % "pad: 1"),
    Row("DepthwiseConvolution", X, DEPTHWISE % "pad_r: 1 group: 3"),
    Row("HardSwish", X, holds=(off_halves,), kink="3 and -3"),
    Row("Mul", ((2, 3, 4, 5), (3, 1, 5))),
    Row("Mul", X, "mul_param { mul_shape: 4 mul_shape: 1 }"),
    Row("Pad", ((2, 3),), "pad_param { paddings: 0 paddings: 1 paddings: 2 paddings: 0 }"),
    Row("Pooling", ((2, 3, 6, 7),), POOLED % "MAX", holds=(distinct,), kink="equal numbers in a window"),
    Row("Pooling", ((2, 3, 6, 7),), POOLED % "AVE_EXC_PAD"),
    Row("ReLU", X, "relu_param { relu6: true }", holds=(lambda shape: 4 * off_halves(shape) + 0.1,), kink="0 and 6"),
    Row("ReLU6", X, holds=(lambda shape: 4 * off_halves(shape) + 0.1,), kink="0 and 6"),
    Row("Reorg", ((2, 4, 4, 6),), "reorg_param { stride: 2 }"),
    Row("Reorg", ((2, 8, 3, 5),), "reorg_param { stride: 2 reverse: true }"),
    Row("Reshape", ((2, 8, 3, 5),), "reshape_param { pixelshuffler: 2 }"),
    Row("Padding", X, "padding_param { pad_beg: 1 pad_end: 2 }", dialect="deeplab1"),
    Row("Padding", X, "padding_param { pad_end: -1 }", dialect="deeplab1"),
    Row(
        "SoftmaxWithLoss",
        ((2, 5, 3, 2), (2, 1, 3, 2)),
        "softmaxloss_param { ignore_label: 2 ignore_label: 0 }",
        (normal, labels(5)),
        tops=2,
        dialect="deeplab1",
    ),
    Row("ResizeNearestNeighbor", X, "resize_nearest_neighbor_param { output_height: 5 output_width: 3 }"),
    Row("ShuffleChannel", ((2, 6, 3),), "shuffle_channel_param { group: 2 }"),
    Row("Squeeze", ((2, 1, 3, 1),), "squeeze_param { axis: 1 }"),
    Row("UpsampleDarknet", X, "upsample_darknet_param { stride: 2 }"),
]

NONE = {
    "BoxAnnotatorOHEM": "it chooses examples",
    "YoloDetectionOutput": "it tells objects",
    "Yolov3DetectionOutput": "it tells objects",
}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_gradient(row: Row) -> None:
    assert holds(row)


def test_every_layer_has_a_row_or_a_reason() -> None:
    """Layers without bottoms or tops have nothing to differentiate, but for the one whose top is a parameter; nor have
    those that no gradient reaches, such as py-faster-rcnn's modules."""
    ours = [(name, cls) for name, of in REGISTRY.items() for cls in of.values()]
    ours = [(name, cls) for name, cls in ours if cls.__module__.startswith("caffe_port.")]
    differentiable = {name for name, cls in ours if (0, 0) not in (cls.bottoms, cls.tops)} | {"Parameter"}
    rows = {row.type for row in [*test_gradcheck.ROWS, *ROWS]}
    modules = {name for name in differentiable if name.startswith("Python ")}
    assert not differentiable - rows - EXEMPT.keys() - NONE.keys() - modules
