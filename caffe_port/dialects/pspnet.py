"""hszhao/PSPNet (commit 798bdc9), the fork of PSPNet and ICNet: DeepLab v2's with another batch normalization."""

from dataclasses import replace
from pathlib import Path

from caffe_port.dialects.base import register
from caffe_port.dialects.deeplab2 import DEEPLAB2

PSPNET = register(
    replace(
        DEEPLAB2,
        name="pspnet",
        title="hszhao/PSPNet, of PSPNet and ICNet",
        proto=Path(__file__).with_name("pspnet.proto"),
        marks=frozenset(
            (
                *("type BN", "field bn_param"),
                *(
                    f"field bn_param.{f}"
                    for f in ("slope_filler", "bias_filler", "momentum", "eps", "frozen", "engine")
                ),
                *(f"field bn_param.{f}.{v}" for f in ("slope_filler", "bias_filler") for v in ("type", "value")),
            )
        ),
    )
)
