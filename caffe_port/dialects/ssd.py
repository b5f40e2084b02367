"""SSD's Caffe, ``weiliu89/caffe`` branch ssd (4817bf8b), a BVLC Caffe of 2016 with layers for object detection."""

from dataclasses import replace
from pathlib import Path

from caffe_port.dialects.base import register
from caffe_port.dialects.bvlc import BVLC

_TYPES = {
    "AnnotatedData": "annotated_data_param",
    "DetectionEvaluate": "detection_evaluate_param",
    "DetectionOutput": "detection_output_param",
    "MultiBoxLoss": "multibox_loss_param",
    "Normalize": "norm_param",
    "Permute": "permute_param",
    "PriorBox": "prior_box_param",
    "VideoData": "video_data_param",
}
_TRANSFORM = ("crop_h", "crop_w", "distort_param", "emit_constraint", "expand_param", "noise_param", "resize_param")
_SOLVER = ("ap_version", "eval_type", "plateau_winsize", "show_per_class_result")

SSD = register(
    replace(
        BVLC,
        name="ssd",
        title="weiliu89/caffe branch ssd, of the Single Shot MultiBox Detector",
        proto=Path(__file__).with_name("ssd.proto"),
        marks=frozenset(
            (
                *(f"type {t}" for t in (*_TYPES, "SmoothL1Loss")),
                *(f"field {f}" for f in _TYPES.values()),
                *(f"field transform_param.{f}" for f in _TRANSFORM),
                *(f"solver field {f}" for f in _SOLVER),
            )
        ),
        lacks=frozenset(
            (
                *("type Clip", "type Swish", "field pooling_param.round_mode", "field infogain_loss_param.axis"),
                *("solver field layer_wise_reduce", "solver field weights"),
            )
        ),
        fused_draws=False,
        accuracy_ranks_ties=True,
        infogain_takes_probabilities=True,
        checks_rate_fields=False,
        database_thread_draws=True,
        logs_speed=False,
    )
)
