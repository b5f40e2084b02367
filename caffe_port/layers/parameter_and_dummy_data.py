"""Layers that make numbers of their own. Source: parameter_layer.hpp, dummy_data_layer.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port import random
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.schema.messages import FillerParameter


@layer("Parameter", param="parameter_param", dialects=("bvlc",))
class Parameter(Layer):
    """A learned blob as a top. They share data and diff: a backward pass replaces the diff, adding nothing."""

    bottoms = (0, 0)
    overwrites_diffs = True

    def setup(self) -> None:
        self.blob("weight", tuple(self.p.shape.dim))

    def reshape(self) -> list[Shape]:
        return [tuple(self.weight.shape)]

    def forward(self) -> Tensor:
        return self.weight.view_as(self.weight)


@layer("DummyData", param="dummy_data_param")
class DummyData(Layer):
    """Blobs from fillers: a constant one is filled once, and then is the user's; others anew in every pass."""

    bottoms = (0, 0)
    tops = (1, None)

    def setup(self) -> None:
        p = self.p
        self.shapes = self.each("shape", [tuple(s.dim) for s in p.shape] or self.four_axes())
        messages = [f.message for f in p.data_filler] or [FillerParameter()]
        self.fillers_of_tops = self.each("data_filler", messages)
        for i, (filler, shape) in enumerate(zip(self.fillers_of_tops, self.shapes, strict=True)):
            self.register_buffer(f"top{i}", torch.full(shape, filler.value), persistent=False)

    def four_axes(self) -> list[Shape]:
        """The shapes in the older form, ``num``, ``channels``, ``height`` and ``width``."""
        sides = [self.each(name, getattr(self.p, name)) for name in ("num", "channels", "height", "width")]
        return list(zip(*sides, strict=True))

    def each(self, what: str, given: list) -> list:
        """``given`` for every top: one for all, or one each."""
        if len(given) not in (1, self.n_tops):
            raise self.error(f"{len(given)} {what} for {self.n_tops} tops", expected="one, or one for each top")
        return given * self.n_tops if len(given) == 1 else given

    def reshape(self) -> list[Shape]:
        return self.shapes

    def initial_tops(self) -> list[Tensor]:
        return [getattr(self, f"top{i}") for i in range(self.n_tops)]

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(
            top if filler.type == "constant" else self.drawn(filler, top)
            for filler, top in zip(self.fillers_of_tops, self.initial_tops(), strict=True)
        )

    def drawn(self, filler: FillerParameter, like: Tensor) -> Tensor:
        """New numbers in the shape and precision of ``like``."""
        numbers = random.fill(
            filler,
            tuple(like.shape),
            random.default_stream(),
            torch.empty((), dtype=like.dtype).numpy().dtype,
            legacy=self.dialect.legacy_shapes,
            fused=self.dialect.fused_draws,
            where=f"{self.where}: layer {self.name}",
        )
        return torch.from_numpy(numbers).to(like.device)
