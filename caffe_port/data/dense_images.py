"""Pictures with a label for each pixel, as SegNet's data layer makes batches of them.

Source: dense_image_data_layer.cpp (alexgkendall/caffe-segnet).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from caffe_port.data.batches import Array, Batches, Cursor, State
from caffe_port.data.files import lines
from caffe_port.data.pictures import Reader, planes, resize
from caffe_port.data.transform import Transformer
from caffe_port.errors import CaffeError, FormatError, ShapeError

__all__ = ["DenseImages", "Pair", "pairs"]


class Pair(NamedTuple):
    """A line of a list."""

    line: int
    picture: str
    labels: str


def pairs(path: str) -> list[Pair]:
    """A list of ``PICTURE LABELS``.

    Raises:
        FileError: no such list. FormatError: it is empty, or a line has another form.
    """
    items = []
    for number, line in lines(path):
        words = line.split()
        if len(words) != 2:
            raise FormatError(f"{path}:{number}", repr(line), expected="PICTURE LABELS")
        items.append(Pair(number, *words))
    return items


class DenseImages(Batches):
    """Pictures, float32 (items, channels, height, width), and labels, (items, 1, height, width).

    Args:
        readers: of the pictures and of the labels. mirror: flip with probability 1/2.
        crop: (height, width) to cut out at random, in both phases; (0, 0) for all.

    Attributes:
        words: how many random numbers a batch takes. draws: those of the next batch, set before :meth:`make`.
    """

    def __init__(
        self,
        source: str,
        items: list[Pair],
        cursor: Cursor,
        readers: Sequence[Reader],
        transformer: Transformer,
        batch: int,
        mirror: bool,
        crop: tuple[int, int],
    ) -> None:
        self._source, self._items, self._cursor, self._batch = source, items, cursor, batch
        self._pictures, self._labels = readers
        self.transformer, self._mirror, self._crop = transformer, mirror, crop
        self.words = batch * (int(mirror) + 2 * bool(crop[0]))
        self.draws: list[int] = []
        picture = planes(self._read()[0])
        self.shapes = [(batch, len(picture), *self._size(picture)), (batch, 1, *self._size(picture))]

    def _size(self, picture: Array) -> tuple[int, int]:
        return self._crop if self._crop[0] else picture.shape[1:]

    def _read(self) -> tuple[Array, Array]:
        item = self._items[self._cursor.index]
        where = f"{self._source}:{item.line}"
        picture = self._pictures.read(item.picture, where)
        labels = self._labels.read(item.labels, where, resized=False)
        if self._labels.size[0]:
            labels = resize(labels, self._labels.size, where, nearest=True)
        if picture.shape[:2] != labels.shape:
            raise ShapeError(
                where, f"labels of {labels.shape[::-1]} pixels", expected=f"{picture.shape[1::-1]} as the picture has"
            )
        return picture, labels

    def make(self) -> tuple[Array, ...]:
        data = labels = np.empty(0, np.float32)
        draws = iter(self.draws)
        for i in range(self._batch):
            picture, label = self._read()
            where = f"{self._source}:{self._items[self._cursor.index].line}"
            if self._mirror and next(draws) % 2:
                picture, label = picture[:, ::-1], label[:, ::-1]
            if self._crop[0]:
                height, width = self._crop
                down, right = picture.shape[0] - height, picture.shape[1] - width
                if min(down, right) < 0:
                    raise ShapeError(
                        where,
                        f"{picture.shape[1]} x {picture.shape[0]} pixels",
                        expected=f"at least the crop, {width} x {height}",
                    )
                top, left = next(draws) % (down + 1), next(draws) % (right + 1)
                rows, columns = slice(top, top + height), slice(left, left + width)
                picture, label = picture[rows, columns], label[rows, columns]
            channels = planes(picture)
            if i == 0:
                data = np.empty((self._batch, *channels.shape), np.float32)
                labels = np.empty((self._batch, 1, *label.shape), np.float32)
            self.transformer.item(channels, data[i], where)
            labels[i, 0] = label
            self._cursor.advance()
        return data, labels

    def position(self) -> State:
        return {**self._cursor.get_state(), "draws": np.array(self.draws, np.uint32)}

    def move(self, state: State) -> None:
        self._cursor.set_state(state)
        self.draws = state["draws"].tolist()
        if len(self.draws) != self.words:
            raise CaffeError("the data's position", f"{len(self.draws)} random numbers", expected=f"{self.words}")
