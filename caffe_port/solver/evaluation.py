"""What a solver makes of its test nets' outputs: their means, or the precision of detections (ssd: eval_type).

Source: solver.cpp, TestClassification and TestDetection (ssd); Test (bvlc) is the former.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from torch import Tensor

from caffe_port.detection.precision import VERSIONS, average_precision
from caffe_port.errors import CaffeError, ShapeError
from caffe_port.solver.log import Log
from caffe_port.solver.scores import Scores

__all__ = ["Detections", "Means", "kind_of"]


class Means:
    """The mean of every number of every output over the batches of a test."""

    def __init__(self, param: Any, log: Log) -> None:
        self.log, self.sums, self.batches = log, list[np.float32](), 0
        self.scores: list[Scores] = []

    def add(self, scores: list[Scores], outputs: dict[str, Tensor]) -> None:
        """Take in one batch's outputs."""
        before = self.sums or [np.float32(0)] * len(scores)
        self.sums = [a + np.float32(s.value) for a, s in zip(before, scores, strict=True)]
        self.scores, self.batches = scores, self.batches + 1

    def finish(self) -> list[Scores]:
        """Log and return the scores."""
        n = np.float32(self.batches)
        means = [Scores(s.name, s.weight, float(total / n)) for s, total in zip(self.scores, self.sums, strict=True)]
        self.log.scores("Test", means)
        return means


class Detections:
    """The mean over classes of the average precision, for each output of a DetectionEvaluate layer.

    A class without detections counts as 0, as in SSD. So does, here, an output without any, where SSD stops.
    """

    def __init__(self, param: Any, log: Log) -> None:
        self.version, self.shows, self.log = param.ap_version, param.show_per_class_result, log
        self.rows: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(self, scores: list[Scores], outputs: dict[str, Tensor]) -> None:
        """Take in one batch's outputs."""
        for name in dict.fromkeys(s.name for s in scores):
            shape = tuple(outputs[name].shape)
            if shape[-1:] != (5,):
                raise ShapeError(
                    f"test net output {name}",
                    f"shape {shape}",
                    expected="(1, 1, n, 5), of a DetectionEvaluate layer, with eval_type: detection",
                    remedy="end other outputs in a Silence layer",
                )
            self.rows[name].append(outputs[name].reshape(-1, 5).cpu().numpy())

    def finish(self) -> list[Scores]:
        """Log and return the scores."""
        found = []
        for i, (name, parts) in enumerate(self.rows.items()):
            rows = np.concatenate(parts)
            total = np.float32(0)
            items, labels = rows[:, 0].astype(int), rows[:, 1].astype(int)
            classes = np.unique(labels[items == -1])
            judged = (items != -1) & ((rows[:, 3].astype(int) != 0) | (rows[:, 4].astype(int) != 0))
            for label in classes:
                own = rows[judged & (labels == label)]
                if not len(own):
                    self.log.line(f"Missing true_pos for label: {label}", severity="W")
                    continue
                positives = int(rows[(items == -1) & (labels == label), 2].astype(int).sum())
                precision = average_precision(own[:, 2], own[:, 3] != 0, positives, self.version)
                total += np.float32(precision)
                if self.shows:
                    self.log.line(f"class{label}: {self.log.number(precision)}")
            found.append(Scores(name, 0.0, float(total / np.float32(len(classes)))))
            self.log.line(f"    Test net output #{i}: {name} = {self.log.number(found[-1].value)}")
        return found


def kind_of(param: Any, path: str) -> type[Means] | type[Detections]:
    """Which of the two a SolverParameter asks for.

    Raises:
        CaffeError: an eval_type or ap_version that SSD does not know.
    """
    kinds = {"classification": Means, "detection": Detections}
    asked = getattr(param, "eval_type", "classification")
    if asked not in kinds:
        raise CaffeError(path, f"eval_type {asked!r}", expected=" or ".join(kinds))
    if asked == "detection" and param.ap_version not in VERSIONS:
        raise CaffeError(path, f"ap_version {param.ap_version!r}", expected=f"one of {', '.join(VERSIONS)}")
    return kinds[asked]  # type: ignore[return-value]
