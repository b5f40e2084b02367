"""Records of SegNet's fork. Source: the files that caffe_port/layers/segnet.py names."""

from __future__ import annotations

from caffe_port.spec.base import Shape, record
from caffe_port.spec.elementwise import Dropout
from caffe_port.spec.losses import Accuracy, SoftmaxWithLoss
from caffe_port.spec.sources import Data
from caffe_port.spec.unknown import UNKNOWN
from caffe_port.spec.windows import Windows

_SEGNET = ("segnet",)


@record("Upsample", "upsample_param", _SEGNET)
class Upsample(Windows):
    bottoms = (2, 2)
    labels = reads_bottoms = (1,)
    in_place = False

    def setup(self, x: Shape, mask: Shape) -> None:
        p = self.p
        self.size: tuple[int, int] | None = None
        if p.has("upsample_h") and p.has("upsample_w"):
            p.skip("scale", "scale_h", "scale_w", "pad_out_h", "pad_out_w")
            self.size = p.upsample_h, p.upsample_w
            self.refuse(min(self.size) <= 1, f"upsample_h and upsample_w {self.size}", expected="more than 1")
            return
        p.skip("upsample_h", "upsample_w")
        by_side = p.has("scale_h") or p.has("scale_w")
        mixed = by_side and (p.has("scale") or not (p.has("scale_h") and p.has("scale_w")))
        self.refuse(mixed, "scale_h or scale_w", expected="both of them, without scale")
        self.scale = (p.scale_h, p.scale_w) if by_side else (p.scale,) * 2
        self.cut = int(p.pad_out_h), int(p.pad_out_w)
        for cut, scale in zip(self.cut, self.scale, strict=True):
            self.refuse(cut and scale != 2, f"pad_out with a scale of {scale}", expected="scale 2")
        self.refuse(min(self.scale) < 1, f"a scale of {self.scale}", expected="1 or more")

    def reshape(self, x: Shape, mask: Shape) -> list[Shape]:
        wrong = len(x) != 4 or mask != x
        self.refuse_shape(wrong, f"bottoms of shapes {x} and {mask}", expected="equal shapes of 4 axes")
        h, w = self.size or (n * s - c for n, s, c in zip(x[2:], self.scale, self.cut, strict=True))
        return [(x[0], x[1], h, w)]


@record("Accuracy", "accuracy_param", _SEGNET)
class SegNetAccuracy(Accuracy):
    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        overall, *by_class = super().reshape(x, label)
        return [overall, *((*shape, 1, 1, 1) for shape in by_class)]


@record("SoftmaxWithLoss", "softmax_param", _SEGNET)
class SegNetSoftmaxWithLoss(SoftmaxWithLoss):
    tops = (1, 1)  # with two the inner Softmax has the loss's weights, which no Caffe of that age builds

    def setup(self, x: Shape, label: Shape) -> None:
        super().setup(x, label)
        p = self.fields.loss_param
        weights = p.class_weighting
        self.class_weights = tuple(weights) if p.weight_by_label_freqs else ()
        wrong = (self.class_weights and len(weights) != x[1]) or (p.weight_by_label_freqs and not weights)
        self.refuse(wrong, f"{len(weights)} class_weighting", expected=f"one for each of the {x[1]} classes")


@record("Dropout", "dropout_param", _SEGNET)
class SegNetDropout(Dropout):
    reads = ("ratio=dropout_ratio", "always=sample_weights_test")


@record("DenseImageData", "dense_image_data_param", _SEGNET)
class DenseImageData(Data):
    tops = (2, 2)

    def reshape(self) -> list[Shape]:
        p = self.p
        height, width = (p.crop_height or p.new_height, p.crop_width or p.new_width)
        data = (p.batch_size, 3 if p.is_color else 1, height or UNKNOWN, width or UNKNOWN)
        return [data, (data[0], 1, *data[2:])]
