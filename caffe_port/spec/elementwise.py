"""Layers whose tops have the shape of their bottom: neurons, factors and terms, sums, normalizations.

Source: the layers' own files in Caffe, which caffe_port/layers/neuron.py, affine.py, elementwise.py and
normalization.py name.
"""

from __future__ import annotations

import math
from typing import ClassVar

from caffe_port.spec.base import BOTH, BVLC, NOH, Blob, Shape, Spec, define, record

__all__ = ["LRN", "MVN", "Affine", "BatchNorm", "Dropout", "Eltwise", "PReLU", "ReLU"]


class Neuron(Spec):
    """One bottom, one top of the same shape, elementwise."""

    aligned = BOTH


define("AbsVal", Neuron, in_place=False, reads_bottoms=(0,))
define("BNLL", Neuron, reads_bottoms=(0,))
define("Sigmoid", Neuron, "sigmoid_param", ignores=("engine",), reads_tops=(0,))
define("TanH", Neuron, "tanh_param", ignores=("engine",), reads_tops=(0,))
define("Clip", Neuron, "clip_param", BVLC, aligned=(), reads=("min", "max"), reads_bottoms=(0,))
define("Swish", Neuron, "swish_param", BVLC, aligned=(), reads=("beta",), ignores=("engine",), reads_tops=(0,))
define("Threshold", Neuron, "threshold_param", labels=(0,), reads=("threshold",))


@record("ELU", "elu_param", BVLC)
class ELU(Neuron):
    reads = ("alpha",)
    reads_bottoms, reads_tops, reads_signs = (0,), (0,), True

    def setup(self, x: Shape) -> None:
        self.keeps_signs = self.alpha >= 0


@record("Power", "power_param")
class Power(Neuron):
    reads = ("power", "scale", "shift")

    def setup(self, x: Shape) -> None:
        self.linear = self.power == 1 or self.power * self.scale == 0
        self.reads_bottoms = () if self.linear else (0,)
        self.reads_tops = () if self.linear or self.power == 2 else (0,)
        self.corrupts_diffs = self.power * self.scale != 0


@record("ReLU", "relu_param")
class ReLU(Neuron):
    tops = (1, 2)
    reads_bottoms, reads_signs = (0,), True
    reads = ("slope=negative_slope", "capped=relu6")
    ignores = ("engine",)

    def setup(self, x: Shape) -> None:
        self.reads_signs = not self.capped
        self.refuse(
            self.n_tops == 2 and not self.dialect.relu_gives_mask,
            "2 tops",
            expected="1 top",
            remedy="the mask is the fork's: --dialect noh",
        )
        self.keeps_signs = self.slope >= 0


@record("PReLU", "prelu_param", BVLC)
class PReLU(Neuron):
    blob_specs = (Blob("weight", None, "filler", 0.25),)

    def setup(self, x: Shape) -> None:
        self.refuse_shape(len(x) < 2, f"a bottom of shape {x}", expected="2 axes or more")
        self.make_blobs(() if self.p.channel_shared else (x[1],))
        self.reads_bottoms = () if self.is_in_place else (0,)  # in place it keeps a copy


class _Exponential(Neuron):
    def log_base(self) -> float:
        """The natural logarithm of ``base``; a base of -1 means e."""
        base = self.p.base
        if base == -1:
            return 1.0
        self.refuse(not 0 < base < math.inf, f"base {base}", expected="a number above 0, or -1 for e")
        return math.log(base)


@record("Exp", "exp_param")
class Exp(_Exponential):
    reads_tops = (0,)

    def setup(self, x: Shape) -> None:
        log_base, shift = self.log_base(), self.p.shift
        raised = log_base * shift
        self.inner, self.outer = log_base * self.p.scale, math.exp(raised) if raised < 700 else math.inf
        if self.p.base == -1 and shift and self.dialect.exp_shift_raises_minus_one:
            self.outer = (-1.0) ** shift if shift == int(shift) else math.nan


@record("Log", "log_param", BVLC)
class Log(_Exponential):
    reads = ("scale", "shift")
    reads_bottoms, corrupts_diffs = (0,), True

    def setup(self, x: Shape) -> None:
        log_base = self.log_base()
        self.refuse(not log_base, "base 1", expected="another base: every power of 1 is 1")
        self.factor = 1 / log_base


class Dropout(Neuron):
    """Active in TRAIN, the identity in TEST."""

    keeps_signs = True
    reads: ClassVar[tuple[str, ...]] = ("ratio=dropout_ratio",)

    def setup(self, x: Shape) -> None:
        self.refuse(not 0 < self.ratio < 1, f"dropout_ratio {self.ratio}", expected="a number between 0 and 1")


define("Dropout", Dropout, "dropout_param")
define("DropoutChannel", Dropout, "dropout_param", NOH)


@record("Eltwise", "eltwise_param")
class Eltwise(Spec):
    bottoms = (2, None)
    aligned = BOTH
    reads = ("operation", "stable=stable_prod_grad", "coeff")
    coeff: list[float]
    corrupts_diffs = True

    def setup(self, *shapes: Shape) -> None:
        self.refuse(
            self.coeff and len(self.coeff) != self.n_bottoms,
            f"{len(self.coeff)} coeff",
            expected=f"none, or one for each of {self.n_bottoms} bottoms",
        )
        self.refuse(
            self.coeff and self.operation == "PROD", "coeff with operation: PROD", expected="coeff with SUM only"
        )
        self.coeff = self.coeff or [1.0] * self.n_bottoms
        if self.operation == "PROD":
            self.reads_bottoms = tuple(range(self.n_bottoms))
            self.reads_tops = () if self.stable else (0,)

    def reshape(self, *shapes: Shape) -> list[Shape]:
        for s in shapes:
            self.refuse_shape(s != shapes[0], f"bottoms of shapes {shapes[0]} and {s}", expected="equal shapes")
        return [shapes[0]]


class Affine(Spec):
    """A parameter over the axes from ``axis`` on, or a second bottom broadcast from there."""

    bottoms = (1, 2)
    aligned = BVLC
    reads = ("from_axis=axis",)

    def setup(self, x: Shape, other: Shape | None = None) -> None:
        if other is None:
            self.operand_shape = self.over(x)
        else:
            self.operand_shape = other
            self.p.skip("num_axes", "filler")
        self.make_blobs(*[self.operand_shape] * len(self.blob_specs))
        if self.type == "Scale":  # which in place keeps a copy of its bottom
            self.reads_bottoms = tuple(range(self.is_in_place, self.n_bottoms))

    def over(self, x: Shape) -> Shape:
        """The shape of the parameter: ``num_axes`` axes of ``x`` from ``axis`` on; -1 is all of them."""
        axis, n = self.axis(self.from_axis, x), self.p.num_axes
        self.refuse(
            n < -1 or axis + n > len(x), f"axis {axis} and num_axes {n}", expected=f"axes of a blob of shape {x}"
        )
        return x[axis:] if n == -1 else x[axis : axis + n]

    def reshape(self, x: Shape, other: Shape | None = None) -> list[Shape]:
        other = self.operand_shape if other is None else other
        axis = self.axis(self.from_axis, x) if other else 0
        self.refuse_shape(
            x[axis : axis + len(other)] != other,
            f"{other} broadcast over {x} from axis {axis} on",
            expected="equal numbers on these axes",
        )
        return [x]


def _operand(name: str, default: float) -> Blob:
    return Blob(name, None, "filler", default, when=lambda layer: layer.n_bottoms == 1)


define(
    "Scale",
    Affine,
    "scale_param",
    BVLC,
    blob_specs=(_operand("weight", 1), Blob("bias", None, "bias_filler", when=lambda layer: layer.p.bias_term)),
)
define("Bias", Affine, "bias_param", BVLC, blob_specs=(_operand("bias", 0),))


@record("BN", "bn_param", ("noh", "segnet"))
class BN(Spec):
    filled_from = 0
    tops = (1, 3)
    blob_specs = (Blob("scale", 4, "scale_filler"), Blob("shift", 4, "shift_filler"))

    def setup(self, x: Shape) -> None:
        self.learn = self.p.enum("bn_mode") == "LEARN"
        self.refuse(
            not self.learn and self.n_tops > 1,
            "tops for statistics with bn_mode: INFERENCE",
            expected="one top, or bn_mode: LEARN",
        )
        self.reads_bottoms = () if self.learn else (0,)
        self.channel_shape = (1, x[1], 1, 1)
        self.make_blobs(self.channel_shape, self.channel_shape)

    def reshape(self, x: Shape) -> list[Shape]:
        self.refuse_shape(
            not 2 <= len(x) <= 4 or x[1] != self.channel_shape[1],
            f"a bottom of shape {x}",
            expected=f"2 to 4 axes, {self.channel_shape[1]} channels",
        )
        return [(*x, *(1,) * (4 - len(x))), *[self.channel_shape] * (self.n_tops - 1)]


@record("BatchNorm", "batch_norm_param", BVLC)
class BatchNorm(Spec):
    filled_from = 0
    aligned = BVLC
    blob_specs = (
        Blob("mean", 1, learned=False),
        Blob("variance", 1, learned=False),
        Blob("scale_factor", 1, learned=False),
        Blob("scale", 1, "scale_filler", 1.0, when=lambda layer: layer.scales()),
        Blob("shift", 1, "bias_filler", when=lambda layer: layer.scales()),
    )
    reads = ("fraction=moving_average_fraction", "eps", "use_global_stats?")
    ignores = ("engine",)

    def scales(self) -> bool:
        """Whether it is NVCaffe's, with scale and shift parameters."""
        return bool(self.p.scale_bias or self.p.has("scale_filler") or self.p.has("bias_filler"))

    def setup(self, x: Shape) -> None:
        self.eps_outside = not self.p.add_eps_before_sqrt
        self.refuse(not self.eps >= 0, f"eps {self.eps}", expected="0 or more")
        for spec in self.fields.param[:3]:
            self.refuse(
                spec.message.lr_mult != 0,
                f"a param with lr_mult {spec.lr_mult}",
                expected="lr_mult: 0, as statistics are not learned",
            )
        self.refuse_shape(len(x) < 2, f"a bottom of shape {x}", expected="2 axes or more")
        self.channels = x[1]
        self.make_blobs((x[1],), (x[1],), (1,), (x[1],), (x[1],))

    def reshape(self, x: Shape) -> list[Shape]:
        self.refuse_shape(
            len(x) < 2 or x[1] != self.channels,
            f"a bottom of shape {x}",
            expected=f"{self.channels} channels at axis 1",
        )
        return [x]


@record("MVN", "mvn_param")
class MVN(Spec):
    filled_from = 0
    aligned = BOTH
    reads = ("normalize_variance", "across_channels")

    def setup(self, x: Shape) -> None:
        self.eps = self.p.eps if self.dialect.mvn_eps is None else self.dialect.mvn_eps
        if self.normalize_variance:
            self.reads_tops, self.corrupts_diffs = (0,), True
            self.reads_bottoms = (0,) if self.dialect.mvn_measures_again else ()

    def reshape(self, x: Shape) -> list[Shape]:
        self.refuse_shape(len(x) > 4, f"a bottom of shape {x}", expected="4 axes at most")
        return [(*x, *(1,) * (4 - len(x)))]


@record("LRN", "lrn_param")
class LRN(Spec):
    filled_from = 1
    aligned = BOTH
    reads = ("size=local_size", "alpha", "beta", "k", "region=norm_region")
    ignores = ("engine",)
    reads_bottoms = (0,)

    def setup(self, x: Shape) -> None:
        right = self.size % 2 and self.size < 2**31
        self.refuse(not right, f"local_size {self.size}", expected="an odd number below 2**31")
        self.across = self.region == "ACROSS_CHANNELS"
        self.reads_tops = (0,) if self.across else ()

    def reshape(self, x: Shape) -> list[Shape]:
        self.four_axes(x)
        return [x]


@record("Softmax", "softmax_param")
class Softmax(Spec):
    aligned = NOH
    reads_tops = (0,)
    ignores = ("engine",)

    def setup(self, x: Shape) -> None:
        self.over = self.axis(self.p.axis, x)
