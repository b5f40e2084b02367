"""ONNX operators for layers with one meaning in every dialect: neurons, shapes, sums, normalizations, recurrence.

Facts beyond ONNX's specification (which of equal values wins) are in comments.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from caffe_port.export.onnx_common import linear, numbers, refuse
from caffe_port.export.onnx_graph import Array, Graph, Value, operator

__all__: list[str] = []


# -- elementwise -------------------------------------------------------------------------------------------------------


@operator("ReLU")
def relu(g: Graph, layer: Any, x: Value) -> Any:
    y = g.node("LeakyRelu", [x], x.shape, alpha=float(layer.slope)) if layer.slope else g.node("Relu", [x], x.shape)
    return (y, g.cast(g.node("Greater", [x, g.number(0)], x.shape), "float")) if layer.n_tops == 2 else y


@operator("PReLU")
def prelu(g: Graph, layer: Any, x: Value) -> Value:
    slope = numbers(layer.weight).reshape(-1, *(1,) * (len(x.shape) - 2))
    return g.node("PRelu", [x, g.initializer(f"{layer.name}.weight", slope)], x.shape)


for kind, op in (("Sigmoid", "Sigmoid"), ("TanH", "Tanh"), ("AbsVal", "Abs"), ("BNLL", "Softplus")):
    operator(kind)(lambda g, layer, x, op=op: g.node(op, [x], x.shape))


@operator("Clip")
def clip(g: Graph, layer: Any, x: Value) -> Value:
    return g.node("Clip", [x, g.number(layer.min), g.number(layer.max)], x.shape)


@operator("ELU")
def elu(g: Graph, layer: Any, x: Value) -> Value:
    return g.node("Elu", [x], x.shape, alpha=float(layer.alpha))


@operator("Swish")
def swish(g: Graph, layer: Any, x: Value) -> Value:
    inner = x if layer.beta == 1 else g.node("Mul", [x, g.number(layer.beta)], x.shape)
    return g.node("Mul", [x, g.node("Sigmoid", [inner], x.shape)], x.shape)


@operator("Threshold")
def threshold(g: Graph, layer: Any, x: Value) -> Value:
    return g.cast(g.node("Greater", [x, g.number(layer.threshold)], x.shape), "float")


@operator("Exp")
def exp(g: Graph, layer: Any, x: Value) -> Value:
    return linear(g, g.node("Exp", [linear(g, x, layer.inner)], x.shape), layer.outer)


@operator("Log")
def log(g: Graph, layer: Any, x: Value) -> Value:
    return linear(g, g.node("Log", [linear(g, x, layer.scale, layer.shift)], x.shape), layer.factor)


@operator("Power")
def power(g: Graph, layer: Any, x: Value) -> Value:
    if layer.power * layer.scale == 0:
        value = np.float32(layer.shift) ** np.float32(layer.power)
        return linear(g, g.node("Mul", [x, g.number(0)], x.shape), 1, float(value))
    x = linear(g, x, layer.scale, layer.shift)
    if layer.power == 1:
        return g.node("Identity", [x], x.shape)
    return g.node("Pow", [x, g.number(layer.power)], x.shape)


@operator("Dropout", "DropoutChannel", "Split")
def passed_on(g: Graph, layer: Any, x: Value) -> tuple[Value, ...]:
    if layer.type != "Split" and layer.drops():
        raise refuse(layer, "a layer that draws", "phase TEST")
    return (x,) * layer.n_tops


@operator("Silence")
def silence(g: Graph, layer: Any, *bottoms: Value) -> tuple[()]:
    return ()


# -- shapes ------------------------------------------------------------------------------------------------------------


@operator("Concat")
def concat(g: Graph, layer: Any, *bottoms: Value) -> Value:
    return g.node("Concat", bottoms, layer.reshape(*(b.shape for b in bottoms))[0], axis=layer.along)


@operator("Slice")
def cut(g: Graph, layer: Any, x: Value) -> tuple[Value, ...]:
    if g.dynamic_size and layer.along > 1:
        g.needs_fixed_size(layer, "a cut along height or width")
    edges = [0, *np.cumsum(layer.lengths(x.shape)).tolist()]
    shapes = layer.reshape(x.shape)
    return tuple(
        g.node("Slice", [x, g.constant([a]), g.constant([b]), g.constant([layer.along])], shape)
        for (a, b), shape in zip(pairwise(edges), shapes, strict=True)
    )


@operator("Tile")
def tile(g: Graph, layer: Any, x: Value) -> Value:
    return g.node("Concat", [x] * layer.tiles, layer.reshape(x.shape)[0], axis=layer.along)


@operator("Flatten", "Reshape")
def reshaped(g: Graph, layer: Any, x: Value) -> Value:
    (shape,) = layer.reshape(x.shape)
    if layer.type == "Reshape" and layer.shuffles != 1:
        return g.node("DepthToSpace", [x], shape, blocksize=layer.shuffles, mode="CRD")
    if g.dynamic_size:
        if layer.type == "Reshape" and layer.num_axes == -1:
            start = layer.from_axis % (len(x.shape) + 1)
            wanted = [0] * start + list(layer.dims)
            if wanted[0] == x.shape[0]:
                wanted[0] = 0
            return g.node("Reshape", [x, g.constant(wanted)], shape)
        if layer.type == "Flatten" and layer.from_axis == 1 and shape == (x.shape[0], prod(x.shape[1:])):
            return g.node("Flatten", [x], shape, axis=1)
        g.needs_fixed_size(layer, "another shape")
    return g.reshape(x, shape) if shape != x.shape else g.node("Identity", [x], shape)


@operator("Crop")
def crop(g: Graph, layer: Any, x: Value, size: Value) -> Value:
    (shape,) = layer.reshape(x.shape, size.shape)
    axes = range(layer.from_axis, len(shape))
    if g.dynamic_size:
        first, last = layer.from_axis, len(shape)
        lengths = g.node("Shape", [size], (last - first,), start=first, end=last)
        start = g.constant(layer.offset)
        end = g.node("Add", [lengths, start], (last - first,))
        return g.node("Slice", [x, start, end, g.constant(list(axes))], shape)
    if layer.from_axis == 0 and g.dynamic_batch:
        axes = range(1, len(shape))
    offset = layer.offset[len(layer.offset) - len(axes) :]
    ends = [o + shape[a] for o, a in zip(offset, axes, strict=True)]
    return g.node("Slice", [x, g.constant(offset), g.constant(ends), g.constant(list(axes))], shape)


@operator("BatchReindex")
def batch_reindex(g: Graph, layer: Any, x: Value, index: Value) -> Value:
    return g.node("Gather", [x, g.cast(index, "int64")], layer.reshape(x.shape, index.shape)[0])


@operator("Filter")
def filter_items(g: Graph, layer: Any, *bottoms: Value) -> tuple[Value, ...]:
    *items, selector = bottoms
    keep = g.cast(g.reshape(selector, (prod(selector.shape),)), "bool")
    return tuple(g.node("Compress", [x, keep], x.shape, axis=0) for x in items)


@operator("ArgMax")
def arg_max(g: Graph, layer: Any, x: Value) -> Value:
    (shape,) = layer.reshape(x.shape)
    axis = 1 if layer.over is None else layer.over
    flat = g.reshape(x, (x.shape[0], prod(x.shape[1:]))) if layer.over is None else x
    n, k = flat.shape[axis], layer.top_k
    if layer.over is None:
        g.needs_fixed_size(layer, "the largest number of a whole item")
    found = tuple(k if i == axis else m for i, m in enumerate(flat.shape))
    if k == 1 and not layer.out_max_val:
        where = g.node("ArgMax", [flat], found, axis=axis, keepdims=1, select_last_index=1)
        return g.reshape(g.cast(where, "float"), shape)
    # Of equal values TopK takes the first and Caffe the last: reverse the axis.
    turned = g.node("Gather", [flat, g.constant(np.arange(n)[::-1].copy())], flat.shape, axis=axis)
    value, where = g.node("TopK", [turned, g.constant([k])], found, outputs=2, axis=axis)
    place = g.cast(g.node("Sub", [g.constant(n - 1), where], found), "float")
    if layer.over is not None:
        return value if layer.out_max_val else place
    if not layer.out_max_val:
        return g.reshape(place, shape)
    pair = [g.node("Unsqueeze", [v, g.constant([1])], (x.shape[0], 1, k)) for v in (place, value)]
    return g.reshape(g.node("Concat", pair, (x.shape[0], 2, k), axis=1), shape)


@operator("Reduction")
def reduction(g: Graph, layer: Any, x: Value) -> Value:
    axes = list(range(layer.from_axis, len(x.shape)))
    kind = {"SUM": "ReduceSum", "MEAN": "ReduceMean", "ASUM": "ReduceL1", "SUMSQ": "ReduceSumSquare"}[layer.operation]
    y = g.node(kind, [x, g.constant(axes)], x.shape[: layer.from_axis], keepdims=0)
    return linear(g, y, layer.coeff)


# -- several blobs -----------------------------------------------------------------------------------------------------


@operator("Eltwise")
def eltwise(g: Graph, layer: Any, *bottoms: Value) -> Value:
    shape = bottoms[0].shape
    if layer.operation == "SUM":
        scaled = [linear(g, b, c) for b, c in zip(bottoms, layer.coeff, strict=True)]
    else:
        scaled = list(bottoms)
    kind = {"PROD": "Mul", "SUM": "Add", "MAX": "Max"}[layer.operation]
    y = scaled[0]
    for other in scaled[1:]:
        y = g.node(kind, [y, other], shape)
    return y


@operator("Scale", "Bias")
def factor_or_term(g: Graph, layer: Any, x: Value, other: Value | None = None) -> Value:
    kind, blob = ("Mul", "weight") if layer.type == "Scale" else ("Add", "bias")

    def behind(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1,) * (len(x.shape) - layer.from_axis % len(x.shape) - len(shape) if shape else 0)

    if other is not None:
        extra = behind(other.shape)
        wanted = list(range(len(other.shape), len(other.shape) + len(extra)))
        laid = g.node("Unsqueeze", [other, g.constant(wanted)], other.shape + extra) if extra else other
        y = g.node(kind, [x, laid], x.shape)
    else:
        array = numbers(getattr(layer, blob))
        name = g.initializer(f"{layer.name}.{blob}", array.reshape(array.shape + behind(array.shape)))
        y = g.node(kind, [x, name], x.shape)
    if layer.type == "Scale" and layer.bias is not None:
        array = numbers(layer.bias)
        name = g.initializer(f"{layer.name}.bias", array.reshape(array.shape + behind(array.shape)))
        y = g.node("Add", [y, name], x.shape)
    return y


# -- normalizations ----------------------------------------------------------------------------------------------------


@operator("BatchNorm")
def batch_norm(g: Graph, layer: Any, x: Value) -> Value:
    if layer.uses_blobs():
        scale, shift = layer.channel_affine()
        return g.affine(x, numbers(scale), numbers(shift))
    with g.single_precision():
        return standardized(g, g.typed(x), [0, *range(2, len(x.shape))], layer.eps)


@operator("BN")
def bn(g: Graph, layer: Any, x: Value) -> Any:
    if not layer.learn:
        scale, shift = layer.channel_affine()
        return g.affine(g.reshape(x, (*x.shape, *(1,) * (4 - len(x.shape)))), numbers(scale), numbers(shift))
    with g.single_precision():
        return bn_of_batch(g, layer, g.typed(x))


def bn_of_batch(g: Graph, layer: Any, x: Value) -> Any:
    """BN by the batch's own mean and variance, in float32 as :func:`standardized`."""
    x = g.reshape(x, (*x.shape, *(1,) * (4 - len(x.shape))))
    mean = mean_over(g, x, [0, 2, 3])
    centred = g.node("Sub", [x, mean], x.shape)
    variance = mean_over(g, g.node("Mul", [centred, centred], x.shape), [0, 2, 3])
    deviation = g.node("Sqrt", [linear(g, variance, 1, layer.eps)], mean.shape)
    y = g.node("Div", [centred, deviation], x.shape)
    y = g.affine(y, numbers(layer.scale).reshape(-1), numbers(layer.shift).reshape(-1))
    return (y, mean, variance)[: layer.n_tops] if layer.n_tops > 1 else y


def standardized(g: Graph, x: Value, axes: list[int], eps: float) -> Value:
    """(x - mean) / sqrt(variance + eps) over some axes; in float32: float16 ends at the square of 255."""
    centred = g.node("Sub", [x, mean_over(g, x, axes)], x.shape)
    variance = mean_over(g, g.node("Mul", [centred, centred], x.shape), axes)
    return g.node("Div", [centred, g.node("Sqrt", [linear(g, variance, 1, eps)], variance.shape)], x.shape)


def mean_over(g: Graph, x: Value, axes: list[int]) -> Value:
    """The mean over some axes, which stay with length 1; one after the other: OpenCV knows neighbouring axes only."""
    for axis in reversed(axes):
        x = g.node("ReduceMean", [x, g.constant([axis])], (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return x


@operator("MVN", single=True)
def mvn(g: Graph, layer: Any, x: Value) -> Value:
    (shape,) = layer.reshape(x.shape)
    axes = list(range(1 if layer.across_channels else 2, len(shape)))
    x = g.reshape(x, shape)
    centred = g.node("Sub", [x, mean_over(g, x, axes)], shape)
    if not layer.normalize_variance:
        return centred
    variance = mean_over(g, g.node("Mul", [centred, centred], shape), axes)
    return g.node("Div", [centred, linear(g, g.node("Sqrt", [variance], variance.shape), 1, layer.eps)], shape)


@operator("LRN", single=True)
def lrn(g: Graph, layer: Any, x: Value) -> Value:
    # onnxruntime's LRN is off by up to 3e-5 (its running sums cancel) and takes four times as long.
    squares = g.node("Mul", [x, x], x.shape)
    if layer.region == "ACROSS_CHANNELS" and x.shape[1] <= _MOST_CHANNELS:
        return divided(g, x, over_neighbours(g, layer, squares), layer.beta)
    side = layer.size
    if layer.region != "ACROSS_CHANNELS":
        return divided(g, x, linear(g, padded_mean(g, squares, [side, side]), layer.alpha, 1), layer.beta)
    flat = (x.shape[0], 1, x.shape[1], prod(x.shape[2:]))
    laid = g.node("Reshape", [squares, g.constant([0, 1, x.shape[1], -1])], flat)
    mean = g.node("Reshape", [padded_mean(g, laid, [side, 1]), g.node("Shape", [x], (4,))], x.shape)
    return divided(g, x, linear(g, mean, layer.alpha, layer.k), layer.beta)


def padded_mean(g: Graph, x: Value, window: list[int]) -> Value:
    """Over a window around each value, with zeros at the borders: an operator of its own: OpenCV 4 has none."""
    sides = [0, 0, *(n // 2 for n in window)]
    laid = g.node("Pad", [x, g.constant(sides * 2)], [n + 2 * side for n, side in zip(x.shape, sides, strict=True)])
    return g.node("AveragePool", [laid], x.shape, kernel_shape=window)


_MOST_CHANNELS = 192
"""Above them the convolution, most of whose weights are zeros, takes longer than an average pooling."""


def over_neighbours(g: Graph, layer: Any, squares: Value) -> Value:
    """k + alpha * the mean over neighbouring channels, as a convolution."""
    channels = squares.shape[1]
    apart = np.abs(np.arange(channels)[:, None] - np.arange(channels))
    near = np.where(apart <= layer.size // 2, layer.alpha / layer.size, 0).astype(np.float32)
    weight = g.initializer(f"{layer.name}/neighbours", near.reshape(channels, channels, 1, 1))
    bias = g.initializer(f"{layer.name}/k", np.full(channels, layer.k, np.float32))
    return g.node("Conv", [squares, weight, bias], squares.shape, kernel_shape=[1, 1])


def divided(g: Graph, x: Value, scale: Value, power: float) -> Value:
    """x / scale ** power; by square roots where they make the power, which are many times as fast."""
    if power not in (0.5, 0.75, 1.0):
        return g.node("Mul", [x, g.node("Pow", [scale, g.number(-power)], x.shape)], x.shape)
    if power < 1:
        root = g.node("Sqrt", [scale], x.shape)
        scale = root if power == 0.5 else g.node("Mul", [root, g.node("Sqrt", [root], x.shape)], x.shape)
    return g.node("Div", [x, scale], x.shape)


@operator("Softmax")
def softmax(g: Graph, layer: Any, x: Value) -> Value:
    return g.node("Softmax", [x], x.shape, axis=layer.over)


# -- recurrence --------------------------------------------------------------------------------------------------------


def lstm_step(g: Graph, c: Value, gates: Value, cont: Value) -> tuple[Value, Value]:
    parts = g.node("Split", [gates], c.shape, outputs=4, axis=len(c.shape) - 1, num_outputs=4)
    i, f, o = (g.node("Sigmoid", [part], c.shape) for part in parts[:3])
    kept = g.node("Mul", [g.node("Mul", [f, cont], c.shape), c], c.shape)
    c = g.node("Add", [kept, g.node("Mul", [i, g.node("Tanh", [parts[3]], c.shape)], c.shape)], c.shape)
    return c, g.node("Mul", [o, g.node("Tanh", [c], c.shape)], c.shape)


@operator("LSTMUnit")
def lstm_unit(g: Graph, layer: Any, c: Value, gates: Value, cont: Value) -> tuple[Value, Value]:
    marks = g.node("Unsqueeze", [cont, g.constant([2])], (*cont.shape, 1))
    return lstm_step(g, c, gates, marks)


@operator("LSTM", "RNN")
def recurrent(g: Graph, layer: Any, x: Value, cont: Value, *others: Value) -> Any:
    steps, streams = x.shape[:2]
    names = [blob.name for blob in layer.blob_specs[:3]]
    rows = layer.gates * layer.size

    def product(v: Value, blob: str, bias: str | None, shape: tuple[int, ...]) -> Value:
        turned = np.ascontiguousarray(numbers(getattr(layer, blob)).T)
        y = g.node("MatMul", [v, g.initializer(f"{layer.name}.{blob}", turned)], shape)
        if bias is None:
            return y
        return g.node("Add", [y, g.initializer(f"{layer.name}.{bias}", numbers(getattr(layer, bias)))], shape)

    flat = g.reshape(x, (steps, streams, prod(x.shape[2:])))
    entering = product(flat, names[0], names[1], (steps, streams, rows))
    if layer.static:
        static = product(g.reshape(others[0], (streams, prod(others[0].shape[1:]))), names[2], None, (streams, rows))
        entering = g.node("Add", [entering, static], entering.shape)
    if layer.exposes:
        states = [g.reshape(s, (streams, layer.size)) for s in others[layer.static :]]
    else:
        # Caffe continues from the previous batch; a file has no state and starts from zeros, as the first batch does.
        states = [Value(g.constant(np.zeros((streams, layer.size)), np.float32), (streams, layer.size))] * len(
            layer.states
        )
    state_weight = "W_hc" if layer.type == "LSTM" else "W_hh"
    turned = g.initializer(
        f"{layer.name}.{state_weight}", np.ascontiguousarray(numbers(getattr(layer, state_weight)).T)
    )
    hidden = []
    for t in range(steps):

        def at(v: Value, shape: tuple[int, ...], t: int = t) -> Value:
            return g.node("Gather", [v, g.constant(t)], shape, axis=0)

        marks = g.node("Unsqueeze", [at(cont, (streams,)), g.constant([1])], (streams, 1))
        entry = at(entering, (streams, rows))
        carried = g.node("Mul", [states[0], marks], states[0].shape)
        entry = g.node("Add", [entry, g.node("MatMul", [carried, turned], entry.shape)], entry.shape)
        if layer.type == "LSTM":
            c, h = lstm_step(g, states[1], entry, marks)
            states = [h, c]
        else:
            states = [g.node("Tanh", [entry], entry.shape)]
        hidden.append(g.node("Unsqueeze", [states[0], g.constant([0])], (1, streams, layer.size)))
    outputs = g.node("Concat", hidden, (steps, streams, layer.size), axis=0)
    if layer.type == "RNN":
        outputs = g.node("Tanh", [product(outputs, "W_ho", "b_o", outputs.shape)], outputs.shape)
    if not layer.exposes:
        return outputs
    return (outputs, *(g.node("Unsqueeze", [s, g.constant([0])], (1, *s.shape)) for s in states))


# -- resizing ----------------------------------------------------------------------------------------------------------


@operator("Interp")
def interp(g: Graph, layer: Any, x: Value) -> Value:
    # onnxruntime's Resize with aligned corners has errors up to 1.2e-5; products with two weight matrices do not.
    g.needs_fixed_size(layer, "resizing by products with matrices")
    (shape,) = layer.reshape(x.shape)
    begin, end = layer.cut
    kept = [n - begin - end for n in x.shape[2:]]
    if begin or end:
        ends = [n - end for n in x.shape[2:]]
        x = g.node("Slice", [x, g.constant([begin] * 2), g.constant(ends), g.constant([2, 3])], (*x.shape[:2], *kept))
    rows, columns = (shares(n, m) for n, m in zip(kept, shape[2:], strict=True))
    y = g.node("MatMul", [x, g.constant(columns.T, np.float32)], (*x.shape[:3], shape[3]))
    return g.node("MatMul", [g.constant(rows, np.float32), y], shape)


def shares(n: int, m: int) -> Array:
    """(m, n): the weight of each of ``n`` pixels in each of ``m``."""
    ratio = np.float32((n - 1) / (m - 1)) if m > 1 else np.float32(0)
    at = ratio * np.arange(m, dtype=np.float32)
    low = at.astype(np.int64)
    share = at - low.astype(np.float32)
    matrix = np.zeros((m, n), np.float32)
    matrix[np.arange(m), low] += 1 - share
    matrix[np.arange(m), np.minimum(low + 1, n - 1)] += share
    return matrix


@operator("SpatialProduct")
def spatial_product(g: Graph, layer: Any, x: Value, factor: Value) -> Value:
    return g.node("Mul", [x, factor], x.shape)
