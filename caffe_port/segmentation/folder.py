"""A folder in PASCAL VOC's layout: JPEGImages, SegmentationClass, ImageSets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.data.files import lines
from caffe_port.data.picture_files import opened_picture
from caffe_port.errors import CaffeError, FileError, FormatError, ShapeError, nearest
from caffe_port.paths import is_file, is_folder
from caffe_port.segmentation.voc import CLASSES, IGNORED, PICTURES, read_labels, read_picture

__all__ = ["CLASSES_FILE", "LABELS_FILE", "LISTS", "MASKS", "PHOTOGRAPHS", "Folder", "listed"]

Array = np.ndarray[Any, np.dtype[Any]]

PHOTOGRAPHS, MASKS, LISTS = "JPEGImages", "SegmentationClass", "ImageSets"
LABELS_FILE = "labels.txt"
"""In the lists' folder: a line for each picture with its name and the names of its classes."""
CLASSES_FILE = "classes.txt"
"""In the folder, if the classes are not VOC's: a line for each."""


def listed(path: Path) -> list[str]:
    """The pictures that a list names, each line's first word.

    Raises:
        FileError: no such list. FormatError: it is empty, or names a picture twice.
    """
    seen: dict[str, int] = {}
    for number, line in lines(str(path)):
        name = line.split()[0]
        if name in seen:
            raise FormatError(
                f"{path}:{number}", f"{name} a second time", expected=f"each name once, as in line {seen[name]}"
            )
        seen[name] = number
    return list(seen)


@dataclass(frozen=True)
class Folder:
    """Pictures by name, which is a file's without its extension.

    Args:
        root: the folder.

    Raises:
        FileError: it is missing, or has no JPEGImages.
    """

    root: Path

    def __post_init__(self) -> None:
        if not is_folder(self.root / PHOTOGRAPHS):
            raise FileError(str(self.root), f"no folder {PHOTOGRAPHS}", expected="JPEGImages, SegmentationClass, ...")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, of labels 1 and up: those of ``classes.txt``, else VOC's.

        Raises:
            FormatError: more than 254 names, a duplicate, or one with white space.
        """
        path = self.root / CLASSES_FILE
        if not is_file(path):
            return CLASSES
        names = tuple(name for _, name in lines(str(path)))
        if len({*names}) < len(names) or len(names) >= IGNORED or any(len(name.split()) > 1 for name in names):
            raise FormatError(str(path), f"{len(names)} lines", expected="up to 254 different names without blanks")
        return names

    def names(self, which: str) -> list[str]:
        """The pictures of a list: ImageSets/WHICH.txt, ImageSets/Segmentation/WHICH.txt or a file of this name.

        Raises:
            FileError: no such list. FormatError: it is empty, or names a picture twice.
        """
        tried = [self.root / LISTS / f"{which}.txt", self.root / LISTS / "Segmentation" / f"{which}.txt", Path(which)]
        path = next((path for path in tried if is_file(path)), None)
        if path is None:
            raise FileError(which, "no such list", expected=f"one of {', '.join(map(str, tried))}")
        return listed(path)

    @cached_property
    def labelled(self) -> dict[str, tuple[int, ...]]:
        """The labels of the pictures in ImageSets/labels.txt; none without that file.

        Raises:
            FormatError: it names an unknown class.
        """
        path = self.root / LISTS / LABELS_FILE
        if not is_file(path):
            return {}
        numbers = {name: label for label, name in enumerate(self.classes, 1)}
        found = {}
        for number, line in lines(str(path)):
            name, *classes = line.split()
            for unknown in (c for c in classes if c not in numbers):
                near = nearest(unknown, numbers)
                raise FormatError(
                    f"{path}:{number}",
                    f"the class {unknown!r}",
                    expected=f"one of {len(numbers)}",
                    remedy=f"did you mean {near}?" if near else f"classes are in {CLASSES_FILE}",
                )
            found[name] = tuple(sorted({numbers[c] for c in classes}))
        return found

    def photograph(self, name: str) -> Path:
        """The picture's file.

        Raises:
            FileError: there is none. FormatError: the name contains a blank, which lists cannot represent.
        """
        if len(name.split()) != 1:
            raise FormatError(
                repr(name), "a blank", expected="picture names without blanks, which separate words in lists"
            )
        for ending in (*PICTURES, *map(str.upper, PICTURES)):
            path = self.root / PHOTOGRAPHS / f"{name}{ending}"
            if is_file(path):
                return path
        raise FileError(
            str(self.root / PHOTOGRAPHS / name), "no such picture", expected=f"one of {', '.join(PICTURES)}"
        )

    def mask(self, name: str) -> Path:
        """The mask's file, which may be missing."""
        return self.root / MASKS / f"{name}.png"

    def size(self, name: str) -> tuple[int, int]:
        """The picture's (height, width), from its header.

        Raises:
            FileError: there is none. FormatError: it is not a picture.
        """
        with opened_picture(self.photograph(name)) as picture:
            return picture.height, picture.width

    def picture(self, name: str) -> Array:
        """The picture, uint8 RGB (height, width, 3)."""
        return read_picture(self.photograph(name))

    def labels(self, name: str) -> Array:
        """The mask's labels, uint8 (height, width).

        Raises:
            FileError: no picture or no mask. FormatError: one cannot be read. ShapeError: they differ in size.
            CaffeError: a label that is neither a class, 0 nor 255.
        """
        path, size = self.mask(name), self.size(name)
        labels = read_labels(path)
        if labels.shape != size:
            raise ShapeError(
                str(path),
                f"{labels.shape[1]} x {labels.shape[0]} pixels",
                expected=f"{size[1]} x {size[0]} as its picture",
            )
        top = labels.max(where=labels < IGNORED, initial=0)
        if top > len(self.classes):
            raise CaffeError(
                str(path),
                f"the label {top}",
                expected=f"0 to {len(self.classes)}, or {IGNORED}",
                remedy=f"name all classes in {CLASSES_FILE}" if self.classes == CLASSES else "",
            )
        return labels
