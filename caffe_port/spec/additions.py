"""Records of layers that BVLC Caffe 1.0 lacks and several forks have, registered for all dialects because no name
clashes.

Source: the files that caffe_port/layers/additions.py and yolo.py name.
"""

from __future__ import annotations

from math import prod

from caffe_port.spec.base import BVLC, Blob, Shape, Spec, define, record
from caffe_port.spec.elementwise import Neuron
from caffe_port.spec.windows import Convolution

__all__ = ["DepthwiseConvolution", "Detections", "Mul", "ReLU6", "Reorg", "Squeeze"]


class DepthwiseConvolution(Convolution):
    """As many groups as channels; ``ConvolutionDepthwise`` has them by default."""

    def setup(self, *shapes: Shape) -> None:
        channels = shapes[0][self.axis(self.p.axis, shapes[0])]
        if not self.p.has("group"):
            self.refuse(self.type == "DepthwiseConvolution" and channels > 1, "no group", expected=f"group: {channels}")
            self.group = channels
        self.refuse(self.group != channels, f"group {self.group}", expected=f"{channels}, a group for each channel")
        super().setup(*shapes)


for _name in ("ConvolutionDepthwise", "DepthwiseConv", "DepthwiseConvolution"):
    define(_name, DepthwiseConvolution, "convolution_param", BVLC)


define("HardSwish", Neuron, None, BVLC, aligned=(), reads_bottoms=(0,))


@record("ReLU6", "relu6_param", BVLC)
class ReLU6(Neuron):
    reads_bottoms = (0,)
    reads = ("slope=negative_slope",)


@record("Axpy", None, BVLC)
class Axpy(Spec):
    """A factor for each channel, the factor's operand, and a summand."""

    bottoms = (3, 3)
    reads_bottoms = (0, 1)

    def reshape(self, scale: Shape, x: Shape, y: Shape) -> list[Shape]:
        wrong = x != y or len(x) < 2 or scale[:2] != x[:2] or prod(scale[2:]) != 1
        self.refuse_shape(wrong, f"bottoms of shapes {scale}, {x}, {y}", expected="(N, C, 1, 1) and twice (N, C, ...)")
        return [x]


@record("Mul", "mul_param", BVLC)
class Mul(Spec):
    """A second bottom or a parameter; axes of length 1 broadcast."""

    bottoms = (1, 2)
    in_place = False
    blob_specs = (Blob("weight", when=lambda layer: layer.n_bottoms == 1),)

    def setup(self, x: Shape, other: Shape | None = None) -> None:
        self.operand_shape = other if other is not None else tuple(self.p.mul_shape)
        self.p.skip("mul_shape")
        self.make_blobs(self.operand_shape)

    def reshape(self, x: Shape, other: Shape | None = None) -> list[Shape]:
        other = self.operand_shape if other is None else other
        n = max(len(x), len(other))
        pairs = list(zip((1,) * (n - len(x)) + x, (1,) * (n - len(other)) + other, strict=True))
        wrong = any(a != b and 1 not in (a, b) for a, b in pairs)
        self.refuse_shape(wrong, f"{x} times {other}", expected="equal numbers on each axis, or 1")
        return [tuple(max(pair) for pair in pairs)]


@record("Squeeze", "squeeze_param", BVLC)
class Squeeze(Spec):
    """Without the axes named, or all of length 1."""

    in_place, shares_memory = False, True
    reads = ("axes=axis",)

    def reshape(self, x: Shape) -> list[Shape]:
        gone = [self.axis(a, x) for a in self.axes] or [i for i, n in enumerate(x) if n == 1]
        self.refuse_shape(any(x[i] != 1 for i in gone), f"axes {gone} of {x}", expected="axes of length 1")
        return [tuple(n for i, n in enumerate(x) if i not in gone)]


@record("Pad", "pad_param", BVLC)
class Pad(Spec):
    """Two numbers for each axis."""

    in_place = False
    reads = ("paddings", "value=constant_values")

    def reshape(self, x: Shape) -> list[Shape]:
        wrong = len(self.paddings) != 2 * len(x)
        self.refuse(wrong, f"{len(self.paddings)} paddings", expected=f"2 for each of {len(x)} axes")
        around = zip(x, self.paddings[::2], self.paddings[1::2], strict=True)
        return [tuple(n + a + b for n, a, b in around)]


@record("ShuffleChannel", "shuffle_channel_param", BVLC)
class ShuffleChannel(Spec):
    """Channels of several groups, interleaved."""

    in_place = False
    reads = ("group",)

    def reshape(self, x: Shape) -> list[Shape]:
        self.refuse(self.group < 1, f"group {self.group}", expected="1 or more")
        wrong = len(x) < 2 or x[1] % self.group
        self.refuse_shape(wrong, f"a bottom of shape {x}", expected=f"a multiple of {self.group} channels")
        return [x]


@record("Reorg", "reorg_param", BVLC)
class Reorg(Spec):
    """Pixels into channels, or back."""

    in_place = False
    reads = ("stride", "reverse")

    def reshape(self, x: Shape) -> list[Shape]:
        self.four_axes(x)
        s = self.stride
        self.refuse(s < 1, f"stride {s}", expected="1 or more")
        wrong = x[1] % s**2 or (not self.reverse and (x[2] % s or x[3] % s))
        self.refuse_shape(wrong, f"a bottom of shape {x}", expected=f"multiples of {s} pixels, of {s**2} channels")
        if self.reverse:
            return [(x[0], x[1] // s**2, x[2] * s, x[3] * s)]
        return [(x[0], x[1] * s**2, x[2] // s, x[3] // s)]


@record("UpsampleDarknet", "upsample_darknet_param", BVLC)
class UpsampleDarknet(Spec):
    """Each pixel ``stride`` times ``stride``."""

    in_place = False
    reads = ("times=stride",)

    def reshape(self, x: Shape) -> list[Shape]:
        self.four_axes(x)
        self.refuse(self.times < 1, f"stride {self.times}", expected="1 or more")
        return [(*x[:2], x[2] * self.times, x[3] * self.times)]


@record("ResizeNearestNeighbor", "resize_nearest_neighbor_param", BVLC)
class ResizeNearestNeighbor(Spec):
    """Height and width are axes 1 and 2 in the format NHWC, which is the default, else 2 and 3."""

    in_place = False
    reads = ("corners=align_corners", "centres=half_pixel_centers")

    def setup(self, x: Shape) -> None:
        self.four_axes(x)
        self.first = 1 if self.p.data_format == "NHWC" else 2
        self.refuse(
            self.p.data_format not in ("NHWC", "NCHW"), f"data_format {self.p.data_format}", expected="NHWC or NCHW"
        )
        self.refuse(self.corners and self.centres, "align_corners and half_pixel_centers", expected="one of them")
        p = self.p
        self.factors = p.scale_height, p.scale_width
        self.size = tuple(getattr(p, side) if p.has(side) else None for side in ("output_height", "output_width"))

    def reshape(self, x: Shape) -> list[Shape]:
        a = self.first
        sides = zip(self.size, x[a:], self.factors, strict=False)
        height, width = (int(n * factor) if size is None else size for size, n, factor in sides)
        self.refuse_shape(min(height, width) < 1, f"{height} x {width} pixels", expected="1 or more of each")
        return [(*x[:a], height, width, *x[a + 2 :])]


class Detections(Spec):
    """Objects found: (1, 1, number, 7), one row at set-up."""

    labels: tuple[int, ...] = (0, 1, 2, 3, 4)
    in_place = False

    def reshape(self, *shapes: Shape) -> list[Shape]:
        return [(1, 1, 1, 7)]


@record("YoloDetectionOutput", "yolo_detection_output_param", BVLC)
class YoloDetectionOutput(Detections):
    bottoms = (1, 2)
    reads = (
        *("classes=num_classes", "boxes=num_box", "threshold=confidence_threshold", "overlap=nms_threshold", "biases"),
    )  # fmt: skip
    ignores = ("side", "label_map_file")

    def setup(self, *shapes: Shape) -> None:
        self.refuse(self.p.coords != 4, f"coords {self.p.coords}", expected="4")
        wrong = len(self.biases) != 2 * self.boxes
        self.refuse(wrong, f"{len(self.biases)} biases", expected=f"{2 * self.boxes}: 2 for each of num_box")

    def reshape(self, *shapes: Shape) -> list[Shape]:
        wanted = self.boxes * (5 + self.classes)
        for x in shapes:
            wrong = len(x) != 4 or x[1] != wanted or x[2] != x[3]
            self.refuse_shape(wrong, f"a bottom of shape {x}", expected=f"(N, {wanted}, side, side)")
        return super().reshape()


@record("Yolov3DetectionOutput", "yolov3_detection_output_param", BVLC)
class Yolov3DetectionOutput(Detections):
    bottoms = (1, 5)
    reads = (
        *("classes=num_classes", "boxes=num_box", "threshold=confidence_threshold", "overlap=nms_threshold", "biases"),
        *("scales=anchors_scale", "mask", "gaussian=gaussian_box"),
    )

    def setup(self, *shapes: Shape) -> None:
        n, groups = self.n_bottoms, self.p.mask_group_num
        self.refuse(groups != n, f"mask_group_num {groups} for {n} bottoms", expected="one for each")
        self.refuse(len(self.scales) < n, f"{len(self.scales)} anchors_scale", expected=f"one for each of {n} bottoms")
        self.refuse(
            len(self.mask) < n * self.boxes or max(self.mask, default=0) * 2 + 1 >= len(self.biases),
            f"mask {self.mask} with {len(self.biases)} biases",
            expected=f"{self.boxes} for each bottom, below the number of biases",
        )
        self.refuse(self.gaussian, "gaussian_box", expected="boxes without their uncertainty")

    def reshape(self, *shapes: Shape) -> list[Shape]:
        wanted = self.boxes * (5 + self.classes)
        for x in shapes:
            self.refuse_shape(len(x) != 4 or x[1] != wanted, f"a bottom of shape {x}", expected=f"(N, {wanted}, H, W)")
        return super().reshape()
