"""The 2015 fork ``HyeonwooNoh/caffe`` that DecoupledNet and DeconvNet were released with."""

from caffe_port.dialects.base import Dialect, register

_V1_TYPES = {
    "BIN_ACCURACY": "BinaryAccuracy",
    "BN": "BN",
    "CROP": "Crop",
    "DROPOUT_CHANNEL": "DropoutChannel",
    "ELTWISE_ACCURACY": "EltwiseAccuracy",
    "IMAGE_SEG_DATA": "ImageSegData",
    "RED_ACCURACY": "RedAccuracy",
    "RED_SOFTMAX_LOSS": "RedSoftmaxWithLoss",
    "SELECT_SEG_BINARY": "SelectSegBinary",
    "UNPOOLING": "Unpooling",
    "WINDOW_CLS_DATA": "WindowClsData",
    "WINDOW_INST_SEG_DATA": "WindowInstSegData",
    "WINDOW_SEG_BINARY": "WindowSegBinary",
    "WINDOW_SEG_DATA": "WindowSegData",
}
"""Their V2 names are this port's, formed as BVLC formed its own (BVLC adopted Crop)."""
_FIELDS = (
    *("binary_accuracy_param", "bn_param", "eltwise_accuracy_param", "red_accuracy_param", "red_softmax_loss_param"),
    *("select_seg_binary_param", "unpooling_param", "window_cls_data_param", "image_data_param.has_label"),
    *("image_data_param.ignore_label", "image_data_param.label_type", "image_data_param.max_labels"),
    "image_data_param.other_object_label",
    *("bn_param.scale_filler", "bn_param.shift_filler", "bn_param.bn_mode"),
)
_LATER = (
    *("BatchNorm", "BatchReindex", "Bias", "Clip", "ELU", "Embed", "Filter", "LSTM", "LSTMUnit", "Log", "PReLU"),
    *("Parameter", "Python", "RNN", "Reduction", "Reshape", "SPP", "Scale", "Swish", "Tile"),
)
"""BVLC's types that are newer than the fork."""

NOH = register(
    Dialect(
        name="noh",
        title="HyeonwooNoh/caffe of 2015, of DecoupledNet and DeconvNet",
        marks=frozenset(
            (
                *(f"layers type {v1}" for v1 in _V1_TYPES),
                *(f"type {v2}" for v2 in _V1_TYPES.values() if v2 != "Crop"),
                *(f"field {f}" for f in _FIELDS),
                "ReLU with 2 tops",
            )
        ),
        v1_types=_V1_TYPES,
        only_layers=True,
        lacks=frozenset(f"type {t}" for t in _LATER),
        legacy_shapes=True,
        inputs_are_layers=False,
        crop_aligns=True,
        fused_draws=False,
        all_inputs_or_none=False,
        loss_guards_empty=False,
        accuracy_by_item=True,
        relu_gives_mask=True,
        sigmoid_loss_by_batch=True,
        contrastive_legacy=True,
        infogain_takes_probabilities=True,
        axes_by_dim=True,
        exp_shift_raises_minus_one=True,
        mvn_eps=1e-10,
        mvn_mean_gradient=False,
        mvn_measures_again=True,
        bn_overwrites_diffs=True,
        data_seeded_each_batch=True,
        data_skips_at_random=True,
        decodes_in_color=True,
        test_nets_crop_at_random=True,
        decay_before_iter_size=True,
        shared_parameters_decay_apart=True,
        checks_rate_fields=False,
        smooths_last_loss=False,
        logs_speed=False,
        logs_kind_of_snapshot=False,
        debug_logs_updates=True,
        snapshot_off_interval_adds_one=True,
    )
)
