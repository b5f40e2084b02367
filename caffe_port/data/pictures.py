"""Pictures and label maps, decoded and resized by OpenCV as the originals did, and the batches of ImageData.

Source: util/io.cpp (both programs), image_data_layer.cpp.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from caffe_port.console import info
from caffe_port.data.batches import Array, Batches, Cursor, State
from caffe_port.data.files import Places, lines, whole
from caffe_port.data.picture_files import AS_IT_IS, COLOR, GRAY, decode_picture, load_picture, opened_picture
from caffe_port.data.transform import Transformer
from caffe_port.errors import FormatError, ShapeError

__all__ = [
    "AS_IT_IS",
    "COLOR",
    "GRAY",
    "LabelMaps",
    "Labelled",
    "PictureBatches",
    "Reader",
    "decode",
    "labelled",
    "planes",
    "resize",
]

_PALETTE_PNG = 3
"""The colour type in the header of a PNG whose pixels are indices into a palette."""


class Reader:
    """Reads pictures.

    Args:
        places: where they lie. root: what is put in front of every name (``root_folder``).
        color: BGR, else grey.
        size: (height, width) to resize to; (0, 0) leaves them as they are.
    """

    def __init__(self, places: Places, root: str = "", *, color: bool = True, size: tuple[int, int] = (0, 0)) -> None:
        self.places, self.root, self.color, self.size = places, root, color, size

    def read(self, name: str, where: str, *, resized: bool = True) -> Array:
        """The picture, uint8 (height, width) or (height, width, 3).

        Raises:
            FileError: it is not there. FormatError: OpenCV cannot read it, or it is too large.
        """
        picture = load_picture(self.find(name, where), COLOR if self.color else GRAY, where)
        return resize(picture, self.size, where) if resized and self.size[0] else picture

    def find(self, name: str, where: str) -> str:
        """The path of the file ``name``."""
        return self.places.find(self.root + name, "picture", where)


def resize(picture: Array, size: tuple[int, int], where: str, *, nearest: bool = False) -> Array:
    """The picture in another size (height, width): bilinear, or each pixel the nearest one.

    Raises:
        ShapeError: nothing is left of it, or there is no memory for so much.
    """
    import cv2

    try:
        return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR)
    except (cv2.error, MemoryError):
        sizes = " to ".join(f"{width} x {height}" for height, width in (picture.shape[:2], size))
        raise ShapeError(
            where, f"a picture to resize from {sizes} pixels", expected="sizes OpenCV can resize"
        ) from None


def planes(picture: Array) -> Array:
    """A picture as OpenCV has it as (channels, height, width), a view."""
    return picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)


def decode(data: bytes, flag: int, where: str) -> Array:
    """The picture in a file's bytes, uint8 (channels, height, width).

    Args:
        flag: COLOR, GRAY or AS_IT_IS.

    Raises:
        FormatError: OpenCV cannot read it, it is too large, or it has more than 8 bits.
    """
    picture = decode_picture(data, flag, where)
    if picture.dtype != np.uint8:
        raise FormatError(where, f"a picture of {picture.dtype}", expected="8 bits a channel")
    return planes(picture)


class LabelMaps:
    """Reads masks whose pixels are labels.

    A PNG with a palette, as PASCAL VOC has them, holds labels as its indices, and these are read. (The originals read
    the grey of the palette's colours.) The kind is printed once on stderr, unless GLOG_minloglevel is above 0.

    Args:
        reader: finds the files. layer: whose masks they are.
    """

    def __init__(self, reader: Reader, layer: str) -> None:
        self._reader, self._layer = reader, layer
        self._logged: set[bool] = set()

    def read(self, name: str, where: str) -> Array:
        """The labels, uint8 (height, width).

        Raises:
            FileError: it is not there. FormatError: it cannot be read.
        """
        path = self._reader.find(name, where)
        palette = _has_palette(path)
        labels = _indices(path, where) if palette else load_picture(path, GRAY, where)
        self._log_form(palette)
        return labels

    def _log_form(self, palette: bool) -> None:
        if palette in self._logged:
            return
        self._logged.add(palette)
        kind = "PNGs with a palette: labels are its indices" if palette else "read as grey: labels are its values"
        info(f"layer {self._layer}: masks are {kind}")


def _has_palette(path: str) -> bool:
    with Path(path).open("rb") as file:
        header = file.read(26)
    return header[:8] == b"\x89PNG\r\n\x1a\n" and header[25:] == bytes([_PALETTE_PNG])


def _indices(path: str, where: str) -> Array:
    """What a PNG with a palette holds; OpenCV can only give the colours."""
    with opened_picture(path, where) as picture:
        return np.asarray(picture)


class Labelled(NamedTuple):
    """A line of an ImageData list."""

    line: int
    name: str
    label: int


def labelled(path: str) -> list[Labelled]:
    """A list of lines ``NAME LABEL``. A name may hold spaces: the label is the last word.

    Raises:
        FileError: no such list. FormatError: it is empty, or a line has another form.
    """
    items = []
    for number, line in lines(path):
        *name, word = line.rsplit(None, 1)
        label = whole(word)
        if not name or label is None:
            raise FormatError(
                f"{path}:{number}", repr(line), expected="FILE LABEL, the label a whole number of 32 bits"
            )
        items.append(Labelled(number, name[0], label))
    return items


class PictureBatches(Batches):
    """Pictures with a label each: (items, channels, height, width) and (items,).

    All pictures of a batch have one size, which may differ from batch to batch.
    """

    def __init__(
        self, source: str, items: list[Labelled], cursor: Cursor, reader: Reader, transformer: Transformer, batch: int
    ) -> None:
        self._source, self._items, self._cursor, self._reader = source, items, cursor, reader
        self.transformer, self._batch = transformer, batch
        self.shapes = [(batch, *self._shape(self._read())), (batch,)]

    def _read(self) -> Array:
        return planes(self._reader.read(self._items[self._cursor.index].name, self._where))

    def _shape(self, picture: Array) -> tuple[int, ...]:
        return self.transformer.made(picture.shape, self._where)

    @property
    def _where(self) -> str:
        return f"{self._source}:{self._items[self._cursor.index].line}"

    def make(self) -> tuple[Array, ...]:
        picture = self._read()
        data = np.empty((self._batch, *self._shape(picture)), np.float32)
        labels = np.empty(self._batch, np.float32)
        for i in range(self._batch):
            self.transformer.decoded(picture if i == 0 else self._read(), data[i], self._where)
            labels[i] = self._items[self._cursor.index].label
            self._cursor.advance()
        return data, labels

    def position(self) -> State:
        return self._cursor.get_state()

    def move(self, state: State) -> None:
        self._cursor.set_state(state)
