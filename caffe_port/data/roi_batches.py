"""Batches for Fast and Faster R-CNN, from py-faster-rcnn's ``roidb``.

Source: lib/roi_data_layer/layer.py, minibatch.py, lib/utils/blob.py of rbgirshick/py-faster-rcnn (781a917). Not
recorded from the running program: from source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe_port.data.picture_files import COLOR, load_picture
from caffe_port.errors import DefinitionError, ShapeError

__all__ = ["RoiBatches", "scaled"]

_NEEDED = {
    True: ("image", "boxes", "gt_classes", "width", "height"),
    False: ("image", "boxes", "max_classes", "max_overlaps", "bbox_targets", "width", "height"),
}


def scaled(picture: np.ndarray, means: Sequence[float], short: int, long: int) -> tuple[np.ndarray, float]:
    """A picture less its mean, float32, with its shorter side of ``short`` pixels, or the longer of ``long`` if that is
    less; and the factor.

    Raises:
        ShapeError: nothing would be left of it.
    """
    import cv2

    less = (picture.astype(np.float32) - np.array(means)).astype(np.float32)
    sides = picture.shape[:2]
    factor = short / min(sides)
    if np.round(factor * max(sides)) > long:
        factor = long / max(sides)
    try:
        return cv2.resize(less, None, None, factor, factor, interpolation=cv2.INTER_LINEAR), factor
    except (cv2.error, MemoryError):
        found = f"a picture of {sides[1]} x {sides[0]} pixels to scale by {factor:g}"
        raise ShapeError("picture", found, expected="sizes that OpenCV can resize") from None


class RoiBatches:
    """Draws batches of IMS_PER_BATCH records from a roidb.

    A record is a mapping: image (a file's name), width, height, flipped, boxes (R, 4) in pixels of the file, and
    gt_classes (R,) with HAS_RPN, else max_classes (R,), max_overlaps (R,), bbox_targets (R, 5) of class and deltas.
    Everything is drawn from numpy's global stream, in the original's order: the records' order, then for each batch
    the pictures' scales and the rois.

    Args:
        cfg: the settings of TRAIN. where: the layer, for messages.
    """

    def __init__(self, cfg: Any, classes: int, where: str) -> None:
        self.cfg, self.classes, self.where = cfg, classes, where
        self._records: list[dict[str, Any]] = []

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The tops' shapes before the first batch."""
        cfg, targets = self.cfg, (1, 4 * self.classes)
        data = (cfg.IMS_PER_BATCH, 3, max(cfg.SCALES), cfg.MAX_SIZE)
        if cfg.HAS_RPN:
            return data, (1, 3), (1, 4)
        return (data, (1, 5), (1,), *([targets] * 3 if cfg.BBOX_REG else []))

    def set_roidb(self, roidb: list[dict[str, Any]]) -> None:
        """Take the records and draw their order.

        Raises:
            DefinitionError: a record lacks something, or there are fewer than a batch.
        """
        for i, record in enumerate(roidb):
            lacks = [key for key in _NEEDED[bool(self.cfg.HAS_RPN)] if key not in record]
            if lacks:
                raise DefinitionError(self.where, f"record {i} of the roidb without {', '.join(lacks)}")
        if len(roidb) < self.cfg.IMS_PER_BATCH or (self.cfg.ASPECT_GROUPING and len(roidb) < 2):
            raise DefinitionError(self.where, f"a roidb of {len(roidb)} records", expected="a batch, and two or more")
        self._records = roidb
        self._shuffle()

    def _shuffle(self) -> None:
        records = self._records
        self._at = 0
        if not self.cfg.ASPECT_GROUPING:
            self._order = np.random.permutation(len(records))
            return
        wide = np.array([r["width"] >= r["height"] for r in records])
        mixed = np.hstack([np.random.permutation(np.flatnonzero(kind)) for kind in (wide, ~wide)])
        if len(mixed) % 2:
            raise DefinitionError(
                self.where,
                f"{len(mixed)} records with ASPECT_GROUPING",
                expected="an even number, as with flipped pictures",
                remedy="rcnn_settings.change({'TRAIN.ASPECT_GROUPING': False})",
            )
        pairs = mixed.reshape(-1, 2)
        self._order = pairs[np.random.permutation(len(pairs))].ravel()

    def next(self) -> tuple[np.ndarray, ...]:
        """The next batch, an array for each top.

        Raises:
            DefinitionError: there is no roidb yet. FileError, FormatError: a picture cannot be read.
        """
        if not self._records:
            raise DefinitionError(
                self.where,
                "no roidb",
                expected="a list of records before the first pass",
                remedy="net.layers[i].set_roidb(records), as the original's training script does",
            )
        n = self.cfg.IMS_PER_BATCH
        if self._at + n >= len(self._records):
            self._shuffle()
        chosen = [self._records[i] for i in self._order[self._at : self._at + n]]
        self._at += n
        return self._batch(chosen)

    def _batch(self, records: list[dict[str, Any]]) -> tuple[np.ndarray, ...]:
        cfg = self.cfg
        scales = np.random.randint(0, high=len(cfg.SCALES), size=len(records))
        if cfg.BATCH_SIZE % len(records):
            raise DefinitionError(self.where, f"BATCH_SIZE {cfg.BATCH_SIZE}", expected=f"a multiple of {len(records)}")
        pictures, factors = zip(
            *(self._picture(r, cfg.SCALES[s]) for r, s in zip(records, scales, strict=True)), strict=True
        )
        size = np.max([p.shape for p in pictures], 0)
        data = np.zeros((len(pictures), *size), np.float32)
        for blob, picture in zip(data, pictures, strict=True):
            blob[: picture.shape[0], : picture.shape[1]] = picture
        data = data.transpose(0, 3, 1, 2)
        if cfg.HAS_RPN:
            shown = np.flatnonzero(records[0]["gt_classes"])
            boxes = np.hstack((records[0]["boxes"][shown] * factors[0], records[0]["gt_classes"][shown][:, None]))
            return data, np.array([[*data.shape[2:], factors[0]]]), boxes
        parts = [
            self._rois(r, i, f, cfg.BATCH_SIZE // len(records))
            for i, (r, f) in enumerate(zip(records, factors, strict=True))
        ]
        rois, labels, targets, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
        return (data, rois, labels, *((targets, weights, weights > 0) if cfg.BBOX_REG else ()))

    def _picture(self, record: dict[str, Any], size: int) -> tuple[np.ndarray, float]:
        """The picture less its mean, with its shorter side of ``size``; and by how much it is scaled."""
        found = load_picture(str(record["image"]), COLOR, f"{self.where}'s roidb")
        if record.get("flipped"):
            found = found[:, ::-1]
        return scaled(found, self.cfg.PIXEL_MEANS, size, self.cfg.MAX_SIZE)

    def _rois(self, record: dict[str, Any], item: int, factor: float, count: int) -> tuple[np.ndarray, ...]:
        """Rois of one picture with their labels, targets and weights."""
        cfg, most = self.cfg, record["max_overlaps"]
        front = np.flatnonzero(most >= cfg.FG_THRESH)
        back = np.flatnonzero((most < cfg.BG_THRESH_HI) & (most >= cfg.BG_THRESH_LO))
        n_front = int(min(np.round(cfg.FG_FRACTION * count), len(front)))
        n_back = min(count - n_front, len(back))
        drawn = [
            np.random.choice(found, size=n, replace=False)
            for found, n in ((front, n_front), (back, n_back))
            if len(found)
        ]
        chosen = np.concatenate([*drawn, np.empty(0, np.int64)]).astype(np.int64)
        labels = record["max_classes"][chosen].copy()
        labels[n_front:] = 0
        rois = np.hstack((np.full((len(chosen), 1), item), record["boxes"][chosen] * factor))
        goals = record["bbox_targets"][chosen]
        targets, weights = (np.zeros((len(chosen), self.classes, 4), np.float32) for _ in range(2))
        shown = np.flatnonzero(goals[:, 0] > 0)
        targets[shown, goals[shown, 0].astype(np.int64)] = goals[shown, 1:]
        weights[shown, goals[shown, 0].astype(np.int64)] = cfg.BBOX_INSIDE_WEIGHTS
        return rois, labels, targets.reshape(len(chosen), -1), weights.reshape(len(chosen), -1)
