"""ONNX operators for detection nets. Source: permute_layer.cpp, normalize_layer.cpp (weiliu89/caffe,
branch ssd); roi_pooling_layer.cpp, dropout_layer.cpp (rbgirshick's and daijifeng001's forks)."""

from __future__ import annotations

from typing import Any

from caffe_port.export.onnx_common import linear, numbers
from caffe_port.export.onnx_graph import Graph, Value, operator

__all__: list[str] = []


@operator("Permute")
def permute(g: Graph, layer: Any, x: Value) -> Value:
    order = list(layer.order)
    return g.node("Transpose", [x], [x.shape[i] for i in order], perm=order)


@operator("Normalize")
def normalize(g: Graph, layer: Any, x: Value) -> Value:
    axes = list(range(1, len(x.shape))) if layer.across else [1]
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    squares = g.node("ReduceSum", [g.node("Mul", [x, x], x.shape), g.constant(axes)], kept)
    norm = g.node("Sqrt", [linear(g, squares, 1, layer.eps)], kept)
    scale = numbers(layer.scale).reshape(1, -1, *(1,) * (len(x.shape) - 2))
    name = g.initializer(f"{layer.name}.scale", scale)
    return g.node("Mul", [g.node("Div", [x, norm], x.shape), name], x.shape)


@operator("ROIPooling", dialect="rcnn")
def roi_pooling(g: Graph, layer: Any, x: Value, rois: Value) -> Value:
    (shape,) = layer.reshape(x.shape, rois.shape)
    flat = g.reshape(rois, (rois.shape[0], 5))
    return g.node("MaxRoiPool", [x, flat], shape, pooled_shape=list(shape[2:]), spatial_scale=float(layer.scale))


@operator("Dropout", dialect="rcnn")
def scaled_dropout(g: Graph, layer: Any, x: Value) -> Value:
    if layer.scales_train:
        return x
    return linear(g, x, 1 - layer.ratio)
