"""One loop over a net's nodes, in one of four modes.

PLAIN
    every layer called as the module that it is, under the caller's grad mode: visible to autograd, tracers and hooks
INFER
    without gradients: with packed weights and fused in-place layers (:mod:`caffe_port.execution.fusion`)
TRAIN
    Caffe's pass for training: layers that no gradient reaches run without autograd, ``propagate_down`` is applied, a
    layer that overwrites its diffs clears them first, and the losses are summed with their weights
RECORD
    every layer keeps a separate part of autograd's graph, for a backward pass layer by layer

In every mode a caller may observe: its callbacks run before and after each node, and no nodes are fused.

Source: net.cpp, ForwardFromTo and BackwardFromTo (both programs).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import torch
from torch import Tensor, nn

from caffe_port.execution import memory
from caffe_port.execution.caffe_gradients import Blobs, CaffeGradients, Call, Pass
from caffe_port.execution.compiled import Compiler, Run
from caffe_port.execution.fusion import InferStep, TrainStep, infer_steps, train_steps
from caffe_port.execution.memory import LARGE, give_back, keep_memory, last_uses, most_numbers
from caffe_port.execution.observed import Unobserved, all_observed, observed
from caffe_port.execution.precision import refuse_other_ways
from caffe_port.graph import Graph, Needs
from caffe_port.layers.base import Layer, Shape
from caffe_port.layers.functions import without_saving

__all__ = ["Blobs", "Executor", "Mode", "Tape"]

Observer = Callable[[int], object]
Step = Callable[[int, int], int]
"""Runs a node and the nodes fused with it, up to a given one; returns the last node done."""


class Mode(Enum):
    """The mode of a run; see the module."""

    PLAIN = "plain"
    INFER = "infer"
    TRAIN = "train"
    RECORD = "record"


@dataclass(frozen=True)
class Piece:
    """Kept by a layer between forward and backward: its bottoms as leaves of a graph, and its tops."""

    leaves: Sequence[Tensor]
    tops: tuple[Tensor, ...]


Tape = dict[int, Piece]
"""The records of a pass by node."""


class Executor:
    """Runs the nodes of a graph.

    Args:
        modules: each node's module. layers: the same with the interface of layers.
        kinds: the class that each was built with. call: calls a layer; returns its tops, in their blobs' shapes.
        shaped: a top of a step in its blob's shape.
        needs: the gradients that a backward pass computes. loss_weights: by blob.
        half: multiply in bfloat16; on the CPU compiled runs do, on other devices ``call``.
    """

    def __init__(
        self,
        graph: Graph,
        modules: Sequence[nn.Module],
        layers: Sequence[Layer],
        kinds: Sequence[type[nn.Module]],
        *,
        call: Call,
        shaped: Callable[[Tensor], Tensor],
        needs: Needs,
        loss_weights: Mapping[str, float],
        half: bool = False,
    ) -> None:
        self.modules, self.needs, self.loss_weights = modules, needs, loss_weights
        self.nodes = list(zip(graph.nodes, layers, strict=True))
        self.kinds, self._call, self._shaped, self._last_use = kinds, call, shaped, last_uses(graph)
        self.caffe_gradients = CaffeGradients(graph, layers, call)
        self._fused: dict[tuple[bool, frozenset[int]], tuple[dict[int, InferStep], dict[int, TrainStep]]] = {}
        self._most: tuple[object, int] = None, 0
        self._unobserved = Unobserved(modules, kinds)
        self._packed = False
        """Whether weights were packed in the current run."""
        self._is_input = [node.type == "Input" for node in graph.nodes]
        count = len(self.nodes)
        self._large = {
            node.index
            for node, layer in self.nodes
            if any(
                need and p.numel() >= LARGE for need, p in zip(needs.params[node.index], layer.caffe_blobs, strict=True)
            )
        }
        """Nodes that learn a large parameter."""
        legacy = bool(layers) and layers[0].dialect.legacy_shapes
        self._half, self._compiler = half, Compiler(self.nodes, legacy=legacy, half=half)
        self._frozen_until = [next((j for j in range(i, count) if needs.layer[j]), count) - 1 for i in range(count)]

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(
        self,
        mode: Mode,
        blobs: Blobs,
        nodes: Sequence[int] | None = None,
        *,
        keep: Collection[str] | None = None,
        low_memory: bool = False,
        tape: Tape | None = None,
        as_caffe: bool = False,
        weigh: Callable[[str, Tensor], Tensor] | None = None,
        before: Observer | None = None,
        after: Observer | None = None,
    ) -> Tensor | None:
        """Run nodes from and into ``blobs``.

        Args:
            nodes: the nodes in their order; all by default.
            keep: the blobs to keep: all others are dropped after their last use. None: keep all.
            low_memory: make no copy of large weights (those used as matrices), which is slower.
            tape: receives the records of RECORD.
            as_caffe: compute Caffe's gradients where layers work in place, see
                :mod:`caffe_port.execution.caffe_gradients`.
            weigh: the term of a loss blob in the sum; by default its values times its weight.
            before, after: called with each node's index as it runs.

        Returns:
            In TRAIN, or with ``weigh``, the sum of the losses; None without any.
        """
        nodes = range(len(self.nodes)) if nodes is None else nodes
        if not nodes:
            return None
        if mode is Mode.INFER and torch.is_grad_enabled():
            with torch.no_grad():
                return self.run(
                    mode, blobs, nodes, keep=keep, low_memory=low_memory, weigh=weigh, before=before, after=after
                )
        alone = before is not None or after is not None
        special = self.caffe_gradients
        learns = mode is Mode.RECORD or torch.is_grad_enabled()
        run = Pass(special) if as_caffe and learns and (special or special.besides) else None
        if mode is Mode.INFER and keep is not None and weigh is None and not alone and not special.besides:
            self._infer_all(blobs, nodes, keep, low_memory=low_memory)
            return None
        if self._half:
            refuse_other_ways(blobs, "a pass that learns, keeps every blob, or observes each layer")
        step = self._step(mode, blobs, low_memory=low_memory, alone=alone, tape=tape, run=run)
        if mode is Mode.TRAIN and weigh is None:
            weigh = self._weighted
        total: Tensor | None = None
        done, last = -1, nodes[-1]
        for i in nodes:
            if i <= done:
                continue
            if before is not None:
                before(i)
            done = step(i, last)
            if special.besides:
                special.copy_in_place(i, done, blobs)
            if run is not None and mode is not Mode.RECORD:
                run.note(i, done, blobs)
            if weigh is not None:
                for name in self.nodes[i][0].tops:
                    if self.loss_weights[name]:
                        loss = weigh(name, blobs[name])
                        total = loss if total is None else total + loss
            if after is not None:
                after(i)
            if keep is not None:
                for j in range(i, done + 1):
                    for name in self._last_use.get(j, ()):
                        if name not in keep:
                            blobs.pop(name, None)
        if mode is Mode.TRAIN and self._large and total is not None and total.requires_grad:
            _make_room(total)
        return total

    def _infer_all(self, blobs: Blobs, nodes: Sequence[int], keep: Collection[str], *, low_memory: bool) -> None:
        """A pass without gradients: as many nodes as possible in compiled runs, the others one by one."""
        keep_memory(low_memory=low_memory)
        plain, last, done = self._plain_nodes(), nodes[-1], -1
        compiler = self._compiler if plain is not None and not low_memory and self._compiler.ready() else None
        if self._half and compiler is None:
            refuse_other_ways(blobs, "hooks for all modules, arrays held over parameters, or CAFFE_PORT_STEPS=0")
        ends = None if last - nodes[0] + 1 == len(nodes) else _ends(nodes)
        steps: Mapping[int, InferStep] | None = None
        runs = list[Run | None]()
        for i in nodes:
            if i <= done or (self._is_input[i] and plain is not None and i not in plain):
                continue
            run = None
            if compiler is not None and plain is not None:
                run = compiler.run(i, last if ends is None else ends[i], blobs, keep, plain)
            if run is not None:
                run(blobs)
                done = run.last
            else:
                steps = self._steps(low_memory, plain)[0] if steps is None else steps
                done = self._infer(blobs, steps, i, last)
            runs.append(run)
            for j in range(i, done + 1):
                for name in self._last_use.get(j, ()):
                    if name not in keep:
                        blobs.pop(name, None)
        self._compiler.whole = (runs[0], keep) if len(runs) == 1 and runs[0] and not plain else None
        if self._packed:
            self._packed = False
            give_back()  # what was freed between packed weights, where little fits in

    def remember(self, shaped: object) -> None:
        """Let :meth:`repeated` repeat the pass that has just ended, if it was one compiled run of all layers.

        Args:
            shaped: stands for the shapes of all blobs.
        """
        compiler = self._compiler
        compiler.again = (*compiler.whole, shaped) if compiler.whole and self._most[1] < memory.SMALL else None

    def repeated(self, inputs: Blobs, like: Tensor, shaped: object) -> dict[str, Tensor] | None:
        """The blobs kept in the pass of :meth:`remember`, for other inputs; None where it is not the same pass.

        It is as long as there are no gradients, ``like``, of the net's dtype and device, fits the kernels, inputs have
        the same names, shapes and layouts, and no layer is observed or changed.
        """
        again = self._compiler.again
        if again is None or torch.is_grad_enabled() or like.dtype is not torch.float32 or not like.is_cpu:
            return None
        run, keep, before = again
        if before is not shaped or len(inputs) != len(run.inputs) or not run.fits(inputs) or not self._unobserved():
            return None
        if not self._compiler.ready() or self._compiler.again is not again:
            return None
        run(inputs)
        return {name: inputs[name].contiguous() for name in keep}

    def most_bytes(self, inputs: Sequence[Tensor], shapes: Mapping[str, Shape], keep: Collection[str]) -> int:
        """About the bytes of the blobs that a run without gradients holds at a time, besides its inputs.

        Args:
            shapes: of all blobs. keep: the blobs that are kept to the end.
        """
        key = [x.shape for x in inputs], [*keep]
        if self._most[0] != key:
            numbers = most_numbers(self.nodes, self._last_use, shapes, keep)
            self._most = key, numbers * next((x.element_size() for x in inputs), 4)
        return self._most[1]

    def _weighted(self, name: str, blob: Tensor) -> Tensor:
        return blob.sum() * self.loss_weights[name]

    def _step(
        self, mode: Mode, blobs: Blobs, *, low_memory: bool, alone: bool, tape: Tape | None, run: Pass | None
    ) -> Step:
        if mode is Mode.PLAIN:
            return partial(self._plain, blobs, run=run)
        if mode is Mode.RECORD:
            return partial(self._record, blobs, {} if tape is None else tape, run)
        keep_memory(low_memory=low_memory)
        infer, train = ({}, {}) if alone else self._steps(low_memory, self._plain_nodes())
        if mode is Mode.INFER:
            return partial(self._infer, blobs, infer)
        return partial(self._train, blobs, infer, train, run)

    def _plain_nodes(self) -> frozenset[int] | None:
        """The nodes whose modules are observed or changed; None if all are."""
        if self._unobserved():
            return frozenset()
        if all_observed():
            return None
        return frozenset(i for i, (m, k) in enumerate(zip(self.modules, self.kinds, strict=True)) if observed(m, k))

    def _steps(
        self, low_memory: bool, plain: frozenset[int] | None
    ) -> tuple[dict[int, InferStep], dict[int, TrainStep]]:
        """The fused steps, valid as long as the same layers are observed or changed."""
        if plain is None:
            return {}, {}
        key = low_memory, plain
        if key not in self._fused:
            infer = infer_steps(self.nodes, plain, low_memory=low_memory)
            for (low, _), (others, _) in self._fused.items():  # reuse steps that are packed already
                if low == low_memory:
                    infer.update((i, s) for i, s in others.items() if i in infer and infer[i].last == s.last)
            self._fused = {k: v for k, v in self._fused.items() if k[0] != low_memory}
            self._fused[key] = (
                infer,
                train_steps(self.nodes, plain.union(self.caffe_gradients.of), self.loss_weights),
            )
        return self._fused[key]

    # -- one step in each mode -----------------------------------------------------------------------------------------

    def _plain(self, blobs: Blobs, i: int, last: int, run: Pass | None = None) -> int:
        node, layer = self.nodes[i]
        if run is not None and i in self.caffe_gradients:
            run.run(i, blobs)
        elif self._is_called(i):
            blobs.update(zip(node.tops, self._call(node, layer, [blobs[b] for b in self._read(i)]), strict=True))
        return i

    def _is_called(self, i: int) -> bool:
        """Whether node ``i`` runs: every layer but an Input that no hook observes."""
        return not self._is_input[i] or all_observed() or observed(self.modules[i], self.kinds[i])

    def _read(self, i: int) -> Sequence[str]:
        """The blobs that node ``i`` is called with: its bottoms, or the tops that an Input has been given."""
        node = self.nodes[i][0]
        return node.tops if self._is_input[i] else node.bottoms

    def _infer(self, blobs: Blobs, steps: Mapping[int, InferStep], i: int, last: int) -> int:
        step = steps.get(i)
        if step is None or step.last > last:
            return self._plain(blobs, i, last)
        before, function = step.packed, step.function(blobs[step.bottom])
        if function is None:
            return self._plain(blobs, i, last)
        self._packed = self._packed or function is not before
        blobs[step.top] = self._shaped(function(blobs[step.bottom]))
        return step.last

    def _train(
        self,
        blobs: Blobs,
        infer: Mapping[int, InferStep],
        train: Mapping[int, TrainStep],
        run: Pass | None,
        i: int,
        last: int,
    ) -> int:
        node, layer = self.nodes[i]
        if not torch.is_grad_enabled():
            return self._infer(blobs, infer, i, last)
        if not self.needs.layer[i]:
            with torch.no_grad():
                return self._infer(blobs, infer, i, min(last, self._frozen_until[i]))
        if layer.overwrites_diffs:
            for p in layer.parameters():
                p.grad = None
        for name, need in zip(node.bottoms, self.needs.bottoms[i], strict=True):
            if not need:
                blobs[name] = blobs[name].detach()
        if i in self._large:
            _make_room(blobs[node.bottoms[0]])  # what the layers before used
        step = train.get(i)
        if step is None:
            done = self._plain(blobs, i, last, run)
        else:
            blobs[step.bottom] = x = step.channels_last(blobs[step.bottom])
            if i < last and (y := step.with_relu(x)) is not None:
                blobs[step.top] = y
                return i + 1
            with without_saving(x):
                done = self._plain(blobs, i, last, run)
        if i in self._large and (top := blobs[node.tops[0]]).requires_grad:
            top.register_hook(_make_room)  # before the large gradient is made
        return done

    def _record(self, blobs: Blobs, tape: Tape, run: Pass | None, i: int, last: int) -> int:
        node, layer = self.nodes[i]
        tape.pop(i, None)
        if self._is_called(i):
            bottoms, needed = [blobs[b] for b in self._read(i)], self.needs.layer[i]
            if needed:
                bottoms = [b.detach().requires_grad_(n) for b, n in zip(bottoms, self.needs.bottoms[i], strict=True)]
            with torch.set_grad_enabled(needed and not (run is not None and i in self.caffe_gradients)):
                tops = self._call(node, layer, bottoms)
            if needed:
                tape[i] = Piece(bottoms, tops)
            blobs.update((name, top.detach()) for name, top in zip(node.tops, tops, strict=True))
        return i

    # -- backward ------------------------------------------------------------------------------------------------------

    def back(
        self,
        i: int,
        tape: Tape,
        seeds: Sequence[Tensor],
        written: Callable[[int, str], Tensor | None] | None = None,
    ) -> list[Tensor | None]:
        """One node backward, from its record; parameters' diffs are accumulated.

        Args:
            seeds: the tops' diffs.
            written: the value that a node wrote in place, by node and top, for Caffe's gradients; None: derivatives.

        Returns:
            The bottoms' diffs; None for one that needs none.
        """
        layer, piece = self.nodes[i][1], tape[i]
        wanted = [leaf for leaf in piece.leaves if leaf.requires_grad]
        learned = [
            name
            for name, need in zip(layer.blob_names, self.needs.params[i], strict=True)
            if need and getattr(layer, name).requires_grad
        ]
        if written is not None and i in self.caffe_gradients:
            given = [leaf.detach() for leaf in piece.leaves]
            needs = [leaf.requires_grad for leaf in piece.leaves]
            own, params = self.caffe_gradients.gradient(i, given, piece.tops, seeds, needs, written)
            grads = iter([*(g for g, need in zip(own, needs, strict=True) if need), *map(params.get, learned)])
        else:
            inputs = [*wanted, *(getattr(layer, name) for name in learned)]
            grads = iter(_gradients(list(zip(piece.tops, seeds, strict=True)), inputs))
        found: list[Tensor | None] = []
        for leaf in piece.leaves:
            grad = next(grads) if leaf.requires_grad else None
            found.append(torch.zeros_like(leaf) if grad is None and leaf.requires_grad else grad)
        for name, grad in zip(learned, grads, strict=True):
            if grad is not None:
                layer.add_diff(name, grad)
        return found


def _make_room(near: Tensor) -> None:
    if near.device.type == "cpu":
        give_back()


def _ends(nodes: Sequence[int]) -> dict[int, int]:
    """For each node the last one of those that follow without a gap."""
    ends: dict[int, int] = {}
    for i in reversed(nodes):
        ends[i] = ends.get(i + 1, i)
    return ends


def _gradients(paths: Sequence[tuple[Tensor, Tensor]], wanted: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradients of ``wanted``, given each top with its diff; None where no top depends on it."""
    paths = [(top, seed) for top, seed in paths if top.requires_grad]
    if not paths or not wanted:
        return [None] * len(wanted)
    tops, seeds = zip(*paths, strict=True)
    return torch.autograd.grad(tops, wanted, seeds, retain_graph=True, allow_unused=True)
