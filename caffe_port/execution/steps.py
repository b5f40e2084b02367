"""Steps of the compiled kernels (``caffe_port/native/steps.c``), and where their blobs are in memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.base import Layer

__all__ = ["Emitter", "Folded", "Memory", "Op", "Step", "UnsupportedError", "Value"]


class UnsupportedError(Exception):
    """The kernels do not have the layer, or not for such a bottom."""


class Op(IntEnum):
    """The kernels, in the order of steps.c."""

    CONVOLVE = 0
    WINOGRAD = 1
    DEPTHWISE = 2
    ROWS_PRODUCT = 3
    COLUMNS_PRODUCT = 4
    LARGEST = 5
    AVERAGE = 6
    NEIGHBOURS = 7
    SUM = 8
    AFFINE = 9
    SOFTMAX = 10
    TO_PLANES = 11
    FROM_PLANES = 12
    COLUMNS = 13
    CONVOLVE_HALF = 14
    LARGEST_AT = 15
    UNPOOL = 16


_long, _pair, _pointer, _float = ctypes.c_long, ctypes.c_long * 2, ctypes.c_void_p, ctypes.c_float


class _Blob(ctypes.Structure):
    _fields_ = (("base", _long), ("at", _long), ("stride", _long))


class Step(ctypes.Structure):
    """``Step`` of steps.c."""

    _fields_ = (
        ("op", _long),
        *((name, _Blob) for name in ("x", "other", "y")),
        *((name, _long) for name in ("n", "h", "w", "c", "out_h", "out_w", "out")),
        *((name, _pair) for name in ("kernel", "step", "pad", "behind", "dilation")),
        *((name, _long) for name in ("group", "relu", "flag")),
        *((name, _pointer) for name in ("weight", "bias", "slope")),
        *((name, _float) for name in ("a", "b", "power")),
    )


@dataclass(eq=False)
class Memory:
    """Pixels of ``stride`` numbers each; with a parent, a part of its pixels from the number ``at`` on.

    Attributes:
        base: 0, the memory of a pass; else an input or output of the run. at: the first number's place in it.
        fixed: its pixels must follow each other. first, last: the steps between which its numbers are needed.
    """

    pixels: int
    stride: int
    base: int = 0
    at: int = 0
    parent: Memory | None = None
    fixed: bool = False
    first: int = 1 << 30
    last: int = -1

    def root(self) -> tuple[Memory, int]:
        """The memory that this is a part of, and the number of a pixel where it begins."""
        if self.parent is None:
            return self, 0
        memory, at = self.parent.root()
        return memory, at + self.at


@dataclass(frozen=True, eq=False)
class Value:
    """A blob: (N, C, H, W) or (N, C). ``planar``: its memory is in that order; else pixel by pixel."""

    shape: tuple[int, ...]
    memory: Memory
    planar: bool = False

    @property
    def area(self) -> int:
        return prod(self.shape[2:])


@dataclass(frozen=True)
class Folded:
    """In-place layers behind one: factors and terms of channels, then at most one ReLU.

    Attributes:
        slope: of the ReLU's negative side, for each channel or one for all; None if they become 0.
    """

    affine: Sequence[Layer] = ()
    relu: bool = False
    slope: Tensor | None = None

    def scale_and_bias(self, bias: Tensor | None, channels: int) -> tuple[Tensor | None, Tensor]:
        """The factor and the term of each channel, ``bias`` coming first."""
        scale: Tensor | None = None
        total = torch.zeros(channels) if bias is None else bias.detach()
        for a, b in filter(None, (layer.channel_affine() for layer in self.affine)):
            scale = a if scale is None else scale * a
            total = total * a + b
        return scale, total


class Emitter:
    """The steps so far.

    Args:
        packed: weights in the kernels' order, by what they are; kept from run to run. wide: of a panel.
        half: multiply in bfloat16.
    """

    def __init__(self, packed: dict[Any, tuple[Tensor, ...]], wide: int, *, legacy: bool, half: bool) -> None:
        self.packed, self.wide, self.legacy, self.half = packed, wide, legacy, half
        self.steps: list[Step] = []
        self.blobs: list[dict[str, Memory]] = []
        self.kept: list[Tensor] = []
        """Tensors that the steps point to."""
        self.strides: dict[int, int] = {}
        """Of the tops of those steps that write several pixels as one."""
        self.unpoolings: dict[int, Layer] = {}
        """By their steps, which fail where a switch is outside the output."""
        self._in_pixels: dict[Value, Value] = {}

    def new(self, shape: Sequence[int]) -> Value:
        """A blob to be written."""
        shape = tuple(shape)
        if self.legacy and len(shape) < 4:
            raise UnsupportedError
        return Value(shape, Memory(shape[0] * prod(shape[2:]), shape[1]))

    def add(self, op: Op, x: Value, y: Value, other: Value | None = None, **facts: Any) -> None:
        """A step from ``x`` (and ``other``) to ``y``."""
        (n, c, *area), (_, out, *out_area) = x.shape, y.shape
        (h, w), (out_h, out_w) = area or (1, 1), out_area or (1, 1)
        step = Step(op=op, n=n, h=h, w=w, c=c, out_h=out_h, out_w=out_w, out=out)
        step.group = 1
        step.kernel = step.step = step.dilation = _pair(1, 1)
        for name, value in facts.items():
            if isinstance(value, Tensor):
                self.kept.append(value)
                value = value.data_ptr()
            elif isinstance(value, tuple):
                value = _pair(*value)
            setattr(step, name, value)
        self.steps.append(step)
        self.blobs.append({"x": x.memory, "y": y.memory, **({"other": other.memory} if other else {})})

    def slope(self, y: Value, slope: Tensor | None) -> None:
        """A ReLU's factors of what is negative, in place."""
        if slope is not None:
            self.add(Op.AFFINE, y, y, bias=torch.zeros(len(slope)), slope=slope.contiguous())

    def pixels(self, x: Value) -> Value:
        """``x`` pixel by pixel."""
        if not x.planar:
            return x
        if x not in self._in_pixels:
            y = self.new(x.shape)
            self.add(Op.FROM_PLANES, x, y)
            self._in_pixels[x] = y
        return self._in_pixels[x]

    def rows(self, x: Value) -> Value:
        """``x`` as (N, C * H * W), contiguous."""
        shape = x.shape[0], prod(x.shape[1:])
        if x.planar:
            return Value(shape, Memory(shape[0], shape[1], x.memory.base))
        if x.area == 1 and x.memory.parent is None and x.memory.stride == shape[1]:
            x.memory.fixed = True
            return Value(shape, x.memory)
        y = Value(shape, Memory(*shape, fixed=True))
        self.add(Op.TO_PLANES, x, y)
        return y

    def weights(self, key: Any, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Weights in the kernels' order."""
        if key not in self.packed:
            self.packed[key] = make()
        return self.packed[key]

    def filled_up(self, t: Tensor, group: int = 1) -> Tensor:
        """A number for each output, each group's filled up to whole panels."""
        t = t.detach().reshape(group, -1)
        return F.pad(t, (0, -t.shape[1] % self.wide)).contiguous()

    def panels(self, weight: Tensor, group: int) -> Tensor:
        """(outputs, inputs / group, h, w) as (group, panels, h, w, inputs / group, panel's outputs).

        In bfloat16 as (group, panels, pairs of the next three axes, panel's outputs, 2).
        """
        out, inputs, h, w = weight.shape
        filled = F.pad(weight.reshape(group, out // group, -1), (0, 0, 0, -(out // group) % self.wide))
        filled = filled.view(group, -1, self.wide, inputs, h, w)
        filled = filled.permute(0, 1, 4, 5, 3, 2)
        if not self.half:
            return filled.contiguous()
        rows = filled.bfloat16().flatten(2, 4)
        rows = F.pad(rows, (0, 0, 0, rows.shape[2] % 2))
        return rows.view(*rows.shape[:2], -1, 2, self.wide).transpose(3, 4).contiguous()
