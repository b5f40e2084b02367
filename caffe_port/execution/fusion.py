"""The compiler's passes: which nodes are fused into one step, without gradients and with them.

A step caches packed weights. Replaced or modified parameters are detected before the next run if torch made the change;
a layer whose parameters are exposed as arrays (``net.params[...].data``) runs without packed weights as long as such an
array exists. Only a write through ``parameter.data`` that changes few values can remain undetected.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from caffe_port.execution.memory import give_back
from caffe_port.execution.packing import Packed, pack, state_of, suits
from caffe_port.graph import Node
from caffe_port.layers.base import Layer
from caffe_port.layers.capabilities import FusesReLU, Fusible, PrefersChannelsLast
from caffe_port.layers.functions import ordinary

__all__ = ["InferStep", "Nodes", "TrainStep", "infer_steps", "train_steps"]

Nodes = Sequence[tuple[Node, Layer]]

_LARGE = 1 << 18
"""Numbers whose packing leaves much memory free."""


@dataclass
class InferStep:
    """A linear layer, in-place affine layers on its top, and an in-place ReLU, as one call.

    Attributes:
        last: the last node's index. bottom, top: blob names. layers: all of them, the linear one first.
        relu: whether the last one is a ReLU. packed: the packed function, with the ``state`` of its parameters.
    """

    last: int
    bottom: str
    top: str
    layers: list[Layer]
    relu: bool
    low_memory: bool
    packed: Packed | None = None
    state: Any = field(default=None, repr=False)

    def function(self, x: Tensor) -> Packed | None:
        """The packed function for such a bottom, recreated if parameters changed; None where it cannot be used."""
        if not suits(x):
            return None
        for layer in self.layers:
            if layer.held_arrays and any(ref() is not None for ref in layer.held_arrays.values()):
                self.packed = self.state = None
                return None
        linear = self.layers[0]
        assert isinstance(linear, Fusible)
        blobs = [t for layer in self.layers for t in layer.caffe_blobs]
        state = (linear.form_key(x), *map(state_of, blobs))
        if self.state != state:
            self.packed, self.state = None, state
            if all(ordinary(t) and t.dtype == torch.float32 and t.device.type == "cpu" for t in blobs):
                affine = self.layers[1:-1] if self.relu else self.layers[1:]
                self.packed = pack(linear, affine, self.relu, x, low_memory=self.low_memory)
                if sum(t.numel() for t in blobs) >= _LARGE:
                    give_back()
        return self.packed


def infer_steps(nodes: Nodes, plain: Collection[int], *, low_memory: bool) -> dict[int, InferStep]:
    """The steps other than a layer's forward, by their first node.

    Args:
        plain: nodes that must run separately.
    """
    steps: dict[int, InferStep] = {}
    for node, layer in nodes:
        if node.index in plain or not isinstance(layer, Fusible) or not layer.fusible() or len(node.tops) != 1:
            continue
        (top,) = node.tops
        step = InferStep(node.index, node.bottoms[0], top, [layer], relu=False, low_memory=low_memory)
        for follower, other in nodes[node.index + 1 :]:
            if follower.bottoms != (top,) or follower.tops != (top,) or follower.index in plain or step.relu:
                break
            if other.is_relu:
                step.relu = True
            elif other.channel_affine() is None:
                break
            step.last = follower.index
            step.layers.append(other)
        steps[node.index] = step
    return steps


@dataclass(frozen=True)
class TrainStep:
    """A layer in training, with its bottom in channels-last layout, or fused with the ReLU on its top."""

    layer: PrefersChannelsLast | FusesReLU
    bottom: str
    top: str

    def channels_last(self, x: Tensor) -> Tensor:
        """The bottom in the layout in which oneDNN is faster; following layers keep it."""
        if isinstance(self.layer, PrefersChannelsLast) and suits(x) and self.layer.prefers_channels_last(x):
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def with_relu(self, x: Tensor) -> Tensor | None:
        """The layer's top and the ReLU on it, if they can be fused."""
        return self.layer.with_relu(x) if isinstance(self.layer, FusesReLU) else None


def train_steps(nodes: Nodes, plain: Collection[int], loss_weights: Mapping[str, float]) -> dict[int, TrainStep]:
    """The steps of training other than a layer's forward, by their node."""
    steps: dict[int, TrainStep] = {}
    for (node, layer), following in zip(nodes, [*nodes[1:], None], strict=True):
        if isinstance(layer, PrefersChannelsLast):
            steps[node.index] = TrainStep(layer, node.bottoms[0], node.tops[0])
        elif isinstance(layer, FusesReLU) and following is not None and not {node.index, node.index + 1} & {*plain}:
            follower, other = following
            here = follower.bottoms == node.tops == follower.tops and not any(loss_weights[t] for t in node.tops)
            if here and other.is_relu:
                steps[node.index] = TrainStep(layer, node.bottoms[0], node.tops[0])
    return steps
