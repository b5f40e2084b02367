"""Shapes of blobs and parameters of a net that is written here, computed by ``caffe_port.spec``."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from caffe_port import spec
from caffe_port.definitions.definition import Net
from caffe_port.schema import read_net

__all__ = ["Shape", "Shapes", "infer"]

Shape = tuple[int, ...]


@dataclass
class Shapes:
    """Blob name -> shape, and layer name -> shapes of its parameters."""

    blobs: dict[str, Shape]
    params: dict[str, list[Shape]]

    @property
    def total(self) -> int:
        """The number of parameters."""
        return sum(prod(shape) for shapes in self.params.values() for shape in shapes)


def infer(net: Net, phase: str = "TEST") -> Shapes:
    """All shapes of ``net`` in ``phase``; a blob that is written in place has its last one.

    Raises:
        CaffeError: an invalid layer or shape.
    """
    found = spec.infer(read_net(str(net), phase=phase))
    written = {*net.inputs, *(top for layer in net.layers(phase) for top in layer.tops)}
    params = {layer.message.name: list(layer.params.values()) for layer in found.layers if layer.params}
    return Shapes({name: shape for name, shape in found.blobs.items() if name in written}, params)
