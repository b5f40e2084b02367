"""Shapes, parameters and multiply-adds of a net, computed without torch, data or memory for its values.

Dimensions that depend on data files are unknown and print as "?": see
:mod:`caffe_port.spec.unknown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from caffe_port.errors import ShapeError
from caffe_port.spec.base import RECORDS, Shape, Spec, kind
from caffe_port.spec.unknown import is_known, unknown_shape

__all__ = ["Inferred", "LayerShapes", "blob_shape", "infer", "macs", "shapes"]


@dataclass(frozen=True)
class LayerShapes:
    """A layer and the shapes around it.

    Attributes:
        message: its LayerParameter. where: its place. spec: its record; None if its blobs are unknown, because its
            type has no record, or because they depend on shapes that are not known.
        bottoms, tops: the blobs' shapes. params: name to shape of its parameter blobs in Caffe's order.
        macs: multiply-adds of a forward pass with the weights.
    """

    message: Any
    spec: Spec | None
    bottoms: Sequence[Shape]
    tops: Sequence[Shape]

    @property
    def params(self) -> dict[str, Shape]:
        return self.spec.blob_shapes if self.spec else {}

    @property
    def macs(self) -> int:
        weights = sum(prod(shape) for shape in self.params.values() if len(shape) > 1)
        return weights * self.spec.uses(self.bottoms, self.tops) if self.spec and weights else 0


@dataclass(frozen=True)
class Inferred:
    """A net's shapes.

    Attributes:
        layers: in order of execution.
        blobs: name to shape; of a blob that is written in place its last one.
        unknown: the types of layers without a record, whose tops and parameters are unknown.
    """

    layers: list[LayerShapes] = field(default_factory=list)
    blobs: dict[str, Shape] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


_ANY = unknown_shape()


def infer(definition: Any, *, check: bool = True) -> Inferred:
    """All shapes of a net (a :class:`caffe_port.schema.Definition`).

    Args:
        check: raise for invalid shapes; else shapes that depend on them are unknown.

    Raises:
        LayerError, ShapeError: as from the layers, where all shapes are known.
    """
    found = Inferred()
    owned: set[str] = set()
    dialect = definition.dialect
    for i, message in enumerate(definition.net.layer):
        bottoms = [found.blobs.get(name, _ANY) for name in message.bottom]
        record = RECORDS.find(kind(message, dialect), dialect)
        spec, tops = None, [_ANY] * len(message.top)
        if record is None or not record.inferable:
            found.unknown.append(message.type)
        else:
            made = record(message, dialect, definition.where(i))
            try:
                made.setup(*bottoms)
                spec = made
                tops = [blob_shape(shape, dialect) for shape in spec.top_shapes(*bottoms)]
            except ShapeError:
                if check and all(map(is_known, bottoms)):
                    raise
        for param, blob in zip(message.param, spec.blob_names if spec else (), strict=False):
            if spec and param.name in owned:
                spec.shared.add(blob)
            if param.name:
                owned.add(param.name)
        found.blobs.update(zip(message.top, tops, strict=False))
        found.layers.append(LayerShapes(message, spec, bottoms, tops))
    return found


def blob_shape(shape: Shape, dialect: Any) -> Shape:
    """The blob's shape: always four axes in noh, with trailing ones added (blob.hpp)."""
    return (*shape, *(1,) * (4 - len(shape))) if dialect.legacy_shapes else tuple(shape)


def shapes(definition: Any) -> dict[str, Shape]:
    """Every blob's shape by name, see :func:`infer`."""
    return infer(definition).blobs


def macs(definition: Any) -> int:
    """Multiply-adds of a forward pass with the weights of convolutions, inner products and recurrent layers."""
    return sum(layer.macs for layer in infer(definition).layers)
