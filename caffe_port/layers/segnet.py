"""Layers of SegNet's fork that other Caffes lack or have otherwise.

Source: upsample_layer.cpp, accuracy_layer.cpp, softmax_loss_layer.cpp, dropout_layer.cpp, dense_image_data_layer.cpp of
alexgkendall/caffe-segnet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port.data import Batches
from caffe_port.data.dense_images import DenseImages, pairs
from caffe_port.data.pictures import Reader
from caffe_port.layers import neuron
from caffe_port.layers.accuracy import Accuracy
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.loss import SoftmaxWithLoss
from caffe_port.layers.pooling import place
from caffe_port.layers.prefetching import Prefetching

_DIALECT = ("segnet",)


@layer("Upsample", param="upsample_param", dialects=_DIALECT)
class Upsample(Layer):
    """Zeros, with each value at the place that its mask names; of equal places the last value in raster order stays.

    Bottoms: values (N, C, H, W) and their mask, of the same shape: flat indices into the output's plane, cut to whole
    numbers. The output's height and width are upsample_h and upsample_w, or H * scale and W * scale, less one row or
    column with pad_out_h or pad_out_w.
    """

    bottoms = (2, 2)
    labels = (1,)

    def setup(self, x: Shape, mask: Shape) -> None:
        p = self.p
        self.size: tuple[int, int] | None = None
        if p.has("upsample_h") and p.has("upsample_w"):
            p.skip("scale", "scale_h", "scale_w", "pad_out_h", "pad_out_w")
            self.size = p.upsample_h, p.upsample_w
            if min(self.size) <= 1:
                raise self.error(f"upsample_h and upsample_w {self.size}", expected="more than 1")
            return
        p.skip("upsample_h", "upsample_w")
        if not p.has("scale_h") and not p.has("scale_w"):
            self.scale = (p.scale,) * 2
        elif p.has("scale") or not (p.has("scale_h") and p.has("scale_w")):
            raise self.error("scale_h or scale_w", expected="both of them, without scale")
        else:
            self.scale = p.scale_h, p.scale_w
        self.cut = int(p.pad_out_h), int(p.pad_out_w)
        for cut, scale in zip(self.cut, self.scale, strict=True):
            if cut and scale != 2:
                raise self.error(f"pad_out with a scale of {scale}", expected="scale 2")
        if min(self.scale) < 1:
            raise self.error(f"a scale of {self.scale}", expected="1 or more")

    def reshape(self, x: Shape, mask: Shape) -> list[Shape]:
        if len(x) != 4 or mask != x:
            raise self.shape_error(f"bottoms of shapes {x} and {mask}", expected="equal shapes of 4 axes")
        h, w = self.size or (n * s - c for n, s, c in zip(x[2:], self.scale, self.cut, strict=True))
        return [(x[0], x[1], h, w)]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return place(self, x, mask.trunc(), self.reshape(tuple(x.shape), tuple(mask.shape))[0][2:], unique=False)


@layer("Accuracy", param="accuracy_param", dialects=_DIALECT)
class SegNetAccuracy(Accuracy):
    """Accuracy whose second top has shape (C, 1, 1, 1) and is 1 for a class without labels."""

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        overall, *by_class = super().reshape(x, label)
        return [overall, *((*shape, 1, 1, 1) for shape in by_class)]

    def by_class(self, hit: Tensor, labelled: Tensor) -> Tensor:
        return torch.where(labelled == 0, 1, hit / labelled).view(-1, 1, 1, 1)


@layer("SoftmaxWithLoss", param="softmax_param", dialects=_DIALECT)
class SegNetSoftmaxWithLoss(SoftmaxWithLoss):
    """SoftmaxWithLoss with ``class_weighting``: a pixel's loss counts as its class's weight, in the sum only.

    The weights count with ``weight_by_label_freqs: true``. The sum is divided by the number of valid pixels, not by the
    sum of their weights.
    """

    tops = (1, 1)  # with two the inner Softmax has the loss's weights, which no Caffe of that age builds

    def setup(self, x: Shape, label: Shape) -> None:
        super().setup(x, label)
        p = self.fields.loss_param
        weights = p.class_weighting
        self.class_weights = tuple(weights) if p.weight_by_label_freqs else ()
        if (self.class_weights and len(weights) != x[1]) or (p.weight_by_label_freqs and not weights):
            raise self.error(f"{len(weights)} class_weighting", expected=f"one for each of the {x[1]} classes")

    def weighted(self, label: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if not self.class_weights:
            return keep
        weights = torch.tensor(self.class_weights, dtype=dtype, device=label.device)[label]
        return weights if keep is None else weights * keep


@layer("Dropout", param="dropout_param", dialects=_DIALECT)
class SegNetDropout(neuron.Dropout):
    """Dropout that with ``sample_weights_test`` drops in TEST too, as Bayesian SegNet samples."""

    def setup(self, x: Shape) -> None:
        super().setup(x)
        self.always = self.p.sample_weights_test

    def drops(self) -> bool:
        return self.training or self.always


@layer("DenseImageData", param="dense_image_data_param", dialects=_DIALECT)
class DenseImageData(Prefetching):
    """Pictures and the labels of their pixels, from lines ``PICTURE LABELS``.

    Crops are drawn in TEST too, from the net's stream. A label picture with a palette is read as the grey of its
    colours, as the original does.
    """

    tops = (2, 2)
    data_shaped = True
    mean_file = True

    def open(self) -> Batches:
        p, t = self.p, self.transformer
        p.skip("mean_file")
        if t.mirror or t.crop:
            raise self.error(
                "a transform_param with mirror or crop_size",
                expected="mirror, crop_height and crop_width in dense_image_data_param",
            )
        for one, other in (("new_height", "new_width"), ("crop_height", "crop_width")):
            if bool(getattr(p, one)) != bool(getattr(p, other)):
                raise self.error(f"only one of {one} and {other}", expected="both or none")
        path = self.find(p.source, "list")
        items = pairs(path)
        size = p.new_height, p.new_width
        readers = [Reader(self.places, p.root_folder, color=c, size=size) for c in (p.is_color, False)]
        crop = p.crop_height, p.crop_width
        batch = self.batch_size()
        return DenseImages(path, items, self.cursor(len(items)), readers, t, batch, p.mirror, crop)

    def _start(self) -> None:
        # The original draws from the net's stream in its thread; here the draws are made before the thread starts.
        source = self.ahead.source
        assert isinstance(source, DenseImages)
        source.draws = [self.draw() for _ in range(source.words)]
        super()._start()
