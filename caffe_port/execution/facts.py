"""The definition's facts about each layer's blobs: which are losses, learned, shared.

Source: net.cpp (both programs), Init, AppendParam; crop_layer.cpp (noh).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from caffe_port.errors import DefinitionError
from caffe_port.graph import Graph, Node, path_between
from caffe_port.layers.base import Layer
from caffe_port.layers.foreign import Foreign
from caffe_port.spec.coords import compose, identity_map, inverse

__all__ = ["crop_offsets", "learned_blobs", "loss_weights_of", "share_parameters"]


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


def crop_offsets(graph: Graph, node: Node, built: Sequence[tuple[Node, Layer]]) -> tuple[int, int]:
    """The offset of noh's Crop in its first bottom, from the layers down from its bottoms' common ancestor."""
    maps = []
    for path in path_between(graph, node):
        m = identity_map()
        for other in path:
            there = built[other.index][1].coord_map()
            if there is None:
                raise DefinitionError(
                    f"{node.where}: layer {node.name}",
                    f"layer {other.name} ({other.type}) between them has no coordinate map",
                )
            m = compose(m, there)
        maps.append(m)
    crop = compose(maps[1], inverse(maps[0]))
    if any(scale != 1 or shift > 0 or shift.denominator != 1 for scale, shift in crop):
        raise DefinitionError(
            f"{node.where}: layer {node.name}",
            f"the coordinate map between its bottoms is {[(float(a), float(b)) for a, b in crop]}",
            expected="scale 1 and non-negative integer offsets",
        )
    return int(-crop[0][1]), int(-crop[1][1])
