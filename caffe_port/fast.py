"""The way through a net when nobody asks for gradients."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["Plan"]


class Plan:
    def __init__(self, net: Net) -> None:
        self.net = net

    def run(self, inputs: Mapping[str, Tensor], keep: Collection[str]) -> dict[str, Tensor]:
        blobs = dict(inputs)
        self.run_into(blobs, 0, len(self.net.nodes) - 1)
        return {name: blobs[name] for name in keep}

    def run_into(self, blobs, first, last):
        for node, layer in self.net.nodes[first : last + 1]:
            if node.type != "Input":
                self.net.run_layer(node, layer, blobs)
