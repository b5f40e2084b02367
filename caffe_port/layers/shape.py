"""Layers that move numbers without changing them.

Source: input_layer.cpp, split_layer.cpp, concat_layer.cpp, crop_layer.cpp (both programs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.geometry import CoordMap, identity_map


@layer("Input", param="input_param")
class Input(Layer):
    """Blobs that the user fills."""

    bottoms = (0, 0)
    tops = (1, None)

    def setup(self) -> None:
        self.shapes = [tuple(s.dim) for s in self.p.shape]
        if len(self.shapes) not in (1, self.n_tops) and self.shapes:
            raise self.error(f"{len(self.shapes)} shapes for {self.n_tops} tops", expected="one, or one for each top")

    def reshape(self) -> list[Shape]:
        shapes = self.shapes or [(0,)]
        return list(shapes) if len(shapes) == self.n_tops else [shapes[0]] * self.n_tops

    def forward(self) -> tuple[Tensor, ...]:
        raise self.error("no value for an input", remedy=f"give {', '.join(self.fields.top)}")


@layer("Split")
class Split(Layer):
    """The same blob for each of several readers; their gradients add up."""

    tops = (1, None)

    def reshape(self, x: Shape) -> list[Shape]:
        return [x] * self.n_tops

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for _ in range(self.n_tops))

    def coord_map(self) -> CoordMap:
        return identity_map()


@layer("Concat", param="concat_param")
class Concat(Layer):
    """The bottoms one after the other along ``axis`` (or the older ``concat_dim``)."""

    bottoms = (1, None)

    def setup(self, *shapes: Shape) -> None:
        if self.p.has("axis") and self.p.has("concat_dim"):
            raise self.error("both axis and concat_dim", remedy="keep one of them")
        self.along = self.axis(self.p.concat_dim if self.p.has("concat_dim") else self.p.axis, shapes[0])

    def reshape(self, *shapes: Shape) -> list[Shape]:
        first, a = shapes[0], self.along
        for s in shapes:
            if len(s) != len(first) or any(m != n for i, (m, n) in enumerate(zip(s, first, strict=True)) if i != a):
                raise self.shape_error(f"bottoms of shapes {first} and {s}", expected=f"equal shapes but for axis {a}")
        return [(*first[:a], sum(s[a] for s in shapes), *first[a + 1 :])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.cat(bottoms, self.along)

    def coord_map(self) -> CoordMap:
        return identity_map()


@layer("Crop", param="crop_param")
class Crop(Layer):
    """The part of the first bottom that lies over the second.

    bvlc: from ``axis`` on, at ``offset``. noh: height and width, at the offset that the coordinate maps of the layers
    between the two bottoms give; it has no parameters, and the net calls :meth:`align` with that offset.
    """

    bottoms = (2, 2)
    labels = (1,)
    aligns = False

    def setup(self, x: Shape, size: Shape) -> None:
        self.from_axis, self.offset = self.axis(self.p.axis, x), self.p.offset
        if len(self.offset) not in (0, 1, len(x) - self.from_axis):
            raise self.error(f"{len(self.offset)} offsets", expected=f"one, or one for each axis from {self.from_axis} on")
        if not self.offset:
            self.offset = [0]
        if len(self.offset) == 1:
            self.offset = self.offset * (len(x) - self.from_axis)
        self.aligns = self.dialect.crop_aligns

    def align(self, offset: tuple[int, int]) -> None:
        """Set the offset (rows, columns) that the net's geometry gives."""
        self.offset = list(offset)

    def reshape(self, x: Shape, size: Shape) -> list[Shape]:
        if len(x) != len(size):
            raise self.shape_error(f"bottoms of shapes {x} and {size}", expected="as many axes in both")
        for i, o in enumerate(self.offset, self.from_axis):
            if o < 0 or o + size[i] > x[i]:
                raise self.shape_error(f"a crop from {o} to {o + size[i]} on axis {i} of {x}", expected="a crop inside the blob")
        return [(*x[: self.from_axis], *size[self.from_axis :])]

    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        for i, o in enumerate(self.offset, self.from_axis):
            x = x.narrow(i, o, size.shape[i])
        return x.contiguous()

    def coord_map(self) -> CoordMap:
        rows, columns = self.offset[-2:]
        (one, _), _ = identity_map()
        return ((one, -one * rows), (one, -one * columns))
