"""ONNX operators for detection nets. They compute in float32 in a half-precision graph, too.

Suppression is ONNX's NonMaxSuppression: of equal scores onnxruntime takes the first, as Caffe does.

Source: permute_layer.cpp, normalize_layer.cpp, detection_output_layer.cpp, bbox_util.cpp (weiliu89/caffe, branch ssd);
lib/rpn/proposal_layer.py (py-faster-rcnn); roi_pooling_layer.cpp, psroi_pooling_layer.cu, dropout_layer.cpp
(rbgirshick's and daijifeng001's forks).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from caffe_port.data import rcnn_boxes
from caffe_port.export.inputs import PROPOSAL
from caffe_port.export.onnx_common import linear, numbers, refuse
from caffe_port.export.onnx_graph import Graph, Value, operator

__all__: list[str] = []

_LEAST = -float(np.finfo(np.float32).max)


@operator("Permute")
def permute(g: Graph, layer: Any, x: Value) -> Value:
    order = list(layer.order)
    return g.node("Transpose", [x], [x.shape[i] for i in order], perm=order)


@operator("Normalize", single=True)
def normalize(g: Graph, layer: Any, x: Value) -> Value:
    axes = list(range(1, len(x.shape))) if layer.across else [1]
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    squares = g.node("ReduceSum", [g.node("Mul", [x, x], x.shape), g.constant(axes)], kept)
    norm = g.node("Sqrt", [linear(g, squares, 1, layer.eps)], kept)
    scale = numbers(layer.scale).reshape(1, -1, *(1,) * (len(x.shape) - 2))
    name = g.initializer(f"{layer.name}.scale", scale)
    return g.node("Mul", [g.node("Div", [x, norm], x.shape), name], x.shape)


@operator("Dropout", dialect="rcnn")
def scaled_dropout(g: Graph, layer: Any, x: Value) -> Value:
    if layer.scales_train:
        return x
    return linear(g, x, 1 - layer.ratio)


# -- shared ------------------------------------------------------------------------------------------------------------


def columns(g: Graph, x: Value, first: int, past: int) -> Value:
    """A range of the last axis."""
    return g.node(
        "Slice", [x, g.constant([first]), g.constant([past]), g.constant([-1])], (*x.shape[:-1], past - first)
    )


def joined(g: Graph, *parts: Value | str, shape: tuple[int, ...]) -> Value:
    return g.node("Concat", parts, shape, axis=-1)


def length(g: Graph, x: Value, axis: int) -> Value:
    """Of one axis, as an int64 tensor of one number."""
    return g.node("Shape", [x], (1,), start=axis, end=axis + 1)


def backwards(g: Graph, x: Value) -> Value:
    """A list from its end to its start."""
    return g.node("Slice", [x, *map(g.constant, ([-1], [-(2**62)], [0], [-1]))], x.shape)


def computed(g: Graph, kind: str, a: Value, b: Value | str) -> Value:
    """An operator of two values, in the shape of the first."""
    return g.node(kind, [a, b], a.shape)


# -- SSD ---------------------------------------------------------------------------------------------------------------


def decoded(g: Graph, layer: Any, loc: Value, prior: Value) -> Value:
    """Boxes (num, priors, places, 4) from offsets of that shape and priors (1, 2, priors * 4)."""
    count = loc.shape[1]

    def half(i: int) -> Value:
        """The priors' boxes or variances, (priors, 1, 4)."""
        part = g.node("Gather", [prior, g.constant(i)], (1, count * 4), axis=1)
        return g.node("Reshape", [part, g.constant([count, 1, 4])], (count, 1, 4))

    boxes = half(0)
    if not layer.encoded:
        loc = computed(g, "Mul", loc, half(1))
    if layer.code == "CORNER":
        return computed(g, "Add", loc, boxes)
    near, far = columns(g, boxes, 0, 2), columns(g, boxes, 2, 4)
    size = computed(g, "Sub", far, near)
    if layer.code == "CORNER_SIZE":
        return computed(g, "Add", computed(g, "Mul", loc, joined(g, size, size, shape=boxes.shape)), boxes)
    centre = linear(g, computed(g, "Add", near, far), 0.5)
    there, grown = columns(g, loc, 0, 2), columns(g, loc, 2, 4)
    centre = computed(g, "Add", computed(g, "Mul", there, size), centre)
    reach = linear(g, computed(g, "Mul", g.node("Exp", [grown], grown.shape), size), 0.5)
    return joined(g, *(computed(g, kind, centre, reach) for kind in ("Sub", "Add")), shape=loc.shape)


@operator("DetectionOutput", single=True)
def detection_output(g: Graph, layer: Any, loc: Value, conf: Value, prior: Value, *picture: Value) -> Value:
    classes = [c for c in range(layer.classes) if c != layer.background]
    count, n, c = prior.shape[2] // 4, loc.shape[0], len(classes)
    for wrong, found, expected in (
        (layer.eta < 1 and layer.threshold > 0.5, f"eta {layer.eta:g} with nms_threshold {layer.threshold:g}", "eta 1"),
        (layer.threshold > 1, f"nms_threshold {layer.threshold:g}", "1 at most"),
        (not classes, "no class but the background", "other classes"),
        (0 in (layer.top_k, layer.keep_top_k), "top_k or keep_top_k 0, which keeps nothing", "more, or -1 for all"),
    ):
        if wrong:
            raise refuse(layer, f"{found}, for which ONNX has no operator", expected)
    places = 1 if layer.one_place else layer.classes
    boxes = decoded(g, layer, g.reshape(loc, (n, count, places, 4)), prior)
    scores = g.node(
        "Transpose", [g.reshape(conf, (n, count, layer.classes))], (n, layer.classes, count), perm=[0, 2, 1]
    )
    if c < layer.classes:
        scores = g.node("Gather", [scores, g.constant(classes)], (n, c, count), axis=1)
    k = min(layer.top_k, count) if layer.top_k > 0 else count
    score, where = g.node("TopK", [scores, g.constant([k])], (n, c, k), outputs=2, axis=2)
    # Each class's best boxes: (num * classes, k, 4).
    if layer.one_place:
        index = g.node("Reshape", [where, g.constant([0, -1, 1])], (n, c * k, 1))
        flat = g.node("Reshape", [boxes, g.constant([0, count, 4])], (n, count, 4))
        best = g.node("GatherND", [flat, index], (n, c * k, 4), batch_dims=1)
    else:
        index = g.node("Unsqueeze", [where, g.constant([3])], (n, c, k, 1))
        by_class = g.node("Transpose", [boxes], (n, places, count, 4), perm=[0, 2, 1, 3])
        if c < places:
            by_class = g.node("Gather", [by_class, g.constant(classes)], (n, c, count, 4), axis=1)
        best = g.node("GatherND", [by_class, index], (n, c, k, 4), batch_dims=2)
    of_class = g.node("Reshape", [best, g.constant([-1, k, 4])], (n * c, k, 4))
    kept = suppressed(
        g,
        of_class,
        g.node("Reshape", [score, g.constant([-1, 1, k])], (n * c, 1, k)),
        most=g.constant([k]),
        threshold=layer.threshold,
        least=layer.least,
    )
    item = g.node("Reshape", [kept, g.constant([-1, c * k])], (n, c * k))
    flat_score = g.node("Reshape", [score, g.constant([-1, c * k])], (n, c * k))
    if 0 < layer.keep_top_k < c * k:
        # TopK takes the first of equal scores: the earlier label, and of one label the earlier prior.
        ranked = g.node("Where", [item, flat_score, g.number(_LEAST)], item.shape)
        limit = (n, layer.keep_top_k)
        _, top = g.node("TopK", [ranked, g.constant([layer.keep_top_k])], limit, outputs=2, axis=1)
        true = g.node("Expand", [g.constant([[True]], bool), g.node("Shape", [top], (2,))], limit)
        none = g.node("Expand", [g.constant([[False]], bool), g.node("Shape", [item], (2,))], item.shape)
        chosen = g.node("ScatterElements", [none, top, true], item.shape, axis=1)
        item = computed(g, "And", item, chosen)
    return rows(g, item, flat_score, best, classes, k)


def suppressed(
    g: Graph, boxes: Value, scores: Value, *, most: Value | str, threshold: float, least: float | None
) -> Value:
    """Which boxes stay, bool (batch * k,).

    Args:
        boxes: (batch, k, 4). scores: (batch, 1, k), falling. least: the scores above it count; None: all.
    """
    near, far = columns(g, boxes, 0, 2), columns(g, boxes, 2, 4)
    # In Caffe a box whose far edge lies before its near one covers nothing; in ONNX its edges are exchanged.
    proper = joined(g, near, computed(g, "Max", far, near), shape=boxes.shape)
    limits = [g.constant([threshold], np.float32)] + ([] if least is None else [g.constant([least], np.float32)])
    found = g.node("NonMaxSuppression", [proper, scores, most, *limits], (1, 3))
    size = g.node("Shape", [scores], (3,))
    k = g.node("Gather", [size, g.constant(2)], ())
    batch, index = (g.node("Gather", [found, g.constant(i)], (1,), axis=1) for i in (0, 2))
    flat = g.node("Add", [g.node("Mul", [batch, k], (1,)), index], (1,))
    none = g.node("Expand", [g.constant([False], bool), g.node("ReduceProd", [size], (1,))], (prod(scores.shape),))
    true = g.node("Expand", [g.constant([True], bool), g.node("Shape", [flat], (1,))], (1,))
    return g.node("ScatterElements", [none, flat, true], none.shape, axis=0)


def rows(g: Graph, chosen: Value, score: Value, boxes: Value, classes: list[int], k: int) -> Value:
    """(1, 1, n, 7) rows of (item, label, score, box); one of -1 for each item if there is none.

    Args:
        chosen: bool (num, classes * k). score: of that shape. boxes: as many times 4.
    """
    flat = g.node("Reshape", [chosen, g.constant([-1])], (prod(chosen.shape),))
    place = g.node("Transpose", [g.node("NonZero", [flat], (1, 1))], (1, 1), perm=[1, 0])
    item = g.cast(g.node("Div", [place, g.constant(len(classes) * k)], (1, 1)), "float32")
    label = g.node("Div", [g.node("Mod", [place, g.constant(len(classes) * k)], (1, 1)), g.constant(k)], (1, 1))
    label = g.node("Gather", [g.constant(classes, np.float32), label], (1, 1), axis=0)
    # Not GatherND, which ends OpenCV 5.0.0's process where there is no object.
    column = g.node("Gather", [g.node("Reshape", [score, g.constant([-1])], flat.shape), place], (1, 1), axis=0)
    all_boxes = g.node("Reshape", [boxes, g.constant([-1, 4])], (*flat.shape, 4))
    box = g.node("Gather", [all_boxes, g.node("Squeeze", [place, g.constant([1])], (1,))], (1, 4), axis=0)
    found = joined(g, item, label, column, box, shape=(1, 7))
    num = length(g, score, 0)
    scalar = g.node("Squeeze", [num], ())
    every = g.node("Range", [g.constant(0), scalar, g.constant(1)], (1,))
    every = g.cast(g.node("Unsqueeze", [every, g.constant([1])], (1, 1)), "float32")
    ones = g.node(
        "Expand", [g.constant(np.full((1, 6), -1), np.float32), joined(g, num, g.constant([1]), shape=(2,))], (1, 6)
    )
    nothing = g.node("Equal", [length(g, found, 0), g.constant([0])], (1,))
    until = g.node("Mul", [num, g.cast(nothing, "int64")], (1,))
    spare = g.node("Slice", [joined(g, every, ones, shape=(1, 7)), g.constant([0]), until, g.constant([0])], (1, 7))
    all_rows = g.node("Concat", [found, spare], (1, 7), axis=0)
    top = g.node("Unsqueeze", [all_rows, g.constant([0, 1])], (1, 1, 1, 7))
    return Value(top.name, top.shape, top.single, 2)


# -- regions -----------------------------------------------------------------------------------------------------------


@operator(PROPOSAL, single=True)
def proposal(g: Graph, layer: Any, scores: Value, deltas: Value, info: Value) -> Any:
    cfg, per_cell = layer.cfg, layer.anchors_per_cell
    height, width = scores.shape[2:]
    count = per_cell * height * width
    front = g.node(
        "Slice",
        [scores, g.constant([per_cell]), g.constant([2 * per_cell]), g.constant([1])],
        (1, per_cell, height, width),
    )
    score = g.node("Transpose", [front], (1, height, width, per_cell), perm=[0, 2, 3, 1])
    moves = g.node("Transpose", [deltas], (1, height, width, 4 * per_cell), perm=[0, 2, 3, 1])
    score = g.node("Reshape", [score, g.constant([-1])], (count,))
    moves = g.node("Reshape", [moves, g.constant([-1, 4])], (count, 4))
    size = g.node("Reshape", [info, g.constant([-1])], (3,))

    def of_info(*index: int) -> Value:
        return g.node("Gather", [size, g.constant(index)], (len(index),), axis=0)

    boxes = moved(g, layer, front, moves)
    last = linear(g, of_info(1, 0, 1, 0), 1, -1.0)
    boxes = computed(g, "Max", computed(g, "Min", boxes, last), g.number(0))
    sides = linear(g, computed(g, "Sub", columns(g, boxes, 2, 4), columns(g, boxes, 0, 2)), 1, 1.0)
    least = linear(g, of_info(2), float(cfg.RPN_MIN_SIZE))
    small = g.node("Less", [sides, least], sides.shape)
    any_small = g.node("ReduceMax", [g.cast(small, "float32"), g.constant([1])], (count,), keepdims=0)
    score = g.node("Where", [g.cast(any_small, "bool"), g.number(-np.inf), score], (count,))
    total, wanted, most = length(g, score, 0), length(g, score, 0), count
    if cfg.RPN_PRE_NMS_TOP_N > 0:
        most = min(cfg.RPN_PRE_NMS_TOP_N, count)
        wanted = g.node("Min", [total, g.constant([cfg.RPN_PRE_NMS_TOP_N])], (1,))
    # Of equal scores the original keeps the last ones, and begins with the first of these (it reverses a stable order
    # twice); TopK and NonMaxSuppression take the first.
    best, where = g.node("TopK", [backwards(g, score), wanted], (most,), outputs=2, axis=0)
    where = g.node("Sub", [g.node("Sub", [total, g.constant([1])], (1,)), where], (most,))
    best, where = backwards(g, best), backwards(g, where)
    chosen = g.node("Gather", [boxes, where], (most, 4), axis=0)
    # ONNX's boxes end at their far edge, py-faster-rcnn's one pixel behind it; its overlaps stop at the threshold.
    wide = joined(g, columns(g, chosen, 0, 2), linear(g, columns(g, chosen, 2, 4), 1, 1.0), shape=chosen.shape)
    limit = np.float32(cfg.RPN_NMS_THRESH)
    limit = np.nextafter(limit, np.float32(-1)) if float(limit) >= cfg.RPN_NMS_THRESH else limit
    n = cfg.RPN_POST_NMS_TOP_N
    found = g.node(
        "NonMaxSuppression",
        [
            g.node("Unsqueeze", [wide, g.constant([0])], (1, most, 4)),
            g.node("Unsqueeze", [best, g.constant([0, 1])], (1, 1, most)),
            g.constant([n]) if n > 0 else wanted,
            g.constant([limit], np.float32),
            g.constant([_LEAST], np.float32),
        ],
        (1, 3),
    )
    stays = g.node("Gather", [found, g.constant(2)], (1,), axis=1)
    rois = g.node("Gather", [chosen, stays], (1, 4), axis=0)
    rois = g.node("Pad", [rois, g.constant([0, 1, 0, 0])], (1, 5))
    kept = g.node("Unsqueeze", [g.node("Gather", [best, stays], (1,), axis=0), g.constant([1])], (1, 1))
    tops = tuple(Value(v.name, v.shape, v.single, 0) for v in (rois, kept))
    return tops[: layer.n_tops]


def moved(g: Graph, layer: Any, cells: Value, moves: Value) -> Value:
    """The anchors at every cell of a map (1, C, h, w), moved by (dx, dy, dw, dh)."""
    if g.dynamic_size:
        anchors = everywhere(g, layer, cells)
    else:
        array = rcnn_boxes.shifted(layer.anchors, cells.shape[2], cells.shape[3], layer.stride)
        anchors = Value(g.constant(array, np.float32), array.shape)
    near, far = columns(g, anchors, 0, 2), columns(g, anchors, 2, 4)
    size = linear(g, computed(g, "Sub", far, near), 1, 1.0)
    centre = computed(g, "Add", near, linear(g, size, 0.5))
    centre = computed(g, "Add", computed(g, "Mul", columns(g, moves, 0, 2), size), centre)
    grown = g.node("Exp", [columns(g, moves, 2, 4)], size.shape)
    reach = linear(g, computed(g, "Mul", grown, size), 0.5)
    return joined(g, *(computed(g, kind, centre, reach) for kind in ("Sub", "Add")), shape=moves.shape)


def everywhere(g: Graph, layer: Any, cells: Value) -> Value:
    """The anchors at every cell of a map of any size."""
    shifts = []
    for axis, at, shape in ((3, [1, 0, 1, 0], [1, -1, 1, 1]), (2, [0, 1, 0, 1], [-1, 1, 1, 1])):
        n = g.node("Squeeze", [length(g, cells, axis)], ())
        steps = g.cast(g.node("Range", [g.constant(0), n, g.constant(1)], (cells.shape[axis],)), "float32")
        steps = g.node("Reshape", [steps, g.constant(shape)], shape)
        shifts.append(g.node("Mul", [steps, g.constant(np.array(at) * layer.stride, np.float32)], (*shape[:3], 4)))
    both = g.node("Add", shifts, (*cells.shape[2:], 1, 4))
    laid = g.node("Add", [both, g.constant(layer.anchors, np.float32)], (*cells.shape[2:], len(layer.anchors), 4))
    return g.node("Reshape", [laid, g.constant([-1, 4])], (prod(laid.shape[:3]), 4))


@operator("ROIPooling", dialect="rcnn", single=True)
def roi_pooling(g: Graph, layer: Any, x: Value, rois: Value) -> Value:
    (shape,) = layer.reshape(x.shape, rois.shape)
    flat = g.reshape(rois, (rois.shape[0], 5))
    return g.node("MaxRoiPool", [x, flat], shape, pooled_shape=list(shape[2:]), spatial_scale=float(layer.scale))


def rounded(g: Graph, x: Value) -> Value:
    """To whole numbers, halves away from zero."""
    size = g.node("Abs", [x], x.shape)
    whole = g.node("Floor", [size], x.shape)
    up = g.cast(g.node("GreaterOrEqual", [computed(g, "Sub", size, whole), g.number(0.5)], x.shape), "float32")
    return computed(g, "Mul", computed(g, "Add", whole, up), g.node("Sign", [x], x.shape))


@operator("PSROIPooling", dialect="rcnn", single=True)
def psroi_pooling(g: Graph, layer: Any, x: Value, rois: Value) -> Value:
    (shape,) = layer.reshape(x.shape, rois.shape)
    count, side, classes = rois.shape[0], layer.side, layer.classes
    flat = g.reshape(rois, (count, 5))
    corners = rounded(g, columns(g, flat, 1, 5))
    near = linear(g, columns(g, corners, 0, 2), float(layer.scale))
    far = linear(g, linear(g, columns(g, corners, 2, 4), 1, 1.0), float(layer.scale))
    size = computed(g, "Max", computed(g, "Sub", far, near), g.number(0.1))
    step = g.node("Unsqueeze", [computed(g, "Div", size, g.number(side)), g.constant([2])], (count, 2, 1))
    start = g.node("Unsqueeze", [near, g.constant([2])], (count, 2, 1))
    # Edges of bins: (regions, x and y, bins), within the map.
    limit = g.node("Gather", [g.node("Shape", [x], (4,)), g.constant([[3], [2]])], (2, 1))
    edges = []
    for kind, begin in (("Floor", 0), ("Ceil", 1)):
        at = g.node("Mul", [step, g.constant(np.arange(begin, begin + side), np.float32)], (count, 2, side))
        whole = g.cast(g.node(kind, [g.node("Add", [at, start], at.shape)], at.shape), "int64")
        edges.append(computed(g, "Max", computed(g, "Min", whole, limit), g.constant(0)))

    def along(edge: Value, axis: int) -> Value:
        """(regions, 1, bins, 1) of rows or (regions, 1, 1, bins) of columns."""
        part = g.node("Gather", [edge, g.constant(1 - axis)], (count, side), axis=1)
        return g.node(
            "Unsqueeze", [part, g.constant([1, 2 if axis else 3])], (count, 1, *((1, side) if axis else (side, 1)))
        )

    (top, left), (low, right) = ([along(edge, axis) for axis in (0, 1)] for edge in edges)
    # Sums over bins from cumulative sums, in double precision.
    summed = g.cast(x, "double")
    for axis in (2, 3):
        summed = g.node("CumSum", [summed, g.constant(axis)], x.shape)
    padded = (*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1)
    summed = g.node("Pad", [summed, g.constant([0, 0, 1, 1, 0, 0, 0, 0])], padded)
    line = g.node("Add", [length(g, x, 3), g.constant([1])], (1,))
    plane = g.node("Mul", [g.node("Add", [length(g, x, 2), g.constant([1])], (1,)), line], (1,))
    item = g.reshape(g.cast(columns(g, flat, 0, 1), "int64"), (count, 1, 1, 1))
    channel = g.constant(np.arange(classes * side * side).reshape(1, classes, side, side))
    first = g.node("Add", [g.node("Mul", [item, g.constant(x.shape[1])], item.shape), channel], shape)
    first = computed(g, "Mul", first, plane)
    numbers_in_line = g.node("Reshape", [summed, g.constant([-1])], (prod(padded),))

    def at_corner(row: Value, column: Value) -> Value:
        place = g.node("Add", [g.node("Mul", [row, line], row.shape), column], (count, 1, side, side))
        return g.node("Gather", [numbers_in_line, computed(g, "Add", first, place)], shape, axis=0)

    total = computed(g, "Sub", at_corner(low, right), at_corner(top, right))
    total = computed(g, "Add", computed(g, "Sub", total, at_corner(low, left)), at_corner(top, left))
    tall, wide = computed(g, "Sub", low, top), computed(g, "Sub", right, left)
    zero = g.constant(0)
    area = g.node("Mul", [*(computed(g, "Max", n, zero) for n in (tall, wide))], (count, 1, side, side))
    full = g.node("Greater", [area, zero], area.shape)
    mean = computed(g, "Div", total, g.cast(computed(g, "Max", area, g.constant(1)), "double"))
    return g.node("Where", [full, g.cast(mean, "float32"), g.number(0)], shape)
