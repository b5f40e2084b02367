"""The outputs of a solver's net as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from caffe_port.pycaffe import Net

__all__ = ["Scores", "scores"]


@dataclass
class Scores:
    """One score of a net's outputs: the output's name, its loss weight, the number."""

    name: str
    weight: float
    value: float


def scores(net: Net, outputs: dict[str, Tensor]) -> list[Scores]:
    """Every number of every output, in Caffe's order."""
    return [
        Scores(name, net.loss_weights.get(name, 0.0), value)
        for name in net.outputs
        for value in outputs[name].flatten().tolist()
    ]
