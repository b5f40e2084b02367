"""DeepLab v1's fork of early 2015, by its copy TheLegendAli/DeepLab-Context (fb04e9e): from source, not recorded.

The 2015 fork has its data layers and most of its Caffe from here.
"""

from dataclasses import replace
from pathlib import Path

from caffe_port.dialects.base import register
from caffe_port.dialects.noh import NOH

_V1 = ("SEG_ACCURACY", "INTERP", "PADDING", "MAT_WRITE", "MAT_READ", "DENSE_CRF")
_FIELDS = (
    *("seg_accuracy_param", "interp_param", "softmaxloss_param", "padding_param", "mat_write_param", "mat_read_param"),
    *("dense_crf_param", "strict_dim"),
)
_SHARED = ("IMAGE_SEG_DATA", "ImageSegData", "image_data_param")

DEEPLAB1 = register(
    replace(
        NOH,
        name="deeplab1",
        title="DeepLab v1's fork, as in TheLegendAli/DeepLab-Context",
        proto=Path(__file__).with_name("deeplab1.proto"),
        marks=frozenset(
            (
                *(f"layers type {v1}" for v1 in _V1),
                *(f"type {t}" for t in ("SegAccuracy", "Interp", "Padding", "MatWrite", "MatRead", "DenseCRF")),
                *(f"field {f}" for f in _FIELDS),
            )
        ),
        lacks=NOH.lacks
        | {mark for mark in NOH.marks if not any(word in mark for word in _SHARED)}
        | {"type Deconvolution", "layers type DECONVOLUTION", "type Crop", "solver field iter_size"},
        v1_types={},
        relu_gives_mask=False,
        snapshot_off_interval_adds_one=False,
    )
)
