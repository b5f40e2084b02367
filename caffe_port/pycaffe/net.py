"""Net with blobs: data and diffs under every name, forward and backward layer by layer, as pycaffe has them.

Source: net.cpp, python/caffe/_caffe.cpp, python/caffe/pycaffe.py (both programs).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port import net as core
from caffe_port.dialect import Dialect
from caffe_port.errors import CaffeError, ShapeError, nearest
from caffe_port.graph import Node
from caffe_port.layers.base import Layer
from caffe_port.loading import Account
from caffe_port.pycaffe.blob import Blob, BlobStore, Parameter
from caffe_port.schema.messages import TEST, TRAIN

__all__ = ["Blob", "Net"]

_PHASES = {TRAIN: "TRAIN", TEST: "TEST", "TRAIN": "TRAIN", "TEST": "TEST"}


class Net(core.Net):
    """A net as pycaffe shows it, and an ``nn.Module`` beside.

    ``Net(prototxt, phase)``, ``Net(prototxt, weights, phase)`` and ``Net(prototxt, phase, weights=...)`` all work;
    without a phase it is TEST. Tensors in, tensors out: ``net(data=tensor)`` is the module of
    :class:`caffe_port.net.Net`. Arrays or nothing in, arrays out: ``net.forward()`` runs on the blobs.

    Every blob has ``data`` and ``diff``, views that may be written to. Of an in-place blob, data is the last version
    and diff, after backward, the first version's, as in Caffe, where all versions share their memory.

    Raises:
        CaffeError: any fault of the definition or the weights.
    """

    def __init__(
        self,
        source: Any,
        *args: Any,
        weights: str | Path | Iterable[str | Path] | None = None,
        phase: int | str | None = None,
        level: int = 0,
        stages: Iterable[str] = (),
        dialect: str | Dialect | None = None,
        proto: str | Path | None = None,
    ) -> None:
        for arg in args:
            if arg in _PHASES and phase is None:
                phase = arg
            elif isinstance(arg, (str, Path)) and weights is None:
                weights = arg
            else:
                raise CaffeError("Net", f"argument {arg!r}", expected="prototxt, weights, TRAIN or TEST")
        super().__init__(
            source,
            weights,
            _PHASES[TEST if phase is None else phase],
            dialect=dialect,
            level=level,
            stages=stages,
            proto=proto,
        )
        self._data, self._diff = BlobStore(self.shapes, self._like), BlobStore(self.shapes, self._like)
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)
        self._tape: dict[int, tuple[list[Tensor], tuple[Tensor, ...]]] = {}
        self._records = self.training or not self._repeats()
        shown = [b for b in self.graph.blobs if not b.startswith("(automatic")]
        self.blobs: OrderedDict[str, Blob] = OrderedDict((b, Blob(self._data, self._diff, b)) for b in shown)
        self.params: OrderedDict[str, list[Parameter]] = OrderedDict(
            (layer.name, [Parameter(layer, i, self.dialect) for i in range(len(layer.blob_names))])
            for _, layer in self.nodes
            if layer.blob_names
        )
        for node, layer in self.nodes:
            self._data.update(zip(node.tops, layer.initial_tops(), strict=False))
        for top, weight in self.loss_weights.items():
            if weight:
                self._diff[top].fill_(weight)

    def _like(self) -> Tensor:
        """A tensor of the net's device and dtype."""
        return next(self.parameters(), self.get_buffer("_anchor"))

    # -- names ---------------------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[str]:
        """The blobs to fill before forward."""
        return list(self.graph.inputs)

    @property
    def outputs(self) -> list[str]:
        """The blobs that no layer reads."""
        return list(self.graph.outputs)

    @property
    def layers(self) -> list[Layer]:
        """The layers in running order, the inserted splits among them."""
        return [layer for node, layer in self.nodes if node.shown]

    @property
    def _layer_names(self) -> list[str]:
        return [node.name for node, _ in self.nodes if node.shown]

    # -- running -------------------------------------------------------------------------------------------------------

    def forward(
        self, blobs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **inputs: Any
    ) -> dict[str, Any]:
        """Run forward.

        Args:
            blobs: outputs to return beside the net's own.
            start, end: run only from layer ``start`` to layer ``end``, on the blobs as they are.
            inputs: values for input blobs; all arrays (their data is set), or all tensors (the module's way).

        Returns:
            Output blobs by name: arrays, or tensors if tensors were given.
        """
        if inputs and all(isinstance(v, Tensor) for v in inputs.values()) and blobs is None and start is None is end:
            return super().forward(**inputs)
        for name, value in inputs.items():
            self._set_input(name, value)
        first, last = self._span(start, end)
        if start is None:
            self.reshape()
        self._run(first, last)
        names = self.outputs if end is None else list(self.nodes[last][0].tops)
        return {name: self.blobs[name].data for name in dict.fromkeys([*names, *(blobs or ())])}

    def _repeats(self) -> bool:
        """Whether a second pass on the blobs as the first one left them gives the same, data layers aside."""
        made = {top for node, _ in self.nodes if not node.bottoms for top in node.tops}
        return not any(layer.keeps_state or made.intersection(node.bottoms, node.tops) for node, layer in self.nodes)

    def _run(self, first: int, last: int, *, again: bool = False) -> None:
        """Run layers; ``again`` on the numbers that inputs and data layers gave the pass before."""
        self._tape.clear()
        self._data.sync()
        if self._records:
            for node, layer in self.nodes[first : last + 1]:
                if node.type != "Input" and (node.bottoms or layer.blob_names or not again):
                    self._record(node, layer)
        else:
            with torch.no_grad():
                self.plan.run_into(self._data, first, last)
        if any(layer.data_shaped for _, layer in self.nodes):
            self.shapes.update(
                (t, tuple(self._data[t].shape)) for node, _ in self.nodes[first : last + 1] for t in node.tops
            )

    def _record(self, node: Node, layer: Layer) -> None:
        """One layer forward, keeping its own piece of autograd's graph for backward."""
        bottoms = [self._data[b] for b in node.bottoms]
        if not self.needs.layer[node.index]:
            with torch.no_grad():
                self.run_layer(node, layer, self._data)
            return
        leaves = [
            b.detach().requires_grad_(need) for b, need in zip(bottoms, self.needs.bottoms[node.index], strict=True)
        ]
        with torch.enable_grad():
            scratch = dict(zip(node.bottoms, leaves, strict=True))
            tops = self.run_layer(node, layer, scratch)
        self._tape[node.index] = leaves, tops
        for name, top in zip(node.tops, tops, strict=True):
            self._data[name] = top.detach()

    def backward(
        self, diffs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **seeds: Any
    ) -> dict[str, np.ndarray]:
        """Run backward over what the last forward did, from the diffs that the blobs hold (a loss's is its weight).

        Args:
            diffs: blobs whose diffs to return beside the inputs'.
            start, end: run only from layer ``start`` back to layer ``end``.
            seeds: diffs to set before, for output blobs.

        Returns:
            The diffs of the inputs (of ``end``'s bottoms) by blob name.
        """
        for name, value in seeds.items():
            self.blobs[name].diff[...] = value
        if not self._records:
            # Until now nobody wanted gradients, and forward kept nothing for them.
            self._records = True
            self._run(0, len(self.nodes) - 1, again=True)
        self._diff.sync()
        low, high = self._span(end, start)
        for node, layer in reversed(self.nodes[low : high + 1]):
            if self.needs.layer[node.index] and node.index in self._tape:
                self._step_back(node, layer)
        names = self.inputs if end is None else list(self.nodes[low][0].bottoms)
        return {name: self.blobs[name].diff for name in dict.fromkeys([*names, *(diffs or ())])}

    def _step_back(self, node: Node, layer: Layer) -> None:
        leaves, tops = self._tape[node.index]
        learned = [
            n
            for n, need in zip(layer.blob_names, self.needs.params[node.index], strict=True)
            if need and getattr(layer, n).requires_grad
        ]
        wanted = [leaf for leaf in leaves if leaf.requires_grad] + [getattr(layer, n) for n in learned]
        paths = [(t, self._diff[name]) for name, t in zip(node.tops, tops, strict=True) if t.requires_grad]
        if not wanted:
            return
        outputs, seeds = zip(*paths, strict=True) if paths else ((), ())
        grads = (
            torch.autograd.grad(outputs, wanted, seeds, retain_graph=True, allow_unused=True)
            if paths
            else [None] * len(wanted)
        )
        found = iter(grads)
        for name, leaf in zip(node.bottoms, leaves, strict=True):
            if leaf.requires_grad:
                grad = next(found)
                self._diff[name] = torch.zeros_like(leaf) if grad is None else grad.detach()
        for name in learned:
            grad = next(found)
            if grad is not None:
                layer.add_diff(name, grad)

    def _span(self, start: str | None, end: str | None) -> tuple[int, int]:
        return (
            0 if start is None else self._index(start),
            len(self.nodes) - 1 if end is None else self._index(end),
        )

    def _index(self, name: str) -> int:
        for node, _ in self.nodes:
            if node.name == name:
                return node.index
        near = nearest(name, self._layer_names)
        raise CaffeError("net", f"no layer {name!r}", remedy=f"near: {near}" if near else "")

    def _set_input(self, name: str, value: Any) -> None:
        if name not in self.graph.inputs:
            raise CaffeError("forward", f"no input {name!r}", expected=", ".join(self.inputs))
        value = np.asarray(value)
        if value.shape[:1] != self.blobs[name].shape[:1]:
            raise ShapeError(
                f"input {name}",
                f"shape {value.shape}",
                expected=f"{tuple(self.blobs[name].shape)}",
                remedy="reshape the blob first",
            )
        self.blobs[name].data[...] = value

    def reshape(self) -> None:
        """Bring every blob to the shape that the inputs' shapes ask for; layers refuse what cannot be."""
        self.reshape_for({name: tuple(self._data[name].shape) for name in self.inputs})

    # -- weights -------------------------------------------------------------------------------------------------------

    def copy_from(self, path: str | Path) -> Account:
        """Load weights by layer name; the account of what was copied."""
        return self.load(path)

    def clear_param_diffs(self) -> None:
        """Set every parameter's diff to zero."""
        for p in self.parameters():
            if p.grad is not None:
                p.grad.zero_()
