"""alexgkendall/caffe-segnet, the fork of SegNet and Bayesian SegNet (commit 344c113b, from Caffe of early 2015)."""

from dataclasses import replace
from pathlib import Path

from caffe_port.dialects.base import register
from caffe_port.dialects.bvlc import BVLC

_LATER = (
    *("BatchNorm", "BatchReindex", "Bias", "Clip", "Crop", "ELU", "Embed", "LSTM", "LSTMUnit", "Parameter"),
    *("RNN", "Scale", "Swish", "Tile"),
)
"""BVLC's types that are newer."""

SEGNET = register(
    replace(
        BVLC,
        name="segnet",
        title="alexgkendall/caffe-segnet",
        proto=Path(__file__).with_name("segnet.proto"),
        marks=frozenset(
            {
                *("type Upsample", "type DenseImageData", "field upsample_param", "field dense_image_data_param"),
                *("type BN", "field bn_param", "field bn_param.scale_filler", "field bn_param.shift_filler"),
                *(
                    "field bn_param.bn_mode",
                    "field loss_param.weight_by_label_freqs",
                    "field loss_param.class_weighting",
                ),
                "field dropout_param.sample_weights_test",
            }
        ),
        lacks=frozenset({*(f"type {t}" for t in _LATER), "layers type BN"}),
        inputs_are_layers=False,
        loss_guards_empty=False,
        accuracy_ranks_ties=True,
        silence_clears_data=True,
        sigmoid_loss_by_batch=True,
        infogain_takes_probabilities=True,
        checks_rate_fields=False,
        smooths_last_loss=False,
        logs_speed=False,
        logs_kind_of_snapshot=False,
        exp_shift_raises_minus_one=True,
        mvn_mean_gradient=False,
        bn_overwrites_diffs=True,
        data_seeded_each_batch=True,
        shared_parameters_decay_apart=True,
    )
)
