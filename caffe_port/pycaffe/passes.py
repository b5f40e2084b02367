"""Forward and backward over a net's blobs, layer by layer, each layer with a separate part of autograd's graph.

Source: net.cpp, ForwardFromTo and BackwardFromTo (both programs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port.errors import CaffeError
from caffe_port.execution.executor import Mode, Tape
from caffe_port.graph import Node
from caffe_port.net import Net
from caffe_port.pycaffe.blob import BlobStore

__all__ = ["Passes"]


class Passes:
    """Runs a net on blobs that keep their data and diffs between passes.

    Attributes:
        data, diff: the blobs. shown: the nodes that pycaffe shows.
        callbacks: functions called before and after each layer: "before forward" ... "after backward".
        records: whether forward stores what backward needs; true once a gradient was requested.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self.data, self.diff = BlobStore(net.shapes, net._like), BlobStore(net.shapes, net._like)
        self._tape: Tape = {}
        self.records = net.training or not self._repeats()
        self._ran: tuple[int, int] | None = None
        self._parts: dict[int, tuple[Any, ...]] = {}
        self.callbacks: dict[str, list[Callable[[int], object]]] = {
            f"{when} {way}": [] for when in ("before", "after") for way in ("forward", "backward")
        }
        self.shown = [node for node in net.graph.nodes if node.shown]
        self._numbers = {node.index: number for number, node in enumerate(self.shown)}
        for node, layer in net.nodes:
            self.data.update(zip(node.tops, layer.initial_tops(), strict=False))
        for top, weight in net.loss_weights.items():
            if weight:
                self.diff[top].fill_(weight)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the graphs of the last pass, which cannot be copied."""
        return {**self.__dict__, "_tape": {}, "_parts": {}}

    def node(self, number: int) -> Node:
        """The layer with that index among those that pycaffe shows."""
        if not 0 <= number < len(self.shown):
            raise CaffeError("net", f"layer number {number}", expected=f"0 to {len(self.shown) - 1}")
        return self.shown[number]

    def sync(self) -> None:
        """Copy values written to host copies of another device's tensors back."""
        self.data.sync()
        self.diff.sync()
        for _, layer in self.net.nodes:
            layer.copies.flush()

    def reshape(self) -> None:
        """Set every blob's shape from the inputs' shapes; layers raise for invalid ones."""
        self.net.reshape_for({name: tuple(self.data[name].shape) for name in self.net.graph.inputs})

    def _repeats(self) -> bool:
        """Whether a second pass on the blobs left by the first gives the same result, ignoring data layers."""
        nodes = self.net.nodes
        made = {top for node, _ in nodes if not node.bottoms for top in node.tops}
        besides = self.net.caffe_gradients.besides
        return not any(
            layer.keeps_state
            or made.intersection(node.bottoms, node.tops)
            or made.intersection(besides.get(node.index, ()))
            for node, layer in nodes
        )

    # -- forward -------------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    def forward(self, first: int, last: int) -> float:
        """Run nodes ``first`` to ``last``; the sum of their losses, weighted by their tops' diffs."""
        if first <= min(self._numbers, default=0):
            self.reshape()
        elif self.data.reshaped:
            self.net.reshape_nodes(range(first, last + 1))
        self.data.reshaped = False
        self.sync()
        loss = self._run(range(first, last + 1))
        self._ran = first, last
        return 0.0 if loss is None else float(loss)

    def _run(self, nodes: range | list[int]) -> Tensor | None:
        net = self.net
        watched = self.callbacks["before forward"] or self.callbacks["after forward"]
        loss = net.executor.run(
            Mode.RECORD if self.records else Mode.INFER,
            self.data,
            nodes,
            tape=self._tape,
            as_caffe=net.gradients != "true",
            weigh=lambda name, blob: (blob.detach() * self.diff.fitting(name, blob)).sum(),
            before=(lambda i: self._call("before forward", i)) if watched else None,
            after=(lambda i: self._call("after forward", i)) if watched else None,
        )
        modules = net.executor.modules
        for i in nodes:
            net.shapes.update((top, tuple(self.data[top].shape)) for top in net.graph.nodes[i].tops)
            self._parts[i] = _parts(modules[i])
        return loss

    def _refuse_changed(self, nodes: Iterable[int]) -> None:
        """Refuse to go back through layers that forward did not run.

        Raises:
            CaffeError: a layer or a parameter of it was replaced since.
        """
        modules = self.net.executor.modules
        for i in nodes:
            ran, now = self._parts.get(i), _parts(modules[i])
            if ran is not None and (len(ran) != len(now) or any(a is not b for a, b in zip(ran, now, strict=True))):
                node = self.net.graph.nodes[i]
                what = "another module" if ran[0] is not now[0] else "another parameter"
                raise CaffeError(
                    f"{node.where}: layer {node.name} ({node.type})",
                    f"{what} than forward ran",
                    expected="what forward ran: backward goes through its numbers",
                    remedy="run forward() again",
                )

    def _call(self, when: str, index: int) -> None:
        if index in self._numbers and self.callbacks[when]:
            for run in self.callbacks[when]:
                run(self._numbers[index])
            self.data.flush()
            self.diff.flush()
            for _, layer in self.net.nodes:
                layer.copies.flush()

    # -- backward ------------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    def backward(self, start: int, end: int) -> None:
        """Run nodes ``start`` down to ``end`` backward."""
        self.sync()
        self._refuse_changed(range(end, start + 1))
        if not self.records:
            # Forward did not record, since no gradient was requested yet: run it again on the same values.
            self.records = True
            if self._ran is not None:
                first, last = self._ran
                self._run([n.index for n, lay in self.net.nodes[first : last + 1] if n.bottoms or lay.blob_names])
        for node, layer in reversed(self.net.nodes[end : start + 1]):
            self._call("before backward", node.index)
            if self.net.needs.layer[node.index] and (node.bottoms or layer.blob_names):
                self._step_back(node)
            if node.index in self.net.caffe_gradients.clears and self.net.gradients != "true":
                self.data.update((name, torch.zeros_like(self.data[name])) for name in node.bottoms)
            self._call("after backward", node.index)

    def _step_back(self, node: Node) -> None:
        seeds, as_caffe = [self.diff.fitting(name) for name in node.tops], self.net.gradients != "true"
        if not self._has_kept(node):
            for bottom in node.bottoms:
                self.data.fitting(bottom)
            kept = dict(self.data)
            self.net.executor.run(Mode.RECORD, kept, [node.index], tape=self._tape, as_caffe=as_caffe)
        diffs = self.net.executor.back(node.index, self._tape, seeds, self._written if as_caffe else None)
        self.diff.update((name, diff) for name, diff in zip(node.bottoms, diffs, strict=True) if diff is not None)

    def _written(self, index: int, top: str) -> Tensor | None:
        """The value of a blob that an in-place layer has written; None if the last pass did not run that layer."""
        return self.data[top] if self._ran is None or index <= self._ran[1] else None

    def _has_kept(self, node: Node) -> bool:
        """Whether forward has run the layer with the blobs' current shapes."""
        if node.index not in self._tape:
            return False
        tops = self._tape[node.index].tops
        return all(tuple(t.shape) == self.net.shapes[name] for name, t in zip(node.tops, tops, strict=True))


def _parts(module: nn.Module) -> tuple[Any, ...]:
    """A module and its parameters, to tell whether they are still the same."""
    return module, *(module.parameters() if module._modules else module._parameters.values())
