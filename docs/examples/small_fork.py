"""A small fork of Caffe in one file: a dialect with two new flags, and three layers."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from caffe_port.dialects import BVLC, register
from caffe_port.layers import Layer, layer
from caffe_port.layers.base import Shape

PROTO = """
message LayerParameter { optional ShiftParameter shift_param = 900; }
message ShiftParameter { optional float by = 1 [default = 1]; }
"""

register(
    replace(
        BVLC,
        name="small-fork",
        title="an invented fork",
        proto=PROTO,
        marks=frozenset({"type ChannelMax", "type Shift", "field shift_param"}),
        loss_guards_empty=False,
        mvn_eps=1e-6,
    )
)


@layer("Shift", param="shift_param", dialects=("small-fork",))
class Shift(Layer):
    """Adds a number to every value."""

    def setup(self, x: Shape) -> None:
        self.by = self.p.by

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


@layer("ChannelMax", dialects=("small-fork",))
class ChannelMax(Layer):
    """The largest value over the channels (axis 1)."""

    def reshape(self, x: Shape) -> list[Shape]:
        return [(x[0], 1, *x[2:])]

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(1, keepdim=True)


@layer("AbsVal", dialects=("small-fork",))
class ClippedAbsVal(Layer):
    """Absolute values of at most 6: this fork's own layer under a name that BVLC Caffe has too."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs().clamp(max=6)
