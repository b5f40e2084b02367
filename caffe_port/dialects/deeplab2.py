"""cdmh/deeplab-public-ver2 (commit 071ef5a), a copy of DeepLab v2's fork, from Caffe of early 2016."""

from dataclasses import replace
from pathlib import Path

from caffe_port.dialects.base import register
from caffe_port.dialects.bvlc import BVLC

_TYPES = (
    *("Interp", "SegAccuracy", "MatWrite", "MatRead", "DenseCRF", "DomainTransform", "DomainTransformForwardOnly"),
    *("SpatialProduct", "ImageSegData"),
)
_FIELDS = (
    *("interp_param", "seg_accuracy_param", "mat_write_param", "mat_read_param", "dense_crf_param"),
    *("domain_transform_param", "bias_channel_param.label_type", "bias_channel_param.background_label"),
    *("transform_param.scale_factors", "transform_param.crop_width", "transform_param.crop_height"),
    *("image_data_param.label_type", "image_data_param.ignore_label", "batch_norm_param.update_global_stats"),
)
_LATER = ("Clip", "Crop", "LSTM", "LSTMUnit", "Parameter", "RNN", "Swish")
"""BVLC's types that are newer."""

DEEPLAB2 = register(
    replace(
        BVLC,
        name="deeplab2",
        title="cdmh/deeplab-public-ver2, of DeepLab v2",
        proto=Path(__file__).with_name("deeplab2.proto"),
        marks=frozenset((*(f"type {t}" for t in _TYPES), *(f"field {f}" for f in _FIELDS))),
        lacks=frozenset((*(f"type {t}" for t in _LATER), "layers type IMAGE_SEG_DATA")),
        inputs_are_layers=False,
        accuracy_ranks_ties=True,
        sigmoid_loss_by_batch=True,
        infogain_takes_probabilities=True,
        checks_rate_fields=False,
        database_thread_draws=True,
        logs_speed=False,
        exp_shift_raises_minus_one=True,
    )
)
