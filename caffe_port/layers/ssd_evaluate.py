"""DetectionEvaluate: which found objects are right. Source: detection_evaluate_layer.cpp (ssd)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.ssd_boxes import overlaps
from caffe_port.layers.ssd_pixels import Resized, read_sizes
from caffe_port.spec import ssd


@layer("DetectionEvaluate")
class DetectionEvaluate(ssd.DetectionEvaluate, Layer):
    """For each class but the background a row (-1, label, boxes, -1, -1); then for each object found, by item, label
    and falling score, (item, label, score, right, wrong).

    Bottoms: what DetectionOutput gives, and true boxes (1, 1, n, 8). An object is right if it overlaps the box of its
    label that it overlaps most by ``overlap_threshold``, and is the first to do so. Neither right nor wrong is one
    on a difficult box, if ``evaluate_difficult_gt`` is false. True boxes end at the first row of item -1. With
    ``name_size_file`` boxes are compared in pixels of pictures of these sizes, one after the other.
    """

    untraceable = "it works on boxes one by one"

    def setup(self, found: Shape, truth: Shape) -> None:
        super().setup(found, truth)
        p = self.p
        self.sizes = [size for _, *size in read_sizes(p.name_size_file)] if p.has("name_size_file") else []
        self.resized = Resized(self, p.resize_param if p.has("resize_param") else None)
        self.keeps_state = bool(self.sizes)
        self.next_size = 0

    def forward(self, found: Tensor, truth: Tensor) -> Tensor:
        objects, boxes = (t.detach().reshape(-1, t.shape[-1]).float().cpu().numpy() for t in (found, truth))
        rows = np.zeros((len(self.counted()) + int((objects[:, 1] != -1).sum()), 5), np.float32)
        objects, boxes = objects[objects[:, 0].astype(int) != -1], boxes[: self._end(boxes)]
        for what, of in (("an object", objects), ("a true box", boxes)):
            if (of[:, 1].astype(int) == self.background).any():
                raise self.shape_error(f"{what} of the background label {self.background}", expected="another label")
        counted = boxes[:, 1].astype(int)[self.difficult | (boxes[:, 7] == 0)]
        labels = self.counted()
        rows[: len(labels)] = [(-1, c, (counted == c).sum(), -1, -1) for c in labels]
        at = len(labels)
        for item in np.unique(objects[:, 0].astype(int)):
            for made in self._of_item(item, objects[objects[:, 0].astype(int) == item], boxes):
                rows[at : at + len(made)] = made
                at += len(made)
            if self.sizes:
                self.next_size = (self.next_size + 1) % len(self.sizes)
        return torch.from_numpy(rows[None, None]).to(found.device, found.dtype)

    def _end(self, boxes: np.ndarray) -> int:
        """How many true boxes come before the first row of item -1."""
        (ends,) = np.nonzero(boxes[:, 0].astype(int) == -1)
        return int(ends[0]) if len(ends) else len(boxes)

    def _of_item(self, item: int, objects: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
        """The rows of an item's objects, label by label."""
        made, own = [], boxes[boxes[:, 0].astype(int) == item]
        for label in np.unique(objects[:, 1].astype(int)):
            if label == -1:
                continue
            here = objects[objects[:, 1].astype(int) == label]
            true = own[own[:, 1].astype(int) == label]
            if len(true):
                here = here[np.argsort(-here[:, 2], kind="stable")]
                right, wrong = self._judged(here[:, 3:7], true)
            else:
                right, wrong = np.zeros(len(here)), np.ones(len(here))
            made.append(np.stack((np.full(len(here), item), np.full(len(here), label), here[:, 2], right, wrong), 1))
        return made

    def _judged(self, found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Right and wrong, 0 or 1 each, of boxes, best first."""
        table = self._overlaps(found, true[:, 3:7])
        right, wrong, taken = np.zeros(len(found)), np.zeros(len(found)), set[int]()
        for i, (best, most) in enumerate(zip(table.argmax(1), table.max(1), strict=True)):
            if not most >= self.threshold:
                wrong[i] = 1
            elif self.difficult or true[best, 7] == 0:
                right[i], wrong[i] = best not in taken, best in taken
                taken.add(int(best))
        return right, wrong

    def _overlaps(self, found: np.ndarray, true: np.ndarray) -> np.ndarray:
        if not self.sizes:
            return overlaps(torch.from_numpy(found), torch.from_numpy(true)).numpy()
        size = self.sizes[self.next_size]
        (a, a_area), (b, b_area) = (self.resized.boxes(of, *size) for of in (found, true))
        return _overlaps_in_pixels(a, a_area, b, b_area)


def _overlaps_in_pixels(a: np.ndarray, a_area: np.ndarray, b: np.ndarray, b_area: np.ndarray) -> np.ndarray:
    """Intersection by union where a box from 1 to 3 is three pixels wide; boxes apart share one pixel, too."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    apart = np.any((b[None, :, :2] > a[:, None, 2:]) | (b[None, :, 2:] < a[:, None, :2]), 2)
    width, height = np.moveaxis(np.where(apart[..., None], 0, high - low) + np.float32(1), 2, 0)
    common = np.where((width > 0) & (height > 0), width * height, np.float32(0))
    return common / (a_area[:, None] + b_area[None, :] - common)
