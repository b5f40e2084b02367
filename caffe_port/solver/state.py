"""What a training has moved besides the parameters: :class:`SolverState`, and :class:`Position`, a moment of it.

A position is kept during an iteration: if that fails it is undone, because an iteration changes parameters only after
all other steps have succeeded. A snapshot holds it, so that a resumed run equals the run without a break.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from caffe_port import random
from caffe_port.data.position import pack, unpack
from caffe_port.errors import CaffeError
from caffe_port.layers.capabilities import Positioned, Stateful
from caffe_port.solver.optimizers import Rule
from caffe_port.solver.param_groups import Learnable, learnable_params, untouched_zeros
from caffe_port.solver.parts import Part
from caffe_port.solver.schedule import Policy
from caffe_port.solver.smoothed_loss import SmoothedLoss

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["Position", "SolverState"]


@dataclass
class SolverState:
    """Everything that a training moves besides the nets' parameters; snapshots are written from it.

    Attributes:
        nets: the training net, then the test nets, whose layers have positions in data.
        policy, rule: each with a state of its own (``policy.state["current_step"]`` is Caffe's current_step).
        smoothed_loss: as the log shows it.
        iter: completed iterations.
        learnable: the parameters that are updated, with their multipliers.
        history: for each history of the rule a list of tensors, one for each parameter.
        position: what the iteration under way started from, else None.
    """

    nets: Sequence[Net]
    policy: Policy
    rule: Rule
    smoothed_loss: SmoothedLoss
    iter: int = 0
    learnable: Sequence[Learnable] = ()
    history: list[list[Tensor]] = field(default_factory=list)
    position: Position | None = None

    def __post_init__(self) -> None:
        self.history = [[] for _ in range(self.rule.histories)]
        self.follow_net()

    def follow_net(self) -> bool:
        """Update the net's parameters as they are now, of which some may be new: those start without a history.

        Returns:
            Whether any have changed.

        Raises:
            CaffeError: a module of the net cannot be updated.
        """
        learnable = list(learnable_params(self.nets[0], of_steps=self.rule.of_steps))
        if [id(p.parameter) for p in learnable] == [id(p.parameter) for p in self.learnable]:
            return False
        kept = {id(p.parameter): i for i, p in enumerate(self.learnable)}
        self.history = [
            [h[kept[id(p.parameter)]] if id(p.parameter) in kept else untouched_zeros(p.parameter) for p in learnable]
            for h in self.history
        ]
        self.learnable = learnable
        return True

    def mark(self) -> None:
        """Keep the position: an iteration begins."""
        self.position = Position(self.nets, self.smoothed_loss)

    def undo(self) -> None:
        """Return to the position kept, if there is one."""
        if self.position:
            self.position.back()
            self.position = None

    def facts(self) -> dict[str, Any]:
        """What the files of weights and histories do not hold of one process, as JSON."""
        position = self.position or Position(self.nets, self.smoothed_loss)
        return {**position.facts(), "policy": self.policy.get_state(), "rule": self.rule.get_state()}

    def restore(self, facts: dict[str, Any], log: Callable[[str], object]) -> None:
        """Continue from :meth:`facts`; those of older versions have neither policy nor rule.

        Raises:
            CaffeError: the nets or their data are not what they were.
        """
        if len(facts["nets"]) != len(self.nets):
            found, expected = f"{len(self.nets) - 1} test nets", f"{len(facts['nets']) - 1}"
            raise CaffeError(self.policy.where, found, expected=expected)
        for net, states in zip(self.nets, facts["nets"], strict=True):
            layers = _positioned(net)
            if layers.keys() != states.keys():
                found = f"layers {', '.join(layers)} with a position"
                raise CaffeError(net.definition.path, found, expected=", ".join(states))
            for key, state in states.items():
                layers[key].restore(state)
        random.default_stream().set_state(unpack(facts["stream"])["key"])
        self.smoothed_loss.set_state(facts["average"])
        parts: dict[str, Part] = {"policy": self.policy, "rule": self.rule}
        for key, part in parts.items():
            saved = facts.get(key)
            if saved and saved["name"] == part.name:
                part.set_state(saved)
            elif saved:
                log(f"The snapshot's {key} was {saved['name']}, now {part.name}: its state is reset")


class Position:
    """The random stream, the positions of all nets' layers, the averaged loss, and the statistics that forward passes
    of the training net change."""

    def __init__(self, nets: Sequence[Net], smoothed_loss: SmoothedLoss) -> None:
        self._smoothed_loss, self._average = smoothed_loss, smoothed_loss.get_state()
        self._stream = random.default_stream().get_state()
        self._layers = [_positioned(net) for net in nets]
        # Data layers' positions are arrays, which cost nothing to keep; others' states are text.
        self._positions: list[dict[str, Any]] = [
            {key: layer.get_position() if isinstance(layer, Positioned) else layer.state() for key, layer in of.items()}
            for of in self._layers
        ]
        self._statistics = [(b, b.clone()) for b in _statistics(nets[0])]

    @torch.no_grad()
    def back(self) -> None:
        """Return there."""
        random.default_stream().set_state(self._stream)
        for layers, positions in zip(self._layers, self._positions, strict=True):
            for key, layer in layers.items():
                (layer.set_position if isinstance(layer, Positioned) else layer.restore)(positions[key])
        for blob, before in self._statistics:
            blob.copy_(before)
        self._smoothed_loss.back(self._average)

    def facts(self) -> dict[str, Any]:
        """All but the statistics, which the weight file has, as JSON."""
        return {
            "stream": pack({"key": self._stream}),
            "average": self._average,
            "nets": [
                {key: pack(p) if isinstance(layers[key], Positioned) else p for key, p in positions.items()}
                for layers, positions in zip(self._layers, self._positions, strict=True)
            ],
        }


def _positioned(net: Net) -> dict[str, Any]:
    """The layers of a net that have a position in data or in a sequence, by key."""
    return {node.key: layer for node, layer in net.nodes if isinstance(layer, Stateful)}


def _statistics(net: Net) -> list[Tensor]:
    """The blobs that forward passes write to (BatchNorm's)."""
    layers = [layer for _, layer in net.nodes if layer.keeps_state and not isinstance(layer, Stateful)]
    return [getattr(layer, name) for layer in layers for name in layer.blob_names]
