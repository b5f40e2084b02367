"""FCN-8s (Long, Shelhamer and Darrell, 2015) for PASCAL VOC, as EDeconvNet uses it.

Scores of three strides are fused from the coarsest to the finest; the finer one is cropped to the coarser.
"""

from __future__ import annotations

from collections.abc import Iterator

from caffe_port.definitions.definition import Layer, Learn, Net, Setting, Solver
from caffe_port.definitions.layers import convolution, crop, deconvolution, eltwise
from caffe_port.definitions.vgg import encoder, fully_connected

__all__ = ["files"]

"""Background is one of them."""
SIZE = 500
BORDER = 100
"""Padding of the first convolution, so that fc6 fits anywhere on an input of any size."""
WEIGHT_ONLY = Learn((1,), (1,))
FIXED = Learn((0,), ())


def score(setting: Setting, name: str, bottom: str, top: str) -> Layer:
    return convolution(name, bottom, top, 1 + setting.classes, 1, engine="CAFFE")


def fuse(setting: Setting, coarse: str, finer: str, top: str) -> Iterator[Layer]:
    """The score of ``finer`` (a pooling), cropped to ``coarse`` and added."""
    yield score(setting, f"score-{finer}", finer, f"score-{finer}")
    yield crop(f"score-{finer}", coarse, f"score-{finer}c")
    yield eltwise("fuse", [coarse, f"score-{finer}c"], top, "SUM")


def deploy(setting: Setting) -> Net:
    """The net for inference on pictures of any size."""
    size, classes = setting.size or SIZE, 1 + setting.classes
    return Net(
        "FCN",
        [
            *encoder(setting, border=BORDER, engine="CAFFE"),
            *fully_connected(setting, drop=True, engine="CAFFE"),
            score(setting, "score-fr", "fc7", "score"),
            deconvolution("score2", "score", "score2", classes, 4, stride=2),
            *fuse(setting, "score2", "pool4", "score-fused"),
            deconvolution("score4", "score-fused", "score4", classes, 4, stride=2, bias=False, learn=WEIGHT_ONLY),
            *fuse(setting, "score4", "pool3", "score-final"),
            deconvolution("upsample", "score-final", "bigscore", classes, 16, stride=8, bias=False, learn=FIXED),
            crop("bigscore", "data", "upscore"),
        ],
        inputs={"data": (1, 3, size, size)},
        force_backward=True,
        about="FCN-8s for inference: upscore has background and the 20 classes.",
    )


def files(setting: Setting) -> dict[str, Net | Solver]:
    """Every file of the folder, by its released name."""
    return {"fcn-8s-pascal-deploy": deploy(setting)}
