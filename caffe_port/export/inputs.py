"""What a net's inputs mean to the layers that read them, and random values for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["PROPOSAL", "drawn_inputs", "in_steps", "takes_regions", "watched_bottoms"]

PROPOSAL = "Python rpn.proposal_layer.ProposalLayer"
_OF_REGIONS = ("ROIPooling", "PSROIPooling")
_STEPS = ("ArgMax", "DetectionOutput", "Exp", "Filter", "Sigmoid", "Softmax", "Threshold", PROPOSAL, *_OF_REGIONS)


def in_steps(layer: Any) -> bool:
    """Whether a difference in the last bit of a layer's bottoms can change its tops as a whole, or grows in them."""
    return layer.type in _STEPS or (layer.type == "Pooling" and layer.n_tops == 2 and layer.method == "MAX")


def watched_bottoms(nodes: Iterable[tuple[Any, Any]]) -> list[tuple[int, str]]:
    """The bottoms of layers whose tops change in steps, each with the index of the node, see ``check_runs``."""
    return [(node.index, blob) for node, layer in nodes if in_steps(layer) for blob in node.bottoms]


def takes_regions(net: Net, name: str) -> bool:
    """Whether an input holds regions (item, x1, y1, x2, y2), whose number is not that of the pictures."""
    return any(layer.type in _OF_REGIONS and place == 1 for _, layer, place in _readers(net, name))


def _readers(net: Net, name: str) -> Iterator[tuple[Any, Any, int]]:
    """The layers that read a blob, each with the bottom's place; of a Split those behind it."""
    for node, layer in net.nodes:
        for place, bottom in enumerate(node.bottoms):
            if bottom != name:
                continue
            if node.type == "Split":
                for top in node.tops:
                    yield from _readers(net, top)
            else:
                yield node, layer, place


def drawn_inputs(net: Net, batch: int | None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values for every input, of a kind that its layers take; else like pixels minus their mean if it has a
    picture's shape, or around 0.

    Args:
        batch: length of the first axis; None: the definition's.
    """
    generator = np.random.default_rng(seed)
    found = {}
    for name in net.graph.inputs:
        shape = net.shapes[name]
        if batch is not None and shape:
            shape = (batch, *shape[1:])
        array = _of_a_kind(net, name, shape, generator)
        if array is None:
            pixels = len(shape) == 4 and shape[1] in (1, 3)
            array = generator.normal(0, 60 if pixels else 1, shape)
        found[name] = torch.from_numpy(np.ascontiguousarray(array, np.float32).reshape(shape))
    return found


def _of_a_kind(net: Net, name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Any:
    """Indices, probabilities, boxes or a picture's size, if a layer needs those; else None."""
    for node, layer, place in _readers(net, name):
        limit, of = 0, [net.shapes[b] for b in node.bottoms]
        if node.type == "Embed":
            limit = int(layer.input_dim)
        elif node.type == "BatchReindex" and place == 1:
            limit = of[0][0]
        elif node.type in ("Unpooling", "Upsample") and place == 1:
            limit = prod(net.shapes[node.tops[0]][2:])
        elif node.type == "Filter" and place == len(of) - 1:
            limit = 2
        elif node.type in _OF_REGIONS and place == 1:
            items = generator.integers(0, of[0][0], (shape[0], 1))
            return np.hstack((items, _boxes(generator, shape[0], of[0][:1:-1] / np.float64(layer.scale))))
        elif node.type == "DetectionOutput" and place == 1:
            return generator.uniform(0, 1, shape)
        elif node.type == "DetectionOutput" and place == 2:
            boxes = _boxes(generator, prod(shape) // 8, np.ones(2))
            return np.concatenate((boxes, np.full_like(boxes, 0.1)))
        elif layer.type == PROPOSAL and place == 2:
            return [*(n * layer.stride for n in of[0][2:]), 1]
        if limit:
            return generator.integers(0, limit, shape)
    return None


def _boxes(generator: np.random.Generator, count: int, size: Any) -> Any:
    """(count, 4) corners within (width, height), on a grid that float16 can tell apart."""
    near, sides = generator.integers(0, 32, (count, 2)), generator.integers(1, 33, (count, 2))
    return np.hstack((near, near + sides)) / 64 * np.tile(size, 2)
