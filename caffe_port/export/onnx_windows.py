"""ONNX operators for layers over windows, and their inverses: convolution, pooling, unpooling, look-ups, products.

Facts beyond ONNX's specification (where Caffe's windows end, which of equal values wins) are in comments.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from caffe_port.export.onnx_common import numbers, pads, refuse
from caffe_port.export.onnx_graph import Array, Graph, Value, operator

# -- filters -----------------------------------------------------------------------------------------------------------


def images(g: Graph, layer: Any, x: Value) -> Value:
    """Axes before the channels as further images."""
    c = layer.channel_axis
    return x if c == 1 else g.reshape(x, (prod(x.shape[:c]), *x.shape[c:]))


@operator("Convolution", "Deconvolution")
def convolution(g: Graph, layer: Any, *bottoms: Value, weight: Array | None = None, bias: Array | None = None) -> Any:
    if not 1 <= len(layer.kernel) <= 3:
        raise refuse(layer, f"{len(layer.kernel)} spatial axes", "1 to 3")
    weight = numbers(layer.weight) if weight is None else weight
    if bias is None and layer.bias is not None:
        bias = numbers(layer.bias)
    names = [g.initializer(f"{layer.name}.weight", weight)]
    if bias is not None:
        names.append(g.initializer(f"{layer.name}.bias", bias))
    tops = []
    for x in bottoms:
        lead = x.shape[: layer.channel_axis]
        flat = images(g, layer, x)
        size = layer.lengths(x.shape[layer.channel_axis + 1 :])
        y = g.node(
            "ConvTranspose" if layer.transposed else "Conv",
            [flat, *names],
            (prod(lead), layer.num_output, *size),
            kernel_shape=list(layer.kernel),
            strides=list(layer.stride),
            pads=pads(layer.pad, layer.pad),
            dilations=list(layer.dilation),
            group=layer.group,
        )
        tops.append(g.reshape(y, (*lead, layer.num_output, *size)))
    return tuple(tops)


@operator("InnerProduct")
def inner_product(g: Graph, layer: Any, x: Value, *, weight: Array | None = None, bias: Array | None = None) -> Value:
    axis = layer.from_axis
    flat = g.reshape(x, (prod(x.shape[:axis]), layer.length)) if (axis, len(x.shape)) != (1, 2) else x
    turned = layer.transpose and weight is None
    weight = numbers(layer.weight) if weight is None else weight
    names = [g.initializer(f"{layer.name}.weight", weight)]
    if bias is None and layer.bias is not None:
        bias = numbers(layer.bias)
    if bias is not None:
        names.append(g.initializer(f"{layer.name}.bias", bias))
    y = g.node("Gemm", [flat, *names], (flat.shape[0], layer.num_output), transB=int(not turned))
    return g.reshape(y, (*x.shape[:axis], layer.num_output))


@operator("Embed")
def embed(g: Graph, layer: Any, x: Value) -> Value:
    shape = (*x.shape, layer.num_output)
    y = g.node("Gather", [g.initializer(f"{layer.name}.weight", numbers(layer.weight)), g.cast(x, "int64")], shape)
    if layer.bias is None:
        return y
    return g.node("Add", [y, g.initializer(f"{layer.name}.bias", numbers(layer.bias))], shape)


@operator("Im2col")
def im2col(g: Graph, layer: Any, x: Value) -> Value:
    # ONNX has no operator for it: a convolution with one filter for each position of a window.
    if not 1 <= len(layer.kernel) <= 3:
        raise refuse(layer, f"{len(layer.kernel)} spatial axes", "1 to 3")
    count = prod(layer.kernel)
    c = layer.channel_axis
    channels = x.shape[c]
    one = np.eye(count, dtype=np.float32).reshape(count, 1, *layer.kernel)
    (shape,) = layer.reshape(x.shape)
    y = g.node(
        "Conv",
        [images(g, layer, x), g.constant(np.tile(one, (channels, 1, *(1,) * len(layer.kernel))), np.float32)],
        (prod(x.shape[:c]), *shape[c:]),
        kernel_shape=list(layer.kernel),
        strides=list(layer.stride),
        pads=pads(layer.pad, layer.pad),
        dilations=list(layer.dilation),
        group=channels,
    )
    return g.reshape(y, shape)


# -- windows -----------------------------------------------------------------------------------------------------------


@operator("Pooling")
def pooling(g: Graph, layer: Any, x: Value) -> Any:
    if layer.global_pooling and layer.method == "AVE":
        y = g.node("GlobalAveragePool", [x], (*x.shape[:2], 1, 1))
    elif layer.global_pooling and layer.n_tops == 1 and layer.method == "MAX":
        return g.node("GlobalMaxPool", [x], (*x.shape[:2], 1, 1))
    elif layer.method == "MAX":
        return max_pool(g, layer, x)
    else:
        y = average_pool(g, layer, x) if layer.method == "AVE" else stochastic_pool(g, layer, x)
    return y if layer.n_tops == 1 else (y, g.node("Sub", [y, y], y.shape))


def window_of(g: Graph, layer: Any, x: Value) -> tuple[tuple[int, int], tuple[int, ...], tuple[int, int]]:
    """The kernel, the top's height and width, and the rows and columns that the last windows exceed the bottom by."""
    kernel = layer.window(x.shape)
    size = layer.reshape(x.shape)[0][2:]
    need = [(n - 1) * s + k for n, s, k in zip(size, layer.stride, kernel, strict=True)]
    down, right = (max(n - h - p, 0) for n, h, p in zip(need, x.shape[2:], layer.pad, strict=True))
    return kernel, size, (down, right)


def max_pool(g: Graph, layer: Any, x: Value) -> Any:
    kernel, size, end = window_of(g, layer, x)
    shape = (*x.shape[:2], *size)
    how: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(layer.stride)}
    if g.dynamic_size:
        if any(k < s for k, s in zip(kernel, layer.stride, strict=True)) or layer.n_tops == 2:
            g.needs_fixed_size(layer, "a pooling whose kernel is below its stride, or that gives switches")
        how |= {"pads": pads(layer.pad, layer.behind), "ceil_mode": int(layer.ceil)}
        return g.node("MaxPool", [x], shape, **how)
    begin = layer.pad
    if any(n >= k for n, k in zip(end, kernel, strict=True)):
        # A window completely outside, which Caffe has if the kernel is smaller than the stride: its maximum is -max.
        sides = [0, 0, *begin, 0, 0, *end]
        padded = (*x.shape[:2], *(n + a + b for n, a, b in zip(x.shape[2:], begin, end, strict=True)))
        low = g.number(-65504 if g.half else -float(np.finfo(np.float32).max))
        x = g.node("Pad", [x, g.constant(sides), low], padded)
        if layer.n_tops == 2:
            raise refuse(layer, "switches of windows outside the bottom", "a kernel no smaller than the stride")
        return g.node("MaxPool", [x], shape, **how)
    how["pads"] = pads(begin, end)
    if layer.n_tops == 1:
        return g.node("MaxPool", [x], shape, **how)
    from onnx import helper

    y = Value(g.fresh(f"{g.layer}/MaxPool"), shape)
    where = Value(g.fresh(f"{g.layer}/Indices"), shape)
    g.nodes.append(helper.make_node("MaxPool", [x.name], [y.name, where.name], g.fresh(f"{g.layer}:MaxPool"), **how))
    # ONNX counts over the whole tensor, Caffe within a plane.
    plane = g.node("Mod", [where, g.constant(prod(x.shape[2:]))], shape)
    return y, g.cast(plane, "float")


def average_pool(g: Graph, layer: Any, x: Value) -> Value:
    kernel, size, end = window_of(g, layer, x)
    shape = (*x.shape[:2], *size)
    how: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(layer.stride), "count_include_pad": 1}
    if g.dynamic_size:
        if any(k < s for k, s in zip(kernel, layer.stride, strict=True)):
            g.needs_fixed_size(layer, "a pooling whose kernel is below its stride")
        return g.node("AveragePool", [x], shape, pads=pads(layer.pad, layer.behind), ceil_mode=int(layer.ceil), **how)
    laid = x
    if any((*layer.pad, *end)):
        # Not by the operator's own padding, which OpenCV 4 does not count.
        sides = [0, 0, *layer.pad, 0, 0, *end]
        padded = (*x.shape[:2], *(n + a + b for n, a, b in zip(x.shape[2:], layer.pad, end, strict=True)))
        laid = g.node("Pad", [x, g.constant(sides)], padded)
    y = g.node("AveragePool", [laid], shape, **how)
    # Caffe counts the padding, but not positions beyond it.
    counts = []
    for n, k, s, p, b, m in zip(x.shape[2:], kernel, layer.stride, layer.pad, layer.behind, size, strict=True):
        start = np.arange(m) * s - p
        counts.append(np.minimum(start + k, n + b) - start)
    divisor = counts[0][:, None] * counts[1]
    if (divisor == prod(kernel)).all():
        return y
    with np.errstate(divide="ignore"):
        factor = (prod(kernel) / divisor).astype(np.float32)
    return g.node("Mul", [y, g.constant(factor, np.float32)], shape)


def stochastic_pool(g: Graph, layer: Any, x: Value) -> Value:
    """In TEST: the mean weighted by each value's share of the sum."""
    squares = average_pool(g, layer, g.node("Mul", [x, x], x.shape))
    sums = average_pool(g, layer, x)
    positive = g.node("Greater", [sums, g.number(0)], sums.shape)
    safe = g.node("Where", [positive, sums, g.number(1)], sums.shape)
    ratio = g.node("Div", [squares, safe], sums.shape)
    return g.node("Where", [positive, ratio, g.number(0)], sums.shape)


@operator("SPP")
def pyramid(g: Graph, layer: Any, x: Value) -> Value:
    g.needs_fixed_size(layer, "a pyramid of poolings")
    pooled = [pooling(g, level, x) for level in layer.levels(x.shape)]
    if layer.height == 1:
        top: Value = pooled[0]
        return top
    flat = [g.reshape(y, (y.shape[0], prod(y.shape[1:]))) for y in pooled]
    return g.node("Concat", flat, (x.shape[0], sum(y.shape[1] for y in flat)), axis=1)


def scattered(g: Graph, x: Value, where: Value, size: tuple[int, ...], *, unique: bool) -> Value:
    """Zeros of (N, C, *size) with each value at its index, int64 in its plane; for equal indices the last one wins."""
    shape = (*x.shape[:2], prod(size))
    flat = g.reshape(x, (*x.shape[:2], prod(x.shape[2:])))
    where = g.reshape(where, flat.shape)
    if unique:
        y = g.node("ScatterElements", [zeros(g, x, shape), where, flat], shape, axis=2)
        return g.reshape(y, (*x.shape[:2], *size))
    # A scatter with equal indices has no defined order: find for each index its last value, then gather that one.
    # Not by Expand, ConstantOfShape without a value or Shape's start, which versions of OpenCV do not read.
    order = g.constant(np.arange(1, prod(x.shape[2:]) + 1).reshape(1, 1, -1))
    order = g.node("Add", [g.node("Mul", [where, g.constant(0)], flat.shape), order], flat.shape)
    with g.single_precision():
        places = [zeros(g, x, shape), where, g.cast(order, "float")]
        last = g.node("ScatterElements", places, shape, axis=2, reduction="max")
        filled = g.node("Greater", [last, g.number(0)], shape)
        index = g.node("Sub", [g.cast(last, "int64"), g.constant(1)], shape)
    index = g.node("Max", [index, g.constant(0)], shape)
    fetched = g.node("GatherElements", [flat, index], shape, axis=2)
    return g.reshape(g.node("Where", [filled, fetched, g.number(0)], shape), (*x.shape[:2], *size))


def zeros(g: Graph, x: Value, shape: tuple[int, ...]) -> Value:
    """As many items as ``x`` has."""
    from onnx import TensorProto, helper

    dims: Any
    if g.dynamic_batch or x.rows is not None:
        batch = g.node("Gather", [g.node("Shape", [x], (len(x.shape),)), g.constant([0])], (1,))
        dims = g.node("Concat", [batch, g.constant(shape[1:])], (len(shape),), axis=0)
    else:
        dims = g.constant(shape)
    kind = TensorProto.FLOAT16 if g.half and not g.single else TensorProto.FLOAT
    return g.node("ConstantOfShape", [dims], shape, value=helper.make_tensor("value", kind, [1], [0.0]))


@operator("Unpooling")
def unpooling(g: Graph, layer: Any, x: Value, switches: Value | None = None) -> Value:
    g.needs_fixed_size(layer, "unpooling")
    if layer.method != "MAX":
        return spread(g, layer, x)
    if switches is not None:
        unique = all(k <= s for k, s in zip(layer.kernel, layer.stride, strict=True))
        return scattered(g, x, g.cast(switches, "int64"), layer.size, unique=unique)
    rows, columns = (
        (np.arange(n) * s).clip(max=m - 1) for n, s, m in zip(x.shape[2:], layer.stride, layer.size, strict=True)
    )
    unique = all((n - 1) * s < m for n, s, m in zip(x.shape[2:], layer.stride, layer.size, strict=True))
    place = g.constant((rows[:, None] * layer.size[1] + columns).reshape(1, 1, -1))
    flat = g.reshape(x, (*x.shape[:2], prod(x.shape[2:])))
    where = g.node("Expand", [place, g.node("Shape", [flat], (3,))], flat.shape)
    return scattered(g, x, where, layer.size, unique=unique)


def spread(g: Graph, layer: Any, x: Value) -> Value:
    """AVE and TILE: every window filled with its value; AVE divides it evenly."""
    if layer.method == "AVE":
        extents = []
        for n, k, s, m in zip(x.shape[2:], layer.kernel, layer.stride, layer.size, strict=True):
            start = np.arange(n) * s
            extents.append((np.minimum(start + k, m) - start).clip(min=1))
        x = g.node("Div", [x, g.constant(extents[0][:, None] * extents[1], np.float32)], x.shape)
    full = tuple((n - 1) * s + k for n, k, s in zip(x.shape[2:], layer.kernel, layer.stride, strict=True))
    y = g.node(
        "ConvTranspose",
        [x, g.constant(np.ones((x.shape[1], 1, *layer.kernel)), np.float32)],
        (*x.shape[:2], *full),
        kernel_shape=list(layer.kernel),
        strides=list(layer.stride),
        group=x.shape[1],
    )
    shape = (*x.shape[:2], *layer.size)
    less = [max(a - b, 0) for a, b in zip(full, layer.size, strict=True)]
    more = [max(b - a, 0) for a, b in zip(full, layer.size, strict=True)]
    if any(less):
        y = g.node("Slice", [y, g.constant([0, 0]), g.constant(layer.size), g.constant([2, 3])], shape)
    return g.node("Pad", [y, g.constant([0] * 6 + more)], shape) if any(more) else y


@operator("Upsample", dialect="segnet")
def upsample(g: Graph, layer: Any, x: Value, mask: Value) -> Value:
    g.needs_fixed_size(layer, "unpooling")
    size = layer.reshape(x.shape, mask.shape)[0][2:]
    return scattered(g, x, g.cast(mask, "int64"), size, unique=False)
