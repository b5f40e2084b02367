"""Parameter and DummyData, layers without bottoms. Source: parameter_layer.hpp, dummy_data_layer.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port import random
from caffe_port.layers.base import Layer, layer
from caffe_port.schema.messages import FillerParameter
from caffe_port.spec import sources


@layer("Parameter")
class Parameter(sources.Parameter, Layer):
    """A learned blob as a top. They share data and diff: a backward pass replaces the diff, adding nothing."""

    overwrites_diffs = True

    def forward(self) -> Tensor:
        return self.weight.view_as(self.weight)


@layer("DummyData")
class DummyData(sources.DummyData, Layer):
    """Blobs from fillers: constant ones are filled once and may then be changed; others are filled in every pass."""

    def setup(self) -> None:
        super().setup()
        messages = [f.message for f in self.p.data_filler] or [FillerParameter()]
        self.fillers_of_tops = self.each("data_filler", messages)
        for i, (filler, shape) in enumerate(zip(self.fillers_of_tops, self.shapes, strict=True)):
            random.check_filler(filler, f"{self.where}: layer {self.name}")
            self.register_buffer(f"top{i}", self.allocate_blob(f"top {i}", shape).fill_(filler.value), persistent=False)

    @property
    def untraceable(self) -> str:
        return "it draws random numbers" if any(f.type != "constant" for f in self.fillers_of_tops) else ""

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
