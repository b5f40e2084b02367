"""The forks of Fast R-CNN and Faster R-CNN, and of R-FCN, which is derived from it; from a BVLC Caffe of February 2016.

rbgirshick/caffe-fast-rcnn (0dcd397b) and daijifeng001/caffe-rfcn (543f8f6a), with the Python modules of
rbgirshick/py-faster-rcnn, which are layers in this port.
"""

from dataclasses import replace
from pathlib import Path

from caffe_port.dialects.base import register
from caffe_port.dialects.bvlc import BVLC

_TYPES = {
    "ROIPooling": "roi_pooling_param",
    "SmoothL1Loss": "smooth_l1_loss_param",
}
_MODULES = (
    *("roi_data_layer.layer", "rpn.anchor_target_layer", "rpn.proposal_layer", "rpn.proposal_target_layer"),
)  # fmt: skip
_LATER = ("Clip", "Crop", "LSTM", "LSTMUnit", "Parameter", "RNN", "Swish")
"""BVLC's types that are newer."""

RCNN = register(
    replace(
        BVLC,
        name="rcnn",
        title="rbgirshick/caffe-fast-rcnn, of Fast R-CNN and Faster R-CNN",
        proto=Path(__file__).with_name("rcnn.proto"),
        marks=frozenset(
            (
                *(f"type {t}" for t in _TYPES),
                *(f"field {f}" for f in _TYPES.values()),
                *(f"module {m}" for m in _MODULES),
                "field dropout_param.scale_train",
            )
        ),
        lacks=frozenset((*(f"type {t}" for t in _LATER), "field pooling_param.round_mode")),
        inputs_are_layers=False,
        accuracy_ranks_ties=True,
        sigmoid_loss_by_batch=True,
        infogain_takes_probabilities=True,
        exp_shift_raises_minus_one=True,
        checks_rate_fields=False,
        database_thread_draws=True,
        logs_speed=False,
    )
)

RFCN = register(
    replace(
        RCNN,
        name="rfcn",
        title="daijifeng001/caffe-rfcn and YuwenXiong/py-R-FCN, of R-FCN and training on the hardest examples",
        proto=Path(__file__).with_name("rfcn.proto"),
        marks=frozenset(
            (
                *(f"type {t}" for t in ("BoxAnnotatorOHEM", "PSROIPooling", "SmoothL1LossOHEM", "SoftmaxWithLossOHEM")),
                *("field box_annotator_ohem_param", "field psroi_pooling_param"),
            )
        ),
    )
)
