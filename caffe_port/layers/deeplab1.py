"""Layers of DeepLab v1's fork that differ from their namesakes, and its Padding.

From source, not recorded. Source: padding_layer.cpp, softmax_loss_layer.cpp, interp_layer.cpp, seg_accuracy_layer.cpp,
densecrf_layer.cpp, image_seg_data_layer.cpp, mat_read_layer.cpp, mat_write_layer.cpp (TheLegendAli/DeepLab-Context,
fb04e9e).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.data import Places, segments
from caffe_port.data.files import lines
from caffe_port.layers import data_segmentation, deeplab, deeplab_data, dense_crf
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.loss import SoftmaxWithLoss
from caffe_port.spec import deeplab1


@layer("Interp")
class Interp(deeplab1.Interp, deeplab.Interp):
    """Bilinear resizing with aligned corners, after cutting ``-pad_beg`` and ``-pad_end`` rows and columns.

    The size is given by one of ``zoom_factor``, ``shrink_factor``, or ``height`` and ``width``.
    """


@layer("SegAccuracy")
class SegAccuracy(deeplab1.SegAccuracy, deeplab.SegAccuracy):
    """Pixel accuracy, mean recall of the classes present, mean intersection over union of all classes: (1, 1, 1, 3)."""


@layer("DenseCRF")
class DenseCRF(deeplab1.DenseCRF, dense_crf.DenseCRF):
    """Mean-field inference over a picture's pixels; the top holds probabilities. No gradient."""


@layer("MatRead")
class MatRead(deeplab_data.MatRead, deeplab1.MatRead):
    """Items from MATLAB files PREFIX NAME_blob_I.mat, one file for each item and top, ``batch_size`` items a pass."""

    dialects = deeplab1.DEEPLAB1


@layer("MatWrite")
class MatWrite(deeplab1.MatWrite, deeplab_data.MatWrite):
    """Writes its bottoms to MATLAB files PREFIX NAME_blob_I.mat in every ``period``-th pass."""


@layer("Padding")
class Padding(deeplab1.Padding, Layer):
    """Zeros around a map: ``pad_beg`` rows and columns before it and ``pad_end`` behind; negative ones cut."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (self.before, self.behind) * 2)


@layer("SoftmaxWithLoss")
class WeightedSoftmaxWithLoss(deeplab1.SoftmaxWithLoss, SoftmaxWithLoss):
    """SoftmaxWithLoss over all labels but those of ``softmaxloss_param.ignore_label``, divided by their weights' sum.

    ``weight_source`` is a file with a weight for each class; without, each is 1. In the original a pixel's diff is left
    as it was where its label is ignored; here it is 0.
    """

    def setup(self, x: Shape, label: Shape) -> None:
        super().setup(x, label)
        self.class_weights: list[float] = []
        source = self.fields.softmaxloss_param.weight_source
        if source:
            path = Places(self.where.rpartition(":")[0]).find(
                source, "file of weights", f"{self.where}: layer {self.name}"
            )
            try:
                self.class_weights = [float(word) for _, line in lines(path) for word in line.split()]
            except ValueError as error:
                raise self.error(f"{path}: {error}", expected="numbers") from None
            if len(self.class_weights) != x[1] or min(self.class_weights) < 0:
                found = f"{len(self.class_weights)} weights, the least {min(self.class_weights):g}"
                raise self.error(found, expected=f"{x[1]} of 0 or more, one for each class")

    def kept(self, label: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
        label = label.to(torch.int64)
        keep = torch.ones_like(label, dtype=torch.bool)
        for ignored in self.ignored:
            keep &= label != ignored
        label = label * keep
        weights = keep.to(dtype)
        if self.class_weights:
            classes = torch.tensor(self.class_weights, dtype=dtype, device=label.device)
            weights = weights * classes[label.clamp(0, len(classes) - 1)]
        return label, weights, weights.sum()


class Blended(segments.Pictures):
    """Masks are resized as pictures are, bilinearly."""

    nearest = False


@layer("ImageSegData")
class ImageSegData(deeplab1.ImageSegData, data_segmentation.ImageSegData):
    """Pictures, the labels of their pixels, and their sizes; ``new_height`` and ``new_width`` blend labels."""

    kind = Blended
