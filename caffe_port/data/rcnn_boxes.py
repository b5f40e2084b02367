"""Boxes as py-faster-rcnn computes them: anchors, deltas, overlaps, suppression. All in numpy, in its own precision.

Boxes are rows of (x1, y1, x2, y2); a box from 3 to 5 is 3 wide. Source: lib/rpn/generate_anchors.py,
lib/fast_rcnn/bbox_transform.py, lib/utils/bbox.pyx, lib/nms/cpu_nms.pyx of rbgirshick/py-faster-rcnn (781a917).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["anchors", "clip", "deltas_of", "moved", "overlaps", "shifted", "sizes", "suppress"]

_BLOCK = 256
"""Boxes that are compared with one another at once."""


def anchors(scales: Sequence[float], ratios: Sequence[float], base: int = 16) -> np.ndarray:
    """(A, 4) boxes around a cell of ``base`` pixels: each ratio (height by width), in each scale; float64."""
    side = np.array(ratios, np.float64)
    widths = np.round(np.sqrt(base * base / side))
    heights = np.round(widths * side)
    half = np.stack((np.outer(widths, scales).ravel(), np.outer(heights, scales).ravel()), 1) - 1
    centre = 0.5 * (base - 1)
    return np.hstack((centre - 0.5 * half, centre + 0.5 * half))


def shifted(boxes: np.ndarray, height: int, width: int, stride: int) -> np.ndarray:
    """The boxes at every cell of a map, row by row: (height * width * A, 4)."""
    x, y = np.meshgrid(np.arange(width) * stride, np.arange(height) * stride)
    shifts = np.stack((x.ravel(), y.ravel(), x.ravel(), y.ravel()), 1)
    return (shifts[:, None] + boxes).reshape(-1, 4)


def sizes(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights."""
    return boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1


def moved(boxes: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Boxes moved and resized by (dx, dy, dw, dh), in the precision of the deltas."""
    boxes = boxes.astype(deltas.dtype, copy=False)
    made = np.empty_like(deltas)
    for i, size in enumerate(sizes(boxes)):
        centre = deltas[:, i] * size + (boxes[:, i] + 0.5 * size)
        half = 0.5 * (np.exp(deltas[:, 2 + i]) * size)
        made[:, i], made[:, 2 + i] = centre - half, centre + half
    return made


def deltas_of(boxes: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """The (dx, dy, dw, dh) that move each box onto its goal."""
    made = []
    for i, (size, goal) in enumerate(zip(sizes(boxes), sizes(goals), strict=True)):
        between = (goals[:, i] + 0.5 * goal) - (boxes[:, i] + 0.5 * size)
        made.append((between / size, np.log(goal / size)))
    (dx, dw), (dy, dh) = made
    return np.stack((dx, dy, dw, dh), 1)


def clip(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """Boxes cut at the picture's edges."""
    last = np.array((width - 1, height - 1, width - 1, height - 1), boxes.dtype)
    return np.maximum(np.minimum(boxes, last), boxes.dtype.type(0))


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, K) intersections over unions, float64."""
    a, b = boxes[:, None].astype(np.float64), others[None].astype(np.float64)
    return _overlaps(a, b, np.prod(sizes(boxes.astype(np.float64)), 0)[:, None], np.prod(sizes(others * 1.0), 0))


def _overlaps(a: np.ndarray, b: np.ndarray, area_a: np.ndarray, area_b: np.ndarray) -> np.ndarray:
    shared = [
        np.maximum(np.minimum(a[..., i + 2], b[..., i + 2]) - np.maximum(a[..., i], b[..., i]) + 1, 0) for i in (0, 1)
    ]
    inside = shared[0] * shared[1]
    return inside / (area_a + area_b - inside)


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float, most: int = 0) -> np.ndarray:
    """Which boxes stay: from the best score down, each whose overlap with all that stay is below ``threshold``.

    Of equal scores the last box comes first. Overlaps are in the boxes' precision. The original is one comparison
    after the other; here blocks of boxes are compared at once, in the same order and with the same result.

    Args:
        most: stop after so many; 0 never does.

    Returns:
        Their indices, best first.
    """
    order = np.argsort(scores, kind="stable")[::-1]
    boxes = boxes[order]
    area = np.prod(sizes(boxes), 0)
    alive = np.ones(len(boxes), bool)
    limit = np.float64(threshold)
    kept: list[int] = []
    for start in range(0, len(boxes), _BLOCK):
        here = start + np.flatnonzero(alive[start : start + _BLOCK])
        if not len(here):
            continue
        close = _overlaps(boxes[here][:, None], boxes[here], area[here][:, None], area[here]) >= limit
        stays = np.ones(len(here), bool)
        for i in range(len(here)):
            if stays[i]:
                stays[i + 1 :] &= ~close[i, i + 1 :]
        kept += here[stays].tolist()
        if most and len(kept) >= most:
            break
        rest = start + _BLOCK + np.flatnonzero(alive[start + _BLOCK :])
        if len(rest):
            new = here[stays]
            close = _overlaps(boxes[rest][:, None], boxes[new], area[rest][:, None], area[new]) >= limit
            alive[rest[close.any(1)]] = False
    found = order[np.array(kept, np.int64)]
    return found[:most] if most else found
