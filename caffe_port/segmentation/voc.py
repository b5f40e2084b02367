"""PASCAL VOC's classes and colours, and its files: pictures, and masks as PNGs whose palette indices are labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.data.picture_files import opened_picture
from caffe_port.errors import FileError, FormatError
from caffe_port.formats.atomic import atomic_write
from caffe_port.paths import is_file, is_folder

__all__ = [
    "CLASSES",
    "IGNORED",
    "MEAN",
    "PICTURES",
    "class_names",
    "overlaid",
    "palette",
    "pictures_in",
    "read_labels",
    "read_palette",
    "read_picture",
    "write_labels",
]

Array = np.ndarray[Any, np.dtype[Any]]

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Classes 1 to 20; 0 is the background."""

IGNORED = 255
"""The label of ignored pixels: outlines and difficult objects."""

MEAN = (104.00698793, 116.66876762, 122.67891434)
"""Blue, green, red: the mean that VGG-16 and all nets based on it subtract."""

_PIXELS = 1 << 20
"""As many are looked up in a palette at a time."""

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
"""File name extensions of pictures."""


def class_names(count: int) -> tuple[str, ...]:
    """Names for labels 0 to ``count``: VOC's if there are 20 classes and the background, else their numbers."""
    return ("background", *(CLASSES if count == len(CLASSES) else map(str, range(1, count + 1))))


def palette() -> Array:
    """VOC's 256 colours, uint8 (256, 3): the low bits of a label are the high ones of red, green, blue."""
    labels, colours = np.arange(256), np.zeros((256, 3), np.uint8)
    for bit in range(8):
        place, channel = 7 - bit // 3, bit % 3
        colours[:, channel] |= ((labels >> bit & 1) << place).astype(np.uint8)
    return colours


def read_palette(path: str | Path) -> Array:
    """The colours of a PNG with a palette, uint8 (256, 3); those that it lacks are black.

    Raises:
        FileError: it is missing. FormatError: it is not a picture, or has no palette.
    """
    with opened_picture(path) as picture:
        given = picture.getpalette("RGB") if picture.mode == "P" else None
    if not given:
        raise FormatError(str(path), "a picture without a palette", expected="a PNG with a palette")
    return np.array([*given, *[0] * (768 - len(given))], np.uint8).reshape(256, 3)


def read_picture(path: str | Path) -> Array:
    """A picture as it is stored, uint8 RGB (height, width, 3); grey ones and palettes are converted.

    As in MATLAB's imread, EXIF orientation is ignored.

    Raises:
        FileError: it is not there. FormatError: it cannot be read, or has more than 8 bits a channel.
    """
    with opened_picture(path) as picture:
        if picture.mode[0] in "IF":
            raise FormatError(str(path), f"a picture of mode {picture.mode}", expected="8 bits a channel")
        return np.asarray(picture.convert("RGB"))


def read_labels(path: str | Path) -> Array:
    """A mask's labels, uint8 (height, width): a palette's indices, grey values, or VOC's colours.

    Raises:
        FileError: it is not there. FormatError: it cannot be read, or has other colours than VOC's palette.
    """
    with opened_picture(path) as picture:
        if picture.mode == "RGB":
            return _labels_of_colours(np.asarray(picture), str(path))
        if picture.mode not in ("P", "L", "1"):
            found = f"a picture of mode {picture.mode}"
            raise FormatError(str(path), found, expected="a mask: a PNG with a palette, or grey")
        return np.asarray(picture).astype(np.uint8, copy=False)


def _labels_of_colours(picture: Array, path: str) -> Array:
    """The labels of these colours in VOC's palette, uint8 (height, width)."""
    code = np.array([1 << 16, 1 << 8, 1], np.uint32)
    known = palette().astype(np.uint32) @ code
    order = np.argsort(known, kind="stable")
    labels = np.empty(picture.shape[:2], np.uint8)
    step = max(1, _PIXELS // max(1, picture.shape[1]))
    for top in range(0, len(picture), step):  # a few rows at a time: what is in between takes ten times their memory
        codes = picture[top : top + step].astype(np.uint32) @ code
        at = np.minimum(np.searchsorted(known[order], codes), len(known) - 1)
        labels[top : top + step] = order[at]
        wrong = known[order[at]] != codes
        if wrong.any():
            y, x = np.argwhere(wrong)[0]
            raise FormatError(
                path,
                f"the colour {tuple(int(n) for n in picture[top + y, x])} at x {x}, y {top + y}",
                expected="a mask: a PNG with a palette, or grey, or in VOC's colours",
                remedy="save it with its palette's indices (a JPEG's colours are never exact)",
            )
    return labels


def write_labels(path: str | Path, labels: Array, colours: Array | None = None, *, overwrite: bool = False) -> None:
    """Writes a mask as VOC does, a PNG with a palette; atomically.

    Args:
        labels: uint8 (height, width). colours: uint8 (256, 3), default: VOC's.

    Raises:
        FileError: the file exists or cannot be written.
    """
    from PIL import Image

    picture = Image.fromarray(labels)
    picture.putpalette((palette() if colours is None else colours).tobytes())
    with atomic_write(path, overwrite=overwrite) as file:
        picture.save(file, "PNG")


def overlaid(picture: Array, labels: Array, colours: Array, *, strength: float = 0.6) -> Array:
    """The picture with its labels' colours over it, uint8 (height, width, 3); the background is unchanged."""
    mixed = (1 - strength) * picture + strength * colours[labels]
    return np.where((labels > 0)[..., None], mixed + 0.5, picture).astype(np.uint8)


def pictures_in(paths: Iterable[str | Path]) -> list[Path]:
    """The given files, and of every given folder its pictures in order of their names.

    Raises:
        FileError: one is missing, or a folder has no picture.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if is_folder(path):
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))
            if not inside:
                raise FileError(str(path), "a folder without pictures", expected=f"files {', '.join(PICTURES)}")
            found += inside
        elif is_file(path):
            found.append(path)
        else:
            raise FileError(str(path), "no such file or folder")
    return found
