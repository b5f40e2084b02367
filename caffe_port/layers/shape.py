"""Layers that move numbers without changing them.

Source: input_layer.cpp, split_layer.cpp, silence_layer.cpp, concat_layer.cpp, slice_layer.cpp, tile_layer.cpp,
flatten_layer.cpp, reshape_layer.cpp, crop_layer.cpp (both programs).
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

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


@layer("Silence")
class Silence(Layer):
    """Nothing at all: its bottoms are no outputs of the net."""

    bottoms = (1, None)
    tops = (0, 0)

    def reshape(self, *shapes: Shape) -> list[Shape]:
        return []

    def forward(self, *bottoms: Tensor) -> tuple[()]:
        return ()


class _AlongAxis(Layer):
    def read_axis(self, older: str, x: Shape) -> int:
        """The axis that ``axis``, or an older field, names."""
        if self.dialect.axes_by_dim and getattr(self.p, older) > 1:
            raise self.error(
                f"{older} {getattr(self.p, older)}", expected="0 or 1", remedy="--dialect bvlc has all axes"
            )
        if self.dialect.axes_by_dim or self.p.has(older):
            if not self.dialect.axes_by_dim and self.p.has("axis"):
                raise self.error(f"both axis and {older}", remedy="keep one of them")
            return self.axis(getattr(self.p, older), x)
        return self.axis(self.p.axis, x)


@layer("Concat", param="concat_param")
class Concat(_AlongAxis):
    """The bottoms one after the other along ``axis`` (or the older ``concat_dim``)."""

    bottoms = (1, None)

    def setup(self, *shapes: Shape) -> None:
        self.along = self.read_axis("concat_dim", shapes[0])

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


@layer("Slice", param="slice_param")
class Slice(_AlongAxis):
    """The bottom cut along ``axis`` (or the older ``slice_dim``) at each ``slice_point``, or into equal parts."""

    tops = (1, None)

    def setup(self, x: Shape) -> None:
        self.along, self.points = self.read_axis("slice_dim", x), self.p.slice_point
        if self.points and len(self.points) != self.n_tops - 1:
            raise self.error(f"{len(self.points)} slice_point for {self.n_tops} tops", expected="one fewer than tops")

    def reshape(self, x: Shape) -> list[Shape]:
        return [(*x[: self.along], n, *x[self.along + 1 :]) for n in self.lengths(x)]

    def lengths(self, x: Shape) -> list[int]:
        """How much of the axis each top gets."""
        n = x[self.along]
        if not self.points:
            if n % self.n_tops:
                raise self.shape_error(
                    f"{self.n_tops} equal parts of axis {self.along} of {x}", expected="a divisor of it"
                )
            return [n // self.n_tops] * self.n_tops
        edges = [0, *self.points, n]
        lengths = [b - a for a, b in pairwise(edges)]
        if min(lengths) < 1:
            raise self.shape_error(
                f"slice_point {self.points} on axis {self.along} of {x}", expected="rising points inside the axis"
            )
        return lengths

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.lengths(tuple(x.shape)), self.along)


@layer("Tile", param="tile_param", dialects=("bvlc",))
class Tile(Layer):
    """``tiles`` copies of the bottom, one after the other along ``axis``."""

    def setup(self, x: Shape) -> None:
        self.along, self.tiles = self.axis(self.p.axis, x), self.p.tiles
        if self.tiles < 1:
            raise self.error(f"tiles {self.tiles}", expected="at least 1")

    def reshape(self, x: Shape) -> list[Shape]:
        return [(*x[: self.along], x[self.along] * self.tiles, *x[self.along + 1 :])]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.tiles, self.along)


@layer("Flatten", param="flatten_param")
class Flatten(Layer):
    """The axes from ``axis`` to ``end_axis`` as one."""

    in_place = False

    def setup(self, x: Shape) -> None:
        self.from_axis, self.end_axis = self.p.axis, self.p.end_axis

    def reshape(self, x: Shape) -> list[Shape]:
        first, last = self.axis(self.from_axis, x), self.axis(self.end_axis, x)
        if first > last:
            raise self.error(f"axis {first} and end_axis {last}", expected="an end that is not before the start")
        return [(*x[:first], prod(x[first : last + 1]), *x[last + 1 :])]

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.from_axis, self.end_axis)


@layer("Reshape", param="reshape_param", dialects=("bvlc",))
class Reshape(Layer):
    """The same numbers under another shape: ``num_axes`` axes from ``axis`` on give way to those of ``shape``.

    A 0 in it keeps the bottom's axis at that place, a -1 takes what is left over. A negative ``axis`` counts from
    behind the last one.
    """

    in_place = False

    def setup(self, x: Shape) -> None:
        self.dims, self.from_axis, self.num_axes = self.p.shape.dim, self.p.axis, self.p.num_axes
        if self.dims.count(-1) > 1 or min(self.dims, default=0) < -1:
            raise self.error(f"shape {self.dims}", expected="numbers from 0 up, and at most one -1")

    def asked(self, x: Shape) -> list[int]:
        """The shape that a bottom of shape ``x`` takes, with a -1 for what is left over."""
        axis, n = self.from_axis, self.num_axes
        start = axis if axis >= 0 else len(x) + axis + 1
        end = len(x) if n == -1 else start + n
        if not 0 <= start <= end <= len(x):
            raise self.error(f"axis {axis} and num_axes {n}", expected=f"axes of a blob of shape {x}")
        if any(d == 0 and i >= len(x) for i, d in enumerate(self.dims, start)):
            raise self.shape_error(f"a 0 in {self.dims} from axis {start} on", expected=f"axes to copy in {x}")
        return [*x[:start], *(d or x[i] for i, d in enumerate(self.dims, start)), *x[end:]]

    def reshape(self, x: Shape) -> list[Shape]:
        shape = self.asked(x)
        if -1 in shape:
            known = -prod(shape)
            if not known or prod(x) % known:
                raise self.shape_error(
                    f"{prod(x)} numbers of {x} for {tuple(shape)}", expected=f"a multiple of {known}"
                )
            shape[shape.index(-1)] = prod(x) // known
        if prod(shape) != prod(x):
            raise self.shape_error(f"{prod(x)} numbers of {x} for {tuple(shape)}", expected=f"{prod(shape)}")
        return [tuple(shape)]

    def forward(self, x: Tensor) -> Tensor:
        if self.from_axis == 0 and self.num_axes == -1:
            return x.reshape([d or x.shape[i] for i, d in enumerate(self.dims)])
        return x.reshape(self.asked(x.shape))


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
            raise self.error(
                f"{len(self.offset)} offsets", expected=f"one, or one for each axis from {self.from_axis} on"
            )
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
                raise self.shape_error(
                    f"a crop from {o} to {o + size[i]} on axis {i} of {x}", expected="a crop inside the blob"
                )
        return [(*x[: self.from_axis], *size[self.from_axis :])]

    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        for i, o in enumerate(self.offset, self.from_axis):
            x = x.narrow(i, o, size.shape[i])
        return x.contiguous()

    def coord_map(self) -> CoordMap:
        rows, columns = self.offset[-2:]
        (one, _), _ = identity_map()
        return ((one, -one * rows), (one, -one * columns))
