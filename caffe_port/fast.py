"""The way through a net when nobody asks for gradients: the same numbers, sooner.

Plain PyTorch loses time on this work in three places, none of them arithmetic (docs/speed.md has the figures). It lays every
weight out anew for its kernels on each call; it takes fresh memory for every activation and pays a page fault for each 4 KiB
of it; and it runs bias, normalization and ReLU as passes of their own. A :class:`Plan` keeps weights in the layout that
oneDNN wants, fuses what follows a convolution in place into it, runs activations channels-last, and asks the C library to
keep freed memory. Sums are taken in another order than without it and nothing else changes.

The plan follows the parameters: whatever replaces or writes them through torch is seen before the next run, and a layer whose
parameters have been handed out as arrays (``net.params[...].data``) runs without packed weights as long as such an array
lives. Only a write through ``parameter.data`` that changes few numbers can go unseen; ``Plan.forget`` is for that.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Collection, Mapping
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

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["Plan", "keep_memory"]

FEW_PIXELS = 64
"""Up to so many output pixels in a batch a convolution with large weights is bound by reading them: a matrix product then."""

LARGE_WEIGHT = 1 << 15
"""Numbers in a weight that is worth a matrix product of its own."""

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
    """How a net runs forward without gradients."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.steps = {s.first: s for s in _steps(net)}
        self._runs = 0
        self._last_use = _last_uses(net)

    def forget(self) -> None:
        """Drop all prepared weights; the next run prepares them anew."""
        for step in self.steps.values():
            step.packed = step.state = None

    def run(self, inputs: Mapping[str, Tensor], keep: Collection[str]) -> dict[str, Tensor]:
        """Run the whole net on tensors; blobs that nobody reads any more and nobody keeps are let go on the way."""
        blobs = dict(inputs)
        self._run(blobs, 0, len(self.net.nodes) - 1, set(keep))
        return {name: blobs[name].contiguous() for name in keep}

    def run_into(self, blobs: dict[str, Tensor], first: int, last: int) -> None:
        """Run nodes ``first`` to ``last`` from and into ``blobs``, leaving every blob there."""
        self._run(blobs, first, last, None)

    def _run(self, blobs: dict[str, Tensor], first: int, last: int, keep: set[str] | None) -> None:
        keep_memory()
        # Preparing weights costs about as much as it saves in one run, so that the first does without.
        prepare = self._runs > 0
        self._runs += 1
        i = first
        while i <= last:
            node, layer = self.net.nodes[i]
            step = self.steps.get(i)
            if step is not None and prepare and step.last <= last and _suits(blobs[step.bottom]):
                function = self._function(step, blobs[step.bottom])
                if function is not None:
                    blobs[step.top] = self.net.blob_view(function(blobs[step.bottom]))
                    i = step.last + 1
                    self._let_go(blobs, node.index, step.last, keep)
                    continue
            if node.type != "Input":
                self.net.run_layer(node, layer, blobs)
            self._let_go(blobs, i, i, keep)
            i += 1

    def _let_go(self, blobs: dict[str, Tensor], first: int, last: int, keep: set[str] | None) -> None:
        if keep is None:
            return
        for i in range(first, last + 1):
            for name in self._last_use.get(i, ()):
                if name not in keep:
                    blobs.pop(name, None)

    def _function(self, step: Step, x: Tensor) -> Packed | None:
        """The step's prepared function, made anew if its parameters have changed; None while an array over them is out."""
        if any(ref() is not None for layer in step.members for ref in layer.lent.values()):
            step.packed = step.state = None
            return None
        state = (_as_product(step.layer, x), *(_state(t) for layer in step.members for t in layer.caffe_blobs))
        if step.state != state:
            step.packed, step.state = _pack(step, x), state
        return step.packed


# -- which nodes go together ---------------------------------------------------------------------------------------------


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


# -- when packed weights are right ---------------------------------------------------------------------------------------


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


def _as_product(layer: Layer, x: Tensor) -> bool:
    """Whether the layer is done as a matrix product for an input of this shape."""
    if isinstance(layer, InnerProduct):
        return True
    pixels = x.shape[0] * prod(x.shape[2:] if isinstance(layer, Deconvolution) else layer.reshape(tuple(x.shape))[0][2:])
    return pixels <= FEW_PIXELS and layer.weight.numel() >= LARGE_WEIGHT and layer.group == 1


# -- packing -------------------------------------------------------------------------------------------------------------


def _pack(step: Step, x: Tensor) -> Packed:
    layer = step.layer
    weight = layer.weight.detach()
    outputs = layer.num_output
    bias = weight.new_zeros(outputs) if layer.bias is None else layer.bias.detach()
    scale = None
    for other in step.affine:
        a, b = other.channel_affine()
        scale = a if scale is None else scale * a
        bias = bias * a + b
    relu = "relu" if step.relu else "none"
    if isinstance(layer, InnerProduct):
        matrix = weight.t() if layer.transpose else weight
        matrix = matrix if scale is None else matrix * scale[:, None]
        return _inner_product(_linear(matrix, x.shape[0]), bias, relu)
    if isinstance(layer, Deconvolution):
        if scale is not None:
            weight = weight * scale.view(1, -1, 1, 1)
        if _as_product(layer, x):
            return _product_deconvolution(layer, _linear(weight.flatten(1).t(), x.shape[0] * prod(x.shape[2:])), bias, step.relu)
        flipped = weight.flip(2, 3).transpose(0, 1)
        pad = [(k - 1) * d - p for k, d, p in zip(layer.kernel, layer.dilation, layer.pad, strict=True)]
        return _convolution(layer, flipped, bias, pad, relu, x)
    if scale is not None:
        weight = weight * scale.view(-1, 1, 1, 1)
    if _as_product(layer, x):
        pixels = x.shape[0] * prod(layer.reshape(tuple(x.shape))[0][2:])
        return _product_convolution(layer, _linear(weight.flatten(1), pixels), bias, relu)
    return _convolution(layer, weight, bias, list(layer.pad), relu, x)


def _linear(matrix: Tensor, rows: int) -> Callable[[Tensor, Tensor | None, str], Tensor]:
    """x M' + b with (outputs, inputs) ``matrix`` in oneDNN's layout for about so many rows."""
    ops = _ops()
    packed = ops._reorder_linear_weight(matrix.contiguous(), rows)
    return lambda x, bias, relu: ops._linear_pointwise(x, packed, bias, relu, [], "")


def _inner_product(linear: Callable[..., Tensor], bias: Tensor, relu: str) -> Packed:
    return lambda x: linear(x.flatten(1).contiguous(), bias, relu)


def _convolution(layer: Any, weight: Tensor, bias: Tensor, pad: list[int], relu: str, x: Tensor) -> Packed:
    ops, stride, dilation, group = _ops(), list(layer.stride), list(layer.dilation), layer.group
    packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
        weight.contiguous().to_mkldnn(), pad, stride, dilation, group, list(x.shape)
    )

    def run(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return ops._convolution_pointwise(x, packed, bias, pad, stride, dilation, group, relu, [], "")

    return run


def _product_convolution(layer: Any, linear: Callable[..., Tensor], bias: Tensor, relu: str) -> Packed:
    """A convolution as columns times weights."""
    plain = set(layer.kernel) == set(layer.stride) == {1} and not any(layer.pad)

    def run(x: Tensor) -> Tensor:
        n, size = x.shape[0], layer.reshape(tuple(x.shape))[0][2:]
        columns = x.flatten(2) if plain else F.unfold(x.contiguous(), layer.kernel, layer.dilation, layer.pad, layer.stride)
        y = linear(columns.transpose(1, 2).flatten(0, 1).contiguous(), bias, relu)
        return y.view(n, *size, -1).permute(0, 3, 1, 2)

    return run


def _product_deconvolution(layer: Any, linear: Callable[..., Tensor], bias: Tensor, relu: bool) -> Packed:
    """A deconvolution as pixels times weights, the results laid over one another."""

    def run(x: Tensor) -> Tensor:
        n, size = x.shape[0], layer.reshape(tuple(x.shape))[0][2:]
        pixels = x.flatten(2).transpose(1, 2).flatten(0, 1).contiguous()
        columns = linear(pixels, None, "none").view(n, prod(x.shape[2:]), -1).transpose(1, 2)
        y = F.fold(columns, size, layer.kernel, layer.dilation, layer.pad, layer.stride).add_(bias.view(1, -1, 1, 1))
        return y.relu_() if relu else y

    return run


# -- memory --------------------------------------------------------------------------------------------------------------


@cache
def keep_memory() -> bool:
    """Ask glibc to keep freed memory instead of giving it back to the system: activations then reuse pages already mapped.

    Holds for the whole process; CAFFE_PORT_KEEP_MEMORY=0 in the environment forbids it. Returns whether it was done.
    """
    if os.environ.get("CAFFE_PORT_KEEP_MEMORY") == "0" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    trim_threshold, mmap_max = -1, -4
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))

