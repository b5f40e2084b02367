"""Consecutive layers of a net as one call of the compiled kernels (``caffe_port/native/steps.c``).

For the shapes of a pass, layers that the kernels have become a list of steps: in-place layers are folded into the step
before them; Split, Dropout and concatenations are only places in memory; and blobs share the memory of those whose last
reader has run. Other layers run by themselves between two such runs. The steps are made again when a parameter changes.

CAFFE_PORT_STEPS=0 in the environment turns this off, as CAFFE_PORT_NATIVE=0 does with all kernels.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from math import prod
from operator import attrgetter, is_
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from caffe_port.execution.lowering import FOLDS, LAYERS, MODAL, activation
from caffe_port.execution.precision import check_half_kernels
from caffe_port.execution.steps import Emitter, Folded, Memory, Op, Step, UnsupportedError, Value
from caffe_port.graph import Node
from caffe_port.layers.base import Layer
from caffe_port.layers.functions import ordinary
from caffe_port.layers.pooling import wrong_switch
from caffe_port.layers.winograd import SCRATCH_BYTES
from caffe_port.native import library

__all__ = ["Compiler", "Run"]

Blobs = MutableMapping[str, Tensor]
_LINE = 16
"""Numbers of a cache line; blobs begin at one, and kernels may read that much beyond the last."""
_MOST_RUNS = 64
_VERSION, _TRAINING = attrgetter("_version"), attrgetter("training")
_AT = Tensor.data_ptr


class _Watch:
    """Whether parameters are the same as before: objects, memory, torch's counters of writes, and a few values.

    ``sampled`` reads the values: see :func:`caffe_port.execution.packing.state_of`, which does the same for one tensor.
    """

    def __init__(self, layers: Iterable[Layer], kernels: Any) -> None:
        layers = list(layers)
        self.layers = [layer for layer in layers if layer.blob_names]
        self.arrays = [layer.held_arrays for layer in self.layers]
        self.modal = [layer for layer in layers if isinstance(layer, MODAL)]
        self.kernels, self.state = kernels, None
        self._find()

    def _find(self) -> None:
        self.tables, self.names = list[dict[str, Any]](), list[str]()
        for layer in self.layers:
            for name in layer.blob_names:
                table = layer._parameters if name in layer._parameters else layer._buffers
                if table.get(name) is not None:
                    self.tables.append(table)
                    self.names.append(name)
        self.found: list[Tensor] = [table[name] for table, name in zip(self.tables, self.names, strict=True)]
        self.usable = all(
            ordinary(t) and t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous()
            for t in self.found
        )
        count = len(self.found) if self.usable else 0
        self.at = list(map(Tensor.data_ptr, self.found)) if self.usable else []
        self.sample = (
            (ctypes.c_void_p * count)(*self.at),
            (ctypes.c_long * count)(*(t.numel() for t in self.found[:count])),
            ctypes.c_long(count),
        )

    def changed(self) -> bool:
        """Whether anything changed since the last call."""
        same = self.state is not None and all(map(is_, map(dict.get, self.tables, self.names), self.found))
        if same and list(map(Tensor.data_ptr, self.found)) == self.at and self._state() == self.state:
            return False
        self._find()
        self.state = self._state() if self.usable else None
        return True

    def _state(self) -> Any:
        training = list(map(_TRAINING, self.modal))
        return list(map(_VERSION, self.found)), self.kernels.sampled(*self.sample), training

    def held(self) -> bool:
        """Whether callers hold arrays over parameters."""
        return any(ref() is not None for arrays in filter(None, self.arrays) for ref in arrays.values())


class Run:
    """Nodes up to ``last`` as steps.

    Args:
        inputs: the name of each external bottom, its shape, and whether it is read in the order (N, C, H, W).
        outputs: the name and shape of each top for later layers or the caller. same: further tops: name, shape, and
            the bottom or (False) the output whose numbers they have.
        numbers: of the memory that a pass takes. kept: tensors that the steps point to. unpoolings: by their steps.
    """

    def __init__(
        self,
        last: int,
        inputs: Sequence[tuple[str, torch.Size, bool]],
        outputs: Sequence[tuple[str, tuple[int, ...]]] = (),
        same: Sequence[tuple[str, tuple[int, ...], str, bool]] = (),
        steps: Sequence[Step] = (),
        numbers: int = 0,
        kept: Sequence[Tensor] = (),
        unpoolings: Mapping[int, Layer] = MappingProxyType({}),
        kernels: Any = None,
    ) -> None:
        self.last, self.inputs, self.same = last, inputs, same
        self.numbers, self.kept, self.unpoolings, self.kernels = numbers, kept, unpoolings, kernels
        self.steps = (Step * len(steps))(*steps)
        self._tops = [(name, *_laid_out(shape)) for name, shape in outputs]
        self._memory = ctypes.c_void_p * (1 + len(inputs) + len(outputs))

    def fits(self, blobs: Blobs) -> bool:
        """Whether it is for such bottoms."""
        for name, shape, planar in self.inputs:
            t = blobs.get(name)
            if (
                t is None
                or t.shape != shape
                or t.dtype is not torch.float32
                or not t.is_cpu
                or _planar(t) is not planar
            ):
                return False
        return True

    def __call__(self, blobs: Blobs) -> None:
        """Run the steps from and into ``blobs``.

        Raises:
            MemoryError: there is no memory for what a kernel keeps between steps. ShapeError: a switch is outside an
                unpooling's output.
        """
        memory = [torch.empty(self.numbers)]
        for name, _, planar in self.inputs:
            memory.append(blobs[name].contiguous() if planar else blobs[name])
        made: dict[str, Tensor] = {}
        for name, shape, in_pixels in self._tops:
            t = torch.empty(shape)
            made[name] = t.permute(0, 3, 1, 2) if in_pixels else t
            memory.append(t)
        places, threads = self._memory(*map(_AT, memory)), torch.get_num_threads()
        failed = self.kernels.run_steps(self.steps, len(self.steps), places, SCRATCH_BYTES, threads)
        if failed == 1:
            raise MemoryError("no memory for a layer")
        if failed:
            raise wrong_switch(self.unpoolings[failed - 2])
        for name, shape, source, given_one in self.same:
            made[name] = (blobs if given_one else made)[source].view(shape)
        blobs.update(made)


def _laid_out(shape: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
    """The shape of a top's memory, and whether that is (N, H, W, C)."""
    if len(shape) != 4 or shape[2] * shape[3] == 1:
        return shape, False
    n, c, h, w = shape
    return (n, h, w, c), True


def _planar(t: Tensor) -> bool:
    """Whether it is read as (N, C, H, W): no if its memory is pixel by pixel, or both are the same."""
    if t.dim() == 4:
        return not t.is_contiguous(memory_format=torch.channels_last)
    return not t.is_contiguous()


class Compiler:
    """Makes the runs of a net, and keeps them.

    Args:
        nodes: the net's. legacy: its blobs have four axes. half: multiply in bfloat16.
    """

    def __init__(self, nodes: Sequence[tuple[Node, Layer]], *, legacy: bool, half: bool) -> None:
        self.nodes, self.legacy, self.half = nodes, legacy, half
        self.readers: dict[str, int] = {}
        for node, _ in nodes:
            self.readers.update(dict.fromkeys(node.bottoms, node.index))
        self.runs: dict[Any, list[Run]] = {}
        self.packed: dict[Any, tuple[Tensor, ...]] = {}
        self.whole: tuple[Run, Collection[str]] | None = None
        """The run that was all of the last pass, and the blobs that it kept."""
        self.again: tuple[Run, Collection[str], object] | None = None
        """The same of a pass that may be repeated, see the executor's ``remember``."""
        self._kernels: Any = None
        self._watch: _Watch | None = None

    def ready(self) -> bool:
        """Whether runs can be used in the pass that begins."""
        if os.environ.get("CAFFE_PORT_STEPS") == "0" or (kernels := library("steps")) is None:
            return False
        if self._watch is None:
            kernels.sampled.restype = ctypes.c_uint64
            pointer, number = ctypes.c_void_p, ctypes.c_long
            kernels.run_steps.argtypes = pointer, number, pointer, number, ctypes.c_int
            self._kernels, self._watch = kernels, _Watch((x for _, x in self.nodes if type(x) in LAYERS), kernels)
        if self._watch.held():
            self.forget()
            return False
        if self._watch.changed():
            self.forget()
        return self._watch.usable

    def forget(self) -> None:
        """Drop all runs and packed weights."""
        self.runs.clear()
        self.packed.clear()
        self.whole = self.again = None

    def run(self, first: int, last: int, blobs: Blobs, keep: Collection[str], plain: Collection[int]) -> Run | None:
        """The run that begins with a node, ends at ``last`` at most, and gives the blobs to keep.

        Args:
            plain: nodes that must run by themselves.
        """
        if first in plain or type(self.nodes[first][1]) not in LAYERS:
            return None
        key = first, last, tuple(keep), plain
        runs = self.runs.get(key)
        if runs is None:
            if len(self.runs) >= _MOST_RUNS:
                self.runs.clear()
            runs = self.runs[key] = []
        for run in runs:
            if run.fits(blobs):
                return run if run.steps else None
        made = self._compiled(first, last, blobs, keep, plain)
        del runs[:-3]
        runs.append(made)
        return made if made.steps else None

    def _compiled(self, first: int, last: int, blobs: Blobs, keep: Collection[str], plain: Collection[int]) -> Run:
        """The run; without steps if the first node cannot be compiled."""
        if self.half:
            check_half_kernels()
        emitter = Emitter(self.packed, self._kernels.panel_width(), legacy=self.legacy, half=self.half)
        now: dict[str, Value] = {}
        inputs: dict[str, Value] = {}

        def value(name: str) -> Value:
            if name not in now:
                t = blobs[name]
                if not ordinary(t) or t.dtype != torch.float32 or not t.is_cpu or t.dim() not in (2, 4):
                    raise UnsupportedError
                if not t.numel() or (self.legacy and t.dim() < 4):
                    raise UnsupportedError
                shape = tuple(t.shape)
                memory = Memory(shape[0] * prod(shape[2:]), shape[1], base=len(inputs) + 1)
                now[name] = inputs[name] = Value(shape, memory, planar=_planar(t) and prod(shape[1:]) > 1)
            return now[name]

        i, end = first, first - 1
        while i <= last:
            node, layer = self.nodes[i]
            emit, count, known = LAYERS.get(type(layer)), len(emitter.steps), len(inputs)
            if emit is None or i in plain:
                break
            try:
                xs = [value(b) for b in node.bottoms]
                fold, until = self._followers(i, last, plain)
                tops = emit(emitter, layer, xs, fold)
            except UnsupportedError:
                del emitter.steps[count:], emitter.blobs[count:]
                for name in list(inputs)[known:]:
                    del inputs[name], now[name]
                break
            now.update(zip(node.tops, tops if isinstance(tops, tuple) else (tops,), strict=True))
            end, i = until, until + 1
        if not emitter.steps:
            bottoms = [(b, blobs[b].shape, _planar(blobs[b])) for b in self.nodes[first][0].bottoms]
            return Run(end, bottoms)
        return self._placed(emitter, end, blobs, now, inputs, keep)

    def _followers(self, i: int, last: int, plain: Collection[int]) -> tuple[Folded, int]:
        """The in-place layers behind a node that its step computes, and the index of the last of them."""
        node, layer = self.nodes[i]
        affine, act, until = list[Layer](), Folded(), i
        if type(layer) not in FOLDS or len(node.tops) != 1:
            return act, i
        for j in range(i + 1, last + 1):
            follower, other = self.nodes[j]
            if follower.bottoms != node.tops or follower.tops != node.tops or j in plain or type(other) not in LAYERS:
                break
            if (found := activation(other)) is not None:
                act, until = found, j
                break
            if other.channel_affine() is None or layer.type == "Eltwise":
                break
            affine.append(other)
            until = j
        return Folded(affine, act.relu, act.slope), until

    def _placed(
        self,
        emitter: Emitter,
        end: int,
        blobs: Blobs,
        now: dict[str, Value],
        inputs: dict[str, Value],
        keep: Collection[str],
    ) -> Run:
        """The run, with a place in memory for each blob."""
        outputs: list[tuple[str, tuple[int, ...]]] = []
        same: list[tuple[str, tuple[int, ...], str, bool]] = []
        made: dict[Memory, str] = {}
        given = {v: name for name, v in inputs.items()}
        for name, v in now.items():
            if (name not in keep and self.readers.get(name, -1) <= end) or inputs.get(name) is v:
                continue
            if v in given:
                same.append((name, v.shape, given[v], True))
                continue
            if v.memory in made:
                same.append((name, v.shape, made[v.memory], False))
                continue
            if v.memory.parent is not None or v.memory.base:
                copy = Value(v.shape, Memory(v.memory.pixels, v.shape[1]))
                emitter.add(Op.AFFINE, v, copy)
                v = copy
            made[v.memory] = name
            outputs.append((name, v.shape))
        for k, memory in enumerate(made, len(inputs) + 1):
            memory.base = k
        numbers = _arrange(emitter)
        return Run(
            last=end,
            inputs=[(name, blobs[name].shape, _planar(blobs[name])) for name in inputs],
            outputs=outputs,
            same=same,
            steps=emitter.steps,
            numbers=numbers,
            kept=emitter.kept,
            unpoolings=emitter.unpoolings,
            kernels=self._kernels,
        )


def _arrange(emitter: Emitter) -> int:
    """Give each blob its place, where no other is needed at the same time; returns how many numbers that takes."""
    roots: dict[Memory, None] = {}
    for i, blobs in enumerate(emitter.blobs):
        for memory in blobs.values():
            root, _ = memory.root()
            root.first, root.last = min(root.first, i), max(root.last, i)
            roots[root] = None
    size = {root: -(-root.pixels * root.stride // _LINE) * _LINE for root in roots}
    placed: list[Memory] = []
    numbers = 0
    for root in sorted((r for r in roots if not r.base), key=lambda r: -size[r]):
        others = [o for o in placed if o.first <= root.last and root.first <= o.last]
        root.at = 0
        for other in sorted(others, key=lambda o: o.at):
            if root.at + size[root] <= other.at:
                break
            root.at = max(root.at, other.at + size[other])
        placed.append(root)
        numbers = max(numbers, root.at + size[root])
    for i, (step, blobs) in enumerate(zip(emitter.steps, emitter.blobs, strict=True)):
        for name, memory in blobs.items():
            root, at = memory.root()
            blob = getattr(step, name)
            blob.base, blob.at, blob.stride = root.base, root.at + at, root.stride
        step.y.stride = emitter.strides.get(i, step.y.stride)
    return numbers
