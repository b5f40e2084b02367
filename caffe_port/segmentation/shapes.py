"""A synthetic data set: textured shapes in clutter, in PASCAL VOC's layout, for trials.

A class has a shape, a pattern, and an approximate hue. A picture has some objects of any scale, which occlude parts of
each other, among lines and blobs that belong to no class.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.segmentation.atomic_folder import replacing
from caffe_port.segmentation.crops import present
from caffe_port.segmentation.folder import CLASSES_FILE, LABELS_FILE, LISTS, MASKS, PHOTOGRAPHS
from caffe_port.segmentation.parallel import in_processes
from caffe_port.segmentation.voc import IGNORED, write_labels

__all__ = ["SHAPES", "ShapeSet", "make_shapes"]

Array = np.ndarray[Any, np.dtype[Any]]
Watch = Callable[[Sequence[str], str], Iterable[str]]

_FINE = 2
"""Pixels are drawn this many times finer along each side, then averaged."""


@dataclass(frozen=True)
class _Manner:
    """What pictures are like.

    Attributes:
        aspects: width over height. objects: least and most of them, background shapes as well (``clutter``).
        scales: of an object's radius as a share of the longer side, whose logarithm is uniform. seen: its smallest
            visible share. inside: how far its centre is from the borders, as a share of the sides.
        clouds: their contrast. vivid: how far the background's colours are from grey.
    """

    aspects: tuple[float, ...] = (1.0, 4 / 3, 3 / 4)
    objects: tuple[int, int] = (1, 4)
    scales: tuple[float, float] = (0.13, 0.34)
    seen: float = 0.35
    inside: float = 0.1
    clutter: tuple[int, int] = (4, 13)
    clouds: float = 0.1
    vivid: float = 1.0

    def muted(self, colour: Array) -> Array:
        return colour if self.vivid == 1 else colour.mean() + self.vivid * (colour - colour.mean())


_USUAL = _Manner()
_EASY = _Manner((1.0,), (1, 3), (0.2, 0.36), 0.7, 0.22, (2, 7), 0.06, 0.5)
_TRIES = 20
_COUNTS = {"train": "images", "val": "val"}
"""The field of a set with the number of pictures of each list."""


def _star(points: int, inner: float) -> Array:
    """A star's corners, those between the points at the radius ``inner``."""
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def _polygon(corners: int) -> Array:
    angles = np.arange(corners) * 2 * np.pi / corners - np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], 1) / 17


def _crescent() -> Array:
    outer, inner = np.linspace(0.6, 2 * np.pi - 0.6, 50), np.linspace(2 * np.pi - 1.05, 1.05, 50)
    return np.concatenate(
        [np.stack([np.cos(outer), np.sin(outer)], 1), np.stack([0.42 + 0.8 * np.cos(inner), 0.66 * np.sin(inner)], 1)]
    )


def _fish() -> Array:
    """An ellipse with a tail."""
    t = np.linspace(-2.6, 2.6, 50)
    body = np.stack([0.24 + 0.76 * np.cos(t), 0.5 * np.sin(t)], 1)
    return np.concatenate([body, [(-0.85, 0.5), (-0.72, 0), (-0.85, -0.5)]])


def _flower() -> Array:
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    radius = 0.76 + 0.24 * np.cos(5 * t)
    return np.stack([radius * np.cos(t), radius * np.sin(t)], 1)


def _leaf() -> Array:
    t = np.linspace(0, np.pi, 40, endpoint=False)
    side = np.stack([np.cos(t), 0.62 * np.sin(t) ** 1.5], 1)
    return np.concatenate([side, -side])


_CROSS = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
_ARROW = [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)]
_HOURGLASS = [(-0.8, -1), (0.8, -1), (0.15, 0), (0.8, 1), (-0.8, 1), (-0.15, 0)]
_BOLT = [(0.1, -1), (0.7, -1), (0.25, -0.2), (0.75, -0.2), (-0.5, 1), (-0.1, 0.15), (-0.6, 0.15)]

SHAPES: dict[str, list[Array]] = {
    "disc": [_polygon(64)],
    "triangle": [_polygon(3)],
    "star": [_star(5, 0.45)],
    "ring": [_polygon(64), 0.5 * _polygon(64)],
    "cross": [np.array(_CROSS) / 3],
    "square": [_polygon(4)],
    "heart": [_heart()],
    "arrow": [np.array(_ARROW)],
    "crescent": [_crescent()],
    "gear": [_star(9, 0.72), 0.3 * _polygon(32)],
    "hourglass": [np.array(_HOURGLASS)],
    "bolt": [np.array(_BOLT)],
    "fish": [_fish()],
    "flower": [_flower()],
    "leaf": [_leaf()],
}
"""Outlines within the unit circle by the name of their class; a second one is a hole."""

_PATTERNS: list[Callable[[Array, Array], Array]] = [
    lambda u, v: 0.5 + 0.5 * np.sin(9 * u),
    lambda u, v: (np.sin(8 * u) * np.sin(8 * v) > 0) * 1.0,
    lambda u, v: (np.cos(9 * u) + np.cos(9 * v) > 0.8) * 1.0,
    lambda u, v: 0.5 + 0.5 * np.sin(14 * np.hypot(u, v)),
    lambda u, v: 0.5 + 0.5 * v,
    lambda u, v: (np.sin(7 * v + 2 * np.abs(np.mod(2 * u, 2) - 1) * 3) > 0) * 1.0,
    lambda u, v: (np.sin(9 * (u + v)) > 0.3) * 1.0,
]
"""A value from 0 to 1 by the position on a shape."""


def _scales(u: Array, v: Array) -> Array:
    """Rows of arcs, every second one shifted by half an arc."""
    row = np.floor(4 * u)
    return (np.hypot(4 * u - row, 2 * (np.mod(2.5 * v + row / 2, 1) - 0.5)) < 0.8) * 1.0


_OWN_PATTERNS: dict[str, Callable[[Array, Array], Array]] = {
    "fish": _scales,
    "flower": lambda u, v: (np.hypot(u, v) > 0.28) * (0.6 + 0.4 * np.cos(15 * np.arctan2(v, u))),
    "leaf": lambda u, v: 1.0 * ((np.abs(v) > 0.06) & (np.sin(12 * (u + np.abs(v))) < 0.6)),
}
"""Of the shapes that share none with another."""


def _pattern(name: str) -> Callable[[Array, Array], Array]:
    return _OWN_PATTERNS.get(name) or _PATTERNS[list(SHAPES).index(name) % len(_PATTERNS)]


@dataclass(frozen=True)
class ShapeSet:
    """The settings of a data set.

    Attributes:
        images: for training. val: others, for validation. size: of the longer side.
        classes: their number, in SHAPES' order after the first ``skip``, with those shapes' patterns.
        easy: fewer, larger and less hidden objects in square pictures on quieter backgrounds.

    Raises:
        CaffeError: an invalid number.
    """

    images: int
    val: int
    classes: int = 5
    size: int = 128
    seed: int = 0
    skip: int = 0
    easy: bool = False

    def __post_init__(self) -> None:
        for what, number, least, most in (
            ("images", self.images, 1, 999_999),
            ("val", self.val, 1, 999_999),
            ("skip", self.skip, 0, len(SHAPES) - 1),
            ("classes", self.classes, 1, len(SHAPES) - self.skip),
            ("size", self.size, 32, 4096),
        ):
            if not least <= number <= most:
                raise CaffeError(f"shapes: {what}", str(number), expected=f"{least} to {most}")

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names, of labels 1 and up."""
        return tuple(SHAPES)[self.skip : self.skip + self.classes]

    @property
    def manner(self) -> _Manner:
        return _EASY if self.easy else _USUAL


def make_shapes(
    output: Path,
    drawn: ShapeSet,
    *,
    workers: int = 1,
    overwrite: bool = False,
    watch: Watch = lambda names, what: names,
) -> None:
    """Draws the set into a folder in VOC's layout, atomically.

    Equal settings give equal sets, with any number of workers.

    Args:
        watch: called with names and a description of the work; yields the names as they are done.

    Raises:
        FileError: the folder exists, or cannot be created.
    """
    names = [f"{split}_{i:06}" for split in ("train", "val") for i in range(getattr(drawn, _COUNTS[split]))]
    with replacing(output, overwrite) as folder:
        for part in (PHOTOGRAPHS, MASKS, LISTS):
            (folder / part).mkdir()
        draw = in_processes(partial(_write, folder, drawn), names, workers)
        labels = dict(zip(watch(names, "drawing"), draw, strict=True))
        _text(folder / CLASSES_FILE, drawn.names)
        _text(
            folder / LISTS / LABELS_FILE,
            (" ".join([name, *(drawn.names[label - 1] for label in shown)]) for name, shown in labels.items()),
        )
        for split in _COUNTS:
            _text(folder / LISTS / f"{split}.txt", (name for name in names if name.startswith(split)))


def _text(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _write(folder: Path, drawn: ShapeSet, name: str) -> tuple[int, ...]:
    """Draws a picture and its mask, and returns its labels."""
    from PIL import Image

    split, number = name.split("_")
    picture, labels = draw(drawn, np.random.default_rng([drawn.seed, list(_COUNTS).index(split), int(number)]))
    Image.fromarray(picture).save(folder / PHOTOGRAPHS / f"{name}.jpg", quality=95)
    write_labels(folder / MASKS / f"{name}.png", labels)
    return present(labels)


def draw(drawn: ShapeSet, rng: np.random.Generator) -> tuple[Array, Array]:
    """A picture, uint8 RGB (height, width, 3), and its labels, uint8 (height, width), outlines ignored as VOC's."""
    import cv2

    manner = drawn.manner
    aspect = rng.choice(manner.aspects)
    width, height = (round(drawn.size * min(1.0, a)) for a in (aspect, 1 / aspect))
    canvas = _background(rng, manner, _FINE * height, _FINE * width)
    owner = np.full(canvas.shape[:2], -1)
    areas: list[int] = []
    classes: list[int] = []
    for _ in range(rng.integers(*manner.objects, endpoint=True)):
        label = int(rng.integers(drawn.classes)) + 1
        for _ in range(_TRIES):
            stamp, u, v = _placed(rng, manner, SHAPES[drawn.names[label - 1]], *canvas.shape[:2])
            hidden = np.where(stamp, len(areas), owner)
            seen = np.bincount(hidden.ravel() + 1, minlength=len(areas) + 2)[1:]
            if stamp.any() and (seen >= manner.seen * np.array([*areas, stamp.sum()])).all():
                owner = hidden
                areas.append(int(stamp.sum()))
                classes.append(label)
                canvas[stamp] = _painted(rng, drawn, label, u[stamp], v[stamp])
                break
    labels = np.array([*classes, 0], np.uint8)[owner]
    soft = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    light = 1 + rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, width)[None, :, None]
    noisy = soft * light + rng.normal(0, rng.uniform(0.01, 0.04), soft.shape)
    labels = labels[::_FINE, ::_FINE].copy()
    labels[_outlines(owner[::_FINE, ::_FINE])] = IGNORED
    return (noisy.clip(0, 1) * 255 + 0.5).astype(np.uint8), labels


def _background(rng: np.random.Generator, manner: _Manner, height: int, width: int) -> Array:
    """Clouds of two or three colours, with blobs and lines of no class; float32 RGB from 0 to 1."""
    import cv2

    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = manner.muted(rng.uniform(0.2, 0.8, 3))
    for cells in (2, 5, 11):
        clouds = rng.normal(0, manner.clouds, (cells, cells, 3)).astype(np.float32)
        canvas += cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
    longest = max(height, width)
    for _ in range(rng.integers(*manner.clutter)):
        colour = [float(c) for c in manner.muted(rng.uniform(0.05, 0.95, 3))]
        place = [int(n) for n in rng.integers(0, [width, height])]
        if rng.random() < 0.5:
            axes = [int(n) + 1 for n in rng.uniform(0.01, 0.09, 2) * longest]
            cv2.ellipse(canvas, place, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)
        else:
            end = [int(n) for n in rng.integers(0, [width, height])]
            cv2.line(canvas, place, end, colour, int(rng.integers(1, 1 + max(2, longest // 50))))
    return canvas


def _placed(
    rng: np.random.Generator, manner: _Manner, outlines: Sequence[Array], height: int, width: int
) -> tuple[Array, Array, Array]:
    """A shape's mask, bool (height, width), and each pixel's position in the shape's coordinates."""
    import cv2

    radius = max(height, width) * np.exp(rng.uniform(*np.log(manner.scales)))
    near, far = manner.inside, 1 - manner.inside
    angle, stretch = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(-0.25, 0.25))
    centre = rng.uniform([near * width, near * height], [far * width, far * height])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([radius * stretch, radius / stretch])
    stamp = np.zeros((height, width), np.uint8)
    cv2.fillPoly(stamp, [np.rint(outline @ matrix.T + centre).astype(np.int32) for outline in outlines], 1)
    y, x = np.indices((height, width))
    u, v = np.tensordot(np.linalg.inv(matrix), np.stack([x - centre[0], y - centre[1]]), 1)
    return stamp.astype(bool), u, v


def _painted(rng: np.random.Generator, drawn: ShapeSet, label: int, u: Array, v: Array) -> Array:
    """The colours of a shape's pixels, (pixels, 3)."""
    hue = label / drawn.classes + rng.normal(0, 0.05)
    saturation, value, contrast = rng.uniform([0.45, 0.55, 0.25], [0.9, 0.95, 0.5])
    light = np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))
    dark = np.array(colorsys.hsv_to_rgb((hue + rng.normal(0, 0.04)) % 1, saturation, value * contrast))
    share = _pattern(drawn.names[label - 1])(u, v)[:, None]
    return (light * share + dark * (1 - share)).astype(np.float32)


def _outlines(owner: Array) -> Array:
    """The pixels next to one of another object, or of none."""
    edge = np.zeros(owner.shape, bool)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = owner[here] != owner[there]
        edge[here] |= differ
        edge[there] |= differ
    return edge
