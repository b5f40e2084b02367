"""Which layers the compiled kernels have, and the steps of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from caffe_port.execution.packing import FEW_ROWS
from caffe_port.execution.steps import Emitter, Folded, Memory, Op, UnsupportedError, Value
from caffe_port.layers import winograd
from caffe_port.layers.affine import Bias, Scale
from caffe_port.layers.base import Layer
from caffe_port.layers.capabilities import Filters
from caffe_port.layers.convolution import Convolution, Deconvolution
from caffe_port.layers.elementwise import Eltwise
from caffe_port.layers.inner_product import InnerProduct
from caffe_port.layers.loss import Softmax
from caffe_port.layers.neuron import Dropout, DropoutChannel, PReLU, ReLU
from caffe_port.layers.normalization import BN, LRN, BatchNorm
from caffe_port.layers.pooling import Pooling, Unpooling
from caffe_port.layers.shape import Concat, Flatten, Split

__all__ = ["FOLDS", "LAYERS", "MODAL", "activation"]

LARGE_WEIGHT = 1 << 22
"""Weights of so many numbers are not copied into the kernels' order where few rows are multiplied with them."""
SMALL_WEIGHT = 1 << 16
FEWEST_OUTPUTS = 8
"""Of a group of a convolution; the kernel computes quarters of panels of 32 at least."""
LARGEST_SOFTMAX = 1 << 16
LARGEST_WINDOW = 1 << 10
LARGEST_SWITCH = 1 << 24
"""Pixels of an image, whose numbers a float can hold."""

MOST_WASTED = 1 << 25
"""Multiplications by zeros that fill up a convolution's last half or quarter of a panel: with more of them oneDNN
computes it."""

Tops = Value | tuple[Value, ...]


def _slopes(fold: Folded, channels: int) -> Tensor | None:
    return None if fold.slope is None else fold.slope.detach().reshape(-1).expand(channels)


def _convolution(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    if not layer.fusible():
        raise UnsupportedError
    x = xs[0]
    scale, bias = fold.scale_and_bias(layer.bias, layer.num_output)
    like = torch.empty(1).expand(x.shape)
    y = e.new(layer.reshape(x.shape)[0])
    weight = layer.weight.detach()
    if layer.as_product(like) and type(layer) is Deconvolution and e.half and x.area == 1 and not any(layer.pad):
        return _one_pixel(e, layer, x, y, scale, bias, fold)
    if layer.as_product(like):
        few = prod(y.shape) // y.shape[1] <= FEW_ROWS
        large = weight.numel() >= LARGE_WEIGHT and not e.half
        if type(layer) is Deconvolution or (scale is not None and large):
            raise UnsupportedError
        if large:
            if not few or not weight.is_contiguous():
                raise UnsupportedError
            return _by_columns(e, layer, x, y, weight, bias, fold)
        weight = weight if scale is None else weight * scale.view(-1, 1, 1, 1)
        form = Filters(weight, bias, layer.stride, layer.pad, layer.dilation, layer.group)
    else:
        form = layer.form(like, scale, bias)
    return _filters(e, layer, x, y, form, fold)


def _filters(e: Emitter, layer: Layer, x: Value, y: Value, form: Filters, fold: Folded) -> Value:
    group, weight = form.group, form.weight
    out, inputs, kh, kw = weight.shape
    windows: dict[str, Any] = {
        "kernel": (kh, kw),
        "step": form.stride,
        "pad": form.pad,
        "dilation": form.dilation,
        "group": group,
    }
    slope = _slopes(fold, out)
    vector = e.wide // 4 if out // group <= e.wide // 4 else e.wide // 2
    wasted = -(out // group) % vector * group * prod(weight.shape[1:]) * y.memory.pixels
    ways = form.stride, form.pad, form.dilation
    if winograd.kernel_pays(torch.empty(1).expand(x.shape), weight[: out // group], *ways, 1):
        if inputs % 16 or (out // group) % 16:
            raise UnsupportedError

        def ordered() -> tuple[Tensor, ...]:
            parts = weight.chunk(group)
            return torch.cat([winograd.ordered(part).flatten() for part in parts]), form.bias.clone()

        w, bias = e.weights((layer, "winograd"), ordered)
        e.add(Op.WINOGRAD, e.pixels(x), y, weight=w, bias=bias, relu=fold.relu, **windows)
        e.slope(y, slope)
    elif group == out == x.shape[1] and kh * kw <= LARGEST_WINDOW:
        w, bias, *slopes = e.weights(
            (layer, "depthwise"),
            lambda: (weight.flatten(1).t().contiguous(), form.bias.clone(), *_all(slope, lambda t: t.contiguous())),
        )
        e.add(Op.DEPTHWISE, e.pixels(x), y, weight=w, bias=bias, relu=fold.relu, **_slope(slopes), **windows)
    elif (group > 1 and out // group < FEWEST_OUTPUTS) or (not e.half and wasted > MOST_WASTED):
        raise UnsupportedError
    else:
        w, bias, *slopes = e.weights(
            (layer, "panels"),
            lambda: (
                e.panels(weight, group),
                e.filled_up(form.bias, group),
                *_all(slope, lambda t: e.filled_up(t, group)),
            ),
        )
        e.add(
            Op.CONVOLVE_HALF if e.half else Op.CONVOLVE,
            e.pixels(x),
            y,
            weight=w,
            bias=bias,
            relu=fold.relu,
            **_slope(slopes),
            **windows,
        )
    return y


def _all(t: Tensor | None, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    return () if t is None else (change(t),)


def _slope(slopes: Sequence[Tensor]) -> dict[str, Any]:
    return {"slope": slopes[0]} if slopes else {}


def _one_pixel(e: Emitter, layer: Any, x: Value, y: Value, scale: Tensor | None, bias: Tensor, fold: Folded) -> Value:
    """The deconvolution of single pixels: every output pixel has the products with one tap."""
    weight = layer.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)
    weight = weight if scale is None else weight * scale.repeat(y.area)[:, None]
    slope = _slopes(fold, layer.num_output)
    fold = Folded(relu=fold.relu, slope=None if slope is None else slope.repeat(y.area))
    whole, one = Value((x.shape[0], weight.shape[0], 1, 1), y.memory), (1, 1)
    y.memory.fixed = True
    form = Filters(weight[:, :, None, None], bias.repeat(y.area), one, (0, 0), one, 1)
    _filters(e, layer, x, whole, form, fold)
    e.strides[len(e.steps) - 1] = weight.shape[0]
    return y


def _by_columns(e: Emitter, layer: Any, x: Value, y: Value, weight: Tensor, bias: Tensor, fold: Folded) -> Value:
    """Few windows times large weights, as they lie."""
    pixels, depth = prod(y.shape) // y.shape[1], prod(weight.shape[1:])
    rows = Value((pixels, depth), Memory(pixels, depth, fixed=True))
    windows = {"kernel": layer.kernel, "step": layer.stride, "pad": layer.pad, "dilation": layer.dilation}
    e.add(Op.COLUMNS, e.pixels(x), rows, **windows)
    last = e.steps[-1]
    last.out_h, last.out_w = y.shape[2:]
    return _product(e, rows, y, weight.flatten(1), bias, fold)


def _product(e: Emitter, rows: Value, y: Value, matrix: Tensor, bias: Tensor, fold: Folded) -> Value:
    op = Op.ROWS_PRODUCT if matrix.is_contiguous() else Op.COLUMNS_PRODUCT
    whole = Value((rows.shape[0], matrix.shape[0]), y.memory)
    y.memory.fixed = True
    e.add(op, rows, whole, weight=matrix, bias=bias.contiguous(), relu=fold.relu)
    e.slope(whole, _slopes(fold, matrix.shape[0]))
    return y


def _inner_product(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    if layer.from_axis != 1:
        raise UnsupportedError
    x, y = xs[0], e.new((xs[0].shape[0], layer.num_output))
    scale, bias = fold.scale_and_bias(layer.bias, layer.num_output)
    matrix = layer.weight.detach().t() if layer.transpose else layer.weight.detach()
    if not e.half and scale is None and x.shape[0] <= FEW_ROWS and matrix.numel() >= SMALL_WEIGHT:
        if not (matrix.is_contiguous() or matrix.t().is_contiguous()):
            raise UnsupportedError
        return _product(e, e.rows(x), y, matrix, bias, fold)
    rows = e.rows(x)
    weight = (matrix if scale is None else matrix * scale[:, None])[:, :, None, None]
    one = (1, 1)
    _filters(e, layer, rows, y, Filters(weight, bias, one, (0, 0), one, 1), fold)
    return y


def _pooling(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    x = xs[0]
    kernel = layer.window(x.shape)
    if layer.method not in ("MAX", "AVE") or prod(kernel) > LARGEST_WINDOW:
        raise UnsupportedError
    y = e.new(layer.reshape(x.shape)[0])
    if layer.n_tops == 2:
        if layer.method != "MAX" or x.area > LARGEST_SWITCH:
            raise UnsupportedError
        switches = e.new(y.shape)
        e.add(Op.LARGEST_AT, e.pixels(x), y, switches, kernel=kernel, step=layer.stride, pad=layer.pad)
        return y, switches
    op = Op.LARGEST if layer.method == "MAX" else Op.AVERAGE
    facts = {"kernel": kernel, "step": layer.stride, "pad": layer.pad, "behind": layer.behind}
    e.add(op, e.pixels(x), y, flag=layer.counts_padding, **facts)
    return y


def _unpooling(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    if layer.method != "MAX" or len(xs) != 2 or prod(layer.size) > LARGEST_SWITCH:
        raise UnsupportedError
    if any(k > s for k, s in zip(layer.kernel, layer.stride, strict=True)):
        raise UnsupportedError
    y = e.new(layer.reshape(*(x.shape for x in xs))[0])
    x, switches = map(e.pixels, xs)
    e.unpoolings[len(e.steps)] = layer
    e.add(Op.UNPOOL, x, y, switches, kernel=layer.kernel, step=layer.stride)
    return y


def _lrn(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    if not layer.across or layer.is_in_place or layer.beta != 0.75 or layer.size > LARGEST_WINDOW:
        raise UnsupportedError
    y = e.new(xs[0].shape)
    facts = {"flag": layer.size, "a": layer.alpha / layer.size, "b": layer.k, "power": layer.beta}
    e.add(Op.NEIGHBOURS, e.pixels(xs[0]), y, **facts)
    return y


def _eltwise(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    if layer.operation != "SUM" or layer.is_in_place or fold.slope is not None or fold.affine:
        raise UnsupportedError
    y, (first, *others) = e.new(xs[0].shape), [e.pixels(x) for x in xs]
    factor, last = layer.coeff[0], len(others) - 1
    for i, (other, b) in enumerate(zip(others, layer.coeff[1:], strict=True)):
        e.add(Op.SUM, first, y, other, a=factor, b=b, relu=fold.relu and i == last)
        first, factor = y, 1.0
    return y


def _affine(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    if layer.n_bottoms != 1 or layer.n_tops != 1 or layer.channel_affine() is None:
        raise UnsupportedError
    x, channels = xs[0], xs[0].shape[1]
    scale, bias = Folded((layer, *fold.affine)).scale_and_bias(None, channels)
    assert scale is not None
    slope = _slope(_all(_slopes(fold, channels), lambda t: t.contiguous()))
    y = e.new(x.shape)
    e.add(Op.AFFINE, e.pixels(x), y, weight=scale.contiguous(), bias=bias.contiguous(), relu=fold.relu, **slope)
    return y


def _relu(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    act = activation(layer)
    if act is None or fold.affine or fold.relu or fold.slope is not None:
        raise UnsupportedError
    x, channels = xs[0], xs[0].shape[1]
    slope = _slope(_all(_slopes(act, channels), lambda t: t.contiguous()))
    y = e.new(x.shape)
    e.add(Op.AFFINE, e.pixels(x), y, bias=torch.zeros(channels), relu=act.relu, **slope)
    return y


def activation(layer: Any) -> Folded | None:
    """A ReLU as what is folded; None for any other layer."""
    if type(layer) is ReLU and layer.n_tops == 1 and not layer.capped:
        return Folded(relu=layer.is_relu, slope=torch.tensor([layer.slope]) if layer.slope else None)
    if type(layer) is PReLU:
        return Folded(slope=layer.weight)
    return None


def _softmax(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    if layer.over != 1 or prod(xs[0].shape) > LARGEST_SOFTMAX:
        raise UnsupportedError
    y = e.new(xs[0].shape)
    e.add(Op.SOFTMAX, e.pixels(xs[0]), y)
    return y


def _concat(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    """A bottom that is no input of the run and not yet part of a concatenation is from now on a part of this one."""
    if layer.along != 1:
        raise UnsupportedError
    y, at = e.new(layer.reshape(*(x.shape for x in xs))[0]), 0
    for x in xs:
        own = x.memory
        if own.parent is None and own.base == 0 and own.stride == x.shape[1] and not own.fixed:
            own.parent, own.at = y.memory, at
        else:
            part = Value(x.shape, Memory(y.memory.pixels, x.shape[1], parent=y.memory, at=at))
            e.add(Op.AFFINE, e.pixels(x), part)
        at += x.shape[1]
    return y


def _same(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    if layer.training:
        raise UnsupportedError
    return (xs[0],) * layer.n_tops


def _flatten(e: Emitter, layer: Any, xs: Sequence[Value], fold: Folded) -> Tops:
    (shape,) = layer.reshape(xs[0].shape)
    if shape != (xs[0].shape[0], prod(xs[0].shape[1:])) or e.legacy:
        raise UnsupportedError
    return xs[0] if len(xs[0].shape) == 2 else e.rows(xs[0])


LAYERS: dict[type[Layer], Callable[[Emitter, Any, Sequence[Value], Folded], Tops]] = {
    Convolution: _convolution,
    Deconvolution: _convolution,
    InnerProduct: _inner_product,
    Pooling: _pooling,
    Unpooling: _unpooling,
    LRN: _lrn,
    Eltwise: _eltwise,
    Scale: _affine,
    Bias: _affine,
    BatchNorm: _affine,
    BN: _affine,
    ReLU: _relu,
    PReLU: _relu,
    Softmax: _softmax,
    Concat: _concat,
    Split: _same,
    Dropout: _same,
    DropoutChannel: _same,
    Flatten: _flatten,
}
"""By the layer's own class: one that is derived from it may compute something else."""
FOLDS = (Convolution, Deconvolution, InnerProduct, Eltwise, Scale, Bias, BatchNorm, BN)
"""Classes into which the in-place layers behind them are folded."""
MODAL = (Dropout, DropoutChannel, BatchNorm, BN)
"""Classes that compute something else in training."""
