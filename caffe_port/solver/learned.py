"""What a solver updates: the parameters, each once, with their multipliers. Source: net.cpp (bvlc), AppendParam."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from caffe_port.errors import DefinitionError
from caffe_port.net import Net

__all__ = ["Learned", "learned"]


@dataclass
class Learned:
    """A parameter that the solver updates (or, with lr_mult 0, leaves as it is), with its multipliers."""

    name: str
    parameter: Tensor
    lr_mult: float
    decay_mult: float


def learned(net: Net) -> Iterator[Learned]:
    """The net's own parameters in Caffe's order; multipliers of a shared one are those that any of its layers gives.

    Raises:
        DefinitionError: layers that share a parameter give it different ones.
    """
    names: dict[int, tuple[str, Tensor]] = {}
    specs: dict[int, list[tuple[str, Any]]] = {}
    for node, layer in net.nodes:
        for i, name in enumerate(layer.blob_names):
            blob = layer.aliases.get(name, getattr(layer, name))
            names.setdefault(id(blob), (f"{layer.name}.{name}", blob))
            given = specs.setdefault(id(blob), [])
            if i < len(node.message.param):
                given.append((f"{layer.where}: layer {layer.name}", node.message.param[i]))
    for key, (name, blob) in names.items():
        lr, decay = (_multiplier(field, name, specs[key]) for field in ("lr_mult", "decay_mult"))
        yield Learned(name, blob, lr if isinstance(blob, nn.Parameter) else 0.0, decay)


def _multiplier(field: str, name: str, specs: list[tuple[str, Any]]) -> float:
    given = [(where, getattr(spec, field)) for where, spec in specs if spec.HasField(field)]
    for where, value in given[1:]:
        if value != given[0][1]:
            raise DefinitionError(f"{where}: {name}, which it shares", f"{field} {value}", expected=str(given[0][1]))
    return given[0][1] if given else 1.0
