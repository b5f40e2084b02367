"""Faster R-CNN and R-FCN nets as functions from pictures to objects.

Source: lib/fast_rcnn/test.py and bbox_transform.py of rbgirshick/py-faster-rcnn (781a917), lib/fast_rcnn/test.py of
YuwenXiong/py-R-FCN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from caffe_port.data import rcnn_boxes, rcnn_settings
from caffe_port.data.roi_batches import scaled
from caffe_port.detection.objects import Found
from caffe_port.detection.preparation import Preparation, checked
from caffe_port.errors import CaffeError, DefinitionError

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["RegionDetector"]

_INPUTS, _OUTPUTS, _ROIS = {"data", "im_info"}, {"cls_prob", "bbox_pred"}, "rois"


class RegionDetector:
    """Finds objects by a net that proposes regions itself.

    A box is in whole pixels counted from 0, its last ones included, as the original's. ``PIXEL_MEANS``,
    ``TEST.SCALES``, ``TEST.MAX_SIZE`` and ``TEST.NMS`` are :mod:`caffe_port.data.rcnn_settings`' at this moment.

    Args:
        net: in TEST, from ``data`` and ``im_info`` to ``cls_prob`` and ``bbox_pred``, with a blob ``rois``.
        mean, scale: what is subtracted from blue, green and red, and multiplied afterwards; None: the settings', and 1.
        threshold: an object's score is above it.
        most: objects of a picture; more, if there are several of the last one's score.

    Raises:
        CaffeError: the settings have several sizes for a picture.
    """

    batch = 1
    """Pictures in a pass."""
    first_pixel = 1.0
    """What VOC's files and scores have added to coordinates: its pixels count from 1."""

    def __init__(
        self,
        net: Net,
        *,
        mean: Sequence[float] | None = None,
        scale: float | None = None,
        threshold: float = 0.5,
        most: int = 100,
    ) -> None:
        settings = rcnn_settings.of_phase("TEST")
        sizes = settings.SCALES
        if len(sizes) != 1:
            raise CaffeError("TEST.SCALES", f"{len(sizes)} sizes", expected="one, as the original for such nets")
        own = Preparation(settings.PIXEL_MEANS, 1.0, "py-faster-rcnn's PIXEL_MEANS")
        self.preparation = own.changed(mean, scale)
        self.short, self.long, self.overlap = sizes[0], settings.MAX_SIZE, settings.NMS
        self.net, self.threshold, self.most = net, threshold, most
        self.classes = list(range(1, int(np.prod(net.shapes["cls_prob"][1:]))))

    @staticmethod
    def fits(net: Net) -> bool:
        """Whether a net is such a net."""
        outputs = _OUTPUTS <= {*net.graph.outputs} and _ROIS in net.shapes
        return {*net.graph.inputs} == _INPUTS and outputs

    def prepared(self, picture: np.ndarray) -> tuple[np.ndarray, float]:
        """The net's ``data`` (3, height, width) for a picture (height, width, 3) of uint8 red, green, blue, and its
        factor."""
        made, factor = scaled(checked(picture)[:, :, ::-1], self.preparation.mean, self.short, self.long)
        return (made * np.float32(self.preparation.scale)).transpose(2, 0, 1), factor

    def __call__(self, *pictures: np.ndarray) -> list[list[Found]]:
        """The objects of each picture, best first."""
        return [self._detected(picture) for picture in pictures]

    def _detected(self, picture: np.ndarray) -> list[Found]:
        data, factor = self.prepared(picture)
        like = next(self.net.parameters(), torch.zeros(()))
        inputs = {"data": data[None], "im_info": np.array([[*data.shape[1:], factor]], np.float32)}
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(it)).to(like.device, like.dtype) for name, it in inputs.items()
        }
        with torch.no_grad():
            made = self.net.forward(blobs=[_ROIS], **tensors)
        rois, scores, moves = (made[name].flatten(1).float().cpu().numpy() for name in (_ROIS, "cls_prob", "bbox_pred"))
        return self.objects(rois[:, 1:5] / np.float32(factor), scores, moves, picture.shape[:2])

    def objects(self, rois: np.ndarray, scores: np.ndarray, moves: np.ndarray, size: tuple[int, ...]) -> list[Found]:
        """The objects, best first, among regions of a picture of this size (height, width).

        Args:
            rois: float32 (R, 4), in the picture's pixels. scores: (R, K) of K classes with the background, 0.
            moves: how a class's box lies to its region, (R, 4 K); or (R, 8), of all classes together.

        Raises:
            DefinitionError: other numbers of scores or moves.
        """
        count, classes = scores.shape
        together = moves.shape[1] == 8
        if not together and moves.shape[1] != 4 * classes:
            found = f"bbox_pred with {moves.shape[1]} numbers for {classes} classes"
            raise DefinitionError(self.net.definition.path, found, expected=f"{4 * classes}, or 8 for all together")
        with np.errstate(over="ignore", invalid="ignore"):
            every = rcnn_boxes.moved(np.repeat(rois, moves.shape[1] // 4, 0), moves.reshape(-1, 4))
        boxes = rcnn_boxes.clip(every, *size).reshape(count, -1, 4)
        rows: list[tuple[int, float, list[float]]] = []
        for label in range(1, classes):
            likely = np.flatnonzero(scores[:, label] > self.threshold)
            own, score = boxes[likely, 1 if together else label], scores[likely, label]
            rows += [(label, float(score[i]), own[i].tolist()) for i in rcnn_boxes.suppress(own, score, self.overlap)]
        if 0 < self.most < len(rows):
            least = sorted(score for _, score, _ in rows)[-self.most]
            rows = [row for row in rows if row[1] >= least]
        rows.sort(key=lambda row: -row[1])
        return [Found(label, score, (x0, y0, x1, y1)) for label, score, (x0, y0, x1, y1) in rows]
