"""Where a run stands between two iterations, apart from parameters and histories.

It is kept while an iteration is under way: one that fails is undone with it, for an iteration changes parameters only
when all else has gone well. A snapshot holds it, so that a run resumed is the run that was left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from caffe_port import random
from caffe_port.data.position import pack

if TYPE_CHECKING:
    from caffe_port.layers.base import Layer
    from caffe_port.net import Net
    from caffe_port.solver.solver import Solver

__all__ = ["TrainState"]


class TrainState:
    """The random stream, the positions of all nets' layers, and the statistics that the training net's keep.

    Attributes:
        iter: completed iterations. stream: a state of the random stream.
        positions: for each net, the training net first, where its layers stand: data layers' positions as arrays,
            which cost nothing to keep, others' states as text.
    """

    def __init__(self, solver: Solver) -> None:
        self.iter, self._smoothed_loss = solver.iter, solver.smoothed_loss
        self.stream = random.default_stream().get_state()
        self._layers = [
            {node.key: layer for node, layer in net.nodes if hasattr(layer, "state")}
            for net in (solver.net, *solver.test_nets)
        ]
        self.positions: list[dict[str, Any]] = [
            {
                key: layer.get_position() if hasattr(layer, "get_position") else layer.state()
                for key, layer in of.items()
            }
            for of in self._layers
        ]
        self._statistics = [(b, b.clone()) for b in _statistics(solver.net)]

    @torch.no_grad()
    def back(self) -> None:
        """Return there."""
        random.default_stream().set_state(self.stream)
        for layers, positions in zip(self._layers, self.positions, strict=True):
            for key, layer in layers.items():
                (layer.set_position if hasattr(layer, "set_position") else layer.restore)(positions[key])
        for blob, before in self._statistics:
            blob.copy_(before)

    def facts(self) -> dict[str, Any]:
        """What the files of weights and histories do not hold of it, as JSON."""
        return {
            "stream": pack({"key": self.stream}),
            "average": self._smoothed_loss.get_state(),
            "nets": [
                {key: pack(p) if hasattr(layers[key], "get_position") else p for key, p in positions.items()}
                for layers, positions in zip(self._layers, self.positions, strict=True)
            ],
        }


def _statistics(net: Net) -> list[Tensor]:
    """The blobs that forward passes write to (BatchNorm's)."""
    keepers: list[Layer] = [layer for _, layer in net.nodes if layer.keeps_state and not hasattr(layer, "state")]
    return [getattr(layer, name) for layer in keepers for name in layer.blob_names]
