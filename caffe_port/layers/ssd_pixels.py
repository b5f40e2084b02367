"""Boxes in parts of the network's input as boxes in pixels of the original picture. Source: bbox_util.cpp (ssd)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from caffe_port.errors import FormatError
from caffe_port.formats.mapping import map_file

if TYPE_CHECKING:
    from caffe_port.layers.base import Layer
    from caffe_port.spec.fields import Fields

__all__ = ["Resized", "read_sizes"]


def read_sizes(path: str) -> list[tuple[str, int, int]]:
    """(name, height, width) of each picture of a name_size_file, whose words are separated by any space.

    Raises:
        FileError: it is missing or unreadable. FormatError: a height or width is not a whole number.
    """
    words = bytes(map_file(Path(path))).decode("utf-8", "surrogateescape").split()
    found = []
    for name, height, width in zip(words[::3], words[1::3], words[2::3], strict=False):
        if not (height.lstrip("-").isdecimal() and width.lstrip("-").isdecimal()):
            raise FormatError(f"{path}: {name}", f"{height} {width}", expected="lines of name, height and width")
        found.append((name, int(height), int(width)))
    return found


class Resized:
    """How pictures were resized, to undo it for boxes.

    Args:
        layer: whose error it is. p: the layer's ``resize_param``, or None where the layer has none.
    """

    def __init__(self, layer: Layer, p: Fields | None) -> None:
        self.mode = p.enum("resize_mode") if p is not None else ""
        if p is None:
            return
        p.skip("prob", "pad_mode", "pad_value", "interp_mode")
        self.size = p.height, p.width
        self.scale = p.height_scale, p.width_scale
        if min(self.size) < 1:
            raise layer.error(f"resize_param of {self.size[0]} x {self.size[1]}", expected="height and width above 0")

    def boxes(self, boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) of single precision in pixels of a picture, and their areas.

        The areas are the original's: (width + 1) (height + 1) where boxes were scaled last, without the ones where
        they were clipped last.
        """
        single = np.float32
        if self.mode == "FIT_LARGE_SIZE_AND_PAD":
            boxes = self._without_padding(boxes, single(width) / single(height))
        if self.mode == "FIT_SMALL_SIZE" and 0 not in self.scale:
            found = _scaled(boxes, *self.scale)
            found = found.clip(0, np.array([width, height, width, height], single))
            return found, _areas(found, 0)
        return _scaled(boxes.clip(0, 1), height, width), _areas(
            _scaled(boxes.clip(0, 1), height, width), int(width > 1 or height > 1)
        )

    def _without_padding(self, boxes: np.ndarray, aspect: np.float32) -> np.ndarray:
        """Boxes in parts of the picture alone; one that lies in the padding stays as it is."""
        height, width = map(np.float32, self.size)
        source = np.array([0, 0, 1, 1], np.float32)
        if aspect > width / height:
            padding, along, whole = (height - width / aspect) / 2, 1, height
        else:
            padding, along, whole = (width - height * aspect) / 2, 0, width
        source[along], source[along + 2] = padding / whole, 1.0 - float(padding / whole)
        size = np.tile(source[2:] - source[:2], 2)
        outside = np.any((boxes[:, :2] >= source[2:]) | (boxes[:, 2:] <= source[:2]), 1)
        return np.where(outside[:, None], boxes, ((boxes - np.tile(source[:2], 2)) / size).clip(0, 1))


def _scaled(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    return boxes * np.array([width, height, width, height], np.float32)


def _areas(boxes: np.ndarray, more: int) -> np.ndarray:
    size = boxes[:, 2:] - boxes[:, :2]
    return np.where((size < 0).any(1), np.float32(0), (size[:, 0] + more) * (size[:, 1] + more))
