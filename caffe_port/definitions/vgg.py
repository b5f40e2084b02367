"""VGG-16 as the trunk of every net here, and its mirror image, the deconvolution network."""

from __future__ import annotations

from collections.abc import Iterator

from caffe_port.definitions.definition import Fields, Layer, Learn, Setting
from caffe_port.definitions.layers import (
    SMALL,
    USUAL,
    Norm,
    convolution,
    deconvolution,
    dropout,
    first_channels,
    norm_layer,
    pooling,
    relu,
    unpooling,
)
from caffe_port.errors import ShapeError

__all__ = ["STAGES", "decoder", "encoder", "fully_connected", "input_size", "switch", "switches", "unit", "window"]

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Features and number of 3x3 convolutions of each stage; a 2x2 max pooling ends it."""


def input_size(setting: Setting, released: int) -> int:
    """The input's height and width: the setting's, else the released one.

    Raises:
        ShapeError: five poolings do not divide it, or leave a single position.
    """
    size = setting.size or released
    if size % 32 or size < 64:
        raise ShapeError("--input-size", str(size), expected="a multiple of 32, at least 64, for this net")
    return size


def window(size: int) -> int:
    """The side of fc6's window for an input of this side: 7, or all of pool5 for small inputs."""
    return min(7, size // 32)


def unit(layer: Layer, bn: str, relu_name: str, norm: Norm | None, mask: str = "") -> Iterator[Layer]:
    """A convolution or deconvolution followed in place by BN, if ``norm`` is set, and ReLU."""
    (blob,) = layer.tops
    yield layer
    if norm:
        yield norm_layer(bn, blob, blob, norm)
    yield relu(relu_name, blob, mask)


def encoder(
    setting: Setting,
    *,
    learn: Learn = USUAL,
    norm: Norm | None = None,
    switches: bool = False,
    border: int = 1,
    engine: str = "",
    fill: Fields | None = None,
) -> Iterator[Layer]:
    """data -> pool5. With ``switches``, pooling i also gives ``pooli_mask``; ``border`` is the padding of conv1_1."""
    bottom = "data"
    for stage, (width, depth) in enumerate(STAGES, 1):
        for step in range(1, depth + 1):
            at, pad = f"{stage}_{step}", border if bottom == "data" else 1
            conv = f"conv{at}"
            features = setting.features(width)
            layer = convolution(conv, bottom, conv, features, 3, pad=pad, learn=learn, engine=engine, fill=fill)
            yield from unit(layer, f"bn{at}", f"relu{at}", norm)
            bottom = conv
        pool = f"pool{stage}"
        yield pooling(pool, bottom, pool, "MAX", 2, 2, f"{pool}_mask" if switches else "")
        bottom = pool


def fully_connected(
    setting: Setting,
    *,
    side: int = 7,
    learn: Learn = USUAL,
    norm: Norm | None = None,
    masks: bool = False,
    drop: bool = False,
    engine: str = "",
    fill: Fields | None = None,
    first: Fields | None = None,
) -> Iterator[Layer]:
    """pool5 -> fc6 -> fc7, as convolutions, fc6 with a window of ``side`` x ``side``.

    With ``masks``, the ReLUs also give ``relu6-mask`` and ``relu7-mask``. ``first``: fc6's fillers, if not ``fill``.
    """
    for bottom, number, kernel, filled in (("pool5", 6, side, first or fill), ("fc6", 7, 1, fill)):
        fc, act = f"fc{number}", f"relu{number}"
        layer = convolution(fc, bottom, fc, setting.fc_features(4096), kernel, learn=learn, engine=engine, fill=filled)
        yield from unit(layer, f"bn{fc}", act, norm, f"{act}-mask" if masks else "")
        if drop:
            yield dropout(f"drop{number}", fc)


def switch(setting: Setting, stage: int) -> str:
    """The blob of switches with which the decoder undoes a stage's pooling."""
    width, _ = STAGES[stage - 1]
    full = setting.decoder_features(width) == setting.features(width)
    return f"pool{stage}_mask" if full else f"pool{stage}_switch"


def switches(setting: Setting, stage: int) -> Iterator[Layer]:
    """The layers that make :func:`switch` of the encoder's blobs: none unless the decoder is narrower."""
    if (name := switch(setting, stage)) != (mask := f"pool{stage}_mask"):
        yield from first_channels(mask, name, setting.decoder_features(STAGES[stage - 1][0]))


def decoder(setting: Setting, bottom: str, size: int, classes: int, norm: Norm) -> Iterator[Layer]:
    """``bottom`` -> seg-score: the encoder backwards, each pooling undone with its own switches.

    Every deconvolution gives as many features as its convolution takes, so the first of the encoder has no
    counterpart: a 1x1 convolution to the classes replaces it. If it is narrower than the encoder, its features use the
    switches of the encoder's first ones.
    """
    features = setting.decoder_features(512)
    layer = deconvolution("fc6-deconv", bottom, "fc6-deconv", features, window(size), fill=SMALL)
    yield from unit(layer, "fc6-deconv-bn", "fc6-deconv-relu", norm)
    bottom = "fc6-deconv"
    for stage in range(len(STAGES), 0, -1):
        width, depth = STAGES[stage - 1]
        narrower = STAGES[max(stage - 2, 0)][0]
        unpool = f"unpool{stage}"
        if not setting.kept:
            yield from switches(setting, stage)
        yield unpooling(unpool, bottom, unpool, "MAX", 2, 2, size >> (stage - 1), switch(setting, stage))
        bottom = unpool
        for step in range(1, depth + 1):
            at = f"{stage}_{step}"
            features = setting.decoder_features(narrower if step == depth else width)
            layer = deconvolution(f"deconv{at}", bottom, f"deconv{at}", features, 3, pad=1, fill=SMALL)
            yield from unit(layer, f"debn{at}", f"derelu{at}", norm)
            bottom = f"deconv{at}"
    yield convolution("seg-score-voc", bottom, "seg-score", classes, 1, fill=SMALL)
