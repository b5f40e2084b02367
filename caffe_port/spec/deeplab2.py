"""Records of DeepLab v2's fork. Source: the files that caffe_port/layers/deeplab.py, deeplab_data.py and dense_crf.py
name."""

from __future__ import annotations

from typing import ClassVar

from caffe_port.spec.base import Shape, Spec, define, record
from caffe_port.spec.losses import BiasChannel
from caffe_port.spec.sources import FromFiles, ImageData
from caffe_port.spec.unknown import UNKNOWN

_DEEPLAB2 = ("deeplab2",)


def _by_pixel(layer: Spec, x: Shape, label: Shape, what: str = "scores {} with labels {}") -> None:
    wrong = len(x) != 4 or label != (x[0], 1, *x[2:])
    layer.refuse_shape(wrong, what.format(x, label), expected="(N, C, H, W) and (N, 1, H, W)")


@record("Interp", "interp_param", _DEEPLAB2)
class Interp(Spec):
    in_place = False

    def setup(self, x: Shape) -> None:
        p = self.p
        self.cut = -p.pad_beg, -p.pad_end
        self.refuse(min(self.cut) < 0, f"pad_beg {p.pad_beg}, pad_end {p.pad_end}", expected="0 or less: pads crop")
        shrinks, zooms = p.has("shrink_factor"), p.has("zoom_factor")
        self.shrink = p.shrink_factor if shrinks else 1
        self.zoom = p.zoom_factor if zooms else 1
        sized = p.has("height") and p.has("width")
        self.size = (p.height, p.width) if sized and shrinks == zooms else None
        given = shrinks or zooms or sized
        self.refuse(not given, "no size", expected="shrink_factor, zoom_factor, or height and width")
        found = f"shrink_factor {self.shrink}, zoom_factor {self.zoom}"
        self.refuse(min(self.shrink, self.zoom) < 1, found, expected="1 or more")

    def reshape(self, x: Shape) -> list[Shape]:
        self.four_axes(x)
        kept = [n - sum(self.cut) for n in x[2:]]
        h, w = self.size or (((n - 1) // self.shrink) * self.zoom + 1 for n in kept)
        self.refuse_shape(min(*kept, h, w) < 1, f"{kept} pixels to {(h, w)}", expected="1 or more of each")
        return [(x[0], x[1], h, w)]


@record("SegAccuracy", "seg_accuracy_param", _DEEPLAB2)
class SegAccuracy(Spec):
    bottoms = (2, 2)
    labels = (0, 1)
    reads: ClassVar[tuple[str, ...]] = ("ignored=ignore_label", "reset")
    ignores = ("metric",)

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        _by_pixel(self, x, label)
        return [(1, 1, 1, 3)]


@record("SpatialProduct", None, _DEEPLAB2)
class SpatialProduct(Spec):
    bottoms = (2, 2)

    def reshape(self, x: Shape, factor: Shape) -> list[Shape]:
        _by_pixel(self, x, factor, "bottoms of shapes {} and {}")
        return [x]


@record("BiasChannel", "bias_channel_param", _DEEPLAB2)
class BiasChannel2(BiasChannel):
    def setup(self, x: Shape, label: Shape) -> None:
        super().setup(x, label)
        p = self.p
        self.by_pixel = p.enum("label_type") == "PIXEL"
        given = p.has("background_label") or p.has("bg_bias")
        self.background_label = p.background_label if given else None

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        if not self.by_pixel:
            return super().reshape(x, label)
        _by_pixel(self, x, label)
        return [x]


@record("DomainTransform", "domain_transform_param", _DEEPLAB2)
class DomainTransform(Spec):
    bottoms = (3, 3)
    labels: tuple[int, ...] = (2,)
    reads = ("rounds=num_iter", "spatial=spatial_sigma", "range=range_sigma", "low=min_weight")

    def setup(self, x: Shape, edge: Shape, size: Shape) -> None:
        self.refuse(
            self.rounds < 1 or self.spatial <= 0 or self.range <= 0 or self.low < 0,
            f"num_iter {self.rounds}, spatial_sigma {self.spatial}, range_sigma {self.range}, min_weight {self.low}",
            expected="num_iter of 1 or more, sigmas above 0, min_weight of 0 or more",
        )

    def reshape(self, x: Shape, edge: Shape, size: Shape) -> list[Shape]:
        self.refuse_shape(
            len(x) != 4 or edge != (x[0], 1, *x[2:]) or size != (x[0], 1, 1, 2),
            f"bottoms of shapes {x}, {edge} and {size}",
            expected="(N, C, H, W), (N, 1, H, W) and (N, 1, 1, 2)",
        )
        return [x]


define("DomainTransformForwardOnly", DomainTransform, "domain_transform_param", _DEEPLAB2, labels=(0, 1, 2))


@record("DenseCRF", "dense_crf_param", _DEEPLAB2)
class DenseCRF(Spec):
    bottoms = (3, 3)
    labels = (0, 1, 2)
    reads: ClassVar[tuple[str, ...]] = ("rounds=max_iter", "gives_probability=output_probability")

    def setup(self, x: Shape, size: Shape, picture: Shape) -> None:
        p = self.p
        position = p.pos_w, p.pos_xy_std
        bilateral = p.bi_w, p.bi_xy_std, p.bi_rgb_std
        for what, lists in (("pos_w, pos_xy_std", position), ("bi_w, bi_xy_std, bi_rgb_std", bilateral)):
            found = f"{what} given {', '.join(str(len(v)) for v in lists)} times"
            self.refuse(len({len(values) for values in lists}) > 1, found, expected="equally often")
        self.refuse(not bilateral[0], "no bi_w", expected="one or more, for the picture")
        none = any(deviation == 0 for values in (*position[1:], *bilateral[1:]) for deviation in values)
        self.refuse(none, "a standard deviation of 0", expected="numbers other than 0")
        self.kernels: list[tuple[float, float, float | None]] = [(w, s, None) for w, s in zip(*position, strict=True)]
        self.kernels += list(zip(*bilateral, strict=True))

    def reshape(self, x: Shape, size: Shape, picture: Shape) -> list[Shape]:
        self.refuse_shape(
            len(x) != 4 or size != (x[0], 1, 1, 2) or picture != (x[0], 3, *x[2:]),
            f"bottoms of shapes {x}, {size} and {picture}",
            expected="(N, C, H, W), (N, 1, 1, 2) and (N, 3, H, W)",
        )
        return [x]


@record("ImageSegData", "image_data_param", _DEEPLAB2)
class ImageSegData2(ImageData):
    tops = (3, 3)

    def reshape(self) -> list[Shape]:
        t, (batch, channels, *sides) = self.fields.transform_param, self.pictures()
        cropped = t.has("crop_height") and t.has("crop_width")
        height, width = (t.crop_height, t.crop_width) if cropped else sides if t.crop_size else (UNKNOWN, UNKNOWN)
        return [(batch, channels, height, width), (batch, 1, height, width), (batch, 1, 1, 2)]


define("MatRead", FromFiles, "mat_read_param", _DEEPLAB2, tops=(1, None))


@record("MatWrite", "mat_write_param", _DEEPLAB2)
class MatWrite(Spec):
    bottoms = (1, None)
    tops = (0, 0)

    def reshape(self, *shapes: Shape) -> list[Shape]:
        wrong = any(len(shape) > 4 for shape in shapes)
        self.refuse_shape(wrong, f"bottoms of shapes {shapes}", expected="up to 4 axes")
        return []
