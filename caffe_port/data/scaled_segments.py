"""Pictures with labels, scaled at random, filled up and cropped, as DeepLab v2's data layer makes batches of them.

Source: image_seg_data_layer.cpp, data_transformer.cpp (TransformImgAndSeg) of cdmh/deeplab-public-ver2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from caffe_port.data.batches import Array, Batches, Cursor, State
from caffe_port.data.files import lines, whole
from caffe_port.data.pictures import Reader, planes, resize
from caffe_port.data.transform import Transformer
from caffe_port.errors import CaffeError, FormatError, ShapeError

__all__ = ["Listed", "ScaledSegments", "ScaledTransformer", "listed"]


class Listed(NamedTuple):
    """A line of a list."""

    line: int
    name: str
    label: str | int


def listed(path: str, kind: str) -> list[Listed]:
    """A list of lines ``PICTURE [LABELS | NUMBER]``; ``kind`` is the label_type.

    Raises:
        FileError: no such list. FormatError: it is empty, or a line has another form.
    """
    items = []
    form = {"NONE": "PICTURE", "IMAGE": "PICTURE NUMBER", "PIXEL": "PICTURE LABELS"}[kind]
    for number, line in lines(path):
        name, *rest = line.split()
        word = rest[0] if rest and kind != "NONE" else ""
        label = whole(word) if kind == "IMAGE" else word
        if label is None or (kind == "PIXEL" and not label):
            raise FormatError(f"{path}:{number}", repr(line), expected=form)
        items.append(Listed(number, name, label))
    return items


class ScaledTransformer(Transformer):
    """A ``transform_param`` with ``scale_factors`` and a crop of any proportion.

    Args:
        base: the transformations that BVLC has too. crop: (height, width), (0, 0) for none.
        factors: one of these is drawn for each picture, after the mirroring and before the crop.
    """

    def __init__(self, base: Transformer, crop: tuple[int, int], factors: Sequence[float]) -> None:
        super().__init__(scale=base.scale, mirror=base.mirror, crop=base.crop, mean=base.mean, train=base.train)
        self.size, self.factors = crop, tuple(factors)

    @property
    def needs_stream(self) -> bool:
        """Whether a picture takes random numbers."""
        return self.mirror or bool(self.factors) or (self.train and self.size[0] > 0)

    def both(self, picture: Array, labels: Array, ignore: int, where: str) -> tuple[Array, Array]:
        """Transform uint8 pixels (height, width[, 3]) and labels (height, width): float32 planes of both."""
        mirrored = self.mirror and self._below(2) == 1
        if self.factors:
            factor = np.float32(self.factors[self._below(len(self.factors))])
            if factor != 1:
                size = int(np.float32(labels.shape[0]) * factor), int(np.float32(labels.shape[1]) * factor)
                picture, labels = resize(picture, size, where), resize(labels, size, where, nearest=True)
        channels = planes(picture)
        mean = self._mean_under(channels.shape, np.s_[:, :, :], where)
        if self.size[0]:
            missing = [max(n - m, 0) for n, m in zip(self.size, labels.shape, strict=True)]
            if any(missing):
                if self.mean is None or self.mean.size != 3:
                    raise CaffeError(
                        where, "a picture smaller than the crop", expected="three mean_value to fill it up"
                    )
                # OpenCV fills up numbers of double precision; the mean is subtracted from them in single.
                filled = np.empty((len(channels), *(n + m for n, m in zip(labels.shape, missing, strict=True))))
                filled[...] = self.mean.reshape(-1)[: len(channels), None, None]
                filled[:, : labels.shape[0], : labels.shape[1]] = channels
                channels = filled
                border = [(0, n) for n in missing]
                labels = np.pad(labels, border, constant_values=min(max(ignore, 0), 255))
            spare = [n - m for n, m in zip(labels.shape, self.size, strict=True)]
            top, left = [self._below(n + 1) for n in spare] if self.train else [n // 2 for n in spare]
            rows, columns = slice(top, top + self.size[0]), slice(left, left + self.size[1])
            channels, labels = channels[:, rows, columns], labels[rows, columns]
        if mirrored:
            channels, labels = channels[..., ::-1], labels[..., ::-1]
        out = np.subtract(channels, mean, dtype=np.float32)
        if self.scale != 1:
            out *= self.scale
        return out, labels.astype(np.float32)


class ScaledSegments(Batches):
    """Pictures (items, channels, height, width), labels (items, 1, height, width), real sizes (items, 1, 1, 2).

    Args:
        kind: the label_type. ignore: the label of what is filled up, and of everything where kind is NONE.
    """

    transformer: ScaledTransformer

    def __init__(
        self,
        source: str,
        items: list[Listed],
        cursor: Cursor,
        reader: Reader,
        transformer: ScaledTransformer,
        batch: int,
        kind: str,
        ignore: int,
    ) -> None:
        self._source, self._items, self._cursor, self._reader = source, items, cursor, reader
        self.transformer, self._batch, self._kind, self._ignore = transformer, batch, kind, ignore
        picture = planes(reader.read(self._item.name, self._where))
        size = transformer.size if transformer.size[0] else picture.shape[1:]
        self.shapes = [(batch, len(picture), *size), (batch, 1, *size), (batch, 1, 1, 2)]

    @property
    def _item(self) -> Listed:
        return self._items[self._cursor.index]

    @property
    def _where(self) -> str:
        return f"{self._source}:{self._item.line}"

    def _labels(self, like: Array) -> Array:
        if self._kind == "PIXEL":
            reader = self._reader
            labels = Reader(reader.places, reader.root, color=False, size=reader.size).read(
                str(self._item.label), self._where
            )
            if labels.shape != like.shape[:2]:
                raise ShapeError(
                    self._where,
                    f"labels of {labels.shape[::-1]} pixels",
                    expected=f"{like.shape[1::-1]} as the picture has",
                )
            return labels
        label = int(self._item.label) if self._kind == "IMAGE" else self._ignore
        return np.full(like.shape[:2], min(max(label, 0), 255), np.uint8)

    def make(self) -> tuple[Array, ...]:
        data, label, dims = (np.empty(shape, np.float32) for shape in self.shapes)
        for i in range(self._batch):
            where = self._where
            picture = self._reader.read(self._item.name, where)
            dims[i, 0, 0] = np.minimum(data.shape[2:], picture.shape[:2])
            pixels, labels = self.transformer.both(picture, self._labels(picture), self._ignore, where)
            if pixels.shape != data.shape[1:]:
                raise ShapeError(
                    where,
                    f"a picture of shape {pixels.shape}",
                    expected=f"{data.shape[1:]} as the first of the batch",
                    remedy="a crop, or new_height and new_width, make all equal",
                )
            data[i], label[i, 0] = pixels, labels
            self._cursor.advance()
        return data, label, dims

    def position(self) -> State:
        return self._cursor.get_state()

    def move(self, state: State) -> None:
        self._cursor.set_state(state)
