"""Forward and backward over a net's blobs, layer by layer, each layer with its own piece of autograd's graph.

Source: net.cpp, ForwardFromTo and BackwardFromTo (both programs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from caffe_port import net as core
from caffe_port.errors import CaffeError
from caffe_port.graph import Node
from caffe_port.layers.base import Layer
from caffe_port.pycaffe.blob import BlobStore

__all__ = ["Passes"]


class Passes(core.Net):
    """How a :class:`caffe_port.pycaffe.net.Net` runs."""

    def _start_passes(self) -> None:
        self._data, self._diff = BlobStore(self.shapes, self._like), BlobStore(self.shapes, self._like)
        self._tape: dict[int, tuple[list[Tensor], tuple[Tensor, ...]]] = {}
        self._records = self.training or not self._repeats()
        self._ran: tuple[int, int] | None = None
        self._callbacks: dict[str, list[Callable[[int], object]]] = {
            f"{when} {way}": [] for when in ("before", "after") for way in ("forward", "backward")
        }
        self._shown = [node for node, _ in self.nodes if node.shown]
        self._numbers = {node.index: number for number, node in enumerate(self._shown)}
        for node, layer in self.nodes:
            self._data.update(zip(node.tops, layer.initial_tops(), strict=False))
        for top, weight in self.loss_weights.items():
            if weight:
                self._diff[top].fill_(weight)

    def _node(self, number: int) -> Node:
        """The layer of that number among those that pycaffe shows."""
        if not 0 <= number < len(self._shown):
            raise CaffeError("net", f"layer number {number}", expected=f"0 to {len(self._shown) - 1}")
        return self._shown[number]

    def train(self, mode: bool = True) -> Passes:
        """As in any module; what draws numbers must keep them for backward from now on."""
        self._records = mode or self._records
        return super().train(mode)

    _records = False

    def sync(self) -> None:
        """Take over what was written to arrays that are copies of another device's numbers. Passes do so themselves."""
        self._data.sync()
        self._diff.sync()
        for _, layer in self.nodes:
            layer.copies.flush()

    def reshape(self) -> None:
        """Bring every blob to the shape that the inputs' shapes ask for; layers refuse what cannot be."""
        self.reshape_for({name: tuple(self._data[name].shape) for name in self.graph.inputs})

    # -- forward -------------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    def _run_forward(self, first: int, last: int) -> float:
        """Run nodes ``first`` to ``last``; the sum of their losses, weighted."""
        if first <= min(self._numbers, default=0):
            self.reshape()
        elif self._data.reshaped:
            for node, layer in self.nodes[first : last + 1]:
                if node.type != "Input":
                    self._set_shapes(node, layer)
        self._data.reshaped = False
        self.sync()
        if not self._callbacks["before forward"] and not self._callbacks["after forward"]:
            self._run(first, last)
        else:
            for i in range(first, last + 1):
                self._call("before forward", i)
                self._run(i, i)
                self._call("after forward", i)
        self._ran = first, last
        return self._loss(first, last)

    def _call(self, when: str, index: int) -> None:
        if index in self._numbers and self._callbacks[when]:
            for run in self._callbacks[when]:
                run(self._numbers[index])
            self._data.flush()
            self._diff.flush()

    def _loss(self, first: int, last: int) -> float:
        tops = (top for node, _ in self.nodes[first : last + 1] for top in node.tops if self.loss_weights[top])
        return sum(float((self._data[top] * self._diff.fitting(top)).sum()) for top in tops)

    def _repeats(self) -> bool:
        """Whether a second pass on the blobs as the first one left them gives the same, data layers aside."""
        made = {top for node, _ in self.nodes if not node.bottoms for top in node.tops}
        return not any(layer.keeps_state or made.intersection(node.bottoms, node.tops) for node, layer in self.nodes)

    def _run(self, first: int, last: int, *, again: bool = False) -> None:
        """Run layers; ``again`` on the numbers that inputs and data layers gave the pass before."""
        nodes = self.nodes[first : last + 1]
        for node, layer in nodes:
            self._tape.pop(node.index, None)
            layer.copies.flush()
        if self._records:
            for node, layer in nodes:
                if node.type != "Input" and (node.bottoms or layer.blob_names or not again):
                    for name, top in zip(node.tops, self._record(node, layer), strict=True):
                        self._data[name] = top.detach()
        else:
            with torch.no_grad():
                self.plan.run_into(self._data, first, last)
        self.shapes.update((top, tuple(self._data[top].shape)) for node, _ in nodes for top in node.tops)

    def _record(self, node: Node, layer: Layer) -> tuple[Tensor, ...]:
        """One layer forward, keeping its own piece of autograd's graph for backward; its tops."""
        bottoms = [self._data[b] for b in node.bottoms]
        scratch = dict(zip(node.bottoms, bottoms, strict=True))
        if not self.needs.layer[node.index]:
            with torch.no_grad():
                return self.run_layer(node, layer, scratch)
        leaves = [
            b.detach().requires_grad_(need) for b, need in zip(bottoms, self.needs.bottoms[node.index], strict=True)
        ]
        scratch.update(zip(node.bottoms, leaves, strict=True))
        with torch.enable_grad():
            tops = self.run_layer(node, layer, scratch)
        self._tape[node.index] = leaves, tops
        return tops

    # -- backward ------------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    def _run_backward(self, start: int, end: int) -> None:
        """Run nodes ``start`` down to ``end`` backward."""
        self.sync()
        if not self._records:
            # Until now nobody wanted gradients, and forward kept nothing for them.
            self._records = True
            if self._ran is not None:
                self._run(*self._ran, again=True)
        for node, layer in reversed(self.nodes[end : start + 1]):
            self._call("before backward", node.index)
            if self.needs.layer[node.index] and (node.bottoms or layer.blob_names):
                self._step_back(node, layer)
            self._call("after backward", node.index)

    def _step_back(self, node: Node, layer: Layer) -> None:
        layer.copies.flush()
        seeds = {name: self._diff.fitting(name) for name in node.tops}
        leaves, tops = self._recorded(node, layer)
        learned = [
            n
            for n, need in zip(layer.blob_names, self.needs.params[node.index], strict=True)
            if need and getattr(layer, n).requires_grad
        ]
        wanted = [leaf for leaf in leaves if leaf.requires_grad] + [getattr(layer, n) for n in learned]
        found = iter(_gradients([(t, seeds[n]) for n, t in zip(node.tops, tops, strict=True)], wanted))
        for name, leaf in zip(node.bottoms, leaves, strict=True):
            if leaf.requires_grad:
                grad = next(found)
                self._diff[name] = torch.zeros_like(leaf) if grad is None else grad.detach()
        for name in learned:
            grad = next(found)
            if grad is not None:
                layer.add_diff(name, grad)

    def _recorded(self, node: Node, layer: Layer) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """What forward kept for the layer; if it did not run, or in other shapes, what it would keep of its bottoms."""
        if node.index in self._tape:
            tops = self._tape[node.index][1]
            if all(tuple(t.shape) == self.shapes[name] for name, t in zip(node.tops, tops, strict=True)):
                return self._tape[node.index]
        for bottom in node.bottoms:
            self._data.fitting(bottom)
        self._record(node, layer)
        return self._tape[node.index]


def _gradients(paths: Iterable[tuple[Tensor, Tensor]], wanted: list[Tensor]) -> Iterable[Tensor | None]:
    """The gradients of ``wanted``, given each top with its diff; None where no top depends on it."""
    paths = [(top, seed) for top, seed in paths if top.requires_grad]
    if not paths or not wanted:
        return [None] * len(wanted)
    tops, seeds = zip(*paths, strict=True)
    return torch.autograd.grad(tops, wanted, seeds, retain_graph=True, allow_unused=True)
