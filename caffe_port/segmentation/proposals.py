"""Boxes that may contain objects: EdgeBox proposals, and random boxes around a given one.

Source: Zitnick and Dollár, "Edge Boxes: Locating Object Proposals from Edges", 2014, implemented in OpenCV; its edges
    come
from a structured forest (Dollár and Zitnick, 2013), whose trained file is not part of OpenCV.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.errors import FileError, FormatError
from caffe_port.paths import is_file

__all__ = ["Boxes", "edge_boxes", "edge_map", "enlarged", "forest", "random_boxes"]

Array = np.ndarray[Any, np.dtype[Any]]
Boxes = Array
"""int64 (boxes, 4): x1, y1, x2, y2, the last two inclusive."""

_STRONG = 99
"""The percentile of gradients that is mapped to a full edge."""
_BLUR = 3 / 500
"""Deviation of the blur before gradients are taken, as a share of the longer side."""
_SMALLEST = 1 / 200
"""The smallest share of a picture's area for a proposal."""


def edge_boxes(picture: Array, count: int, model: str | Path | None = None) -> tuple[Boxes, Array]:
    """The best proposals, best first, and their scores. The same picture gives the same ones.

    Args:
        picture: uint8 RGB (height, width, 3). count: their largest number.
        model: a structured forest's file (OpenCV's ``model.yml.gz``); without it edges are gradients.

    Returns:
        Boxes inside the picture; float32 (boxes,).

    Raises:
        FileError: no such model. FormatError: it is not one.
    """
    import cv2

    height, width = picture.shape[:2]
    edges, orientation = edge_map(picture, model)
    finder = cv2.ximgproc.createEdgeBoxes(maxBoxes=count, minBoxArea=height * width * _SMALLEST)
    found, scores = finder.getBoundingBoxes(edges, orientation)
    if not len(found):
        return np.zeros((0, 4), np.int64), np.zeros(0, np.float32)
    scores = np.asarray(scores, np.float32).ravel()
    x, y, w, h = np.asarray(found, np.int64)[scores > 0].T
    boxes = np.stack([x, y, x + w - 1, y + h - 1], 1).clip(0, [width - 1, height - 1] * 2)
    return boxes, scores[scores > 0]


def edge_map(picture: Array, model: str | Path | None = None) -> tuple[Array, Array]:
    """Each pixel's edge strength, 0 to 1 and thinned, and the direction across the edge, 0 to pi; both float32.

    Args:
        picture, model: as for :func:`edge_boxes`.
    """
    import cv2

    if model is not None:
        trees = forest(str(model))
        thick = trees.detectEdges(picture.astype(np.float32) / 255)
        orientation = trees.computeOrientation(thick)
        return trees.edgesNms(thick, orientation), orientation
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.GaussianBlur(lab, (0, 0), max(_BLUR * max(picture.shape), 0.5))
    across, down = cv2.Sobel(lab, cv2.CV_32F, 1, 0), cv2.Sobel(lab, cv2.CV_32F, 0, 1)
    strongest = (across**2 + down**2).argmax(-1)[..., None]
    across, down = (np.take_along_axis(g, strongest, -1)[..., 0] for g in (across, down))
    strength = np.hypot(across, down)
    edges = (strength / max(float(np.percentile(strength, _STRONG)), 1e-6)).clip(0, 1)
    return _thinned(edges, across, down), np.mod(np.arctan2(down, across), np.float32(np.pi))


@lru_cache(maxsize=1)
def forest(path: str) -> Any:
    """A structured forest, read once.

    Raises:
        FileError: no such file. FormatError: it is not one.
    """
    import cv2

    if not is_file(path):
        raise FileError(path, "no such file", expected="a structured forest (OpenCV's model.yml.gz)")
    try:
        # Checked first: OpenCV divides by a number of the file, and the process crashes if that is 0.
        trees = cv2.FileStorage(path, cv2.FILE_STORAGE_READ).getNode("childs")
        if not trees.empty():
            return cv2.ximgproc.createStructuredEdgeDetection(path)
    except (cv2.error, SystemError) as error:
        raise FormatError(path, "which cannot be read", expected="OpenCV's model.yml.gz") from error
    raise FormatError(path, "a file without trees", expected="a structured forest (OpenCV's model.yml.gz)")


def _thinned(edges: Array, across: Array, down: Array) -> Array:
    """The pixels that are at least as strong as both neighbours across the edge; 0 elsewhere."""
    import cv2

    y, x = np.indices(edges.shape, np.float32)
    length = np.hypot(across, down) + np.float32(1e-9)
    dx, dy = across / length, down / length
    one, other = (cv2.remap(edges, x + s * dx, y + s * dy, cv2.INTER_LINEAR) for s in (1, -1))
    return np.where((edges >= one) & (edges >= other), edges, np.float32(0))


def random_boxes(rng: np.random.Generator, inside: Array, size: tuple[int, int], count: int) -> Boxes:
    """Random boxes in a picture around a smaller one, each side drawn uniformly from its possible positions.

    Args:
        inside: the box (x1, y1, x2, y2) that each contains. size: the picture's (height, width).
    """
    x1, y1, x2, y2 = inside
    height, width = size
    low, high = [0, 0, x2, y2], [x1, y1, width - 1, height - 1]
    return rng.integers(low, high, (count, 4), endpoint=True)


def enlarged(boxes: Boxes, factor: float, size: tuple[int, int] | None = None) -> Boxes:
    """Boxes with sides ``factor`` times as long around the same centre, clipped to a picture's (height, width) if
    given."""
    grow = (boxes[:, 2:] - boxes[:, :2] + 1) * (factor - 1) / 2
    wide = np.concatenate([np.floor(boxes[:, :2] - grow), np.ceil(boxes[:, 2:] + grow)], 1).astype(np.int64)
    return wide if size is None else wide.clip(0, [size[1] - 1, size[0] - 1] * 2)
