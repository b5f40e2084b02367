"""The layer types of the published networks, one function for each."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from caffe_port.definitions.definition import Fields, Layer, Learn, Word

__all__ = [
    "FROZEN",
    "NEW",
    "SMALL",
    "USUAL",
    "XAVIER",
    "Norm",
    "convolution",
    "crop",
    "deconvolution",
    "dropout",
    "eltwise",
    "first_channels",
    "norm_layer",
    "pooling",
    "relu",
    "sigmoid",
    "unpooling",
]

USUAL = Learn((1, 2), (1, 0))
"""A weight with the solver's rate, its bias with twice that and without decay."""
NEW = Learn((10, 20), (1, 0))
"""Ten times that, for a new layer among trained ones."""
FROZEN = Learn((0, 0), (1, 0))

SMALL = {"weight_filler": {"type": "gaussian", "std": 0.01}, "bias_filler": {"type": "constant", "value": 0}}
XAVIER = {"weight_filler": {"type": "xavier"}}


class Norm(Enum):
    """The mode of a BN layer: normalise by its batch, also output the batch's statistics, or apply folded ones."""

    BATCH = "learn"
    MEASURED = "measured"
    FOLDED = "inference"


def convolution(
    name: str,
    bottom: str,
    top: str,
    outputs: int,
    kernel: int,
    *,
    pad: int = 0,
    stride: int = 1,
    dilation: int = 1,
    bias: bool = True,
    learn: Learn = USUAL,
    fill: Fields | None = None,
    engine: str = "",
    type: str = "CONVOLUTION",
) -> Layer:
    """A convolution; ``fill`` holds the fillers, needed where no trained weights are copied."""
    param: dict[str, object] = {"num_output": outputs}
    param |= {"pad": pad} if pad else {}
    param["kernel_size"] = kernel
    param |= {"stride": stride} if stride != 1 else {}
    param |= {"dilation": dilation} if dilation != 1 else {}
    param |= {} if bias else {"bias_term": False}
    param |= {"engine": Word(engine)} if engine else {}
    return Layer(type, name, [bottom], [top], {"convolution_param": param | dict(fill or {})}, learn)


def deconvolution(name: str, bottom: str, top: str, outputs: int, kernel: int, **options: Any) -> Layer:
    """A transposed convolution, with the options of :func:`convolution`."""
    return convolution(name, bottom, top, outputs, kernel, type="DECONVOLUTION", **options)


def norm_layer(name: str, bottom: str, top: str, norm: Norm) -> Layer:
    """BN. Measured, it has two more tops: ``NAME-mean`` and ``NAME-var`` of the batch."""
    statistics = [f"{name}-mean", f"{name}-var"] if norm is Norm.MEASURED else []
    param: dict[str, object] = {
        "scale_filler": {"type": "constant", "value": 1},
        "shift_filler": {"type": "constant", "value": 0.001},
    }
    param |= {"bn_mode": Word("INFERENCE")} if norm is Norm.FOLDED else {}
    return Layer("BN", name, [bottom], [top, *statistics], {"bn_param": param})


def relu(name: str, blob: str, mask: str = "") -> Layer:
    """In place; ``mask`` names a second top that is 1 where the input is positive and 0 elsewhere."""
    return Layer("RELU", name, [blob], [blob, mask] if mask else [blob])


def dropout(name: str, blob: str) -> Layer:
    """In place, half of the values."""
    return Layer("DROPOUT", name, [blob], [blob], {"dropout_param": {"dropout_ratio": 0.5}})


def sigmoid(name: str, bottom: str, top: str) -> Layer:
    return Layer("SIGMOID", name, [bottom], [top])


def eltwise(name: str, bottoms: Sequence[str], top: str, operation: str) -> Layer:
    return Layer("ELTWISE", name, bottoms, [top], {"eltwise_param": {"operation": Word(operation)}})


def crop(bottom: str, like: str, top: str) -> Layer:
    """``bottom`` cropped to the position and size of ``like``."""
    return Layer("CROP", "crop", [bottom, like], [top])


def first_channels(bottom: str, top: str, count: int) -> list[Layer]:
    """``top`` is the first ``count`` channels of ``bottom``; the others are unused."""
    rest = f"{bottom}-rest"
    param = {"slice_param": {"slice_dim": 1, "slice_point": [count]}}
    return [
        Layer("SLICE", f"{bottom}-slice", [bottom], [top, rest], param),
        Layer("SILENCE", f"{bottom}-silence", [rest], []),
    ]


def pooling(
    name: str, bottom: str, top: str, pool: str, kernel: int, stride: int, switches: str = "", *, pad: int = 0
) -> Layer:
    """``switches`` names a second top of MAX pooling: where each maximum was."""
    param: dict[str, object] = {"pool": Word(pool), "kernel_size": kernel, "stride": stride}
    param |= {"pad": pad} if pad else {}
    return Layer("POOLING", name, [bottom], [top, switches] if switches else [top], {"pooling_param": param})


def unpooling(
    name: str, bottom: str, top: str, pool: str, kernel: int, stride: int, size: int, switches: str = ""
) -> Layer:
    """The inverse of :func:`pooling`, to ``size`` x ``size``."""
    param = {"unpool": Word(pool), "kernel_size": kernel, "stride": stride, "unpool_size": size}
    return Layer("UNPOOLING", name, [bottom, switches] if switches else [bottom], [top], {"unpooling_param": param})
