"""The way through a net when nobody asks for gradients: the same numbers, sooner.

Plain PyTorch loses time on this work in three places, none of them arithmetic (docs/speed.md has the figures). It lays
every weight out anew for its kernels on each call; it takes fresh memory for every activation and pays a page fault for
each 4 KiB of it; and it runs bias, normalization and ReLU as passes of their own. A :class:`Plan` keeps weights in the
layout that oneDNN wants, fuses what follows a convolution in place into it, runs activations channels-last, and asks
the C library to keep freed memory. Sums are taken in another order than without it and nothing else changes.

The plan follows the parameters: whatever replaces or writes them through torch is seen before the next run, and a layer
whose parameters have been handed out as arrays (``net.params[...].data``) runs without packed weights as long as such
an array lives. Only a write through ``parameter.data`` that changes few numbers can go unseen; ``Plan.forget`` is for
that.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.base import Layer
from caffe_port.layers.convolution import Convolution, Deconvolution
from caffe_port.layers.inner_product import InnerProduct
from caffe_port.layers.neuron import ReLU
from caffe_port.layers.normalization import BN

if TYPE_CHECKING:
    from caffe_port.graph import Node
    from caffe_port.net import Net

__all__ = ["Plan", "keep_memory"]

Packed = Callable[[Tensor], Tensor]


@dataclass
class Step:
    """A run of nodes done at once: a layer with weights and what works in place on its top.

    Attributes:
        first, last: the nodes' indices. bottom, top: blob names.
        packed: the prepared function, and ``state`` of the parameters it was made from.
    """

    first: int
    last: int
    bottom: str
    top: str
    layer: Layer
    affine: list[Layer]
    relu: bool
    packed: Packed | None = None
    state: Any = None
    members: list[Layer] = field(default_factory=list)


class Plan:
    """How a net runs forward without gradients.

    Args:
        low_memory: keep no second copy of large weights (those used as matrices), at some cost in time.
    """

    def __init__(self, net: Net, *, low_memory: bool = False) -> None:
        self.net, self.low_memory = net, low_memory
        self.steps = {s.first: s for s in _steps(net)}
        self._runs = 0
        self._last_use = _last_uses(net)
        self.turns = {node.index: _turns(layer) for node, layer in net.nodes}
        self.with_fused_relu = {i for i, (node, layer) in enumerate(net.nodes[:-1]) if _rectified(node, layer, net)}

    def forget(self) -> None:
        """Drop all prepared weights; the next run prepares them anew."""
        for step in self.steps.values():
            step.packed = step.state = None

    def run(self, inputs: Mapping[str, Tensor], keep: Collection[str]) -> dict[str, Tensor]:
        """Run the whole net on tensors; blobs that nobody reads any more and nobody keeps are let go on the way."""
        blobs = self.run_nodes(inputs, range(len(self.net.nodes)), keep)
        return {name: blob.contiguous() for name, blob in blobs.items()}

    def run_nodes(self, given: Mapping[str, Tensor], nodes: Sequence[int], keep: Collection[str]) -> dict[str, Tensor]:
        """Run only these nodes, in their order, on the blobs given; the blobs to keep, in whatever memory format."""
        blobs, kept, done = dict(given), set(keep), -1
        prepare = self.start()
        for i in nodes:
            if i > done:
                done = self.advance(blobs, i, nodes[-1], prepare=prepare)
                self.free(blobs, i, done, kept)
        return {name: blobs[name] for name in keep}

    def run_into(self, blobs: dict[str, Tensor], first: int, last: int) -> None:
        """Run nodes ``first`` to ``last`` from and into ``blobs``, leaving every blob there."""
        done, prepare = first - 1, self.start()
        while done < last:
            done = self.advance(blobs, done + 1, last, prepare=prepare)

    def start(self) -> bool:
        """To be called before each run; whether weights are to be prepared in it.

        Preparing all of them costs about as much as it saves in one run, so that the first does without, unless
        :meth:`expect_more` was called.
        """
        keep_memory(low_memory=self.low_memory)
        self._runs += 1
        return self.low_memory or self._runs > 1

    def expect_more(self) -> None:
        """Prepare weights from the first run on: all runs then sum in one order, and equal input gives equal
        numbers."""
        self._runs = max(self._runs, 1)

    def advance(self, blobs: dict[str, Tensor], i: int, last: int, *, prepare: bool) -> int:
        """Run node ``i``, and in one step with it what belongs to it as far as ``last``; the last node done."""
        node, layer = self.net.nodes[i]
        step = self.steps.get(i)
        if step is not None and prepare and step.last <= last and _suits(blobs[step.bottom]):
            function = self._function(step, blobs[step.bottom])
            if function is not None:
                blobs[step.top] = self.net.blob_view(function(blobs[step.bottom]))
                return step.last
        if node.type != "Input":
            self.net.run_layer(node, layer, blobs)
        return i

    def learn(self, blobs: dict[str, Tensor], i: int) -> int:
        """Run node ``i`` for a backward pass, and with it the ReLU on its top if that can be; the last node done.

        Convolutions get their channels last, which oneDNN is quicker with, and what follows them keeps that.
        """
        node, layer = self.net.nodes[i]
        if self.turns.get(i) and _suits(x := blobs[node.bottoms[0]]) and not layer.as_product(x):
            blobs[node.bottoms[0]] = x.contiguous(memory_format=torch.channels_last)
        if i in self.with_fused_relu and (y := layer.with_fused_relu(blobs[node.bottoms[0]])) is not None:
            blobs[node.tops[0]] = y
            return i + 1
        self.net.run_layer(node, layer, blobs)
        return i

    def free(self, blobs: dict[str, Tensor], first: int, last: int, keep: Collection[str]) -> None:
        """Drop the blobs that no node after ``last`` reads, ``keep`` aside."""
        for i in range(first, last + 1):
            for name in self._last_use.get(i, ()):
                if name not in keep:
                    blobs.pop(name, None)

    def _function(self, step: Step, x: Tensor) -> Packed | None:
        """The step's prepared function, anew if its parameters changed; None while an array over them is out."""
        if any(ref() is not None for layer in step.members for ref in layer.lent.values()):
            step.packed = step.state = None
            return None
        product = isinstance(step.layer, InnerProduct) or step.layer.as_product(x)
        state = (product, *(_state(t) for layer in step.members for t in layer.caffe_blobs))
        if step.state != state:
            step.packed, step.state = _pack(step, x, low_memory=self.low_memory), state
        return step.packed


# -- which nodes go together -------------------------------------------------------------------------------------------


def _steps(net: Net) -> list[Step]:
    steps = []
    for node, layer in net.nodes:
        if not _packable(layer) or len(node.tops) != 1:
            continue
        top = node.tops[0]
        step = Step(node.index, node.index, node.bottoms[0], top, layer, [], relu=False, members=[layer])
        for follower, other in net.nodes[node.index + 1 :]:
            if follower.bottoms != (top,) or follower.tops != (top,) or step.relu:
                break
            if isinstance(other, ReLU) and not other.slope:
                step.relu = True
            elif other.channel_affine() is not None:
                step.affine.append(other)
            else:
                break
            step.last = follower.index
            step.members.append(other)
        steps.append(step)
    return steps


def _packable(layer: Layer) -> bool:
    if isinstance(layer, InnerProduct):
        return layer.from_axis == 1
    if isinstance(layer, Deconvolution):
        flips = all((k - 1) * d >= p for k, d, p in zip(layer.kernel, layer.dilation, layer.pad, strict=True))
        return len(layer.kernel) == 2 and layer.group == 1 and layer.stride == (1, 1) and flips
    return isinstance(layer, Convolution) and len(layer.kernel) == 2 and layer.channel_axis == 1


MANY_CHANNELS = 16
"""From so many on a convolution that learns is quicker with them last."""


def _turns(layer: Layer) -> bool:
    if not isinstance(layer, (Convolution, Deconvolution)) or len(layer.kernel) != 2 or layer.group != 1:
        return False
    return layer.channel_axis == 1 and layer.n_bottoms == 1 and min(layer.channels, layer.num_output) >= MANY_CHANNELS


def _rectified(node: Node, layer: Layer, net: Net) -> bool:
    """Whether a layer that can rectify its top is followed by the ReLU that would."""
    follower, other = net.nodes[node.index + 1]
    here = follower.bottoms == node.tops == follower.tops and not any(net.loss_weights[t] for t in node.tops)
    return here and isinstance(layer, BN) and isinstance(other, ReLU) and not other.slope


def _last_uses(net: Net) -> dict[int, list[str]]:
    """For each node the blobs that no later node touches."""
    last: dict[str, int] = {}
    for node, _ in net.nodes:
        for name in (*node.bottoms, *node.tops):
            last[name] = node.index
    at: dict[int, list[str]] = {}
    for name, i in last.items():
        at.setdefault(i, []).append(name)
    return at


# -- when packed weights are right -------------------------------------------------------------------------------------


@cache
def _ops() -> Any:
    """torch's prepacked kernels; they are not public, so that their absence must do no harm."""
    try:
        if not torch.backends.mkldnn.is_available():
            return None
        ops = torch.ops.mkldnn
        _ = ops._convolution_pointwise, ops._linear_pointwise, ops._reorder_linear_weight
        _ = torch._C._nn.mkldnn_reorder_conv2d_weight
        return ops
    except (AttributeError, RuntimeError):
        return None


def _suits(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0 and _ops() is not None


def _state(t: Tensor) -> tuple[Any, ...]:
    """What tells that a parameter is still what it was: memory, torch's count of writes, and a few of its numbers."""
    flat = t.detach().view(-1) if t.is_contiguous() else t.detach().reshape(-1)
    return t.data_ptr(), t._version, t.dtype, tuple(flat[:: max(1, flat.numel() // 16)].tolist())


# -- packing -----------------------------------------------------------------------------------------------------------


def _pack(step: Step, x: Tensor, *, low_memory: bool) -> Packed:
    """The step as a function; ``low_memory``: without copies of the weights that are used as matrices."""
    layer = step.layer
    weight = layer.weight.detach()
    bias = weight.new_zeros(layer.num_output) if layer.bias is None else layer.bias.detach()
    scale = None
    for a, b in filter(None, (other.channel_affine() for other in step.affine)):
        scale = a if scale is None else scale * a
        bias = bias * a + b
    if isinstance(layer, InnerProduct):
        matrix = weight.t() if layer.transpose else weight
        linear = _linear(_scaled(matrix, scale, 0), bias, step.relu, x.shape[0], low_memory)
        return lambda x: linear(x.flatten(1).contiguous())
    if isinstance(layer, Deconvolution):
        weight = _scaled(weight, scale, 1)
        if layer.as_product(x):
            linear = _linear(weight.flatten(1).t(), None, False, x.shape[0] * prod(x.shape[2:]), low_memory)
            return lambda x: _finished(layer.by_product(x, linear).add_(bias.view(1, -1, 1, 1)), step.relu)
        pad = [(k - 1) * d - p for k, d, p in zip(layer.kernel, layer.dilation, layer.pad, strict=True)]
        return _convolution(layer, weight.flip(2, 3).transpose(0, 1), bias, pad, step.relu, x)
    weight = _scaled(weight, scale, 0)
    if layer.as_product(x):
        pixels = x.shape[0] * prod(layer.reshape(tuple(x.shape))[0][2:])
        linear = _linear(weight.flatten(1), bias, step.relu, pixels, low_memory)
        return lambda x: layer.by_product(x, linear)
    return _convolution(layer, weight, bias, list(layer.pad), step.relu, x)


def _scaled(weight: Tensor, scale: Tensor | None, axis: int) -> Tensor:
    """The weight with its outputs, which lie along ``axis``, scaled."""
    return weight if scale is None else weight * scale.view([-1 if i == axis else 1 for i in range(weight.dim())])


def _finished(y: Tensor, relu: bool) -> Tensor:
    return y.relu_() if relu else y


def _linear(matrix: Tensor, bias: Tensor | None, relu: bool, rows: int, low_memory: bool) -> Callable[[Tensor], Tensor]:
    """x M' + b for an (outputs, inputs) ``matrix``, in oneDNN's layout for about so many rows, or as it lies."""
    if low_memory:
        return lambda x: _finished(F.linear(x, matrix, bias), relu)
    ops, after = _ops(), "relu" if relu else "none"
    packed = ops._reorder_linear_weight(matrix.contiguous(), rows)
    return lambda x: ops._linear_pointwise(x, packed, bias, after, [], "")


def _convolution(layer: Any, weight: Tensor, bias: Tensor, pad: list[int], relu: bool, x: Tensor) -> Packed:
    ops, stride, dilation, group = _ops(), list(layer.stride), list(layer.dilation), layer.group
    dense, after = weight.contiguous().to_mkldnn(), "relu" if relu else "none"
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its type stub lacks the shape
    packed = reorder(dense, pad, stride, dilation, group, list(x.shape))

    def run(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return ops._convolution_pointwise(x, packed, bias, pad, stride, dilation, group, after, [], "")

    return run


# -- memory ------------------------------------------------------------------------------------------------------------


@cache
def keep_memory(*, low_memory: bool) -> bool:
    """Ask glibc to keep freed memory instead of giving it back to the system, so that activations reuse mapped pages.

    Lean, blocks over 32 MB (glibc's highest limit) still go back: kept, their holes add a quarter to a training's
    memory. Holds for the whole process; CAFFE_PORT_KEEP_MEMORY=0 in the environment forbids it. Returns whether it was
    done.
    """
    if os.environ.get("CAFFE_PORT_KEEP_MEMORY") == "0" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    kept = mallopt(mmap_threshold, 32 << 20) if low_memory else mallopt(mmap_max, 0)
    return bool(kept and mallopt(trim_threshold, 2**31 - 1))
