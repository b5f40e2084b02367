"""Boxes of objects and of background sampled from a file of proposals, as WindowData makes batches of them.

Source: window_data_layer.cpp (both programs).
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from caffe_port.data.batches import Array, Batches, State
from caffe_port.data.files import lines, whole
from caffe_port.data.pictures import COLOR, Reader, decode, planes, resize
from caffe_port.data.transform import Transformer
from caffe_port.errors import CaffeError, FileError, FormatError, ShapeError
from caffe_port.random import Stream

__all__ = ["BoxBatches", "BoxFile", "Sampling", "box_file"]


_BOX = re.compile(
    r"[-+]?\d{1,10}\s+[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?(\s+[-+]?\d{1,10}){4}", re.ASCII | re.IGNORECASE
)


class Picture(NamedTuple):
    """A picture of the file, and the line that names it."""

    line: int
    name: str


class BoxFile(NamedTuple):
    """A file of proposals.

    Attributes:
        objects, background: int32 (boxes, 6): the picture's index, the class, x1, y1, x2, y2.
    """

    pictures: list[Picture]
    objects: Array
    background: Array


@dataclass(frozen=True)
class Sampling:
    """The fields of a ``window_data_param``.

    Attributes:
        objects: how many boxes of a batch hold objects. pad: ``context_pad``. square: whether ``crop_mode`` is that.
        cache: whether the files of all pictures are kept in memory.
    """

    batch: int
    objects: int
    pad: int
    square: bool
    scale: float
    cache: bool


def box_file(path: str, object_from: float, background_below: float) -> BoxFile:
    """Read a file of ``# INDEX``, a picture's name, its channels, height and width, the number of boxes, and the boxes.

    Args:
        object_from, background_below: overlaps. A box of neither kind is left out.

    Raises:
        FileError: no such file. FormatError: it is empty or has another form.
    """
    pictures: list[Picture] = []
    boxes: list[Array] = []
    rows = lines(path)
    for number, line in rows:
        if line.split() != ["#", str(len(pictures))]:
            raise FormatError(f"{path}:{number}", repr(line), expected=f"# {len(pictures)}")
        pictures.append(Picture(*_next(rows, path, "a picture's name")))
        at, channels = _next(rows, path, "channels")
        if channels != "3":
            raise FormatError(f"{path}:{at}", f"{channels} channels", expected="3: pictures are read in colour")
        for what in ("a height", "a width"):
            _number(rows, path, what)
        boxes.append(_boxes(rows, path, len(pictures) - 1, _number(rows, path, "a number of boxes")))
    everything = np.concatenate(boxes)
    overlaps, numbers = everything[:, 2].astype(np.float32), everything[:, [0, 1, 3, 4, 5, 6]].astype(np.int32)
    is_object = overlaps >= np.float32(object_from)
    is_background = ~is_object & (overlaps < np.float32(background_below))
    for found, what, expected in (
        (is_object & (numbers[:, 1] < 1), "a box of an object with class {1}", "classes from 1"),
        (
            (is_object | is_background) & ((numbers[:, 4:] < numbers[:, 2:4]).any(1)),
            "the box {2} {3} {4} {5}",
            "X1 Y1 X2 Y2 with X1 <= X2 and Y1 <= Y2",
        ),
    ):
        for i in np.flatnonzero(found)[:1]:
            where = f"{path}:{everything[i, 7]:.0f}"
            raise FormatError(where, what.format(*numbers[i]), expected=expected)
    background = numbers[is_background]
    background[:, 1] = 0
    return BoxFile(pictures, numbers[is_object], background)


def _next(rows: Iterator[tuple[int, str]], path: str, what: str) -> tuple[int, str]:
    for row in rows:
        return row
    raise FormatError(path, "the end of the file", expected=what)


def _number(rows: Iterator[tuple[int, str]], path: str, what: str) -> int:
    at, word = _next(rows, path, what)
    number = whole(word)
    if number is None or number < 0:
        raise FormatError(f"{path}:{at}", repr(word), expected=what)
    return number


def _boxes(rows: Iterator[tuple[int, str]], path: str, picture: int, count: int) -> Array:
    """float64 (boxes, 8): the picture's index, class, overlap, x1, y1, x2, y2, the line."""
    numbers = array("d")  # grows: the count is the file's word
    for _ in range(count):
        at, line = _next(rows, path, "a box")
        if not _BOX.fullmatch(line):
            raise FormatError(f"{path}:{at}", repr(line), expected="CLASS OVERLAP X1 Y1 X2 Y2")
        numbers.append(picture)
        numbers.extend(map(float, line.split()))
        numbers.append(at)
    boxes = np.frombuffer(numbers, np.float64).reshape(-1, 8) if count else np.empty((0, 8))
    wrong = np.flatnonzero((np.abs(boxes[:, [1, 3, 4, 5, 6]]) >= 2**31).any(1) | ~np.isfinite(boxes[:, 2]))
    if len(wrong):
        raise FormatError(f"{path}:{boxes[wrong[0], 7]:.0f}", "a number past 32 bits", expected="whole numbers below")
    return boxes


class BoxBatches(Batches):
    """Boxes drawn at random, first of background, then of objects: (items, 3, crop, crop) and their classes (items,).

    Args:
        stream: chooses and mirrors. transformer: its crop, mirror and mean are used; nothing is drawn from it.
    """

    def __init__(
        self, path: str, file: BoxFile, sampling: Sampling, reader: Reader, transformer: Transformer, stream: Stream
    ) -> None:
        self._path, self._file, self._sampling, self._reader = path, file, sampling, reader
        self.transformer, self._stream = transformer, stream
        for what, boxes in (("objects", file.objects), ("background", file.background)):
            if not len(boxes):
                raise FormatError(path, f"no box of {what}", expected="one at least, by the overlap thresholds")
        crop = transformer.crop
        self.shapes = [(sampling.batch, 3, crop, crop), (sampling.batch,)]
        self._mean = self._mean_planes()
        self._files = [self._bytes(p) for p in file.pictures] if sampling.cache else []

    def make(self) -> tuple[Array, ...]:
        data, labels = (np.zeros(shape, np.float32) for shape in self.shapes)
        few = self._sampling.batch - self._sampling.objects
        for i in range(self._sampling.batch):
            boxes = self._file.background if i < few else self._file.objects
            picture, labels[i], *box = (int(n) for n in boxes[self._stream.rand(2**32) % len(boxes)])
            mirrored = self.transformer.mirror and self._stream.rand(2) == 1
            self._warp(picture, box, mirrored, data[i])
        return data, labels

    def position(self) -> State:
        return {"boxes": self._stream.get_state()}

    def move(self, state: State) -> None:
        self._stream.set_state(state["boxes"])

    def _warp(self, index: int, box: list[int], mirrored: bool, out: Array) -> None:
        """One box, resized and put into ``out`` where its part inside the picture belongs."""
        where, picture = self._where(index), self._picture(index)
        height, width = picture.shape[:2]
        size, (top, left) = (self.transformer.crop, self.transformer.crop), (0, 0)
        if self._sampling.pad or self._sampling.square:
            box, size, (top, left) = _with_context(box, (height, width), size[0], self._sampling, mirrored)
        x1, y1, x2, y2 = box
        if not (0 <= x1 <= x2 < width and 0 <= y1 <= y2 < height):
            raise FormatError(where, f"the box {x1} {y1} {x2} {y2}", expected=f"one inside {width} x {height} pixels")
        if min(size) < 1:
            raise ShapeError(
                where, f"the box {x1} {y1} {x2} {y2}, of which nothing is left", expected="a larger part inside"
            )
        cut = planes(resize(picture[y1 : y2 + 1, x1 : x2 + 1], size, where))
        target = np.s_[:, top : top + size[0], left : left + size[1]]
        np.subtract(cut[..., ::-1] if mirrored else cut, self._mean[target], out=out[target], dtype=np.float32)
        out[target] *= np.float32(self._sampling.scale)

    def _mean_planes(self) -> Array:
        """The mean under the crop, float32 (3, crop, crop): the middle of a mean image, by its width."""
        mean, crop = self.transformer.mean, self.transformer.crop
        if mean is None:
            return np.zeros((3, crop, crop), np.float32)
        if mean.ndim == 1:
            if mean.size not in (1, 3):
                raise CaffeError(self._path, f"{mean.size} mean_value", expected="1 or 3")
            return np.broadcast_to(mean[:, None, None], (3, crop, crop))
        start = (mean.shape[2] - crop) // 2
        middle = mean[:, start : start + crop, start : start + crop]
        if start < 0 or middle.shape != (3, crop, crop):
            raise ShapeError(self._path, f"a mean image of {mean.shape}", expected=f"3 x {crop} x {crop} or larger")
        return middle

    def _picture(self, index: int) -> Array:
        if self._files:
            return decode(self._files[index], COLOR, self._where(index)).transpose(1, 2, 0)
        return self._reader.read(self._file.pictures[index].name, self._where(index))

    def _bytes(self, picture: Picture) -> bytes:
        where = f"{self._path}:{picture.line}"
        try:
            return Path(self._reader.find(picture.name, where)).read_bytes()
        except OSError as error:
            raise FileError(where, f"{picture.name}, which cannot be read: {error.strerror}") from None

    def _where(self, index: int) -> str:
        return f"{self._path}:{self._file.pictures[index].line}"


def _with_context(
    box: list[int], picture: tuple[int, int], crop: int, sampling: Sampling, mirrored: bool
) -> tuple[list[int], tuple[int, int], tuple[int, int]]:
    """A box grown so that, resized to the crop, ``pad`` pixels of context surround it; made square if asked for.

    Returns:
        The part of it inside the picture (x1, y1, x2, y2), the (height, width) to resize this to, and where its
        (top, left) then lies in the crop. In single precision, as Caffe has it.
    """
    f = np.float32
    context = f(crop) / f(crop - 2 * sampling.pad)
    x1, y1, x2, y2 = box
    half_height, half_width = f(y2 - y1 + 1) / f(2), f(x2 - x1 + 1) / f(2)
    center_x, center_y = f(x1) + half_width, f(y1) + half_height
    if sampling.square:
        half_height = half_width = max(half_height, half_width)
    x1, x2 = _round(center_x - half_width * context), _round(center_x + half_width * context)
    y1, y2 = _round(center_y - half_height * context), _round(center_y + half_height * context)
    height, width = picture
    beyond = max(0, -y1), max(0, -x1), max(0, y2 - height + 1), max(0, x2 - width + 1)
    scale_y, scale_x = f(crop) / f(y2 - y1 + 1), f(crop) / f(x2 - x1 + 1)
    x1, y1, x2, y2 = x1 + beyond[1], y1 + beyond[0], x2 - beyond[3], y2 - beyond[2]
    top, left, _, right = (_round(f(n) * s) for n, s in zip(beyond, (scale_y, scale_x) * 2, strict=True))
    left = right if mirrored else left
    rows, columns = _round(f(y2 - y1 + 1) * scale_y), _round(f(x2 - x1 + 1) * scale_x)
    return [x1, y1, x2, y2], (min(rows, crop - top), min(columns, crop - left)), (top, left)


def _round(x: float) -> int:
    """Round to the nearest whole number, halves away from zero, as C's round."""
    return int(math.copysign(math.floor(abs(float(x)) + 0.5), x))
