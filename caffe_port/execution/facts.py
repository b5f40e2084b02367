"""The definition's facts about each layer's blobs: which are losses, learned, shared.

Source: net.cpp (both programs), Init, AppendParam.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from caffe_port.graph import Node
from caffe_port.layers.base import Layer
from caffe_port.layers.foreign import Foreign

__all__ = ["learned_blobs", "loss_weights_of", "share_parameters"]


def loss_weights_of(node: Node, layer: Layer) -> list[float]:
    """Each top's loss weight.

    Raises:
        LayerError: weights for another number of tops.
    """
    given, n = list(node.message.loss_weight), len(node.tops)
    if given and len(given) != n:
        raise layer.error(f"{len(given)} loss_weight for {n} tops", expected="none, or one for each top")
    return given or [float(layer.loss and i == 0) for i in range(n)]


def learned_blobs(node: Node, layer: Layer) -> list[bool]:
    """Which of the blobs are learned: parameters whose rate is not zero.

    Raises:
        LayerError: more ``param`` than blobs.
    """
    if isinstance(layer, Foreign):
        return [True] * len(layer.blob_names)
    specs = node.message.param
    if len(specs) > len(layer.blob_names):
        raise layer.error(f"{len(specs)} param for {len(layer.blob_names)} blobs", expected="no more than blobs")
    with torch.enable_grad():  # a blob that is computed from others is not a parameter, but requires a gradient
        return [
            (isinstance(blob, nn.Parameter) or blob.requires_grad) and (i >= len(specs) or specs[i].lr_mult != 0)
            for i, blob in enumerate(layer.caffe_blobs)
        ]


def share_parameters(nodes: Sequence[tuple[Node, Layer]]) -> None:
    """Make parameters of one name one tensor (net.cpp, AppendParam).

    Raises:
        ShapeError: they have other shapes.
    """
    owners: dict[str, tuple[Layer, str]] = {}
    for node, layer in nodes:
        for spec, blob in zip(node.message.param, layer.blob_names, strict=False):
            if not spec.name:
                continue
            if spec.name not in owners:
                owners[spec.name] = layer, blob
                continue
            owner, theirs = owners[spec.name]
            mine, first = getattr(layer, blob), getattr(owner, theirs)
            permissive = spec.share_mode == spec.PERMISSIVE
            if mine.shape != first.shape and not (permissive and mine.numel() == first.numel()):
                raise layer.shape_error(
                    f"{blob} of shape {tuple(mine.shape)} shared as {spec.name!r}",
                    expected=f"the shape of {owner.name}'s {theirs}, {tuple(first.shape)}",
                    remedy="share_mode: PERMISSIVE requires only equal counts",
                )
            layer.share(blob, first)
