"""Records of DeepLab v1's fork. Source: the files that caffe_port/layers/deeplab1.py names."""

from __future__ import annotations

from typing import ClassVar

from caffe_port.spec import deeplab2
from caffe_port.spec.base import Shape, Spec, record
from caffe_port.spec.losses import SoftmaxLoss
from caffe_port.spec.sources import FromFiles, ImageData

DEEPLAB1 = ("deeplab1",)


@record("Interp", "interp_param", DEEPLAB1)
class Interp(deeplab2.Interp):
    def setup(self, x: Shape) -> None:
        p = self.p
        ways = p.has("zoom_factor"), p.has("shrink_factor"), p.has("height") and p.has("width")
        self.refuse(sum(ways) != 1, f"{sum(ways)} sizes", expected="zoom_factor, shrink_factor, or height and width")
        super().setup(x)


@record("SegAccuracy", "seg_accuracy_param", DEEPLAB1)
class SegAccuracy(deeplab2.SegAccuracy):
    reads: ClassVar[tuple[str, ...]] = ("ignored=ignore_label",)
    reset = True


@record("DenseCRF", "dense_crf_param", DEEPLAB1)
class DenseCRF(deeplab2.DenseCRF):
    reads: ClassVar[tuple[str, ...]] = ("rounds=max_iter",)
    gives_probability = True


@record("Padding", "padding_param", DEEPLAB1)
class Padding(Spec):
    """Rows and columns of zeros around a map; negative numbers cut."""

    in_place = False
    reads = ("before=pad_beg", "behind=pad_end")

    def setup(self, x: Shape) -> None:
        wrong = self.before * self.behind < 0
        self.refuse(wrong, f"pad_beg {self.before}, pad_end {self.behind}", expected="none, or both, below 0")

    def reshape(self, x: Shape) -> list[Shape]:
        self.four_axes(x)
        sides = tuple(n + self.before + self.behind for n in x[2:])
        self.refuse_shape(min(sides) < 1, f"{x[2:]} pixels to {sides}", expected="1 or more of each")
        return [(*x[:2], *sides)]


@record("SoftmaxWithLoss", "softmax_param", DEEPLAB1)
class SoftmaxWithLoss(SoftmaxLoss):
    ignores = ("engine",)

    def setup(self, x: Shape, label: Shape) -> None:
        self.over, self.normalization = 1, "VALID"
        self.ignored = self.fields.softmaxloss_param.ignore_label


@record("ImageSegData", "image_data_param", DEEPLAB1)
class ImageSegData(ImageData):
    tops = (3, 3)

    def reshape(self) -> list[Shape]:
        data = self.pictures()
        return [data, (data[0], 1, *data[2:]), (data[0], 1, 1, 2)]


@record("MatRead", "mat_read_param", DEEPLAB1)
class MatRead(FromFiles):
    tops = (1, None)


@record("MatWrite", "mat_write_param", DEEPLAB1)
class MatWrite(deeplab2.MatWrite):
    pass
