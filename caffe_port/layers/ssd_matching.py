"""Which priors answer for which boxes, and which of the others are negatives. Source: bbox_util.cpp (ssd).

A matching is an int array with a number for each prior: the index of its box among the item's, -1 for none, -2 for a
prior that crosses the image's edge and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffe_port.layers.ssd_boxes import areas, overlaps

__all__ = ["Boxes", "Matching", "ground_truth", "match", "select", "thin"]


@dataclass(frozen=True)
class Boxes:
    """The true boxes of one item: labels (n,) and corners (n, 4), on the CPU."""

    labels: np.ndarray
    corners: Tensor


@dataclass
class Matching:
    """For each class of locations (-1: all share one) the priors' boxes and best overlaps; ``negatives`` (n,)."""

    boxes: dict[int, np.ndarray]
    overlaps: dict[int, np.ndarray]
    negatives: np.ndarray

    @property
    def count(self) -> int:
        """Priors that have a box."""
        return sum(int((m > -1).sum()) for m in self.boxes.values())


def ground_truth(rows: np.ndarray, use_difficult: bool) -> dict[int, Boxes]:
    """The boxes of each item from rows (item, label, instance, xmin, ymin, xmax, ymax, difficult); item -1 is none."""
    items, labels = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
    counts = (items != -1) & (use_difficult | (rows[:, 7] == 0))
    return {
        int(i): Boxes(labels[own], torch.from_numpy(rows[own, 3:7]))
        for i in np.unique(items[counts])
        for own in [counts & (items == i)]
    }


def match(boxes: Tensor, priors: Tensor, per_prediction: float | None, excluded: np.ndarray | None) -> tuple:
    """Match priors with boxes: first the pairs of largest overlap, one prior a box, then the rest.

    Args:
        boxes, priors: (n, 4) and (P, 4).
        per_prediction: the overlap from which every other prior is matched with its best box; None: not at all.
        excluded: the priors (P,) that get no box.

    Returns:
        (matching, best overlaps), both (P,).
    """
    found = np.full(len(priors), -1)
    best = np.zeros(len(priors), np.float32)
    if excluded is not None and len(boxes):
        found[excluded] = -2
    if not len(boxes):
        return found, best
    table = overlaps(priors, boxes).numpy()
    table[~(table > 1e-6) | (found == -2)[:, None]] = 0
    best = table.max(1)
    free = table.copy()
    for _ in range(len(boxes)):
        prior, box = divmod(int(free.argmax()), len(boxes))
        if free[prior, box] <= 0:
            break
        found[prior], best[prior] = box, table[prior, box]
        free[prior, :] = free[:, box] = 0
    if per_prediction is not None:
        favourite = table.argmax(1)
        largest = np.take_along_axis(table, favourite[:, None], 1)[:, 0]
        rest = (found == -1) & (largest > 0) & (largest >= np.float32(per_prediction))
        found[rest] = favourite[rest]
    return found, best


def thin(boxes: Tensor, scores: np.ndarray, threshold: float, top_k: int) -> np.ndarray:
    """Places of boxes, highest score first, that overlap no earlier one by more than ``threshold``.

    Unlike in DetectionOutput, boxes smaller than 1e-5 are dropped; ``top_k`` -1 is all.
    """
    order = np.argsort(-scores, kind="stable")[: top_k if top_k > -1 else None]
    boxes = boxes[torch.from_numpy(order)]
    open_, kept = ~(areas(boxes) < 1e-5).numpy(), list[int]()
    for i in range(len(order)):
        if open_[i]:
            kept.append(i)
            if -1 < top_k <= len(kept):
                break
            open_[i + 1 :] &= ~(overlaps(boxes[i : i + 1], boxes[i + 1 :])[0] > threshold).numpy()
    return order[kept]


def select(loss: np.ndarray, eligible: np.ndarray, count: int, thinned: np.ndarray | None) -> np.ndarray:
    """The priors (P,) of the ``count`` largest losses among the eligible ones, as a mask; of equal losses the earlier.

    Args:
        thinned: places among the eligible ones to take from, in their order.
    """
    places = np.flatnonzero(eligible)
    order = np.argsort(-loss[places], kind="stable") if thinned is None else thinned
    chosen = np.zeros(len(loss), bool)
    chosen[places[order[:count]]] = True
    return chosen
