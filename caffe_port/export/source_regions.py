"""Layers of detection nets as Python; their functions are in :mod:`caffe_port.export.source_detection`."""

from __future__ import annotations

from typing import Any

from caffe_port.export.inputs import PROPOSAL
from caffe_port.export.source_code import Code, Unpacked, Var, arguments, number, writer
from caffe_port.export.source_layers import refuse

__all__: list[str] = []


@writer("PriorBox")
def prior_box(c: Code, layer: Any, x: Var, image: Var) -> str:
    sizes = ", ".join(f"({number(width)}, {number(height)})" for width, height in layer.priors.shapes().tolist())
    variances = ", ".join(map(number, layer.variances))
    more = arguments(
        picture=(layer.image and tuple(int(n) for n in layer.image), None),
        step=(layer.step and f"({', '.join(map(number, layer.step))})", None),
        offset=(number(layer.offset), "0.5"),
        clip=(bool(layer.clip), False),
    )
    return f"{c.helper('prior_boxes')}({x}, {image}, [{sizes}], [{variances}]{', ' * bool(more)}{more})"


@writer("DetectionOutput")
def detection_output(c: Code, layer: Any, loc: Var, conf: Var, prior: Var, *picture: Var) -> str:
    if layer.files is not None:
        raise refuse(layer, "save_output_param, which writes files", "a net that writes none")
    boxes = f'{c.helper("decode_boxes")}({loc}, {prior}, "{layer.code}", scaled={bool(layer.encoded)})'
    more = arguments(
        background=(layer.background, None),
        above=("None" if layer.least is None else number(layer.least), ""),
        overlap=(number(layer.threshold), ""),
        top_k=(layer.top_k, -1),
        keep_top_k=(layer.keep_top_k, -1),
        eta=(number(layer.eta), "1"),
    )
    return f"{c.helper('detect_objects')}({boxes}, {conf}, {more})"


@writer("ROIPooling", dialect="rcnn")
def roi_pooling(c: Code, layer: Any, x: Var, rois: Var) -> str:
    return f"{c.helper('roi_max_pool')}({x}, {rois}, {tuple(layer.bins)}, {number(layer.scale)})"


@writer("PSROIPooling", dialect="rcnn")
def psroi_pooling(c: Code, layer: Any, x: Var, rois: Var) -> str:
    how = f"{layer.classes}, {layer.side}, {number(layer.scale)}"
    return f"{c.helper('position_sensitive_pool')}({x}, {rois}, {how})"


@writer(PROPOSAL)
def proposal(c: Code, layer: Any, scores: Var, deltas: Var, info: Var) -> Any:
    cfg = layer.cfg
    anchors = ", ".join(str(tuple(row)) for row in layer.anchors.tolist())
    more = arguments(
        stride=(layer.stride, None),
        least=(cfg.RPN_MIN_SIZE, None),
        before=(cfg.RPN_PRE_NMS_TOP_N, None),
        overlap=(cfg.RPN_NMS_THRESH, None),
        most=(max(cfg.RPN_POST_NMS_TOP_N, 0), None),
    )
    found = f"{c.helper('propose_regions')}({scores}, {deltas}, {info}, [{anchors}], {more})"
    return Unpacked(found) if layer.n_tops == 2 else f"{found}[0]"
