"""Pictures with masks, as the fork's data layers make batches of them.

Source: image_seg_data_layer.cpp, window_seg_data_layer.cpp, window_inst_seg_data_layer.cpp,
window_seg_binary_layer.cpp, window_cls_data_layer.cpp, select_seg_binary_layer.cpp (all noh).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from caffe_port.data.batches import Array, Batches, Cursor, State
from caffe_port.data.files import lines, whole
from caffe_port.data.picture_files import LARGEST
from caffe_port.data.pictures import LabelMaps, Reader, planes, resize
from caffe_port.data.transform import Transformer
from caffe_port.errors import CaffeError, FormatError, ShapeError

__all__ = [
    "BinaryWindows",
    "ClassWindows",
    "InstanceWindows",
    "Pictures",
    "Segment",
    "Segments",
    "SelectedWindows",
    "Settings",
    "Windows",
    "segments",
]

_LONGEST = 1 << 15
"""Pixels along a box's side; more count as a mistake."""


class Segment(NamedTuple):
    """A line of a list: a picture, its mask (or its label), its instances, a box (all inclusive), further numbers."""

    line: int
    name: str
    mask: str
    instances: str
    box: tuple[int, ...]
    numbers: tuple[int, ...]


def segments(path: str, *, labels: int, box: bool, numbers: int) -> list[Segment]:
    """A list of lines ``PICTURE [MASK [INSTANCES]] [X1 Y1 X2 Y2] [NUMBER ...]``; what follows on a line is left.

    Args:
        labels: how many words come after the picture, 0 to 2. box: whether there is a box.
        numbers: how many numbers follow.

    Raises:
        FileError: no such list. FormatError: it is empty, or a line has another form.
    """
    wanted = ["PICTURE", "MASK", "INSTANCES"][: labels + 1]
    form = " ".join([*wanted, *(["X1 Y1 X2 Y2"] if box else []), *([f"{numbers} numbers"] if numbers else [])])
    items = []
    for number, line in lines(path):
        words = line.split()
        names, rest = words[: len(wanted)], words[len(wanted) :][: 4 * box + numbers]
        values = tuple(n for n in map(whole, rest) if n is not None)
        if len(names) < len(wanted) or len(values) < 4 * box + numbers:
            raise FormatError(f"{path}:{number}", repr(line), expected=f"{form}, whole numbers of 32 bits")
        x1, y1, x2, y2 = values[:4] if box else (0, 0, 0, 0)
        width, height = x2 - x1 + 1, y2 - y1 + 1
        if not (1 <= width <= _LONGEST and 1 <= height <= _LONGEST and width * height <= LARGEST):
            raise FormatError(
                f"{path}:{number}",
                f"the box {x1} {y1} {x2} {y2}",
                expected=f"X1 Y1 X2 Y2 with X1 <= X2 and Y1 <= Y2, sides up to {_LONGEST}, up to {LARGEST} pixels",
            )
        name, mask, instances = (*names, "", "")[:3]
        items.append(Segment(number, name, mask, instances, values[: 4 * box], values[4 * box :]))
    return items


@dataclass(frozen=True)
class Settings:
    """The fields of an ``image_data_param`` of the fork.

    Attributes:
        source: the list's name, for errors. label_type: "PIXEL" (masks), "IMAGE" (a label for all pixels) or "NONE".
        ignore: ``ignore_label``. classes: ``label_dim``; base: ``cls_label_base``; other: ``other_object_label``.
    """

    source: str
    items: list[Segment]
    cursor: Cursor
    reader: Reader
    masks: LabelMaps
    transformer: Transformer
    batch: int
    label_type: str
    ignore: int
    classes: int = 0
    base: int = 0
    other: int = 0

    @property
    def fill(self) -> int:
        """The label of pixels outside the picture: ``ignore``, in a mask's 8 bits."""
        return min(max(self.ignore, 0), 255)


class Segments(Batches):
    """Pictures, the labels of their pixels, and a third array that depends on the kind."""

    def __init__(self, settings: Settings) -> None:
        self.s, self.transformer = settings, settings.transformer
        self.size = settings.reader.size
        first = planes(settings.reader.read(self._item.name, self.where))
        data = self.transformer.shape(*first.shape)
        self.labels_shape = data[1:]
        self.shapes = [(settings.batch, *shape) for shape in self.tops(data)]

    @property
    def _item(self) -> Segment:
        return self.s.items[self.s.cursor.index]

    @property
    def where(self) -> str:
        """The current line."""
        return f"{self.s.source}:{self._item.line}"

    # -- what a kind says ----------------------------------------------------------------------------------------------

    def tops(self, data: tuple[int, ...]) -> list[tuple[int, ...]]:
        """An item's shape in each top, given that of the data: the labels of pixels, and (height, width)."""
        return [data, (1, *data[1:]), (1, 1, 2)]

    @abstractmethod
    def cut(self, item: Segment) -> tuple[Array, Array, tuple[int, ...]]:
        """The picture and the labels of its pixels before transformation, and its (height, width) for the third top."""

    def finish(self, item: Segment, labels: Array, size: tuple[int, ...]) -> tuple[Array, Array]:
        """An item of the second and the third top, given its transformed labels (height, width)."""
        return labels, np.minimum(size, self.labels_shape)

    # -- making batches ------------------------------------------------------------------------------------------------

    def make(self) -> tuple[Array, ...]:
        tops = tuple(np.empty(shape, np.float32) for shape in self.shapes)
        labels = np.empty(self.labels_shape, np.float32)
        for i in range(self.s.batch):
            item = self._item
            picture, mask, size = self.cut(item)
            if not self.transformer.crop and mask.shape != self.labels_shape:
                raise ShapeError(
                    self.where,
                    f"a picture of {_size(mask.shape)} pixels",
                    expected=f"{_size(self.labels_shape)} as the first",
                    remedy="crop_size, or new_height and new_width, make all equal",
                )
            self.transformer.picture_and_labels(planes(picture), mask, tops[0][i], labels, self.s.fill, self.where)
            second, third = self.finish(item, labels, size)
            tops[1][i], tops[2][i] = second, third.reshape(tops[2][i].shape)
            self.s.cursor.advance()
        return tops

    def labels_for(self, item: Segment, size: tuple[int, ...]) -> Array:
        """The labels of a picture's pixels, uint8 (height, width); a mask may have another size than ``size``."""
        if self.s.label_type == "PIXEL":
            return self.s.masks.read(item.mask, self.where)
        if self.s.label_type == "NONE":
            return np.full(size, self.s.fill, np.uint8)
        label = whole(item.mask)
        if label is None or not 0 <= label <= 255:
            raise FormatError(self.where, f"the label {item.mask!r}", expected="a whole number from 0 to 255")
        return np.full(size, label, np.uint8)

    def check_size(self, name: str, mask: Array, size: tuple[int, ...]) -> None:
        """Refuse a mask of another size than the picture's."""
        if mask.shape != size:
            raise ShapeError(
                self.where, f"{name} of {_size(mask.shape)} pixels", expected=f"{_size(size)} as the picture"
            )

    def position(self) -> State:
        return self.s.cursor.get_state()

    def move(self, state: State) -> None:
        self.s.cursor.set_state(state)


class Pictures(Segments):
    """Whole pictures (IMAGE_SEG_DATA)."""

    nearest = True
    """How a mask is resized: each pixel the nearest one, or bilinearly."""

    def cut(self, item: Segment) -> tuple[Array, Array, tuple[int, ...]]:
        picture = self.s.reader.read(item.name, self.where)
        size = picture.shape[:2]
        labels = self.labels_for(item, size)
        if self.size[0]:
            labels = resize(labels, self.size, self.where, nearest=self.nearest)
        self.check_size(item.mask, labels, size)
        return picture, labels, size


class Windows(Segments):
    """Boxes out of pictures, resized (WINDOW_SEG_DATA). Outside the picture pixels are 0 and labels ignored."""

    def cut(self, item: Segment) -> tuple[Array, Array, tuple[int, ...]]:
        picture = self.s.reader.read(item.name, self.where, resized=False)
        size = picture.shape[:2]
        labels = self.labels_for(item, size)
        self.check_size(item.mask, labels, size)
        # A box smaller than the crop is filled up with the mean, but its labels with those around it: OpenCV's
        # copyMakeBorder reads beyond a view of a larger picture; resized boxes are not views.
        reach = 0 if self.size[0] else self.transformer.crop
        labels = self.relabel(item, self.window(labels, item, self.s.fill, reach), size)
        return self.window(picture, item, 0), labels, size

    def window(self, picture: Array, item: Segment, outside: int, reach: int = 0) -> Array:
        """The item's box in a picture or mask, resized, within the picture, of ``reach`` pixels at least."""
        x1, y1, x2, y2 = item.box
        bottom, right = (
            max(end + 1, min(at + reach, n)) for at, end, n in zip((y1, x1), (y2, x2), picture.shape, strict=False)
        )
        cut = picture[max(y1, 0) : max(bottom, 0), max(x1, 0) : max(right, 0)]
        box = (bottom - y1, right - x1)
        if cut.shape[:2] != box:
            inside, top, left = cut, max(-y1, 0), max(-x1, 0)
            cut = np.full((*box, *picture.shape[2:]), outside, np.uint8)
            cut[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return resize(cut, self.size, self.where, nearest=picture.ndim == 2) if self.size[0] else cut

    def relabel(self, item: Segment, labels: Array, size: tuple[int, ...]) -> Array:
        """Other labels for the pixels of the item's box, in a picture of this size."""
        return labels


class InstanceWindows(Windows):
    """Boxes around one instance each (WINDOW_INST_SEG_DATA): pixels of other instances get another label.

    As in the original, only where boxes are resized.
    """

    def relabel(self, item: Segment, labels: Array, size: tuple[int, ...]) -> Array:
        if self.s.label_type != "PIXEL" or not self.size[0]:
            return labels
        instances = self.s.masks.read(item.instances, self.where)
        self.check_size(item.instances, instances, size)
        instances = self.window(instances, item, 0)
        others = ~np.isin(instances, [0, item.numbers[0], self.s.ignore])
        return np.where(others, np.uint8(self.s.other & 255), labels)


class BinaryWindows(Windows):
    """Boxes whose labels are object (1) or background (WINDOW_SEG_BINARY).

    As in the original, only where boxes are resized, and 255 stays, not ``ignore_label``.
    """

    def relabel(self, item: Segment, labels: Array, size: tuple[int, ...]) -> Array:
        return np.where((labels > 0) & (labels < 255), np.uint8(1), labels) if self.size[0] else labels


class ClassWindows(Windows):
    """Boxes with the set of classes seen in them (WINDOW_CLS_DATA): class c is number c - 1 of ``label_dim``.

    As in the original, 255 does not count, not ``ignore_label``.
    """

    def tops(self, data: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [data, (self.s.classes, 1, 1), (1, 1, 2)]

    def finish(self, item: Segment, labels: Array, size: tuple[int, ...]) -> tuple[Array, Array]:
        seen = np.flatnonzero(np.bincount(labels.astype(np.uint8).ravel(), minlength=256)[:255])
        if seen.size and seen[-1] > self.s.classes:
            raise CaffeError(self.where, f"the class {seen[-1]}", expected=f"classes up to label_dim, {self.s.classes}")
        classes = np.zeros((self.s.classes + 1, 1, 1), np.float32)
        classes[seen] = 1
        return classes[1:], np.minimum(size, self.labels_shape)


class SelectedWindows(Windows):
    """Boxes with a vector of classes (SELECT_SEG_BINARY): a pixel's label becomes its class's number in the vector."""

    def tops(self, data: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [data, (1, *data[1:]), (self.s.classes, 1, 1)]

    def finish(self, item: Segment, labels: Array, size: tuple[int, ...]) -> tuple[Array, Array]:
        new = np.zeros(256, np.float32)
        for label, number in enumerate(item.numbers, self.s.base + 1):
            if 0 < label < 256:
                new[label] = number
        if 0 <= self.s.ignore < 256:
            new[self.s.ignore] = self.s.ignore
        return new[labels.astype(np.uint8)], np.array(item.numbers, np.float32)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
