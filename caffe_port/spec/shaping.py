"""Layers that move, select or count values: the shapes of their tops.

Source: split_layer.cpp, silence_layer.cpp, concat_layer.cpp, slice_layer.cpp, tile_layer.cpp, flatten_layer.cpp,
reshape_layer.cpp, crop_layer.cpp (both programs); reduction_layer.cpp, batch_reindex_layer.cpp, filter_layer.cpp,
argmax_layer.cpp.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

from caffe_port.spec.base import BOTH, BVLC, NOH, Shape, Spec, define, record
from caffe_port.spec.coords import CoordMap, identity_map

__all__ = ["ArgMax", "BatchReindex", "Concat", "Crop", "Filter", "Flatten", "Reduction", "Reshape", "Slice", "Tile"]

define("Split", Spec, tops=(1, None), aligned=BOTH, in_place=False, shares_memory=True)
define("Silence", Spec, bottoms=(1, None), tops=(0, 0))


class AlongAxis(Spec):
    """Splits or concatenates along ``axis``, or along the axis of an older field."""

    in_place = False

    def read_axis(self, older: str, x: Shape) -> int:
        """The axis of ``axis`` or of an older field."""
        self.refuse(
            self.dialect.axes_by_dim and getattr(self.p, older) > 1,
            f"{older} {getattr(self.p, older)}",
            expected="0 or 1",
            remedy="other axes need --dialect bvlc",
        )
        if self.dialect.axes_by_dim or self.p.has(older):
            self.refuse(
                not self.dialect.axes_by_dim and self.p.has("axis"), f"both axis and {older}", remedy="keep one of them"
            )
            return self.axis(getattr(self.p, older), x)
        return self.axis(self.p.axis, x)


@record("Concat", "concat_param")
class Concat(AlongAxis):
    bottoms = (1, None)
    aligned = NOH

    def setup(self, *shapes: Shape) -> None:
        self.along = self.read_axis("concat_dim", shapes[0])
        self.shares_memory = self.n_bottoms == 1 and not self.dialect.axes_by_dim

    def reshape(self, *shapes: Shape) -> list[Shape]:
        first, a = shapes[0], self.along
        for s in shapes:
            self.refuse_shape(
                len(s) != len(first) or any(m != n for i, (m, n) in enumerate(zip(s, first, strict=True)) if i != a),
                f"bottoms of shapes {first} and {s}",
                expected=f"equal shapes but for axis {a}",
            )
        return [(*first[:a], sum(s[a] for s in shapes), *first[a + 1 :])]


@record("Slice", "slice_param")
class Slice(AlongAxis):
    tops = (1, None)
    aligned = NOH
    reads = ("points=slice_point",)

    def setup(self, x: Shape) -> None:
        self.along = self.read_axis("slice_dim", x)
        self.shares_memory = self.n_tops == 1 and not self.dialect.axes_by_dim
        self.refuse(
            self.points and len(self.points) != self.n_tops - 1,
            f"{len(self.points)} slice_point for {self.n_tops} tops",
            expected="one fewer than tops",
        )

    def reshape(self, x: Shape) -> list[Shape]:
        return [(*x[: self.along], n, *x[self.along + 1 :]) for n in self.lengths(x)]

    def lengths(self, x: Shape) -> list[int]:
        """The length of each top along the axis."""
        n = x[self.along]
        if not self.points:
            self.refuse_shape(
                n % self.n_tops, f"{self.n_tops} equal parts of axis {self.along} of {x}", expected="a divisor of it"
            )
            return [n // self.n_tops] * self.n_tops
        lengths = [b - a for a, b in pairwise([0, *self.points, n])]
        self.refuse_shape(
            min(lengths) < 1,
            f"slice_point {self.points} on axis {self.along} of {x}",
            expected="rising points inside the axis",
        )
        return lengths


@record("Tile", "tile_param", BVLC)
class Tile(Spec):
    in_place = False
    reads = ("tiles",)

    def setup(self, x: Shape) -> None:
        self.along = self.axis(self.p.axis, x)
        self.refuse(self.tiles < 1, f"tiles {self.tiles}", expected="at least 1")

    def reshape(self, x: Shape) -> list[Shape]:
        return [(*x[: self.along], x[self.along] * self.tiles, *x[self.along + 1 :])]


@record("Flatten", "flatten_param")
class Flatten(Spec):
    in_place, shares_memory = False, True
    reads = ("from_axis=axis", "end_axis")

    def reshape(self, x: Shape) -> list[Shape]:
        first, last = self.axis(self.from_axis, x), self.axis(self.end_axis, x)
        self.refuse(first > last, f"axis {first} and end_axis {last}", expected="an end that is not before the start")
        return [(*x[:first], prod(x[first : last + 1]), *x[last + 1 :])]


@record("Reshape", "reshape_param", BVLC)
class Reshape(Spec):
    in_place, shares_memory = False, True
    reads = ("from_axis=axis", "num_axes", "shuffles=pixelshuffler")

    def setup(self, x: Shape) -> None:
        self.dims = self.p.shape.dim
        self.shares_memory = self.shuffles == 1
        self.refuse(
            self.dims.count(-1) > 1 or min(self.dims, default=0) < -1,
            f"shape {self.dims}",
            expected="numbers from 0 up, and at most one -1",
        )

    def asked(self, x: Shape) -> list[int]:
        """The shape that a bottom of shape ``x`` takes, with a -1 for the inferred axis."""
        axis, n = self.from_axis, self.num_axes
        start = axis if axis >= 0 else len(x) + axis + 1
        end = len(x) if n == -1 else start + n
        self.refuse(
            not 0 <= start <= end <= len(x), f"axis {axis} and num_axes {n}", expected=f"axes of a blob of shape {x}"
        )
        self.refuse_shape(
            any(d == 0 and i >= len(x) for i, d in enumerate(self.dims, start)),
            f"a 0 in {self.dims} from axis {start} on",
            expected=f"axes to copy in {x}",
        )
        return [*x[:start], *(d or x[i] for i, d in enumerate(self.dims, start)), *x[end:]]

    def reshape(self, x: Shape) -> list[Shape]:
        if self.shuffles != 1:
            n = self.shuffles
            self.refuse(n < 1 or self.dims, f"pixelshuffler {n}, shape {self.dims}", expected="1 or more, and no shape")
            wrong = len(x) != 4 or x[1] % n**2
            self.refuse_shape(wrong, f"a bottom of shape {x}", expected=f"4 axes, a multiple of {n**2} channels")
            return [(x[0], x[1] // n**2, x[2] * n, x[3] * n)]
        shape = self.asked(x)
        if self.dims.count(-1):
            place = shape.index(-1)
            known = prod((*shape[:place], *shape[place + 1 :]))
            self.refuse_shape(
                not known or prod(x) % known,
                f"{prod(x)} numbers of {x} for {tuple(shape)}",
                expected=f"a multiple of {known}",
            )
            shape[place] = prod(x) // known
        self.refuse_shape(
            prod(shape) != prod(x), f"{prod(x)} numbers of {x} for {tuple(shape)}", expected=f"{prod(shape)}"
        )
        return [tuple(shape)]


@record("Crop", "crop_param")
class Crop(Spec):
    """The part of the first bottom that coincides with the second.

    bvlc: from ``axis`` on, at ``offset``. noh: height and width, at the offset that the coordinate maps of the layers
    between the two bottoms give; it has no parameters, and the net calls :meth:`align` with that offset.
    """

    bottoms = (2, 2)
    labels = (1,)
    in_place = False
    reads = ("offset",)
    offset: list[int]

    def setup(self, x: Shape, size: Shape) -> None:
        self.from_axis, self.aligns = self.axis(self.p.axis, x), self.dialect.crop_aligns
        axes = len(x) - self.from_axis
        self.refuse(
            len(self.offset) not in (0, 1, axes),
            f"{len(self.offset)} offsets",
            expected=f"one, or one for each axis from {self.from_axis} on",
        )
        if len(self.offset) < axes:
            self.offset = (self.offset or [0]) * axes

    def align(self, offset: tuple[int, int]) -> None:
        """Set the offset (rows, columns) from the net's coordinate maps."""
        self.offset = list(offset)

    def reshape(self, x: Shape, size: Shape) -> list[Shape]:
        self.refuse_shape(len(x) != len(size), f"bottoms of shapes {x} and {size}", expected="as many axes in both")
        for i, o in enumerate(self.offset, self.from_axis):
            self.refuse_shape(
                o < 0 or o + size[i] > x[i],
                f"a crop from {o} to {o + size[i]} on axis {i} of {x}",
                expected="a crop inside the blob",
            )
        return [(*x[: self.from_axis], *size[self.from_axis :])]

    def coord_map(self) -> CoordMap:
        return tuple((one, -one * offset) for (one, _), offset in zip(identity_map(), self.offset[-2:], strict=True))


@record("Reduction", "reduction_param", BVLC)
class Reduction(Spec):
    in_place = False
    reads = ("operation", "coeff")

    def setup(self, x: Shape) -> None:
        self.from_axis = self.axis(self.p.axis, x)
        self.reads_bottoms = (0,) if self.operation in ("ASUM", "SUMSQ") else ()

    def reshape(self, x: Shape) -> list[Shape]:
        return [x[: self.from_axis]]


@record("BatchReindex", None, BVLC)
class BatchReindex(Spec):
    bottoms = (2, 2)
    labels = reads_bottoms = (1,)
    in_place = False

    def reshape(self, x: Shape, index: Shape) -> list[Shape]:
        self.refuse_shape(
            len(index) != 1 or not x,
            f"bottoms of shapes {x} and {index}",
            expected="items, and a vector of their indices",
        )
        return [(*index, *x[1:])]


@record("Filter", None, BVLC)
class Filter(Spec):
    in_place = False
    bottoms = (2, None)
    tops = (1, None)

    def setup(self, *shapes: Shape) -> None:
        self.refuse(
            self.n_tops != self.n_bottoms - 1,
            f"{self.n_tops} tops",
            expected=f"{self.n_bottoms - 1}: one for each bottom but the selector",
        )
        self.labels = (self.n_bottoms - 1,)

    def reshape(self, *shapes: Shape) -> list[Shape]:
        *items, selector = shapes
        self.refuse_shape(
            not selector or any(n != 1 for n in selector[1:]),
            f"a selector of shape {selector}",
            expected="one number for each item",
        )
        for x in items:
            self.refuse_shape(
                x[:1] != selector[:1],
                f"a bottom of shape {x} with {selector[0]} selectors",
                expected="one for each item",
            )
        return items


@record("ArgMax", "argmax_param")
class ArgMax(Spec):
    in_place = False
    labels = (0,)
    reads = ("top_k", "out_max_val")

    def setup(self, x: Shape) -> None:
        self.over = self.axis(self.p.axis, x) if self.p.has("axis") else None

    def reshape(self, x: Shape) -> list[Shape]:
        choices = prod(x[1:]) if self.over is None else x[self.over]
        self.refuse(not 1 <= self.top_k <= choices, f"top_k {self.top_k}", expected=f"a number from 1 to {choices}")
        if self.over is not None:
            return [(*x[: self.over], self.top_k, *x[self.over + 1 :])]
        return [(x[0], 2 if self.out_max_val else 1, self.top_k, *(1,) * (len(x) - 3))]
