"""Layers of DeepLab's forks: resizing, filtering along edges, scores of segmentations, biased scores.

Source: interp_layer.cpp and util/interp.cpp, seg_accuracy_layer.cpp, spatial_product_layer.cpp, bias_channel_layer.cpp,
domain_transform_layer.cpp, domain_transform_forward_only_layer.cpp of cdmh/deeplab-public-ver2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.deeplab_wssl import BiasChannel
from caffe_port.spec import deeplab2


@layer("Interp")
class Interp(deeplab2.Interp, Layer):
    """Bilinear resizing with aligned corners, after cutting ``-pad_beg`` and ``-pad_end`` rows and columns.

    The size is the first of these that is set: by ``shrink_factor`` alone, by ``zoom_factor`` alone, ``height`` and
    ``width``, shrunk and then zoomed. A blob of one channel, which may hold labels, is computed in the original's
    order of rounding: a label that comes out as 2.9999998 is cut to 2 by the layers after it.
    """

    def forward(self, x: Tensor) -> Tensor:
        begin, end = self.cut
        x = x[:, :, begin : x.shape[2] - end, begin : x.shape[3] - end]
        h, w = self.size or (((n - 1) // self.shrink) * self.zoom + 1 for n in x.shape[2:])
        if x.shape[1] > 1 or (h, w) == tuple(x.shape[2:]):
            return F.interpolate(x, (h, w), mode="bilinear", align_corners=True)
        return _along(_along(x, 3, w), 2, h)


def _along(x: Tensor, axis: int, size: int) -> Tensor:
    """Interpolates along one axis, rounding after every operation (util/interp.cpp, caffe_cpu_interp2)."""
    n = x.shape[axis]
    ratio = torch.tensor((n - 1) / (size - 1) if size > 1 else 0.0, dtype=torch.float32)
    at = (ratio * torch.arange(size, dtype=torch.float32)).to(x.device)
    low = at.long()
    share = (at - low).to(x.dtype).view(-1, *(1,) * (x.dim() - 1 - axis))
    first, second = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=n - 1))
    return (1 - share) * first + share * second


@layer("SegAccuracy")
class SegAccuracy(deeplab2.SegAccuracy, Layer):
    """Pixel accuracy, mean recall of the classes present, mean intersection over union of all classes: (1, 1, 1, 3).

    A class absent from predictions and labels has a union of 1. Of equal scores the highest class wins. With
    ``reset: false`` the counts of all passes add up.
    """

    untraceable = "it accumulates counts over passes"

    def setup(self, x: Shape, label: Shape) -> None:
        super().setup(x, label)
        self.keeps_state = not self.reset
        self.register_buffer("counts", torch.zeros(x[1], x[1], dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        classes = x.shape[1]
        truth = label.flatten().long()
        valid = torch.ones_like(truth, dtype=torch.bool)
        for ignored in self.ignored:
            valid &= truth != ignored
        found = (classes - 1 - x.detach().flip(1).argmax(1)).flatten()[valid]
        truth = truth[valid]
        if truth.numel() and not 0 <= int(truth.min()) <= int(truth.max()) < classes:
            raise self.shape_error(
                f"labels from {int(truth.min())} to {int(truth.max())}",
                expected=f"0 to {classes - 1}, or one of ignore_label",
            )
        counts = (truth * classes + found).bincount(minlength=classes * classes).view(classes, classes)
        with torch.no_grad():
            self.counts.copy_(counts if self.reset else self.counts + counts)
        right, shown, said = self.counts.diag().double(), self.counts.sum(1).double(), self.counts.sum(0).double()
        present, union = shown > 0, shown + said - right
        accuracy = right.sum() / shown.sum() if shown.sum() else right.sum()
        recall = (right[present] / shown[present]).mean() if present.any() else right.sum()
        overlap = torch.where(union > 0, right / union.clamp(min=1), 1).mean()
        return torch.stack((accuracy, recall, overlap)).to(x.dtype).view(1, 1, 1, 3)


@layer("SpatialProduct")
class SpatialProduct(deeplab2.SpatialProduct, Layer):
    """Every channel of the first bottom times the second, which has one channel."""

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return x * factor


@layer("BiasChannel")
class BiasChannel2(deeplab2.BiasChannel2, BiasChannel):
    """BiasChannel with labels of pixels: ``fg_bias`` is added to a pixel's class, and, if ``background_label`` or
    ``bg_bias`` is given, ``bg_bias`` to the background at every labelled pixel."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        if not self.by_pixel:
            return super().forward(x, label)
        label = label.long()
        counts = label != -1
        for ignored in self.ignored:
            counts = counts & (label != ignored)
        own = torch.where(counts, label, 0)
        if not 0 <= int(own.min()) <= int(own.max()) < x.shape[1]:
            raise self.shape_error(
                f"labels from {int(own.min())} to {int(own.max())}",
                expected=f"0 to {x.shape[1] - 1}, -1, or one of ignore_label",
            )
        bias = torch.zeros_like(x.detach())
        fore = counts if self.background_label is None else counts & (label != self.background_label)
        bias.scatter_(1, own, fore.to(x.dtype) * self.foreground)
        if self.background_label is not None:
            bias[:, self.background_label] += counts[:, 0].to(x.dtype) * self.background
        return x + bias


class _Weight(torch.autograd.Function):
    """exp(slope * (1 + edge * ratio)) limited to ``low`` .. 1; its gradient ignores the bounds."""

    @staticmethod
    def forward(ctx: Any, edge: Tensor, slope: float, ratio: float, low: float) -> Tensor:
        weight = torch.exp((edge * ratio + 1) * slope).clamp(low, 1)
        ctx.save_for_backward(weight)
        ctx.factor = slope * ratio
        return weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        return grad * weight * ctx.factor, None, None, None


class _Recursive(torch.autograd.Function):
    """y[t] = x[t] + w[t] * (y[t - 1] - x[t]) along the first axis, y[0] = x[0]. x: (T, C, S), w: (T, S)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        y = x.clone()
        for t in range(1, len(x)):
            y[t] += w[t] * (y[t - 1] - x[t])
        ctx.save_for_backward(x, w, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w, y = ctx.saved_tensors
        dx = grad.clone()
        dw = torch.zeros_like(w)
        for t in range(len(x) - 1, 0, -1):
            dw[t] = (dx[t] * (y[t - 1] - x[t])).sum(0)
            dx[t - 1] += w[t] * dx[t]
            dx[t] *= 1 - w[t]
        return dx, dw


@layer("DomainTransform")
class DomainTransform(deeplab2.DomainTransform, Layer):
    """Smooths scores between the edges of a picture, ``num_iter`` times along rows and columns, in both directions.

    Bottoms: scores (N, C, H, W), edges (N, 1, H, W), and for each item the height and width to work on (N, 1, 1, 2);
    the rest is copied. Source: Chen, Barron, Papandreou, Murphy, Yuille, "Semantic Image Segmentation with
    Task-Specific Edge Detection Using CNNs and a Discriminatively Trained Domain Transform", 2016.
    """

    untraceable = "it reads single values of its bottoms"

    def forward(self, x: Tensor, edge: Tensor, size: Tensor) -> Tensor:
        items = [self.item(a, b[0], h, w) for a, b, (h, w) in zip(x, edge, self.sizes(x, size), strict=True)]
        return torch.stack(items)

    def sizes(self, x: Tensor, size: Tensor) -> list[tuple[int, int]]:
        """Each item's height and width, truncated to integers."""
        found = [(int(h), int(w)) for h, w in size.flatten(1).tolist()]
        if any(h > x.shape[2] or w > x.shape[3] or min(h, w) < 0 for h, w in found):
            raise self.shape_error(f"sizes {found}", expected=f"at most {tuple(x.shape[2:])}")
        return found

    def item(self, x: Tensor, edge: Tensor, h: int, w: int) -> Tensor:
        y = x[:, :h, :w]
        for i in range(self.rounds):
            sigma = self.spatial * math.sqrt(3) * 2.0 ** (self.rounds - i - 1) / math.sqrt(4.0**self.rounds - 1)
            weight = self.weight(edge[:h, :w], -math.sqrt(2) / sigma)
            y = _both_ways(y.permute(2, 0, 1), weight.t()).permute(1, 2, 0)
            y = _both_ways(y.permute(1, 0, 2), weight).permute(1, 0, 2)
        if (h, w) == tuple(x.shape[1:]):
            return y
        rest = torch.ones_like(x[:1], dtype=torch.bool)
        rest[:, :h, :w] = False
        return torch.where(rest, x, F.pad(y, (0, x.shape[2] - w, 0, x.shape[1] - h)))

    def weight(self, edge: Tensor, slope: float) -> Tensor:
        """The weight of the previous pixel for each pixel."""
        return _Weight.apply(edge, slope, self.spatial / self.range, self.low)


def _both_ways(x: Tensor, w: Tensor) -> Tensor:
    """The filter forward and then backward along the first axis; a pair has the weight of its later pixel."""
    if not x.numel():
        return x
    x = _Recursive.apply(x.contiguous(), w.contiguous())
    return _Recursive.apply(x.flip(0), w.flip(0).roll(1, 0)).flip(0)


@layer("DomainTransformForwardOnly")
class DomainTransformForwardOnly(DomainTransform):
    """The same without a gradient and without bounds for the weights."""

    def weight(self, edge: Tensor, slope: float) -> Tensor:
        return torch.exp((edge * (self.spatial / self.range) + 1) * slope)
