"""The rows of benchmarks/layers.py: every layer at a realistic size, and the same arithmetic in plain PyTorch.

A row's ``plain`` takes the layer's bottoms and then its blobs, as the layer has them (labels are numbers of floating
point), and is written as usual in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]
Hold = Callable[[Shape], Tensor]


def normal(shape: Shape) -> Tensor:
    return torch.randn(shape)


def positive(shape: Shape) -> Tensor:
    return torch.rand(shape) + 0.5


def ones_and_zeros(shape: Shape) -> Tensor:
    return torch.randint(0, 2, shape).float()


def below(n: int) -> Hold:
    """Integers from 0 to n - 1: labels, indices."""
    return lambda shape: torch.randint(0, n, shape).float()


def sequences(shape: Shape) -> Tensor:
    """Marks of streams that all begin with the batch and continue to its end."""
    marks = torch.ones(shape)
    marks[0] = 0
    return marks


def switches(shape: Shape) -> Tensor:
    """Switches of a 2 x 2 pooling without overlap."""
    n, c, h, w = shape
    return F.max_pool2d(torch.randn(n, c, 2 * h, 2 * w), 2, return_indices=True)[1].float()


@dataclass(frozen=True)
class Row:
    """A layer at one size.

    Attributes:
        body: its parameters as prototxt. shapes: its bottoms'. holds: generates each bottom's values, the last one for
            all that follow. blobs: the same for blobs by name; weights of unit gain otherwise.
        plain: bottoms and blobs to tops, if plain PyTorch has such a thing. note: its limit, if neither memory nor
            multiplications.
        draws: it is random, so that only the mean magnitudes can be compared.
        backward: whether it has a gradient. view: it copies nothing.
    """

    type: str
    shapes: tuple[Shape, ...]
    plain: Callable[..., Any] | None
    body: str = ""
    holds: tuple[Hold, ...] = (normal,)
    tops: int = 1
    phase: str = "TEST"
    dialect: str = "bvlc"
    blobs: tuple[tuple[str, Hold], ...] = ()
    note: str = ""
    draws: bool = False
    backward: bool = True
    view: bool = False


def lstm(x: Tensor, marks: Tensor, w_x: Tensor, b: Tensor, w_h: Tensor) -> Tensor:
    """Sequences with marks, step by step."""
    h = c = x.new_zeros(x.shape[1], w_h.shape[1])
    outputs = []
    for gates, go_on in zip(F.linear(x, w_x, b), marks.unsqueeze(2), strict=True):
        i, f, o, g = (gates + F.linear(h * go_on, w_h)).chunk(4, 1)
        c = torch.sigmoid(f) * (c * go_on) + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def lstm_unit(c: Tensor, gates: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    i, f, o, g = gates.chunk(4, 2)
    c = torch.sigmoid(f) * (c * marks.unsqueeze(2)) + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)


def rnn(x: Tensor, marks: Tensor, w_x: Tensor, b: Tensor, w_h: Tensor, w_o: Tensor, b_o: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[1], w_h.shape[1])
    states = []
    for entering, go_on in zip(F.linear(x, w_x, b), marks.unsqueeze(2), strict=True):
        h = torch.tanh(entering + F.linear(h * go_on, w_h))
        states.append(h)
    return torch.tanh(F.linear(torch.stack(states), w_o, b_o))


def per_channel(blob: Tensor) -> Tensor:
    return blob.view(1, -1, 1, 1)


def within_channel(x: Tensor) -> Tensor:
    return x * (1 + F.avg_pool2d(x * x, 5, stride=1, padding=2)) ** -0.75


def standardized(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)


def stochastic(x: Tensor, draw: bool = False) -> Tensor:
    windows = F.unfold(x, 2, stride=2).view(*x.shape[:2], 4, x.shape[2] // 2, x.shape[3] // 2)
    if not draw:
        return (windows * windows).sum(2) / windows.sum(2)
    chances = windows.detach().flatten(3).transpose(2, 3).flatten(0, 2)
    return windows.gather(2, torch.multinomial(chances, 1).view(windows[:, :, :1].shape)).squeeze(2)


def contrastive(x: Tensor, y: Tensor, alike: Tensor) -> Tensor:
    d2 = (x - y).square().sum(1)
    return torch.where(alike.bool(), d2, F.relu(30 - d2.sqrt()).square()).sum() / (2 * len(x))


def hinge(x: Tensor, label: Tensor) -> Tensor:
    sign = torch.ones_like(x).scatter_(1, label.long().unsqueeze(1), -1)
    return F.relu(1 + sign * x).sum() / len(x)


def infogain(x: Tensor, label: Tensor, matrix: Tensor) -> Tensor:
    gain = matrix[label.long()[:, 0]].permute(0, 3, 1, 2)
    return -(gain * F.log_softmax(x, 1)).sum() / label.numel()


def redundant(x: Tensor) -> Tensor:
    """Probabilities of 21 classes from three channels for each."""
    return torch.softmax(x, 1).unflatten(1, (21, 3)).sum(2)


def red_softmax_loss(x: Tensor, label: Tensor) -> Tensor:
    return F.nll_loss(redundant(x).log(), label[:, 0].long())


def share(x: Tensor, label: Tensor) -> Tensor:
    return (x.argmax(1, keepdim=True) == label).float().mean()


def top_5(x: Tensor, label: Tensor) -> Tensor:
    return (x.topk(5, 1).indices == label.unsqueeze(1)).any(1).float().mean()


def f_measure(x: Tensor, label: Tensor) -> Tensor:
    said, true = x > 0, label > 0
    return 2 * (said & true).sum() / (said.sum() + true.sum())


def pyramid(x: Tensor) -> Tensor:
    return torch.cat([F.max_pool2d(x, 28 // n).flatten(1) for n in (1, 2, 4)], 1)


X = ((4, 64, 56, 56),)
XX, XXX = X * 2, X * 3
TWO = (*X, (4, 64))
MAP = ((4, 64, 28, 28),)
PIXELS = ((4, 21, 320, 320), (4, 1, 320, 320))
RED = ((2, 63, 160, 160), (2, 1, 160, 160))
ITEMS = ((256, 1000), (256,))
STREAM = ((20, 8, 256), (20, 8))
CONV = "convolution_param {{ num_output: {} kernel_size: {} {} }}".format
POOL = "pooling_param {{ pool: {} kernel_size: {} stride: {} {} }}".format
DRAWS = "the draws: Caffe's Mersenne Twister, one after the other"
SERIAL = "the loss: Caffe's order, one addition after the other"
STEPS = "the steps, one after the other, each a small product"
FUNCTION = "the function"

ROWS = [
    Row("AbsVal", X, torch.abs),
    Row("Accuracy", PIXELS, share, holds=(normal, below(21)), backward=False),
    Row("Accuracy", ITEMS, top_5, "accuracy_param { top_k: 5 }", (normal, below(1000)), backward=False),
    Row(
        "ArgMax",
        PIXELS[:1],
        lambda x: x.argmax(1, keepdim=True).float(),
        "argmax_param { axis: 1 }",
        backward=False,
    ),
    Row(
        "ArgMax",
        ITEMS[:1],
        lambda x: x.topk(5, 1).indices.float()[:, None],
        "argmax_param { top_k: 5 }",
        backward=False,
    ),
    Row(
        "BatchNorm",
        X,
        lambda x, mean, variance, _: F.batch_norm(x, mean, variance, training=True, momentum=0.001),
        phase="TRAIN",
    ),
    Row(
        "BatchNorm",
        X,
        lambda x, mean, variance, factor: F.batch_norm(x, mean / factor, variance / factor),
        blobs=(("variance", positive), ("scale_factor", positive)),
    ),
    Row("BatchReindex", (X[0], (8,)), lambda x, i: x[i.long()], holds=(normal, below(4))),
    Row("Bias", X, lambda x, b: x + per_channel(b)),
    Row(
        "BinaryAccuracy",
        PIXELS[1:] * 2,
        f_measure,
        "binary_accuracy_param { accuracy_mode: F_measure }",
        (normal, ones_and_zeros),
        dialect="noh",
        backward=False,
    ),
    Row(
        "BN",
        X,
        lambda x, a, b: F.batch_norm(x, None, None, a.flatten(), b.flatten(), training=True, eps=1e-9),
        dialect="noh",
    ),
    Row("BN", X, lambda x, a, b: x * a + b, "bn_param { bn_mode: INFERENCE }", dialect="noh"),
    Row("BNLL", X, F.softplus, note=FUNCTION),
    Row("Clip", X, lambda x: x.clamp(-1, 1), "clip_param { min: -1 max: 1 }"),
    Row("Concat", XX, lambda *x: torch.cat(x, 1)),
    Row(
        "ContrastiveLoss",
        ((1024, 512), (1024, 512), (1024,)),
        contrastive,
        "contrastive_loss_param { margin: 30 }",
        (normal, normal, ones_and_zeros),
    ),
    Row("Convolution", X, partial(F.conv2d, padding=1), CONV(64, 3, "pad: 1")),
    Row("Convolution", ((4, 3, 224, 224),), partial(F.conv2d, padding=3, stride=2), CONV(64, 7, "pad: 3 stride: 2")),
    Row("Convolution", ((4, 256, 28, 28),), F.conv2d, CONV(256, 1, "")),
    Row(
        "Convolution", ((4, 256, 28, 28),), partial(F.conv2d, padding=2, dilation=2), CONV(256, 3, "pad: 2 dilation: 2")
    ),
    Row("Convolution", X, partial(F.conv2d, padding=1, groups=64), CONV(64, 3, "pad: 1 group: 64")),
    Row("Convolution", ((1, 256, 10, 10),), F.conv2d, CONV(1024, 7, "")),
    Row("Convolution", ((1, 16, 32, 56, 56),), partial(F.conv3d, padding=1), CONV(16, 3, "pad: 1")),
    Row("Crop", (X[0], (4, 64, 48, 48)), lambda x, _: x[:, :, 4:52, 4:52].contiguous(), "crop_param { offset: 4 }"),
    Row("Deconvolution", MAP, partial(F.conv_transpose2d, padding=1, stride=2), CONV(64, 4, "pad: 1 stride: 2")),
    Row(
        "Deconvolution",
        ((1, 21, 40, 40),),
        partial(F.conv_transpose2d, padding=4, stride=8, groups=21),
        CONV(21, 16, "pad: 4 stride: 8 group: 21 bias_term: false"),
    ),
    Row("Deconvolution", ((1, 1024, 4, 4),), F.conv_transpose2d, CONV(256, 7, "")),
    Row("Dropout", X, F.dropout, phase="TRAIN", draws=True, note=DRAWS),
    Row("Dropout", X, lambda x: x.view_as(x), view=True),
    Row("DropoutChannel", X, F.dropout2d, phase="TRAIN", dialect="noh", draws=True),
    Row("ELU", X, F.elu, note=FUNCTION),
    Row("Eltwise", XX, torch.mul, "eltwise_param { operation: PROD }"),
    Row("Eltwise", XX, torch.mul, "eltwise_param { operation: PROD stable_prod_grad: false }"),
    Row("Eltwise", XX, torch.add, "eltwise_param { operation: SUM }"),
    Row("Eltwise", XX, lambda x, y: 2 * x - y, "eltwise_param { operation: SUM coeff: 2 coeff: -1 }"),
    Row("Eltwise", XX, torch.maximum, "eltwise_param { operation: MAX }"),
    Row("EltwiseAccuracy", PIXELS, share, holds=(normal, below(21)), dialect="noh", backward=False),
    Row(
        "Embed",
        ((64, 32),),
        lambda x, w, b: F.embedding(x.long(), w) + b,
        "embed_param { input_dim: 10000 num_output: 512 }",
        (below(10000),),
    ),
    Row("EuclideanLoss", XX, lambda x, y: F.mse_loss(x, y, reduction="sum") / (2 * len(x))),
    Row("Exp", X, torch.exp, note=FUNCTION),
    Row("Exp", X, lambda x: 2 ** (0.5 * x - 1), "exp_param { base: 2 scale: 0.5 shift: -1 }", note=FUNCTION),
    Row(
        "Filter",
        ((32, 64, 28, 28), (32,)),
        lambda x, chosen: x[chosen.bool()],
        holds=(normal, ones_and_zeros),
    ),
    Row("Flatten", X, lambda x: x.flatten(1), view=True),
    Row("HingeLoss", ITEMS, hinge, holds=(normal, below(1000))),
    Row("Im2col", X, lambda x: F.unfold(x, 3, padding=1).unflatten(2, (56, 56)), CONV(1, 3, "pad: 1")),
    Row(
        "InfogainLoss",
        ((2, 21, 160, 160), (2, 1, 160, 160), (1, 1, 21, 21)),
        lambda x, label, matrix: infogain(x, label, matrix[0, 0]),
        holds=(normal, below(21), positive),
        note=SERIAL,
    ),
    Row("InnerProduct", ((16, 4096),), F.linear, "inner_product_param { num_output: 4096 }"),
    Row(
        "InnerProduct",
        ((16, 4096),),
        lambda x, w, b: torch.addmm(b, x, w),
        "inner_product_param { num_output: 4096 transpose: true }",
    ),
    Row(
        "InnerProduct",
        ((64, 512, 7, 7),),
        lambda x, *p: F.linear(x.flatten(1), *p),
        "inner_product_param { num_output: 10 }",
    ),
    Row("LRN", X, lambda x: F.local_response_norm(x, 5, 1.0, 0.75, 1.0), "lrn_param { local_size: 5 }", note=FUNCTION),
    Row("LRN", X, within_channel, "lrn_param { norm_region: WITHIN_CHANNEL }", note=FUNCTION),
    Row("Log", X, torch.log, holds=(positive,), note=FUNCTION),
    Row(
        "Log", X, lambda x: torch.log2(2 * x + 1), "log_param { base: 2 scale: 2 shift: 1 }", (positive,), note=FUNCTION
    ),
    Row("LSTM", STREAM, lstm, "recurrent_param { num_output: 256 }", (normal, sequences), note=STEPS),
    Row("LSTMUnit", ((1, 64, 512), (1, 64, 2048), (1, 64)), lstm_unit, holds=(normal, normal, ones_and_zeros), tops=2),
    Row(
        "MultinomialLogisticLoss",
        ITEMS,
        lambda p, label: F.nll_loss(p.log(), label.long()),
        holds=(positive, below(1000)),
    ),
    Row("MVN", X, standardized),
    Row("MVN", X, lambda x: x - x.mean((2, 3), keepdim=True), "mvn_param { normalize_variance: false }"),
    Row("Pooling", X, lambda x: F.max_pool2d(x, 2), POOL("MAX", 2, 2, "")),
    Row("Pooling", X, lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), POOL("MAX", 3, 2, "")),
    Row(
        "Pooling",
        X,
        lambda x: [t.float() for t in F.max_pool2d(x, 2, return_indices=True)],
        POOL("MAX", 2, 2, ""),
        tops=2,
    ),
    Row("Pooling", X, lambda x: F.avg_pool2d(x, 2), POOL("AVE", 2, 2, "")),
    Row("Pooling", X, lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), POOL("AVE", 3, 2, "pad: 1")),
    Row("Pooling", X, lambda x: x.mean((2, 3), keepdim=True), "pooling_param { pool: AVE global_pooling: true }"),
    Row("Pooling", X, stochastic, POOL("STOCHASTIC", 2, 2, ""), (positive,)),
    Row(
        "Pooling",
        X,
        partial(stochastic, draw=True),
        POOL("STOCHASTIC", 2, 2, ""),
        (positive,),
        phase="TRAIN",
        draws=True,
    ),
    Row("Power", X, torch.square, "power_param { power: 2 }"),
    Row("Power", X, lambda x: 2 * x + 1, "power_param { scale: 2 shift: 1 }"),
    Row(
        "Power",
        X,
        lambda x: (2 * x + 1) ** 1.5,
        "power_param { power: 1.5 scale: 2 shift: 1 }",
        (positive,),
        note=FUNCTION,
    ),
    Row("PReLU", X, F.prelu),
    Row(
        "RedAccuracy",
        RED,
        lambda x, label: share(redundant(x), label),
        "red_accuracy_param { class_num: 21 }",
        (normal, below(21)),
        dialect="noh",
        backward=False,
    ),
    Row(
        "RedSoftmaxWithLoss",
        RED,
        red_softmax_loss,
        "red_softmax_loss_param { class_num: 21 }",
        (normal, below(21)),
        dialect="noh",
    ),
    Row("Reduction", X, lambda x: x.sum((1, 2, 3)), "reduction_param { axis: 1 }"),
    Row("Reduction", X, lambda x: x.abs().sum((1, 2, 3)), "reduction_param { axis: 1 operation: ASUM }"),
    Row("Reduction", X, lambda x: x.square().sum((1, 2, 3)), "reduction_param { axis: 1 operation: SUMSQ }"),
    Row("Reduction", X, lambda x: x.mean((1, 2, 3)), "reduction_param { axis: 1 operation: MEAN }"),
    Row("ReLU", X, F.relu),
    Row("ReLU", X, lambda x: F.leaky_relu(x, 0.1), "relu_param { negative_slope: 0.1 }"),
    Row("ReLU", X, lambda x: (F.relu(x), (x > 0).float()), tops=2, dialect="noh"),
    Row(
        "Reshape",
        X,
        lambda x: x.view(4, 8, -1, 56),
        "reshape_param { shape { dim: 0 dim: 8 dim: -1 dim: 56 } }",
        view=True,
    ),
    Row("RNN", STREAM, rnn, "recurrent_param { num_output: 256 }", (normal, sequences), note=STEPS),
    Row("Scale", X, lambda x, a, b: x * per_channel(a) + per_channel(b), "scale_param { bias_term: true }"),
    Row("Scale", TWO, lambda x, a: x * a[:, :, None, None], "scale_param { axis: 0 }"),
    Row("Sigmoid", X, torch.sigmoid, note=FUNCTION),
    Row(
        "SigmoidCrossEntropyLoss",
        PIXELS[1:] * 2,
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="sum") / len(x),
        holds=(normal, ones_and_zeros),
        note=SERIAL,
    ),
    Row("Slice", X, lambda x: x.split(16, 1), tops=4, view=True),
    Row("Softmax", PIXELS[:1], partial(torch.softmax, dim=1), note=FUNCTION),
    Row(
        "SoftmaxWithLoss",
        PIXELS,
        lambda x, label: F.cross_entropy(x, label[:, 0].long(), ignore_index=20),
        "loss_param { ignore_label: 20 }",
        (normal, below(21)),
        note=SERIAL,
    ),
    Row("SoftmaxWithLoss", ITEMS, lambda x, label: F.cross_entropy(x, label.long()), holds=(normal, below(1000))),
    Row("Split", X, lambda x: (x.view_as(x), x.view_as(x)), tops=2, view=True),
    Row("SPP", MAP, pyramid, "spp_param { pyramid_height: 3 }"),
    Row("Swish", X, F.silu, note=FUNCTION),
    Row("Swish", X, lambda x: x * torch.sigmoid(1.5 * x), "swish_param { beta: 1.5 }", note=FUNCTION),
    Row("TanH", X, torch.tanh, note=FUNCTION),
    Row("Threshold", X, lambda x: (x > 0.5).float(), "threshold_param { threshold: 0.5 }", backward=False),
    Row("Tile", MAP, lambda x: x.repeat(1, 4, 1, 1), "tile_param { axis: 1 tiles: 4 }"),
    Row(
        "Unpooling",
        MAP * 2,
        lambda x, s: F.max_unpool2d(x, s.long(), 2),
        "unpooling_param { kernel_size: 2 stride: 2 unpool_size: 56 }",
        (normal, switches),
        dialect="noh",
    ),
    Row(
        "Unpooling",
        MAP,
        lambda x: F.interpolate(x / 4, scale_factor=2),
        "unpooling_param { unpool: AVE kernel_size: 2 stride: 2 unpool_size: 56 }",
        dialect="noh",
    ),
]

LEFT_OUT = {
    "AdaptiveBiasChannel": "an E-step of WSSL: torch has no equivalent",
    "BiasChannel": "an E-step of WSSL: torch has no equivalent",
    "UniqueLabel": "labels for the E-steps of WSSL",
    "Data layers": "they wait for files; their pictures are decoded and resized by OpenCV",
    "DummyData": "benchmarks/draws.py times its draws",
    "HDF5Output": "it writes a file",
    "Input": "nothing happens in it",
    "Parameter": "it returns its blob",
    "Python": "its code is the user's",
    "Silence": "nothing happens in it",
}
"""Types without a row, with the reason."""
