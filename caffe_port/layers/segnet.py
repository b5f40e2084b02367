"""Layers of SegNet's fork that other Caffes lack or define differently.

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
from caffe_port.layers.base import Layer, layer
from caffe_port.layers.loss import SoftmaxWithLoss
from caffe_port.layers.pooling import place
from caffe_port.layers.prefetching import Prefetching
from caffe_port.spec import segnet


@layer("Upsample")
class Upsample(segnet.Upsample, Layer):
    """Zeros, with each value at the index in its mask; for equal indices the last value in raster order wins.

    Bottoms: values (N, C, H, W) and their mask, of the same shape: flat indices into the output's plane, truncated to
    integers. The output's height and width are upsample_h and upsample_w, or H * scale and W * scale, less one row or
    column with pad_out_h or pad_out_w.
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return place(self, x, mask.trunc(), self.reshape(tuple(x.shape), tuple(mask.shape))[0][2:], unique=False)


@layer("Accuracy")
class SegNetAccuracy(segnet.SegNetAccuracy, Accuracy):
    """Accuracy whose second top has shape (C, 1, 1, 1) and is 1 for a class without labels."""

    def by_class(self, hit: Tensor, labelled: Tensor) -> Tensor:
        return torch.where(labelled == 0, 1, hit / labelled).view(-1, 1, 1, 1)


@layer("SoftmaxWithLoss")
class SegNetSoftmaxWithLoss(segnet.SegNetSoftmaxWithLoss, SoftmaxWithLoss):
    """SoftmaxWithLoss with ``class_weighting``: a pixel's loss is multiplied by its class's weight, in the sum only.

    The weights are used with ``weight_by_label_freqs: true``. The sum is divided by the number of valid pixels, not by
    the sum of their weights.
    """

    def weighted(self, label: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if not self.class_weights:
            return keep
        weights = torch.tensor(self.class_weights, dtype=dtype, device=label.device)[label]
        return weights if keep is None else weights * keep


@layer("Dropout")
class SegNetDropout(segnet.SegNetDropout, neuron.Dropout):
    """Dropout that with ``sample_weights_test`` drops in TEST too, as Bayesian SegNet samples."""

    def drops(self) -> bool:
        return self.training or self.always


@layer("DenseImageData")
class DenseImageData(Prefetching):
    """Pictures and the labels of their pixels, from lines ``PICTURE LABELS``.

    Crops are drawn in TEST too, from the net's stream. A label picture with a palette is read as the grey of its
    colours, as the original does.
    """

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
        source = self.prefetcher.source
        assert isinstance(source, DenseImages)
        source.draws = [self.draw() for _ in range(source.words)]
        super()._start()
