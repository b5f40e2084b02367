"""Scores of segmentations as in the PASCAL VOC devkit.

Pixels of all pictures together are counted by true and predicted label, without those whose true label is 255. A
class's score is intersection over union: correctly predicted pixels divided by those that have or should have the
class.

Source: VOCevalseg.m of the VOC 2012 devkit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.errors import CaffeError, FileError, ShapeError
from caffe_port.paths import is_file, is_folder
from caffe_port.segmentation.voc import CLASSES, IGNORED, read_labels

__all__ = ["Scored", "Scores", "confusion", "markdown", "masks_in", "percents", "score", "short_names"]

Array = np.ndarray[Any, np.dtype[Any]]

_SHORT = {"background": "bkg", "aeroplane": "aero", "bicycle": "bike", "diningtable": "table", "motorbike": "mbk"}
_SHORT |= {"person": "prsn", "pottedplant": "plnt", "tvmonitor": "tv"}


def short_names(names: Sequence[str]) -> list[str]:
    """Names in the header of the paper's table 2."""
    return [_SHORT.get(name, name) for name in names]


def confusion(result: Array, truth: Array, classes: int, where: str = "result") -> Array:
    """Pixels by true label (rows) and predicted label (columns), int64 (classes, classes); the background is a class.

    Args:
        result, truth: labels, uint8 (height, width). where: the picture, for errors.

    Raises:
        ShapeError: they differ in size. CaffeError: a label beyond the classes.
    """
    if result.shape != truth.shape:
        raise ShapeError(where, f"a mask of {_size(result)}", expected=f"{_size(truth)} as the true mask")
    counted = truth != IGNORED
    for mask, what in ((result, "a label"), (truth[counted], "a true label")):
        if mask.size and mask.max() >= classes:
            raise CaffeError(where, f"{what} {mask.max()}", expected=f"0 to {classes - 1}")
    pairs = truth[counted].astype(np.int64) * classes + result[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _size(mask: Array) -> str:
    return f"{mask.shape[1]} x {mask.shape[0]}"


@dataclass(frozen=True)
class Scores:
    """The scores in a matrix of pixel counts.

    Attributes:
        counts: int64 (classes, classes), true labels along the rows.
    """

    counts: Array

    @property
    def iou(self) -> Array:
        """Each class's intersection over union, float64 (classes,); nan for one in neither results nor truths."""
        right = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - right
        return np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0)

    @property
    def mean(self) -> float:
        """The mean of the classes' scores; without those that have none. nan if there is none."""
        iou = self.iou
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    @property
    def accuracy(self) -> float:
        """The share of correct pixels."""
        total = int(self.counts.sum())
        return float(np.trace(self.counts)) / total if total else float("nan")

    @property
    def shares(self) -> Array:
        """Each row of the counts as shares of it, float64: the predictions for a class's pixels. A row without
        pixels is 0."""
        total = self.counts.sum(1, keepdims=True)
        return self.counts / np.maximum(total, 1)


@dataclass(frozen=True)
class Scored:
    """One picture: its name and its scores, whose mean is over its true and predicted classes."""

    name: str
    scores: Scores


def score(name: str, results: Path, truths: Path, classes: int) -> Scored:
    """The scores of ``results/NAME.png`` against ``truths/NAME.png``.

    Raises:
        CaffeError: one of them is missing or does not fit.
    """
    result, truth = read_labels(results / f"{name}.png"), read_labels(truths / f"{name}.png")
    return Scored(name, Scores(confusion(result, truth, classes, str(results / f"{name}.png"))))


def masks_in(folder: Path, names: Path | None = None) -> list[str]:
    """The names of the masks to score: those in the list ``names``, one a line, or else all of the folder.

    Raises:
        FileError: the folder or the list is missing or empty.
    """
    if not is_folder(folder):
        raise FileError(str(folder), "no such folder")
    if names is None:
        found = sorted(path.stem for path in folder.glob("*.png"))
    elif is_file(names):
        found = [words[0] for line in names.read_text(encoding="utf-8").splitlines() if (words := line.split())]
    else:
        raise FileError(str(names), "no such file")
    if not found:
        raise FileError(str(names or folder), "no masks", expected="NAME.png" if names is None else "one name a line")
    return found


def markdown(rows: Sequence[tuple[str, Scores]], names: Sequence[str] = ("background", *CLASSES)) -> str:
    """Systems and their scores in percent as a Markdown table in the form of the paper's table 2."""
    head = ["Models", *short_names(names), "mean"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join([system, *percents(scores)]) + " |" for system, scores in rows]
    return "\n".join(lines) + "\n"


def percents(scores: Scores) -> list[str]:
    """Each class's score and their mean as text; "-" for none."""
    return ["-" if np.isnan(value) else f"{100 * value:.1f}" for value in (*scores.iou, scores.mean)]
