"""Every layer's gradient against differences of its own forward pass, in double precision, without a reference Caffe.

A row is one layer with its parameters, the shapes of its bottoms (no two axes equal) and what they hold. Where a
function has a kink or a jump, the numbers keep away from it; ``kink`` says from what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, repeat
from math import prod

import pytest
import torch
from torch import Tensor

from caffe_port import random
from caffe_port.dialects import dialect
from caffe_port.layers import Layer, create
from caffe_port.schema import parse_text, schema_of


def normal(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def positive(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, dtype=torch.float64) + 0.5


def off_halves(shape: tuple[int, ...]) -> Tensor:
    """Numbers from -2 to 2, none near a multiple of 1/2."""
    return torch.randint(-4, 4, shape) / 2 + 0.1 + 0.3 * torch.rand(shape, dtype=torch.float64)


def distinct(shape: tuple[int, ...]) -> Tensor:
    """No two nearer than 1/100."""
    return torch.randperm(prod(shape)).double().view(shape) / 100 - 0.5


def ones_and_zeros(shape: tuple[int, ...]) -> Tensor:
    return (torch.arange(prod(shape)) % 3 > 0).double().view(shape)


def sequences(shape: tuple[int, ...]) -> Tensor:
    """Continuation marks: every stream begins with the batch, so that nothing comes from the batch before."""
    marks = ones_and_zeros(shape)
    marks[0] = 0
    return marks


def labels(classes: int) -> Callable[[tuple[int, ...]], Tensor]:
    return lambda shape: torch.randint(0, classes, shape).double()


def switches(shape: tuple[int, ...]) -> Tensor:
    """Of a 2 x 2 pooling without overlap: 2 x 2 windows of a plane twice as wide."""
    rows, columns = torch.arange(shape[2])[:, None], torch.arange(shape[3])
    return ((2 * rows + torch.randint(0, 2, shape)) * 2 * shape[3] + 2 * columns + torch.randint(0, 2, shape)).double()


def priors(shape: tuple[int, ...]) -> Tensor:
    """Boxes side by side, over variances."""
    n = shape[2] // 4
    x = torch.arange(n, dtype=torch.float64) / n
    boxes = torch.stack((x, torch.full_like(x, 0.2), x + 0.3, torch.full_like(x, 0.7)), 1)
    return torch.stack((boxes.flatten(), torch.full((4 * n,), 0.2, dtype=torch.float64)))[None]


def true_boxes(shape: tuple[int, ...]) -> Tensor:
    """Of two items, none at the edge of a prior."""
    corners = ((0.03, 0.25, 0.35, 0.72), (0.5, 0.1, 0.77, 0.66), (0.3, 0.3, 0.6, 0.8))
    rows = [(i // 2, 1 + i % 2, 0, *corners[i], 0) for i in range(shape[2])]
    return torch.tensor([[rows]], dtype=torch.float64)


@dataclass(frozen=True)
class Row:
    """A layer in one way of use. ``holds``: what makes each bottom's numbers, the last one for all that follow."""

    type: str
    shapes: tuple[tuple[int, ...], ...]
    body: str = ""
    holds: tuple[Callable[[tuple[int, ...]], Tensor], ...] = (normal,)
    kink: str = ""
    tops: int = 1
    phase: str = "TEST"
    dialect: str = "bvlc"
    params: dict[str, Callable[[tuple[int, ...]], Tensor]] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.type, self.dialect, self.phase, self.body]).replace("\n", " ")

    def bottoms(self) -> list[Tensor]:
        holds = chain(self.holds, repeat(self.holds[-1]))
        return [hold(shape) for hold, shape in zip(holds, self.shapes, strict=False)]

    def layer(self) -> Layer:
        names = [f"bottom: 'x{i}'" for i in range(len(self.shapes))] + [f"top: 'y{i}'" for i in range(self.tops)]
        kind = schema_of(dialect(self.dialect)).LayerParameter
        message = parse_text(f"name: 'l' type: '{self.type}' {' '.join(names)} {self.body}", kind, "row")
        layer = create(message, dialect(self.dialect), "row")
        layer.setup(*self.shapes)
        layer.check_fields()
        layer.double().train(self.phase == "TRAIN")
        with torch.no_grad():
            for name, blob in zip(layer.blob_names, layer.caffe_blobs, strict=True):
                blob.copy_(self.params.get(name, normal)(tuple(blob.shape)))
        return layer


X = ((2, 3, 4, 5),)
XY = ((2, 3, 4, 5), (2, 3, 4, 5))
CONV = "convolution_param { num_output: 6 kernel_h: 3 kernel_w: 2 stride: 2 pad_h: 1 pad_w: 0 %s }"
RECURRENT = "recurrent_param { num_output: 4 %s }"
PIXELS = ((2, 5, 3, 4), (2, 1, 3, 4))

ROWS = [
    Row("AbsVal", X, holds=(off_halves,), kink="0"),
    Row("BatchNorm", ((4, 3, 2),), phase="TRAIN"),
    Row("BatchNorm", ((4, 3, 2),), params={"variance": positive, "scale_factor": positive}),
    Row("BatchReindex", ((3, 4, 2), (5,)), holds=(normal, labels(3))),
    Row("Bias", X, "bias_param { axis: 1 num_axes: 2 }"),
    Row("Bias", ((2, 3, 4), (3, 4))),
    Row("BiasChannel", (X[0], (2, 2, 1, 1)), holds=(normal, labels(3))),
    Row("BN", X, tops=3, dialect="noh"),
    Row("BN", X, "bn_param { bn_mode: INFERENCE }", dialect="noh"),
    Row("BNLL", X),
    Row("Clip", X, "clip_param { min: -1 max: 0.5 }", holds=(off_halves,), kink="min and max"),
    Row("Concat", ((2, 3, 4), (2, 5, 4))),
    Row(
        "ContrastiveLoss",
        ((5, 3), (5, 3), (5,)),
        "contrastive_loss_param { margin: 3 }",
        (normal, normal, ones_and_zeros),
        kink="a distance of margin; true to 1e-4 / distance, by which Caffe's is off",
    ),
    Row(
        "ContrastiveLoss",
        ((5, 3), (5, 3), (5,)),
        "contrastive_loss_param { margin: 5 legacy_version: true }",
        (normal, normal, ones_and_zeros),
        kink="a squared distance of margin",
    ),
    Row("Convolution", ((2, 4, 5, 7),), CONV % "group: 2"),
    Row(
        "Convolution",
        ((2, 3, 4, 5, 6),),
        "convolution_param { num_output: 2 kernel_size: 2 dilation: 3 pad: 1 bias_term: false }",
    ),
    Row("Crop", ((2, 5, 6, 7), (1, 3, 4, 5)), "crop_param { axis: 1 offset: 2 }"),
    Row("Crop", ((2, 3, 6, 7), (2, 3, 4, 5)), dialect="noh"),
    Row("Deconvolution", ((2, 4, 3, 5),), CONV % "group: 2"),
    Row("Deconvolution", ((2, 3, 7),), "convolution_param { num_output: 2 kernel_size: 3 stride: 2 dilation: 2 }"),
    Row("Dropout", X, phase="TRAIN"),
    Row("Dropout", X),
    Row("DropoutChannel", X, phase="TRAIN", dialect="noh"),
    Row("ELU", X, "elu_param { alpha: 0.7 }", holds=(off_halves,), kink="0"),
    Row("Eltwise", XY, "eltwise_param { operation: PROD }"),
    Row(
        "Eltwise",
        XY,
        "eltwise_param { operation: PROD stable_prod_grad: false }",
        holds=(off_halves,),
        kink="0, where it is infinite",
    ),
    Row("Eltwise", XY, "eltwise_param { operation: SUM coeff: 2 coeff: -1 }"),
    Row(
        "Eltwise",
        (*XY, XY[0]),
        "eltwise_param { operation: MAX }",
        holds=(distinct, lambda s: distinct(s) + 0.003, lambda s: distinct(s) + 0.006),
        kink="equal numbers",
    ),
    Row("Embed", ((3, 4),), "embed_param { input_dim: 5 num_output: 2 }", holds=(labels(5),)),
    Row("EuclideanLoss", XY),
    Row("Exp", X, "exp_param { base: 2 scale: 0.5 shift: -1 }"),
    Row("Filter", ((5, 3), (5, 2, 4), (5,)), holds=(normal, normal, ones_and_zeros), tops=2),
    Row("Flatten", X),
    Row("HingeLoss", ((4, 5), (4,)), holds=(off_halves, labels(5)), kink="scores of 1 and -1"),
    Row(
        "HingeLoss", ((4, 5), (4,)), "hinge_loss_param { norm: L2 }", (off_halves, labels(5)), kink="scores of 1 and -1"
    ),
    Row("Im2col", ((2, 3, 5, 6),), "convolution_param { kernel_size: 3 stride: 2 pad: 1 dilation: 2 }"),
    Row("InfogainLoss", ((2, 4, 3), (2, 3), (4, 4)), "loss_param { ignore_label: 1 }", (normal, labels(4), normal)),
    Row("InfogainLoss", ((3, 4), (3,), (4, 4)), holds=(positive, labels(4), normal), dialect="noh"),
    Row("InnerProduct", X, "inner_product_param { num_output: 6 }"),
    Row("InnerProduct", X, "inner_product_param { num_output: 6 axis: -1 transpose: true bias_term: false }"),
    Row("LRN", ((2, 7, 3, 4),), "lrn_param { local_size: 5 alpha: 2 beta: 0.7 k: 3 }"),
    Row("LRN", ((2, 3, 6, 7),), "lrn_param { local_size: 3 alpha: 2 norm_region: WITHIN_CHANNEL }"),
    Row("LSTM", ((5, 2, 3), (5, 2)), RECURRENT % "", (normal, sequences)),
    Row(
        "LSTM",
        ((5, 2, 3), (5, 2), (2, 6), (1, 2, 4), (1, 2, 4)),
        RECURRENT % "expose_hidden: true",
        (normal, ones_and_zeros, normal),
        tops=3,
    ),
    Row("LSTMUnit", ((1, 3, 2), (1, 3, 8), (1, 3)), holds=(normal, normal, ones_and_zeros), tops=2),
    Row("Log", X, "log_param { base: 3 scale: 2 shift: 0.5 }", holds=(positive,)),
    *(
        Row(
            "MultiBoxLoss",
            ((2, 24), (2, 18), (1, 2, 24), (1, 1, 3, 8)),
            f"multibox_loss_param {{ num_classes: 3 {body} }}",
            (normal, normal, priors, true_boxes),
            kink="predictions 1 from their targets; other matches",
            dialect="ssd",
        )
        for body in (
            "code_type: CENTER_SIZE",
            "mining_type: NONE loc_loss_type: L2 conf_loss_type: LOGISTIC",
            "mining_type: HARD_EXAMPLE sample_size: 5 loc_weight: 3 code_type: CORNER_SIZE",
        )
    ),
    Row("MVN", X),
    Row("MVN", X, "mvn_param { across_channels: true normalize_variance: false }"),
    Row("MultinomialLogisticLoss", ((4, 5), (4,)), holds=(positive, labels(5))),
    Row("Normalize", X, dialect="ssd"),
    Row("Normalize", X, "norm_param { across_spatial: false eps: 0.1 }", dialect="ssd"),
    Row("Permute", X, "permute_param { order: 2 order: 0 }", dialect="ssd"),
    Row("Permute", X, "permute_param { order: 0 order: 1 }", dialect="ssd"),
    Row("PReLU", X, holds=(off_halves,), kink="0"),
    Row("PReLU", X, "prelu_param { channel_shared: true }", holds=(off_halves,), kink="0"),
    Row("Parameter", (), "parameter_param { shape { dim: 2 dim: 3 } }"),
    Row(
        "Pooling",
        ((2, 3, 6, 7),),
        "pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 1 }",
        holds=(distinct,),
        kink="equal numbers in a window",
        tops=2,
    ),
    Row("Pooling", ((2, 3, 6, 7),), "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }"),
    Row("Pooling", ((2, 3, 6, 7),), "pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }", holds=(positive,)),
    Row(
        "Pooling",
        ((2, 3, 6, 7),),
        "pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }",
        holds=(positive,),
        phase="TRAIN",
        kink="a draw between two numbers of a window",
    ),
    Row("Power", X, "power_param { power: 1.7 scale: 2 shift: 0.5 }", holds=(positive,)),
    Row("RNN", ((5, 2, 3), (5, 2), (2, 6)), RECURRENT % "", (normal, sequences, normal)),
    Row("ReLU", X, "relu_param { negative_slope: 0.3 }", holds=(off_halves,), kink="0"),
    Row("ReLU", X, holds=(off_halves,), kink="0", tops=2, dialect="noh"),
    Row("RedSoftmaxWithLoss", PIXELS, "red_softmax_loss_param { class_num: 2 }", (normal, labels(2)), dialect="noh"),
    *(
        Row("Reduction", X, f"reduction_param {{ operation: {o} axis: 2 coeff: 1.5 }}")
        for o in ("SUM", "SUMSQ", "MEAN")
    ),
    Row("Reduction", X, "reduction_param { operation: ASUM }", holds=(off_halves,), kink="0"),
    Row("Reshape", X, "reshape_param { shape { dim: 0 dim: -1 dim: 2 } }"),
    Row("SPP", ((2, 3, 5, 7),), "spp_param { pyramid_height: 2 }", holds=(distinct,), kink="equal numbers in a window"),
    Row("Scale", X, "scale_param { bias_term: true num_axes: -1 }"),
    Row("Scale", ((2, 3, 4), (3,)), "scale_param { bias_term: true }"),
    Row("Sigmoid", X),
    Row(
        "SigmoidCrossEntropyLoss",
        ((3, 4, 2), (3, 4, 2)),
        holds=(off_halves, ones_and_zeros),
        body="loss_param { normalization: VALID ignore_label: 1 }",
    ),
    Row("Slice", ((2, 7, 3),), "slice_param { slice_point: 1 slice_point: 3 }", tops=3),
    Row("SmoothL1Loss", XY, kink="differences of 1", dialect="ssd"),
    Row("Softmax", X, "softmax_param { axis: 2 }"),
    Row("SoftmaxWithLoss", PIXELS, "loss_param { ignore_label: 3 }", (normal, labels(5)), tops=2),
    Row("Split", X, tops=3),
    Row("Swish", X, "swish_param { beta: 1.5 }"),
    Row("TanH", X),
    Row("Tile", X, "tile_param { axis: 2 tiles: 3 }"),
    Row(
        "Unpooling",
        ((2, 3, 4, 5), (2, 3, 4, 5)),
        "unpooling_param { kernel_size: 2 stride: 2 unpool_h: 8 unpool_w: 10 }",
        (normal, switches),
        dialect="noh",
    ),
    Row(
        "Unpooling",
        ((2, 3, 4, 5),),
        "unpooling_param { unpool: AVE kernel_size: 3 stride: 2 unpool_h: 9 unpool_w: 11 }",
        dialect="noh",
    ),
    Row("Upsample", ((2, 3, 4, 5),) * 2, "upsample_param { scale: 2 }", (normal, switches), dialect="segnet"),
    Row(
        "SoftmaxWithLoss",
        PIXELS,
        "loss_param { ignore_label: 3 weight_by_label_freqs: true "
        + "".join(f"class_weighting: {w} " for w in (0.5, 2, 1, 1, 3))
        + "}",
        (normal, labels(5)),
        dialect="segnet",
    ),
    Row("Dropout", X, "dropout_param { dropout_ratio: 0.4 sample_weights_test: true }", dialect="segnet"),
    Row("Interp", X, "interp_param { zoom_factor: 2 pad_beg: -1 }", dialect="deeplab2"),
    Row("Interp", ((2, 1, 4, 5),), "interp_param { height: 7 width: 3 }", dialect="deeplab2"),
    Row("SpatialProduct", ((2, 3, 4, 5), (2, 1, 4, 5)), dialect="deeplab2"),
    Row(
        "DomainTransform",
        ((2, 3, 4, 5), (2, 1, 4, 5), (2, 1, 1, 2)),
        "domain_transform_param { spatial_sigma: 6 range_sigma: 4 num_iter: 2 }",
        (normal, positive, lambda shape: torch.tensor([3.0, 5, 4, 4]).double().view(shape)),
        dialect="deeplab2",
    ),
    Row(
        "BiasChannel",
        ((2, 5, 3, 4), (2, 1, 3, 4)),
        "bias_channel_param { label_type: PIXEL bg_bias: 2 }",
        (normal, labels(5)),
        dialect="deeplab2",
    ),
]

UNTRUE = [
    (
        Row("Normalize", X, "norm_param { channel_shared: false }", dialect="ssd"),
        "the channels' scales are put before the sum over channels instead of inside",
    ),
    (
        Row(
            "MultiBoxLoss",
            ((2, 24), (2, 18), (1, 2, 24), (1, 1, 3, 8)),
            "multibox_loss_param { num_classes: 3 encode_variance_in_target: true }",
            (normal, normal, priors, true_boxes),
            dialect="ssd",
        ),
        "predictions are divided by the variances, and their gradients are not",
    ),
    (
        Row(
            "Unpooling",
            X,
            "unpooling_param { kernel_size: 3 stride: 2 unpool_h: 9 unpool_w: 11 unpool: TILE }",
            dialect="noh",
        ),
        "TILE copies a number into its window forward, and backward takes the window's mean",
    ),
    (
        Row(
            "Unpooling",
            XY,
            "unpooling_param { kernel_size: 3 stride: 1 unpool_h: 6 unpool_w: 7 }",
            (normal, labels(3)),
            dialect="noh",
        ),
        "of overlapping windows that meet in one place only one is seen there, yet all get its gradient",
    ),
    (
        Row("MVN", X, "mvn_param { normalize_variance: false }", dialect="noh"),
        "the gradient through the mean is forgotten",
    ),
]
"""What has the gradient that its Caffe gives it, which is not that of its forward pass; and in what."""

EXEMPT = {
    "Accuracy": "it counts",
    "DetectionEvaluate": "it counts",
    "DetectionOutput": "it tells objects",
    "PriorBox": "it lays boxes by shapes",
    "AdaptiveBiasChannel": "its scores are for estimating labels",
    "ArgMax": "it tells places",
    "BinaryAccuracy": "it counts",
    "DenseCRF": "its backward pass does nothing",
    "DomainTransformForwardOnly": "its backward pass does nothing",
    "EltwiseAccuracy": "it counts",
    "Python": "it is its user's",
    "RedAccuracy": "it counts",
    "SegAccuracy": "it counts",
    "Threshold": "it has steps only",
    "UniqueLabel": "it tells labels",
}
"""Types without a gradient, in the original as in truth."""


def holds(row: Row, *, raises: bool = True) -> bool:
    """Whether the row's gradient is that of its forward pass."""
    torch.manual_seed(0)
    layer, bottoms = row.layer(), row.bottoms()
    wanted = [b.requires_grad_() for i, b in enumerate(bottoms) if i not in layer.labels]
    wanted += [b for b in layer.caffe_blobs if b.requires_grad]

    def forward(*_: Tensor) -> tuple[Tensor, ...]:
        random.set_random_seed(1)
        tops = layer(*bottoms)
        return tuple(t for t in (tops if isinstance(tops, tuple) else (tops,)) if t.requires_grad)

    return torch.autograd.gradcheck(forward, wanted, raise_exception=raises)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_gradient(row: Row) -> None:
    assert holds(row)


@pytest.mark.parametrize(("row", "why"), UNTRUE, ids=[str(row) for row, _ in UNTRUE])
def test_gradients_that_only_their_caffe_has(row: Row, why: str) -> None:
    assert not holds(row, raises=False), f"yet {why}"
