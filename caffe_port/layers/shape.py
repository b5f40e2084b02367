"""Layers that move values without changing them.

Source: input_layer.cpp, split_layer.cpp, silence_layer.cpp, concat_layer.cpp, slice_layer.cpp, tile_layer.cpp,
flatten_layer.cpp, reshape_layer.cpp, crop_layer.cpp (both programs).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.spec import shaping, sources


@layer("Input")
class Input(sources.Input, Layer):
    """Blobs that the user fills. It is called for the sake of hooks only, with their values."""

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return given


@layer("Split")
class Split(Layer):
    """The same blob for each of several readers; their gradients add up."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for _ in range(self.n_tops))


@layer("Silence")
class Silence(Layer):
    """No computation: its bottoms are not outputs of the net.

    In segnet its backward pass, which runs only with ``force_backward``, sets the data of its bottoms to 0.
    """

    def setup(self, *shapes: Shape) -> None:
        self.clears_data = self.dialect.silence_clears_data

    def forward(self, *bottoms: Tensor) -> tuple[()]:
        return ()


@layer("Concat")
class Concat(shaping.Concat, Layer):
    """The bottoms concatenated along ``axis`` (or the older ``concat_dim``)."""

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.cat(bottoms, self.along)


@layer("Slice")
class Slice(shaping.Slice, Layer):
    """The bottom split along ``axis`` (or the older ``slice_dim``) at each ``slice_point``, or into equal parts."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.lengths(tuple(x.shape)), self.along)


@layer("Tile")
class Tile(shaping.Tile, Layer):
    """``tiles`` copies of the bottom, concatenated along ``axis``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat([self.tiles if axis == self.along else 1 for axis in range(x.dim())])


@layer("Flatten")
class Flatten(shaping.Flatten, Layer):
    """The axes from ``axis`` to ``end_axis`` as one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.from_axis, self.end_axis)


@layer("Reshape")
class Reshape(shaping.Reshape, Layer):
    """The same values in another shape: ``num_axes`` axes from ``axis`` are replaced by those of ``shape``.

    A 0 in it copies the bottom's axis at that position, a -1 is inferred from the rest. A negative ``axis`` counts from
    after the last one. ``pixelshuffler`` r (not in BVLC 1.0) moves every r * r channels to r x r pixels.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.shuffles != 1:
            return F.pixel_shuffle(x, self.shuffles)
        if self.from_axis == 0 and self.num_axes == -1:
            return x.reshape([d or x.shape[i] for i, d in enumerate(self.dims)])
        return x.reshape(self.asked(x.shape))


@layer("Crop")
class Crop(shaping.Crop, Layer):
    """The part of the first bottom that coincides with the second."""

    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        for i, o in enumerate(self.offset, self.from_axis):
            x = x.narrow(i, o, size.shape[i])
        return x.contiguous()
