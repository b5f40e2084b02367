"""Runs a net in two stages: once the part independent of some inputs, then the rest for many values of these."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from caffe_port.errors import CaffeError, ShapeError
from caffe_port.graph import dependents
from caffe_port.layers.base import Shape
from caffe_port.net import Net

__all__ = ["FirstStage", "TwoStage"]


@dataclass(frozen=True)
class FirstStage:
    """The results of the first stage.

    Attributes:
        tops: the net's outputs that are already computed.
        shapes: of the inputs. carried: the blobs that the second stage reads.
    """

    tops: dict[str, Tensor]
    shapes: dict[str, Shape]
    carried: dict[str, Tensor]


class TwoStage:
    """Runs ``net`` without gradients in two stages.

    The results equal those of ``net(**all_inputs)`` for each row.

    Args:
        later: the inputs of the second stage.

    Raises:
        CaffeError: the net has no such input.
    """

    def __init__(self, net: Net, later: Collection[str]) -> None:
        self.net = net
        self.inputs = [name for name in net.graph.inputs if name not in later]
        self.later = [name for name in net.graph.inputs if name in later]
        self._declared = {name: net.shapes[name] for name in net.graph.inputs}
        if set(later) != set(self.later):
            raise CaffeError(self._where, f"no input {', '.join(later)}", expected=", ".join(net.graph.inputs))
        self._second = dependents(net.graph, self.later)
        self._first = sorted({*range(len(net.nodes))} - {*self._second})
        made, self._carried = set(self.later), set[str]()
        for i in self._second:
            node, _ = net.nodes[i]
            self._carried.update(set(node.bottoms) - made)
            made.update(node.tops)
        self._known = [name for name in net.graph.outputs if name not in made]
        self._unknown = [name for name in net.graph.outputs if name in made]

    def first(self, **inputs: Tensor) -> FirstStage:
        """The first stage.

        Raises:
            CaffeError: an input is missing or unknown. ShapeError: a shape that cannot be.
        """
        self._check(inputs, self.inputs)
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        rows = max((shape[0] for shape in shapes.values()), default=1)
        self.net.reshape_for({**{name: (rows, *self._declared[name][1:]) for name in self.later}, **shapes})
        blobs = self.net.run_nodes(inputs, self._first, {*self._known, *self._carried})
        tops = {name: blobs[name].contiguous() for name in self._known}
        return FirstStage(tops, shapes, {name: blobs[name] for name in self._carried})

    def second(self, first: FirstStage, of: Sequence[int] | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """The second stage, with any number of rows (axis 0).

        Args:
            of: the first stage's row that goes with each row; default: its only one, or row by row.

        Returns:
            The outputs that the first stage did not compute.

        Raises:
            CaffeError: an input is missing or unknown. ShapeError: another number of rows than the first stage's,
                which had several, or than ``of`` has; a shape that cannot be.
        """
        self._check(inputs, self.later)
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        rows = max(shape[0] for shape in shapes.values())
        if of is not None and len(of) != rows:
            raise ShapeError("second stage", f"{rows} rows", expected=f"{len(of)}, as the rows that go with them")
        if of is None and any(shape[0] not in (1, rows) for shape in first.shapes.values()):
            raise ShapeError(
                "second stage", f"{rows} rows", expected="as many as the first stage had, which are several"
            )
        self.net.reshape_for({**{name: (rows, *shape[1:]) for name, shape in first.shapes.items()}, **shapes})
        carried = {
            name: blob.expand(self.net.shapes[name]) if of is None or len(blob) == 1 else blob[list(of)]
            for name, blob in first.carried.items()
        }
        blobs = self.net.run_nodes({**carried, **inputs}, self._second, self._unknown)
        return {name: blob.contiguous() for name, blob in blobs.items()}

    def _check(self, given: Collection[str], wanted: Collection[str]) -> None:
        if set(given) != set(wanted):
            raise CaffeError(self._where, f"inputs {', '.join(given) or 'none'}", expected=", ".join(wanted) or "none")

    @property
    def _where(self) -> str:
        return f"net {self.net.definition.net.name or self.net.definition.path}"
