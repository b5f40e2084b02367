"""Which Caffe a net was written for, where the net itself tells for certain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from caffe_port.dialect import BVLC, NOH, Dialect
from caffe_port.schema.layer_types import FORK_V1

__all__ = ["detect_dialect"]

# What only the fork has: its blocks of parameters, its fields in a block that BVLC has too, its types.
_BLOCKS = (
    "binary_accuracy_param",
    "bn_param",
    "eltwise_accuracy_param",
    "red_accuracy_param",
    "red_softmax_loss_param",
    "select_seg_binary_param",
    "unpooling_param",
    "window_cls_data_param",
)
_IMAGE_DATA = ("has_label", "ignore_label", "label_type", "max_labels", "other_object_label")
_TYPES = {*FORK_V1.values()} - {"Crop"}  # which BVLC took over


def detect_dialect(
    net: Any, where: Callable[[int], str] = "layer {}".format, displaced: frozenset[str] = frozenset()
) -> tuple[Dialect, str]:
    """The dialect of a net, and why.

    Args:
        net: a NetParameter as read, before it is upgraded.
        where: the place of its i-th layer, for the reason.
        displaced: names of the fork that a user's own description took, as ``Schema.displaced``; they prove nothing.

    Returns:
        ``NOH`` if something in the net exists nowhere else, else ``BVLC``.
    """
    for i, layer in enumerate(net.layers or net.layer):
        for evidence in _evidence(layer, displaced):
            return NOH, f"{where(i)} {evidence}, which only the noh fork has"
    return BVLC, "the net holds nothing that only the noh fork has"


def _evidence(layer: Any, displaced: frozenset[str]) -> Iterator[str]:
    """What in a V1 or V2 layer is the fork's alone."""
    message = layer.DESCRIPTOR.name
    v1_type = layer.LayerType.Name(layer.type) if message == "V1LayerParameter" else ""
    if v1_type in FORK_V1 and f"LayerType.{v1_type}" not in displaced:
        yield f"is of type {v1_type}"
    if layer.type in _TYPES and not any(name.startswith("BNParameter.") for name in displaced):
        yield f"is of type {layer.type}"
    if len(layer.top) == 2 and (v1_type == "RELU" or layer.type == "ReLU"):
        yield "is a ReLU with a second top, its mask"
    for name in _BLOCKS:
        if layer.HasField(name) and f"{message}.{name}" not in displaced:
            yield f"has {name}"
    for name in _IMAGE_DATA:
        if layer.image_data_param.HasField(name) and f"ImageDataParameter.{name}" not in displaced:
            yield f"has image_data_param.{name}"
