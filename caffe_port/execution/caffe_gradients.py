"""Caffe's gradients in a net, for layers whose blobs were overwritten by in-place layers.

:func:`caffe_port.graph.overwritten` finds them when the net is compiled. All other layers, and nets without such
layers, are unaffected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from caffe_port.errors import CaffeError
from caffe_port.graph import Graph, Needs, Node, Overwritten, Reads, overwritten, overwritten_besides
from caffe_port.layers.backward import Backward, Gradients
from caffe_port.layers.base import Layer

__all__ = ["CHOICES", "CaffeGradients", "Pass", "check_choice"]

Blobs = MutableMapping[str, Tensor]
Call = Callable[[Node, Layer, Sequence[Tensor]], tuple[Tensor, ...]]

CHOICES = ("caffe", "true")
"""The values of ``gradients``: as real Caffe computes them, or the derivatives."""


def check_choice(gradients: str | None) -> str | None:
    """The value, checked.

    Raises:
        CaffeError: it is not one of them.
    """
    if gradients is not None and gradients not in CHOICES:
        raise CaffeError("gradients", repr(gradients), expected=" or ".join(map(repr, CHOICES)))
    return gradients


class CaffeGradients:
    """The layers of a net that need Caffe's gradient, by index; false if there are none.

    Args:
        layers: the graph's, in its order. call: calls one.

    Attributes:
        of: the overwritten blobs of each of them, by index.
        besides: further blobs that an in-place layer overwrites, by index.
    """

    def __init__(self, graph: Graph, layers: Sequence[Layer], call: Call) -> None:
        self.nodes, self.call = list(zip(graph.nodes, layers, strict=True)), call
        facts = [
            Reads(
                layer.reads_bottoms,
                layer.reads_tops,
                layer.reads_signs,
                layer.keeps_signs,
                layer.shares_memory,
                layer.corrupts_diffs,
                layer.clears_data,
            )
            for layer in layers
        ]
        self.clears = {i for i, fact in enumerate(facts) if fact.clears and graph.forced}
        """The nodes whose backward pass sets their bottoms' data to 0."""
        self.of: dict[int, Overwritten] = overwritten(graph, facts)
        self.besides = overwritten_besides(graph, [layer.shares_memory for layer in layers])
        self.written: dict[int, set[str]] = {}
        """The tops to keep until backward, by node."""
        for one in self.of.values():
            for i, top in (*one.bottoms.values(), *one.tops.values()):
                self.written.setdefault(i, set()).add(top)

    def __contains__(self, index: int) -> bool:
        return index in self.of

    def __bool__(self) -> bool:
        return bool(self.of)

    def pairs(self, needs: Needs) -> list[str]:
        """For the log: each such layer that runs backward, and the layers that overwrite its blobs."""
        pairs = []
        for i, one in self.of.items():
            if needs.layer[i]:
                by = ", ".join(self.nodes[j][0].name for j in one.by if j != i) or "itself"
                pairs.append(f"{self.nodes[i][0].name} ({self.nodes[i][0].type}) under {by}")
        return pairs

    def copy_in_place(self, first: int, last: int, blobs: Blobs) -> None:
        """After nodes ``first`` to ``last`` ran: copy an in-place layer's result to the other blobs that share its
        memory in Caffe."""
        for i in range(first, last + 1):
            for name in self.besides.get(i, ()):
                top = blobs[self.nodes[i][0].tops[0]]
                if name in blobs and blobs[name].numel() == top.numel():
                    blobs[name] = top.reshape(blobs[name].shape)

    def gradient(
        self,
        index: int,
        given: Sequence[Tensor],
        tops: Sequence[Tensor],
        diffs: Sequence[Tensor],
        wanted: Sequence[bool],
        written: Callable[[int, str], Tensor | None],
    ) -> Gradients:
        """One layer's gradient as Caffe computes it.

        Args:
            given, tops: the inputs and results of forward.
            written: by node and top, the value that the node wrote there; None if it did not run.
        """
        one, layer = self.of[index], self.nodes[index][1]

        def now(side: Mapping[int, tuple[int, str]], kept: Sequence[Tensor]) -> list[Tensor]:
            found = [written(*side[k]) if k in side else None for k in range(len(kept))]
            cleared = [k in side and side[k][0] in self.clears for k in range(len(kept))]
            return [
                torch.zeros_like(t) if zero else t if f is None else f.detach().reshape(t.shape)
                for f, t, zero in zip(found, kept, cleared, strict=True)
            ]

        bottoms, tops = now(one.bottoms, given), now(one.tops, tops)
        given, bottoms, tops, diffs = ([_wide(t) for t in ts] for ts in (given, bottoms, tops, diffs))
        view = Backward(given, bottoms, tops, diffs, wanted, in_place=layer.is_in_place)
        with torch.no_grad():
            return layer.caffe_gradient(view)


def _wide(t: Tensor) -> Tensor:
    """In single precision at least, as parameters have."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


class Pass:
    """One pass with autograd: keeps the values that in-place layers wrote until backward has read them."""

    def __init__(self, gradients: CaffeGradients) -> None:
        self.gradients = gradients
        self.written: dict[tuple[int, str], Tensor] = {}
        self._beside = {name for names in gradients.besides.values() for name in names}
        self._own: dict[str, Tensor] = {}
        """For overwritten blobs, the values before that."""

    def run(self, index: int, blobs: Blobs) -> None:
        """Run a layer that is one of ``gradients``."""
        node, layer = self.gradients.nodes[index]
        learned = [n for n in layer.blob_names if getattr(layer, n).requires_grad]
        inputs = [blobs[b] for b in node.bottoms]
        tops = _AsCaffe.apply(self, index, learned, *inputs, *(getattr(layer, n) for n in learned))
        blobs.update(zip(node.tops, tops, strict=True))

    def note(self, first: int, last: int, blobs: Blobs) -> None:
        """After nodes ``first`` to ``last`` ran; also calls :meth:`CaffeGradients.copy_in_place`."""
        for i in range(first, last + 1):
            for top in self.gradients.written.get(i, ()):
                self.written[i, top] = blobs[top].detach()
            self._own.update((top, blobs[top]) for top in self.gradients.nodes[i][0].tops if top in self._beside)
            for other in self.gradients.besides.get(i, ()):
                if other in blobs:
                    blobs[other] = _WrittenOver.apply(self._own[other], blobs[other].detach())


class _WrittenOver(Function):
    """Replaces a blob's values; its diff still goes to the layer that computed it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, numbers: Tensor) -> Tensor:
        return numbers.view_as(numbers)

    @staticmethod
    def backward(ctx: Any, diff: Tensor) -> tuple[Tensor, None]:
        return diff, None


class _AsCaffe(Function):
    """A layer with Caffe's gradient; the parameters are inputs so that they get gradients, too."""

    @staticmethod
    def forward(ctx: Any, run: Pass, index: int, learned: list[str], *inputs: Tensor) -> tuple[Tensor, ...]:
        node, layer = run.gradients.nodes[index]
        bottoms = inputs[: len(node.bottoms)]
        tops = run.gradients.call(node, layer, bottoms)
        ctx.run, ctx.index, ctx.learned = run, index, learned
        ctx.save_for_backward(*bottoms, *tops)
        return tops

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *diffs: Tensor) -> tuple[Tensor | None, ...]:
        run: Pass = ctx.run
        n = len(run.gradients.nodes[ctx.index][0].bottoms)
        given, tops = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        wanted = ctx.needs_input_grad[3 : 3 + n]
        grads, params = run.gradients.gradient(
            ctx.index, given, tops, diffs, wanted, lambda *write: run.written.get(write)
        )
        return (
            None,
            None,
            None,
            *(g if w else None for g, w in zip(grads, wanted, strict=True)),
            *map(params.get, ctx.learned),
        )
