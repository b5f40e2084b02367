"""What a solver updates: the net's parameters, each once, with their multipliers.

Source: net.cpp (bvlc, AppendParam; noh, GetLearningRateAndWeightDecay and Update).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.errors import CaffeError, DefinitionError
from caffe_port.net import Net

__all__ = ["Learnable", "learnable_params", "slots", "untouched_zeros"]


@dataclass
class Learnable:
    """A parameter that the solver updates (or, with lr_mult 0, leaves as it is), and its multipliers."""

    name: str
    parameter: Tensor
    lr_mult: float
    decay_mult: float


def learnable_params(net: Net, *, of_steps: bool) -> Iterator[Learnable]:
    """The net's own parameters in Caffe's order; multipliers of a shared one are those that any of its layers gives.

    In noh each layer that shares it adds its own decay, together the sum of their decays.

    Args:
        of_steps: whether histories hold steps, which are additive.

    Raises:
        DefinitionError: layers that share a parameter give it different multipliers, or, in noh, share one under a
            rule whose histories are not additive. CaffeError: a parameter is computed from others.
    """
    apart = net.dialect.shared_parameters_decay_apart
    names: dict[int, tuple[str, Tensor]] = {}
    specs: dict[int, list[tuple[str, Any]]] = {}
    for node, layer in net.nodes:
        for i, name in enumerate(layer.blob_names):
            if name not in layer.aliases and not layer.holds(name):
                raise CaffeError(
                    f"{layer.where}: layer {layer.name}",
                    f"{name} is computed from other parameters (parametrized, normalised or pruned)",
                    expected="a parameter of the layer's own, which is what Caffe's rules update",
                    remedy="train net.parameters() with torch.optim, or put the computation into the definition",
                )
            blob = layer.aliases.get(name, getattr(layer, name))
            names.setdefault(id(blob), (f"{layer.name}.{name}", blob))
            given = specs.setdefault(id(blob), [])
            if i < len(node.message.param):
                given.append((f"{layer.where}: layer {layer.name}", node.message.param[i]))
    for key, (name, blob) in names.items():
        lr = _multiplier("lr_mult", name, specs[key]) if isinstance(blob, nn.Parameter) else 0.0
        if apart and len(specs[key]) > 1:
            if not of_steps:
                where, what = specs[key][1][0], f"{name}, which it shares, with a history of gradients"
                raise DefinitionError(where, what, expected="SGD or Nesterov where layers share parameters (noh)")
            decay = float(sum(spec.decay_mult for _, spec in specs[key]))
        else:
            decay = _multiplier("decay_mult", name, specs[key])
        yield Learnable(name, blob, lr, decay)


def slots(net: Net, parameters: Sequence[Learnable]) -> Iterator[tuple[int, bool]]:
    """For each history in a state the index of its parameter, and whether it is that parameter's first.

    Each parameter has one; in noh one for every layer that has it. Their steps are additive, so here the first holds
    the sum.
    """
    if not net.dialect.shared_parameters_decay_apart:
        yield from ((i, True) for i in range(len(parameters)))
        return
    numbers = {id(p.parameter): i for i, p in enumerate(parameters)}
    seen: set[int] = set()
    for _, layer in net.nodes:
        for name in layer.blob_names:
            i = numbers[id(layer.aliases.get(name, getattr(layer, name)))]
            yield i, i not in seen
            seen.add(i)


def untouched_zeros(like: Tensor) -> Tensor:
    """Zeros that, on the CPU, take no memory before something is written: most histories of frozen parameters."""
    if like.device.type != "cpu":
        return torch.zeros_like(like)
    flat = torch.from_numpy(np.zeros(like.numel(), like.detach().numpy().dtype))
    return flat.as_strided(like.shape, torch.empty_like(like, device="meta").stride())


def _multiplier(field: str, name: str, specs: list[tuple[str, Any]]) -> float:
    given = [(where, getattr(spec, field)) for where, spec in specs if spec.HasField(field)]
    for where, value in given[1:]:
        if value != given[0][1]:
            raise DefinitionError(f"{where}: {name}, which it shares", f"{field} {value}", expected=str(given[0][1]))
    return given[0][1] if given else 1.0
