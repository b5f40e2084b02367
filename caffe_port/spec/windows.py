"""Window arithmetic: the fields, the shapes and the coordinate maps of convolution, pooling and their inverses.

Source: base_conv_layer.cpp, conv_layer.cpp, deconv_layer.cpp, im2col_layer.cpp, pooling_layer.cpp, spp_layer.cpp;
unpooling_layer.cpp, coords.hpp (noh).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from caffe_port.spec.base import BIAS, BVLC, NOH, Blob, Shape, Spec, record
from caffe_port.spec.coords import CoordMap, filter_map, inverse

__all__ = ["SPP", "Convolution", "Deconvolution", "Im2col", "Pooling", "Unpooling", "Windows", "pooled_length"]


def pooled_length(n: int, kernel: int, stride: int, pad: int, *, padded: bool, ceil: bool = True) -> int:
    """How many windows Caffe lays over ``n`` pixels (pooling_layer.cpp, Reshape).

    One window fewer where the last would start in the padding; Caffe asks that only when some axis is padded.
    """
    steps = n + 2 * pad - kernel
    count = (-(-steps // stride) if ceil else steps // stride) + 1
    return count - 1 if padded and (count - 1) * stride >= n + pad else count


class Windows(Spec):
    """Layers over windows: reading ``kernel_size``, ``stride``, ``pad`` and ``dilation``, with their older forms."""

    def read_windows(self, x: Shape) -> None:
        """The windows over the axes of ``x`` behind ``axis``, as a ``convolution_param`` has them."""
        self.channel_axis = self.axis(self.p.axis, x)
        axes = len(x) - self.channel_axis - 1
        self.kernel, self.stride = self.spatial("kernel_size", axes, None), self.spatial("stride", axes, 1)
        self.pad, self.dilation = self.spatial("pad", axes, 0), self.holes(axes)
        if any(n < 1 for n in (*self.kernel, *self.stride, *self.dilation)):
            raise self.error(
                f"kernel {self.kernel}, stride {self.stride}, dilation {self.dilation}", expected="no zeros"
            )

    def spatial(self, name: str, axes: int, default: int | None) -> tuple[int, ...]:
        """A repeated window field, with its ``_h``/``_w`` forms (base_conv_layer.cpp, LayerSetUp)."""
        p, short = self.p, name.removesuffix("_size")
        values = getattr(p, name)
        if short != "dilation" and (p.has(f"{short}_h") or p.has(f"{short}_w")):
            if axes != 2:
                raise self.error(f"{short}_h and {short}_w with {axes} spatial axes", expected="2 spatial axes")
            if values:
                raise self.error(f"both {name} and {short}_h/{short}_w", remedy="keep one of them")
            return getattr(p, f"{short}_h"), getattr(p, f"{short}_w")
        if not values and default is not None:
            return (default,) * axes
        if len(values) not in (1, axes):
            raise self.error(
                f"{name} given {len(values)} times", expected=f"once, or once for each of {axes} spatial axes"
            )
        return tuple(values) if len(values) == axes else tuple(values) * axes

    def holes(self, axes: int) -> tuple[int, ...]:
        """``dilation``, or ``hole`` as DeepLab calls it (deeplab-public: conv_layer.cpp); 1 without."""
        if not (self.p.has("hole") or self.p.has("hole_h") or self.p.has("hole_w")):
            return self.spatial("dilation", axes, 1)
        if self.p.dilation or axes != 2:
            raise self.error(f"hole, with {axes} spatial axes", expected="2, and no dilation beside it")
        return self.pair("hole")

    def pair(self, name: str) -> tuple[int, int]:
        """An optional window field with ``_h``/``_w`` forms, as pooling has them (pooling_layer.cpp, LayerSetUp)."""
        p, short = self.p, name.removesuffix("_size")
        h, w = f"{short}_h", f"{short}_w"
        if p.has(h) != p.has(w) and (name == "kernel_size" or not p.has(name)):
            raise self.error(f"only one of {h} and {w}", expected="both")
        if p.has(h) and p.has(name):
            raise self.error(f"both {name} and {h}/{w}", remedy="keep one of them")
        return (getattr(p, h), getattr(p, w)) if p.has(h) else (getattr(p, name),) * 2

    def lengths(self, sides: Sequence[int]) -> tuple[int, ...]:
        """How many windows lie along each spatial axis."""
        windows = zip(sides, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        return tuple(max((n + 2 * p - (k - 1) * d - 1) // s + 1, 0) for n, k, s, p, d in windows)


class Windowed(Windows):
    """Convolution and deconvolution; the weight is Caffe's in both: (conv out, conv in / group, *kernel)."""

    bottoms = (1, None)
    tops = (1, None)
    blob_specs = (Blob("weight", None, "weight_filler"), BIAS)
    reads = ("num_output", "group")
    ignores = ("engine", "force_nd_im2col")
    transposed = False

    def setup(self, *shapes: Shape) -> None:
        x = shapes[0]
        if self.n_bottoms != self.n_tops:
            raise self.error(f"{self.n_bottoms} bottoms and {self.n_tops} tops", expected="as many tops as bottoms")
        self.read_windows(x)
        self.channels = x[self.channel_axis]
        if self.num_output < 1:
            raise self.error(f"num_output {self.num_output}", expected="at least 1")
        if self.group < 1 or self.channels % self.group or self.num_output % self.group:
            raise self.error(
                f"group {self.group} for {self.channels} channels in and {self.num_output} out",
                expected="a divisor of both",
            )
        rows, columns = (self.channels, self.num_output) if self.transposed else (self.num_output, self.channels)
        self.make_blobs((rows, columns // self.group, *self.kernel), (self.num_output,))

    def reshape(self, *shapes: Shape) -> list[Shape]:
        for x in shapes:
            if x != shapes[0]:
                raise self.shape_error(f"bottoms of shapes {shapes[0]} and {x}", expected="equal shapes")
        x, c = shapes[0], self.channel_axis
        if len(x) != c + 1 + len(self.kernel) or x[c] != self.channels:
            raise self.shape_error(
                f"a bottom of shape {x}", expected=f"{self.channels} channels at axis {c}, as the weights have"
            )
        out = self.lengths(x[c + 1 :])
        if min(out, default=1) < 1:
            raise self.shape_error(
                f"an output of {out} pixels from a bottom of shape {x}",
                expected=f"at least 1 (kernel {self.kernel}, stride {self.stride}, pad {self.pad})",
            )
        return [(*x[:c], self.num_output, *out)] * self.n_tops

    def uses(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        places = bottoms if self.transposed else tops
        return sum(prod(x[: self.channel_axis]) * prod(x[self.channel_axis + 1 :]) for x in places)


@record("Convolution", "convolution_param")
class Convolution(Windowed):
    """Windows over the bottom, one pixel of the top for each."""

    def coord_map(self) -> CoordMap:
        return inverse(filter_map(self.kernel, self.stride, self.pad))


@record("Deconvolution", "convolution_param")
class Deconvolution(Windowed):
    """Windows over the top, one pixel of the bottom for each."""

    transposed = True

    def lengths(self, sides: Sequence[int]) -> tuple[int, ...]:
        windows = zip(sides, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        return tuple(s * (n - 1) + (k - 1) * d + 1 - 2 * p for n, k, s, p, d in windows)

    def coord_map(self) -> CoordMap:
        return filter_map(self.kernel, self.stride, self.pad)


@record("Im2col", "convolution_param")
class Im2col(Windows):
    """A convolution's windows as channels."""

    ignores = (
        *("engine", "force_nd_im2col", "num_output", "group", "bias_term", "weight_filler", "bias_filler"),
    )  # fmt: skip

    def setup(self, x: Shape) -> None:
        self.read_windows(x)
        if not self.kernel:
            raise self.shape_error(f"no spatial axes in {x}", expected="at least 1")

    def reshape(self, x: Shape) -> list[Shape]:
        c = self.channel_axis
        out = self.lengths(x[c + 1 :])
        if min(out, default=1) < 1:
            raise self.shape_error(f"{out} windows in a bottom of shape {x}", expected=f"at least 1 of {self.kernel}")
        return [(*x[:c], x[c] * prod(self.kernel), *out)]

    def coord_map(self) -> CoordMap:
        return inverse(filter_map(self.kernel, self.stride, self.pad))


@record("Pooling", "pooling_param")
class Pooling(Windows):
    """Over height and width; STOCHASTIC draws in TRAIN."""

    tops = (1, 2)
    by_phase = True
    reads = ("method=pool", "global_pooling")
    ignores = ("engine",)

    def setup(self, x: Shape) -> None:
        p = self.p
        self.ceil = p.enum("round_mode") == "CEIL"
        sized = p.has("kernel_size") or p.has("kernel_h") or p.has("kernel_w")
        if self.global_pooling == sized:
            raise self.error(
                "global_pooling with a kernel size" if sized else "no kernel size",
                expected="a kernel size, or global_pooling: true without one",
            )
        self.kernel = (0, 0) if self.global_pooling else self.pair("kernel_size")
        self.stride, self.pad = self.pair("stride"), self.pair("pad")
        if self.global_pooling and (self.stride != (1, 1) or self.pad != (0, 0)):
            raise self.error(f"global_pooling with stride {self.stride}, pad {self.pad}", expected="stride 1, pad 0")
        if (not self.global_pooling and min(self.kernel) < 1) or min(self.stride) < 1:
            raise self.error(f"kernel {self.kernel}, stride {self.stride}", expected="no zeros")
        if any(self.pad) and any(p >= k for p, k in zip(self.pad, self.kernel, strict=True)):
            raise self.error(f"pad {self.pad} with kernel {self.kernel}", expected="less padding than kernel")
        if self.method == "STOCHASTIC" and (any(self.pad) or self.n_tops == 2):
            raise self.error(
                f"pool: STOCHASTIC with pad {self.pad}, {self.n_tops} tops", expected="no padding, one top"
            )

    def window(self, x: Shape) -> tuple[int, int]:
        """The kernel over a bottom of shape ``x``."""
        height, width = x[2:] if self.global_pooling else self.kernel
        return height, width

    def reshape(self, x: Shape) -> list[Shape]:
        self.four_axes(x)
        out = tuple(
            pooled_length(n, k, s, p, padded=any(self.pad), ceil=self.ceil)
            for n, k, s, p in zip(x[2:], self.window(x), self.stride, self.pad, strict=True)
        )
        if min(out) < 1:
            raise self.shape_error(
                f"an output of {out} pixels from {x}", expected=f"at least 1 (kernel {self.window(x)})"
            )
        return [(*x[:2], *out)] * self.n_tops

    def coord_map(self) -> CoordMap:
        return inverse(filter_map(self.kernel, self.stride, self.pad))


@record("SPP", "spp_param", BVLC)
class SPP(Windows):
    """A pyramid of poolings into 1 x 1, 2 x 2, 4 x 4 ... windows."""

    reads = ("height=pyramid_height", "method=pool")
    ignores = ("engine",)
    pooling: type[Pooling] = Pooling
    """What it is made of."""

    def setup(self, x: Shape) -> None:
        if self.height < 1:
            raise self.error(f"pyramid_height {self.height}", expected="at least 1")
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
    """The inverse of pooling, onto a given size."""

    bottoms = (1, 2)
    labels = (1,)
    reads = ("method=unpool",)
    ignores = ("engine",)

    def setup(self, x: Shape, switches: Shape | None = None) -> None:
        p = self.p
        self.kernel, self.stride = self.pair("kernel_size"), self.pair("stride")
        if min(self.kernel) < 1 or min(self.stride) < 1:
            raise self.error(f"kernel {self.kernel}, stride {self.stride}", expected="no zeros")
        if self.pair("pad") != (0, 0):
            raise self.error("a pad", expected="no padding: the original has none")
        both = p.has("unpool_h") and p.has("unpool_w")
        if p.has("unpool_size") == both or p.has("unpool_h") != p.has("unpool_w"):
            raise self.error(
                "the size of the output is not given once", expected="unpool_size, or unpool_h and unpool_w"
            )
        self.size = (p.unpool_h, p.unpool_w) if both else (p.unpool_size,) * 2
        if self.n_bottoms == 2 and self.method != "MAX":
            raise self.error(f"switches for unpool: {self.method}", expected="one bottom, or unpool: MAX")

    def reshape(self, x: Shape, switches: Shape | None = None) -> list[Shape]:
        if len(x) != 4 or (switches is not None and switches != x):
            raise self.shape_error(f"bottoms of shapes {x} and {switches}", expected="equal shapes of 4 axes")
        return [(*x[:2], *self.size)]

    def coord_map(self) -> CoordMap:
        return filter_map(self.kernel, self.stride, (0, 0))
