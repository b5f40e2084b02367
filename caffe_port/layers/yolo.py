"""What turns YOLO's maps into boxes. From source.

Source: yolo_detection_output_layer.cpp, yolov3_detection_output_layer.cpp, region_loss_layer.hpp, yolov3_layer.cpp of
eric612/MobileNet-YOLO.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port.layers.base import Layer, layer
from caffe_port.spec import additions

__all__ = ["thinned"]

_BLOCK = 128
"""Boxes that are compared with all better ones at a time: their number has no limit."""


def thinned(boxes: Tensor, overlap: float) -> Tensor:
    """Indices of the boxes (x, y, w, h), best first, that overlap none of the better ones that stay by ``overlap`` or
    more.

    Of all classes at once, as the original.
    """
    kept = [torch.zeros(0, dtype=torch.int64, device=boxes.device)]
    for start in range(0, len(boxes), _BLOCK):
        index = torch.arange(start, min(start + _BLOCK, len(boxes)), device=boxes.device)
        for better in boxes[torch.cat(kept)].split(64 * _BLOCK):
            index = index[~_close(better, boxes[index], overlap).any(0)]
        close = _close(boxes[index], boxes[index], overlap).cpu().numpy()
        stays = torch.ones(len(index), dtype=torch.bool).numpy()
        for i in range(len(index)):
            if stays[i]:
                stays[i + 1 :] &= ~close[i, i + 1 :]
        kept.append(index[torch.from_numpy(stays).to(boxes.device)])
    return torch.cat(kept)


def _close(a: Tensor, b: Tensor, overlap: float) -> Tensor:
    """Whether boxes of ``a`` (N, 4) and of ``b`` (M, 4) overlap by so much: (N, M)."""
    low, high = (
        torch.maximum((a[:, :2] - a[:, 2:] / 2)[:, None], b[:, :2] - b[:, 2:] / 2),
        torch.minimum((a[:, :2] + a[:, 2:] / 2)[:, None], b[:, :2] + b[:, 2:] / 2),
    )
    side = high - low
    inside = torch.where((side < 0).any(2), 0, side.prod(2))
    area = (a[:, 2] * a[:, 3])[:, None] + b[:, 2] * b[:, 3]
    return inside / (area - inside) >= overlap


class _Detections(Layer):
    overlap: float
    threshold: float

    def rows(self, boxes: Tensor, scores: Tensor, labels: Tensor, items: int) -> Tensor:
        """(1, 1, number, 7) of item 0, label, score and corners; without any, a row of -1 for each item."""
        if not len(scores):
            none = boxes.new_full((1, 1, items, 7), -1)
            none[0, 0, :, 0] = torch.arange(items)
            return none
        order = scores.argsort(descending=True, stable=True)
        boxes, scores, labels = boxes[order], scores[order], labels[order]
        kept = thinned(boxes, self.overlap)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        corners = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
        zero = torch.zeros_like(scores)
        return torch.cat((torch.stack((zero, labels + 1.0, scores), 1), *corners), 1)[None, None]


@layer("YoloDetectionOutput")
class YoloDetectionOutput(additions.YoloDetectionOutput, _Detections):
    """The boxes of YOLO 2's maps: the best class of each, from ``confidence_threshold`` on, thinned by overlap.

    A map has ``num_box`` boxes of (x, y, w, h, object, classes); the score is the object's times the softmax of its
    class. Every box has item 0, whatever its item.
    """

    def forward(self, *maps: Tensor) -> Tensor:
        found = [self.one(m) for m in maps]
        boxes, scores, labels = (torch.cat(part) for part in zip(*found, strict=True))
        return self.rows(boxes, scores, labels, len(maps[0]))

    def one(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, _, h, w = x.shape
        x = x.detach().view(n, self.boxes, -1, h, w).permute(0, 3, 4, 1, 2)
        size = x.new_tensor(self.biases).view(-1, 2)
        cell = torch.stack(torch.meshgrid(*(torch.arange(k).to(x) for k in (w, h)), indexing="xy"), 2)[:, :, None]
        centre = (cell + torch.sigmoid(x[..., :2])) / w
        boxes = torch.cat((centre, x[..., 2:4].exp() * size / w), 4)
        score, label = torch.softmax(x[..., 5:], 4).max(4)
        score = torch.sigmoid(x[..., 4]) * score
        chosen = score >= self.threshold
        return boxes[chosen], score[chosen], label[chosen].to(x.dtype)


@layer("Yolov3DetectionOutput")
class Yolov3DetectionOutput(additions.Yolov3DetectionOutput, _Detections):
    """The boxes of YOLO 3's maps: every class of each whose score is over ``confidence_threshold``, thinned by overlap.

    The score is the object's times its class's, each a sigmoid. Every box is said to be of item 0.
    """

    def forward(self, *maps: Tensor) -> Tensor:
        found = [self.one(m, i) for i, m in enumerate(maps)]
        boxes, scores, labels = (torch.cat(part) for part in zip(*found, strict=True))
        return self.rows(boxes, scores, labels, len(maps[-1]))

    def one(self, x: Tensor, i: int) -> tuple[Tensor, Tensor, Tensor]:
        n, _, h, w = x.shape
        x = x.detach().view(n, self.boxes, -1, h, w).permute(0, 3, 4, 1, 2)
        groups = len(self.mask) // self.n_bottoms
        own = self.mask[i * groups : i * groups + self.boxes]
        size = x.new_tensor(self.biases).view(-1, 2)[own]
        whole = x.new_tensor((w, h))
        cell = torch.stack(torch.meshgrid(*(torch.arange(k).to(x) for k in (w, h)), indexing="xy"), 2)[:, :, None]
        centre = (cell + torch.sigmoid(x[..., :2])) / whole
        boxes = torch.cat((centre, x[..., 2:4].exp() * size / (whole * self.scales[i])), 4)
        score = torch.sigmoid(x[..., 4:5]) * torch.sigmoid(x[..., 5:])
        place = (score > self.threshold).nonzero()
        return boxes[tuple(place[:, :4].T)], score[tuple(place.T)], place[:, 4].to(x.dtype)
