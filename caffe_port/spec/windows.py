"""Window arithmetic: the fields, the shapes and the coordinate maps of convolution, pooling and their inverses.

Source: base_conv_layer.cpp, conv_layer.cpp, deconv_layer.cpp, im2col_layer.cpp, pooling_layer.cpp, spp_layer.cpp;
unpooling_layer.cpp, coords.hpp (noh).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from caffe_port.spec.base import BIAS, BVLC, NOH, Blob, Shape, Spec, record
from caffe_port.spec.coords import CoordMap, filter_map, inverse
from caffe_port.spec.unknown import is_known

__all__ = ["SPP", "Convolution", "Deconvolution", "Im2col", "Pooling", "Unpooling", "Windows", "pooled_length"]


def pooled_length(
    n: int, kernel: int, stride: int, pad: int, *, padded: bool, ceil: bool = True, behind: int | None = None
) -> int:
    """The number of Caffe's windows over ``n`` pixels (pooling_layer.cpp, Reshape).

    One window fewer where the last would start in the padding; Caffe checks that only if some axis is padded. The
    padding at the end may differ, ``behind``.
    """
    steps = n + pad + (pad if behind is None else behind) - kernel
    count = (-(-steps // stride) if ceil else steps // stride) + 1
    return count - 1 if padded and (count - 1) * stride >= n + pad else count


class Windows(Spec):
    """Layers over windows: reading ``kernel_size``, ``stride``, ``pad`` and ``dilation``, with their older forms."""

    filled_from = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    transposed = False
    """Whether the tops' pixels have windows, not the bottoms'."""

    def top_shapes(self, *shapes: Shape) -> Sequence[Shape]:
        """See :meth:`Spec.top_shapes`; what the windows reach over, padding included, can be a blob too."""
        tops, axes = super().top_shapes(*shapes), len(self.kernel)
        numbers = (*self.kernel, *self.stride)
        if numbers and max(numbers) >= 2**31:
            raise self.error(f"kernel {self.kernel}, stride {self.stride}", expected="numbers below 2**31")
        if axes and axes == len(self.stride) and len(shapes[0]) > axes and is_known(shapes[0]) and is_known(tops[0]):
            sides = zip(shapes[0][-axes:], tops[0][-axes:], self.kernel, self.stride, strict=True)
            reach = [(min(inside, outside) - 1) * s + k for inside, outside, k, s in sides]
            self.check_size("windows over a bottom", (*shapes[0][:-axes], *reach))
        return tops

    def read_windows(self, x: Shape) -> None:
        """The windows over the axes of ``x`` after ``axis``, from a ``convolution_param``."""
        self.channel_axis = self.axis(self.p.axis, x)
        axes = len(x) - self.channel_axis - 1
        self.kernel, self.stride = self.spatial("kernel_size", axes, None), self.spatial("stride", axes, 1)
        self.pad, self.dilation = self.spatial("pad", axes, 0), self.holes(axes)
        if min((*self.kernel, *self.stride, *self.dilation), default=1) < 1:
            found = f"kernel {self.kernel}, stride {self.stride}, dilation {self.dilation}"
            raise self.error(found, expected="numbers above 0")
        # Of one tap it means nothing, and oneDNN 3.12 (in torch 2.13) reads outside of its memory in some such shapes.
        self.dilation = tuple(d if taps > 1 else 1 for d, taps in zip(self.dilation, self.kernel, strict=True))

    def spatial(self, name: str, axes: int, default: int | None) -> tuple[int, ...]:
        """A repeated window field, with its ``_h``/``_w`` forms (base_conv_layer.cpp, LayerSetUp)."""
        p, short = self.p, name.removesuffix("_size")
        values = getattr(p, name)
        if short != "dilation" and (p.has(f"{short}_h") or p.has(f"{short}_w")):
            self.refuse(axes != 2, f"{short}_h and {short}_w with {axes} spatial axes", expected="2 spatial axes")
            self.refuse(values, f"both {name} and {short}_h/{short}_w", remedy="keep one of them")
            return getattr(p, f"{short}_h"), getattr(p, f"{short}_w")
        if not values and default is not None:
            return (default,) * axes
        self.refuse(
            len(values) not in (1, axes),
            f"{name} given {len(values)} times",
            expected=f"once, or once for each of {axes} spatial axes",
        )
        return tuple(values) if len(values) == axes else tuple(values) * axes

    def holes(self, axes: int) -> tuple[int, ...]:
        """``dilation``, or DeepLab's name ``hole`` (deeplab-public: conv_layer.cpp); 1 by default."""
        if not (self.p.has("hole") or self.p.has("hole_h") or self.p.has("hole_w")):
            return self.spatial("dilation", axes, 1)
        self.refuse(self.p.dilation or axes != 2, f"hole, with {axes} spatial axes", expected="2, without dilation")
        return self.pair("hole")

    def sides(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """The padding (top, left) and (bottom, right) where it is given for each side; None where it is not."""
        p = self.p
        sides = (p.pad_t, p.pad_l), (p.pad_b, p.pad_r)
        if sides == ((0, 0), (0, 0)):
            return None
        self.refuse(p.has("pad_h") or p.has("pad_w"), "pad_l, pad_r, pad_t or pad_b with pad_h", expected="one form")
        self.refuse(min(map(min, sides)) < 0, f"pads {sides}", expected="0 or more")
        return sides

    def pair(self, name: str) -> tuple[int, int]:
        """An optional window field with ``_h``/``_w`` forms, as in pooling (pooling_layer.cpp, LayerSetUp)."""
        p, short = self.p, name.removesuffix("_size")
        h, w = f"{short}_h", f"{short}_w"
        self.refuse(
            p.has(h) != p.has(w) and (name == "kernel_size" or not p.has(name)),
            f"only one of {h} and {w}",
            expected="both",
        )
        self.refuse(p.has(h) and p.has(name), f"both {name} and {h}/{w}", remedy="keep one of them")
        return (getattr(p, h), getattr(p, w)) if p.has(h) else (getattr(p, name),) * 2

    def lengths(self, sides: Sequence[int]) -> tuple[int, ...]:
        """The number of windows along each spatial axis."""
        windows = zip(sides, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        return tuple(max((n + 2 * p - (k - 1) * d - 1) // s + 1, 0) for n, k, s, p, d in windows)


class Windowed(Windows):
    """Convolution and deconvolution; the weight is Caffe's in both: (conv out, conv in / group, *kernel)."""

    bottoms = (1, None)
    tops = (1, None)
    blob_specs = (Blob("weight", None, "weight_filler"), BIAS)
    reads = ("num_output", "group")
    ignores = ("engine", "force_nd_im2col")

    def setup(self, *shapes: Shape) -> None:
        x = shapes[0]
        self.refuse(
            self.n_bottoms != self.n_tops,
            f"{self.n_bottoms} bottoms and {self.n_tops} tops",
            expected="as many tops as bottoms",
        )
        self.read_windows(x)
        self.border = (0, 0, 0, 0)
        if sides := self.sides():
            self.refuse(self.p.pad or len(self.kernel) != 2, "pad_l and others with pad", expected="one, for two axes")
            self.refuse(self.transposed and sides[0] != sides[1], f"pads {sides}", expected="equal ones")
            if sides[0] == sides[1]:
                self.pad = sides[0]
            else:
                self.border = (sides[0][1], sides[1][1], sides[0][0], sides[1][0])
        self.reads_bottoms = tuple(range(self.n_bottoms))
        self.channels = x[self.channel_axis]
        self.refuse(self.num_output < 1, f"num_output {self.num_output}", expected="at least 1")
        self.refuse(
            self.group < 1 or self.channels % self.group or self.num_output % self.group,
            f"group {self.group} for {self.channels} channels in and {self.num_output} out",
            expected="a divisor of both",
        )
        rows, columns = (self.channels, self.num_output) if self.transposed else (self.num_output, self.channels)
        self.make_blobs((rows, columns // self.group, *self.kernel), (self.num_output,))

    def reshape(self, *shapes: Shape) -> list[Shape]:
        for x in shapes:
            self.refuse_shape(x != shapes[0], f"bottoms of shapes {shapes[0]} and {x}", expected="equal shapes")
        x, c = shapes[0], self.channel_axis
        self.refuse_shape(
            len(x) != c + 1 + len(self.kernel) or x[c] != self.channels,
            f"a bottom of shape {x}",
            expected=f"{self.channels} channels at axis {c}, as the weights have",
        )
        out = self.lengths(x[c + 1 :])
        self.refuse_shape(
            min(out, default=1) < 1,
            f"an output of {out} pixels from a bottom of shape {x}",
            expected=f"at least 1 (kernel {self.kernel}, stride {self.stride}, pad {self.pad})",
        )
        return [(*x[:c], self.num_output, *out)] * self.n_tops

    def uses(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        places = bottoms if self.transposed else tops
        return sum(prod(x[: self.channel_axis]) * prod(x[self.channel_axis + 1 :]) for x in places)


@record("Convolution", "convolution_param")
class Convolution(Windowed):
    def lengths(self, sides: Sequence[int]) -> tuple[int, ...]:
        if any(self.border):
            left, right, top, low = self.border
            sides = (sides[0] + top + low, sides[1] + left + right)
        return super().lengths(sides)

    def coord_map(self) -> CoordMap:
        return inverse(filter_map(self.kernel, self.stride, self.pad, self.dilation))


@record("Deconvolution", "convolution_param")
class Deconvolution(Windowed):
    transposed = True

    def lengths(self, sides: Sequence[int]) -> tuple[int, ...]:
        windows = zip(sides, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        return tuple(s * (n - 1) + (k - 1) * d + 1 - 2 * p for n, k, s, p, d in windows)

    def coord_map(self) -> CoordMap:
        return filter_map(self.kernel, self.stride, self.pad, self.dilation)


@record("Im2col", "convolution_param")
class Im2col(Windows):
    in_place = False
    ignores = (
        *("engine", "force_nd_im2col", "num_output", "group", "bias_term", "weight_filler", "bias_filler"),
    )  # fmt: skip

    def setup(self, x: Shape) -> None:
        self.read_windows(x)
        self.refuse_shape(not self.kernel, f"no spatial axes in {x}", expected="at least 1")

    def reshape(self, x: Shape) -> list[Shape]:
        c = self.channel_axis
        out = self.lengths(x[c + 1 :])
        self.refuse_shape(
            min(out, default=1) < 1, f"{out} windows in a bottom of shape {x}", expected=f"at least 1 of {self.kernel}"
        )
        return [(*x[:c], x[c] * prod(self.kernel), *out)]

    def coord_map(self) -> CoordMap:
        return inverse(filter_map(self.kernel, self.stride, self.pad, self.dilation))


@record("Pooling", "pooling_param")
class Pooling(Windows):
    tops = (1, 2)
    in_place = False
    reads = ("method=pool", "global_pooling")
    ignores = ("engine",)
    method: str

    def setup(self, x: Shape) -> None:
        p = self.p
        self.ceil = p.enum("round_mode") == "CEIL"
        if p.has("ceil_mode") and not p.has("round_mode"):
            self.ceil = p.ceil_mode
        self.counts_padding = self.method not in ("AVE_EXC_PAD", "AVE_TF")
        if not self.counts_padding:
            self.method = "AVE"
        sized = p.has("kernel_size") or p.has("kernel_h") or p.has("kernel_w")
        self.refuse(
            self.global_pooling == sized,
            "global_pooling with a kernel size" if sized else "no kernel size",
            expected="a kernel size, or global_pooling: true without one",
        )
        self.kernel = (0, 0) if self.global_pooling else self.pair("kernel_size")
        self.aligned_window = (*x, 0, 0)[2:4] if self.global_pooling else self.kernel
        self.reads_tops = (1,) if self.method == "MAX" and self.n_tops == 2 else ()
        self.stride, self.pad = self.pair("stride"), self.pair("pad")
        sides = self.sides()
        self.refuse(sides and p.has("pad"), "both pad and pad_l, pad_r, pad_t, pad_b", remedy="keep one form")
        self.pad, self.behind = sides or (self.pad, self.pad)
        self.refuse(
            self.global_pooling and (self.stride != (1, 1) or self.pad != (0, 0)),
            f"global_pooling with stride {self.stride}, pad {self.pad}",
            expected="stride 1, pad 0",
        )
        self.refuse(
            (not self.global_pooling and min(self.kernel) < 1) or min(self.stride) < 1,
            f"kernel {self.kernel}, stride {self.stride}",
            expected="numbers above 0",
        )
        self.refuse(
            any(self.pad) and any(p >= k for p, k in zip(self.pad, self.kernel, strict=True)),
            f"pad {self.pad} with kernel {self.kernel}",
            expected="less padding than kernel",
        )
        self.refuse(
            self.method == "STOCHASTIC" and (any(self.pad) or self.n_tops == 2),
            f"pool: STOCHASTIC with pad {self.pad}, {self.n_tops} tops",
            expected="no padding, one top",
        )

    def window(self, x: Shape) -> tuple[int, int]:
        """The kernel over a bottom of shape ``x``."""
        height, width = x[2:] if self.global_pooling else self.kernel
        return height, width

    def pooled(self, sides: Sequence[int], kernel: tuple[int, int]) -> tuple[int, ...]:
        """The number of windows along height and width."""
        padded = any((*self.pad, *self.behind))
        windows = zip(sides, kernel, self.stride, self.pad, self.behind, strict=True)
        height, width = (
            pooled_length(n, k, s, p, padded=padded, ceil=self.ceil, behind=b) for n, k, s, p, b in windows
        )
        return height, width

    def reshape(self, x: Shape) -> list[Shape]:
        self.four_axes(x)
        out = self.pooled(x[2:], self.window(x))
        self.refuse_shape(
            min(out) < 1, f"an output of {out} pixels from {x}", expected=f"at least 1 (kernel {self.window(x)})"
        )
        return [(*x[:2], *out)] * self.n_tops

    def coord_map(self) -> CoordMap:
        return inverse(filter_map(self.aligned_window, self.stride, self.pad))


@record("SPP", "spp_param", BVLC)
class SPP(Windows):
    in_place = False
    reads = ("height=pyramid_height", "method=pool")
    ignores = ("engine",)
    pooling: type[Pooling] = Pooling
    """What it is made of."""

    def setup(self, x: Shape) -> None:
        self.refuse(self.height < 1, f"pyramid_height {self.height}", expected="at least 1")
        self._size: Shape = ()
        self._levels: list[Pooling] = []

    def levels(self, x: Shape) -> list[Pooling]:
        """The poolings of blobs of this size; those of the last size are kept."""
        if self._size != x[2:]:
            self._size, self._levels = x[2:], [self.level(x, i) for i in range(self.height)]
        return self._levels

    def level(self, x: Shape, level: int) -> Pooling:
        """The pooling of ``x`` into 2^level windows a side; they may hang over its edges."""
        message = self.fields.blank(name=self.name, type="Pooling", bottom=["x"], top=["y"])
        p = message.pooling_param
        p.pool = p.DESCRIPTOR.enum_types_by_name["PoolMethod"].values_by_name[self.method].number
        for side, n in zip("hw", x[2:], strict=True):
            kernel = -(-n // 2**level)
            setattr(p, f"kernel_{side}", kernel)
            setattr(p, f"stride_{side}", kernel)
            setattr(p, f"pad_{side}", (kernel * 2**level - n + 1) // 2)
        pooling = self.pooling(message, self.dialect, self.where)
        pooling.setup(x)
        return pooling

    def reshape(self, x: Shape) -> list[Shape]:
        self.four_axes(x)
        shapes = [pooling.reshape(x)[0] for pooling in self.levels(x)]
        return shapes if self.height == 1 else [(x[0], sum(prod(s[1:]) for s in shapes))]


@record("Unpooling", "unpooling_param", NOH)
class Unpooling(Windows):
    bottoms = (1, 2)
    labels = reads_bottoms = (1,)
    in_place = False
    reads = ("method=unpool",)
    ignores = ("engine",)

    def setup(self, x: Shape, switches: Shape | None = None) -> None:
        p = self.p
        self.kernel, self.stride = self.pair("kernel_size"), self.pair("stride")
        self.refuse(
            min(self.kernel) < 1 or min(self.stride) < 1,
            f"kernel {self.kernel}, stride {self.stride}",
            expected="numbers above 0",
        )
        self.refuse(self.pair("pad") != (0, 0), "a pad", expected="no padding: the original has none")
        both = p.has("unpool_h") and p.has("unpool_w")
        self.refuse(
            p.has("unpool_size") == both or p.has("unpool_h") != p.has("unpool_w"),
            "the size of the output is not given once",
            expected="unpool_size, or unpool_h and unpool_w",
        )
        self.size = (p.unpool_h, p.unpool_w) if both else (p.unpool_size,) * 2
        self.refuse(
            self.n_bottoms == 2 and self.method != "MAX",
            f"switches for unpool: {self.method}",
            expected="one bottom, or unpool: MAX",
        )

    def reshape(self, x: Shape, switches: Shape | None = None) -> list[Shape]:
        self.refuse_shape(
            len(x) != 4 or (switches is not None and switches != x),
            f"bottoms of shapes {x} and {switches}",
            expected="equal shapes of 4 axes",
        )
        return [(*x[:2], *self.size)]

    def coord_map(self) -> CoordMap:
        return filter_map(self.kernel, self.stride, (0, 0))
