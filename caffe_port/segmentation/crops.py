"""Training examples from few masks: combinatorial cropping, and the crops for DeconvNet's training.

Source: section 5 of the paper; Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", 2015,
sections 4.2 and 5.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.segmentation.proposals import Boxes, enlarged, random_boxes
from caffe_port.segmentation.voc import IGNORED

__all__ = ["Object", "around", "choose", "combinatorial", "dominant", "objects", "present", "subsets"]

Array = np.ndarray[Any, np.dtype[Any]]

_MOST = 12
"""Limit of classes in one picture; they have 4095 subsets."""
_CONTEXT = 1.2
"""Ratio of the sides of DeconvNet's crops to those of an object or proposal."""
_SPECK = 1 / 1000
"""Share of a picture below which connected pixels are not an object."""


def present(labels: Array) -> tuple[int, ...]:
    """The classes of a mask, in order."""
    counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)
    return tuple(int(label) for label in np.flatnonzero(counts[1:IGNORED]) + 1)


def subsets(classes: Sequence[int]) -> list[tuple[int, ...]]:
    """All non-empty subsets, small ones first.

    Raises:
        CaffeError: there would be too many.
    """
    if len(classes) > _MOST:
        raise CaffeError("combinatorial cropping", f"{len(classes)} classes in a picture", expected=f"{_MOST} at most")
    return [chosen for size in range(1, len(classes) + 1) for chosen in combinations(classes, size)]


def around(labels: Array, chosen: Sequence[int]) -> Array:
    """The smallest box (x1, y1, x2, y2) with every pixel of these classes, of which there must be some."""
    seen = np.isin(labels, chosen)
    y, x = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return np.array([x[0], y[0], x[-1], y[-1]])


def combinatorial(
    labels: Array, proposals: Boxes, count: int, rng: np.random.Generator, *, drawn: float = 0.5
) -> Iterator[tuple[tuple[int, ...], Boxes]]:
    """Every subset of a mask's classes with ``count`` boxes that enclose all of its pixels (section 5).

    The paper does not give the ratio of proposals and random boxes. Here: the best proposals that enclose the pixels,
    but at least the share ``drawn`` of random boxes, which fill up the count.

    Args:
        labels: (height, width). proposals: best first.
    """
    for chosen in subsets(present(labels)):
        x1, y1, x2, y2 = inside = around(labels, chosen)
        left, top, right, bottom = proposals.T
        enclosing = proposals[(left <= x1) & (top <= y1) & (right >= x2) & (bottom >= y2)]
        kept = enclosing[: count - round(count * drawn)]
        height, width = labels.shape
        yield chosen, np.concatenate([kept, random_boxes(rng, inside, (height, width), count - len(kept))])


class Object(NamedTuple):
    """A label, and a box around one object of it."""

    label: int
    box: Array


def objects(labels: Array) -> Iterator[tuple[Object, Array]]:
    """A mask's objects: connected pixels of a class, with some of their surroundings (DeconvNet's first stage).

    Yields:
        The object; and its box's labels, in which other pixels are background, and ignored ones remain ignored.
    """
    import cv2

    for label in present(labels):
        _, parts, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=8)
        for part, (x, y, w, h, area) in enumerate(stats[1:], 1):
            if area >= labels.size * _SPECK:
                tight = np.array([[x, y, x + w - 1, y + h - 1]], np.int64)
                x1, y1, x2, y2 = box = enlarged(tight, _CONTEXT, (labels.shape[0], labels.shape[1]))[0]
                here = slice(y1, y2 + 1), slice(x1, x2 + 1)
                alone = np.where((parts[here] == part) | (labels[here] == IGNORED), labels[here], np.uint8(0))
                yield Object(label, box), alone


def dominant(labels: Array, proposals: Boxes, count: int) -> list[Object]:
    """The best proposals with some of their surroundings that contain a class, each with its most frequent class
    (DeconvNet's second stage)."""
    found: list[Object] = []
    for box in enlarged(proposals, _CONTEXT, (labels.shape[0], labels.shape[1])):
        if len(found) == count:
            break
        x1, y1, x2, y2 = box
        seen = np.bincount(labels[y1 : y2 + 1, x1 : x2 + 1].ravel(), minlength=IGNORED + 1)[1:IGNORED]
        if seen.any():
            found.append(Object(int(seen.argmax()) + 1, box))
    return found


def choose(shown: Mapping[str, Sequence[int]], count: int, classes: int, seed: int) -> tuple[list[str], dict[int, int]]:
    """Pictures to annotate: for every class ``count`` that contain it, no picture for two classes.

    The classes take turns in choosing their next picture, in an order drawn from the seed, the rarest class first; the
    choice for fewer pictures is a subset of the choice for more.

    Args:
        shown: the labels of every picture.

    Returns:
        The pictures in their order in ``shown``; and for classes that got fewer, their number.
    """
    order = [list(shown)[i] for i in np.random.default_rng(seed).permutation(len(shown))]
    waiting = {label: [name for name in order if label in shown[name]][::-1] for label in range(1, classes + 1)}
    turns = sorted(waiting, key=lambda label: (len(waiting[label]), label))
    taken: dict[str, int] = {}
    got = dict.fromkeys(waiting, 0)
    for _ in range(count):
        for label in turns:
            while waiting[label]:
                name = waiting[label].pop()
                if name not in taken:
                    taken[name] = label
                    got[label] += 1
                    break
    return [name for name in shown if name in taken], {label: n for label, n in got.items() if n < count}
