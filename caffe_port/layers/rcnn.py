"""Layers of the R-CNN forks: pooling of regions, SmoothL1Loss with weights, training on the hardest examples.

Source: roi_pooling_layer, psroi_pooling_layer, smooth_L1_loss_layer, dropout_layer of rbgirshick/caffe-fast-rcnn and
daijifeng001/caffe-rfcn (.cpp and .cu); box_annotator_ohem_layer, smooth_L1_loss_ohem_layer, softmax_loss_ohem_layer of
the latter and of intel/caffe.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from caffe_port.layers import neuron
from caffe_port.layers.base import Layer, layer
from caffe_port.layers.loss import Loss, check_labels, softmax
from caffe_port.spec import rcnn


def _rounded(x: np.ndarray) -> np.ndarray:
    """Rounded to integers, halves away from zero (C's round)."""
    whole = np.trunc(x)
    return whole + np.sign(x) * (np.abs(x - whole) >= 0.5)


def _edges(start: np.ndarray, size: np.ndarray, bins: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, bins) first and past-the-last pixels of each bin of each roi, within the map."""
    step = size / size.dtype.type(bins)
    at = np.arange(bins + 1, dtype=size.dtype)
    low = np.floor(at[:-1] * step[:, None] + start[:, None]).astype(np.int64)
    high = np.ceil(at[1:] * step[:, None] + start[:, None]).astype(np.int64)
    return low.clip(0, length), high.clip(0, length)


def _items(layer: Layer, rois: np.ndarray, count: int) -> np.ndarray:
    """The item of each roi."""
    items = rois[:, 0].astype(np.int64)
    if len(items) and not 0 <= items.min() <= items.max() < count:
        raise layer.shape_error(
            f"rois of items {items.min()} to {items.max()}", expected=f"0 to {count - 1}, the items of the map"
        )
    return items


class _RoiMax(torch.autograd.Function):
    """The maximum of each bin; ``bounds`` holds for each roi its item, its bins' edges, and its corners."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bounds: list[tuple[Any, ...]], bins: tuple[int, int]) -> Tensor:
        width = x.shape[3]
        y = x.new_zeros((len(bounds), x.shape[1], *bins))
        place = torch.full(y.shape, -1, dtype=torch.int64, device=x.device)
        for n, (item, rows, columns, _) in enumerate(bounds):
            value, index, full = _largest(x[item], rows, columns)
            y[n] = torch.where(full, value, 0)
            place[n] = torch.where(full, index, -1)
        ctx.save_for_backward(place)
        ctx.bounds, ctx.shape, ctx.width = bounds, x.shape, width
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (place,) = ctx.saved_tensors
        dx = grad.new_zeros(ctx.shape).flatten(2)
        for n, (item, _, _, (x1, y1, x2, y2)) in enumerate(ctx.bounds):
            row, column = place[n] // ctx.width, place[n] % ctx.width
            inside = (place[n] >= 0) & (row >= y1) & (row <= y2) & (column >= x1) & (column <= x2)
            dx[item].scatter_add_(1, place[n].clamp(min=0).flatten(1), (grad[n] * inside).flatten(1))
        return dx.view(ctx.shape), None, None


def _taps(edges: np.ndarray, length: int) -> np.ndarray:
    """(bins, longest) the pixels of each bin, its last one again where it is shorter."""
    first, past = edges
    steps = np.arange(max(int((past - first).max()), 1))
    return np.minimum(first[:, None] + np.minimum(steps, np.maximum(past - first - 1, 0)[:, None]), length - 1)


def _filled(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Which bins contain pixels."""
    return (rows[1] > rows[0])[:, None] & (columns[1] > columns[0])


def _largest(x: Tensor, rows: np.ndarray, columns: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """For a map (C, H, W) each bin's maximum, its flat index (the first of equal ones), and whether the bin has pixels.

    Args:
        rows, columns: (2, bins) first and past-the-last pixels.
    """
    full = torch.from_numpy(_filled(rows, columns)).to(x.device)
    if _as_torch(rows) and _as_torch(columns):
        top, left = int(rows[0, 0]), int(columns[0, 0])
        part = x[:, top : rows[1, -1], left : columns[1, -1]]
        value, index = F.adaptive_max_pool2d(part, full.shape, return_indices=True)
        n = part.shape[2]
        return value, (index // n + top) * x.shape[2] + index % n + left, full
    r, c = _taps(rows, x.shape[1]), _taps(columns, x.shape[2])
    flat = torch.from_numpy(r[:, None, :, None] * x.shape[2] + c[None, :, None, :]).to(x.device).flatten(2)
    value, index = x.flatten(1)[:, flat].max(3)
    return value, flat.expand(x.shape[0], *flat.shape).gather(3, index[..., None])[..., 0], full


def _largest_number(x: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """The same without the indices, first along columns and then along rows."""
    if _as_torch(rows) and _as_torch(columns):
        part = x[:, rows[0, 0] : rows[1, -1], columns[0, 0] : columns[1, -1]]
        return F.adaptive_max_pool2d(part, (rows.shape[1], columns.shape[1]))
    r, c = (torch.from_numpy(_taps(e, n)).to(x.device) for e, n in zip((rows, columns), x.shape[1:], strict=True))
    low, high = int(c.min()), int(c.max()) + 1
    value = x[:, :, low:high][:, r].amax(2)[:, :, c - low].amax(3)
    full = _filled(rows, columns)
    return value if full.all() else torch.where(torch.from_numpy(full).to(x.device), value, 0)


def _as_torch(edges: np.ndarray) -> bool:
    """Whether torch's adaptive pooling has the same bins."""
    first, past = edges
    n, bins = int(past[-1] - first[0]), len(first)
    at = np.arange(bins)
    return n > 0 and bool(
        (first - first[0] == at * n // bins).all() and (past - first[0] == -((-(at + 1) * n) // bins)).all()
    )


@layer("ROIPooling")
class ROIPooling(rcnn.ROIPooling, Layer):
    """The maximum of each of ``pooled_h`` x ``pooled_w`` bins of every roi; 0 for a bin off the map.

    Corners times ``spatial_scale`` are rounded, halves away from zero; both belong to the roi, which is at least one
    pixel wide. A roi whose end precedes its start gets no gradient.
    """

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        self.check(tuple(x.shape), tuple(rois.shape))
        boxes = rois.detach().flatten(1).cpu().numpy()
        corners = _rounded(boxes[:, 1:] * boxes.dtype.type(self.scale))
        spans = []
        for i, (bins, length) in enumerate(zip(self.bins[::-1], (x.shape[3], x.shape[2]), strict=True)):
            size = np.maximum(corners[:, i + 2] - corners[:, i] + 1, boxes.dtype.type(1))
            low, high = _edges(np.zeros_like(size), size, bins, 1 << 40)
            start = corners[:, i, None].astype(np.int64)
            spans.append(np.stack(((low + start).clip(0, length), (high + start).clip(0, length)), 1))
        items = _items(self, boxes, len(x))
        bounds = [
            (int(i), r, c, tuple(map(int, b))) for i, r, c, b in zip(items, spans[1], spans[0], corners, strict=True)
        ]
        if not bounds or (torch.is_grad_enabled() and x.requires_grad):
            return _RoiMax.apply(x, bounds, self.bins)
        return torch.stack([_largest_number(x[item], r, c) for item, r, c, _ in bounds])


@layer("PSROIPooling")
class PSROIPooling(rcnn.PSROIPooling, Layer):
    """The mean of each bin of every roi, each bin and class from its own channel; 0 for an empty bin.

    Corners are rounded before they are scaled, the far corner is one pixel further, and a roi is at least a tenth of a
    cell wide. Channel of class k, bin (i, j): (k * group_size + i) * group_size + j.
    """

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        self.reshape(tuple(x.shape), tuple(rois.shape))
        boxes = rois.detach().flatten(1).cpu().numpy()
        kind = boxes.dtype.type
        corners = _rounded(boxes[:, 1:])
        corners[:, 2:] += 1
        corners = corners * kind(self.scale)
        edges = []
        for i, length in enumerate((x.shape[3], x.shape[2])):
            size = np.maximum(corners[:, i + 2] - corners[:, i], kind(0.1))
            edges.append(_edges(corners[:, i], size, self.side, length))
        (left, right), (top, low) = (tuple(torch.from_numpy(e).to(x.device) for e in pair) for pair in edges)
        # Sums over bins from cumulative sums (integral images), in double precision.
        sums = F.pad(x.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
        flat = sums.view(len(x), self.classes, self.side, self.side, -1)
        item = torch.from_numpy(_items(self, boxes, len(x))).to(x.device).view(-1, 1, 1, 1)
        k = torch.arange(self.classes, device=x.device).view(1, -1, 1, 1)
        row, column = torch.arange(self.side, device=x.device).view(-1, 1), torch.arange(self.side, device=x.device)
        r0, r1 = top[:, None, :, None], low[:, None, :, None]
        c0, c1 = left[:, None, None, :], right[:, None, None, :]
        width = x.shape[3] + 1

        def at(r: Tensor, c: Tensor) -> Tensor:
            return flat[item, k, row, column, r * width + c]

        total = at(r1, c1) - at(r0, c1) - at(r1, c0) + at(r0, c0)
        area = (r1 - r0) * (c1 - c0)
        full = (r1 > r0) & (c1 > c0)
        return torch.where(full, total / area.clamp(min=1), 0).to(x.dtype)


class _SmoothL1(torch.autograd.Function):
    """sigma^2 d^2 / 2 where |d| < 1 / sigma^2, else |d| - 1 / (2 sigma^2)."""

    @staticmethod
    def forward(ctx: Any, d: Tensor, sigma2: float) -> Tensor:
        ctx.save_for_backward(d)
        ctx.sigma2 = sigma2
        size = d.abs()
        return torch.where(size < 1 / sigma2, 0.5 * d * d * sigma2, size - 0.5 / sigma2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (d,) = ctx.saved_tensors
        return grad * torch.where(d.abs() < 1 / ctx.sigma2, ctx.sigma2 * d, d.sign()), None


class _Smooth(Loss):
    def smooth(self, x: Tensor, y: Tensor, inside: Tensor | None = None, outside: Tensor | None = None) -> Any:
        """The loss, and with a second top each item's loss."""
        d = x - y.reshape(x.shape)
        errors = _SmoothL1.apply(d if inside is None else d * inside.reshape(x.shape), float(self.sigma) ** 2)
        errors = errors if outside is None else errors * outside.reshape(x.shape)
        loss = errors.sum() / self.normalizer(len(x), len(x) * prod(x.shape[2:]), None)
        if self.n_tops == 1:
            return loss
        return loss, errors.detach().sum(1).reshape(self.reshape(*[tuple(x.shape)] * self.n_bottoms)[1])


@layer("SmoothL1Loss")
class SmoothL1Loss(rcnn.SmoothL1Loss, _Smooth):
    """Outside weights times the smooth L1 distance of inside weights times the difference, by the number of items.

    R-FCN's has one weight for both, no sigma, and divides as ``loss_param`` says. Without ``loss_weight`` it has the
    weight 0: the original omits the default weight of losses.
    """

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.smooth(*bottoms)


@layer("SmoothL1LossOHEM")
class SmoothL1LossOHEM(rcnn.SmoothL1LossOHEM, _Smooth):
    """The smooth L1 distance, divided as ``loss_param`` says; its second top is each item's loss, without gradient.

    Without ``loss_weight`` it has the weight 0.
    """

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.smooth(*bottoms)


@layer("SoftmaxWithLossOHEM")
class SoftmaxWithLossOHEM(rcnn.SoftmaxWithLossOHEM, Loss):
    """SoftmaxWithLoss whose third top is each pixel's loss, 0 where it is ignored; only the first has a gradient.

    As its GPU code; intel/caffe's CPU code sums the wrong losses where some are ignored.
    """

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, ...]:
        outer, inner = prod(x.shape[: self.over]), prod(x.shape[self.over + 1 :])
        own, keep, count = self.kept(label.reshape(outer, inner), x.dtype)
        check_labels(self, own, self.classes(x.shape[self.over]))
        scores = x.reshape(outer, -1, inner)
        losses = F.cross_entropy(scores, own, reduction="none")
        losses = losses if keep is None else losses * keep
        loss = losses.sum() / self.normalizer(outer, outer * inner, count)
        tops = (loss, softmax(x.detach(), self.over), losses.detach().reshape(label.shape))
        return tops[: self.n_tops] if self.n_tops > 1 else loss


@layer("BoxAnnotatorOHEM")
class BoxAnnotatorOHEM(rcnn.BoxAnnotatorOHEM, Layer):
    """Labels and box weights of each picture's ``roi_per_img`` rois with the largest losses; the others get no weight.

    Of equal losses the earlier roi comes first (the original sorts in no fixed order).
    """

    def forward(self, rois: Tensor, loss: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        item = rois.select(1, 0).flatten().long()
        order = loss.flatten().sort(descending=True, stable=True).indices
        chosen = torch.zeros_like(item, dtype=torch.bool)
        for picture in item.unique():
            mine = order[item[order] == picture]
            chosen[mine[: self.most]] = True
        labels, weights = self.reshape(*(tuple(t.shape) for t in (rois, loss, label, weight)))
        keep = chosen.view(labels)
        return (
            torch.where(keep, label.reshape(labels), self.ignored),
            torch.where(keep, weight.reshape(weights), 0),
        )


@layer("Dropout")
class ScaledDropout(rcnn.ScaledDropout, neuron.Dropout):
    """Dropout that with ``scale_train: false`` scales in TEST, by the share that TRAIN keeps, and not in TRAIN."""

    def forward(self, x: Tensor) -> Tensor:
        if self.scales_train:
            return super().forward(x)
        return x * self.mask(x) if self.drops() else x * (1 - self.ratio)
