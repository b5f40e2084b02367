"""Average precision of ranked detections. Source: bbox_util.cpp (ssd), ComputeAP."""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_port.errors import CaffeError

__all__ = ["VERSIONS", "average_precision"]

VERSIONS = ("11point", "MaxIntegral", "Integral")
"""The mean of the best precisions at 11 recalls (VOC 2007); the area under them at all recalls (since VOC 2010); the
area under the precisions themselves."""

_EPS = np.float32(1e-6)


def average_precision(
    scores: np.ndarray, right: np.ndarray, positives: int, version: str = "Integral", kind: Any = np.float32
) -> float:
    """The average precision of one class.

    Args:
        scores: (n,) of any order; of equal ones the earlier ranks higher.
        right: (n,) whether each is correct.
        positives: the number of true objects.
        kind: the precision of the arithmetic; single is SSD's.

    Raises:
        CaffeError: the version is not one of :data:`VERSIONS`.
    """
    if version not in VERSIONS:
        raise CaffeError("ap_version", repr(version), expected=f"one of {', '.join(VERSIONS)}")
    if not len(scores) or not positives:
        return 0.0
    hits = np.cumsum(np.asarray(right, bool)[np.argsort(-np.asarray(scores), kind="stable")])
    precision = hits.astype(kind) / np.arange(1, len(hits) + 1, dtype=kind)
    recall = hits.astype(kind) / kind(positives)
    if version == "11point":
        wide = recall.astype(np.float64)  # 0.7 in single precision is below 0.7
        best = [precision[wide >= j / 10].max(initial=kind(0)) for j in range(10, -1, -1)]
        return _sum(np.array(best, kind) / kind(11))
    if version == "Integral":
        steps = np.abs(np.diff(recall, prepend=kind(0)))
        return _sum(np.where(steps > _EPS, precision * steps, kind(0)))
    best_from = np.maximum.accumulate(precision[::-1])
    steps = np.abs(np.diff(recall))[::-1]
    parts = np.where(steps > _EPS, best_from[1:] * steps, kind(0))
    return _sum(np.append(parts, recall[0] * best_from[-1]))


def _sum(parts: np.ndarray) -> float:
    """The sum by sequential additions, each rounded."""
    return float(np.add.accumulate(parts)[-1])
