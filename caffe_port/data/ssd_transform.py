"""A ``transform_param`` of SSD's: expansion, crop to a box, distortion, resize, noise, and the crop of any proportion.

Where the original decodes, changes and encodes a picture again (as JPEG of OpenCV's default quality), so it is here.

Source: data_transformer.cpp, util/io.cpp of weiliu89/caffe, branch ssd.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from caffe_port.data import ssd_pictures as pixels
from caffe_port.data.batches import Array
from caffe_port.data.pictures import AS_IT_IS, decode
from caffe_port.data.ssd_boxes import UNIT, Box, clipped
from caffe_port.data.transform import Transformer
from caffe_port.errors import FormatError, ShapeError
from caffe_port.random import CRand, Stream

__all__ = ["Item", "SSDTransformer"]

F = np.float32
_RAW_BACKGROUND = 32
"""What a raw item is expanded with: the original fills its buffer with blanks."""


class Item:
    """A Datum: an encoded picture, or numbers (channels, height, width).

    Args:
        flag: how it is decoded, as :mod:`caffe_port.data.pictures` has it. where: the record, for errors.

    Attributes:
        height, width: as the record says, which need not be what the picture has.
    """

    def __init__(
        self,
        content: bytes | Array,
        size: tuple[int, int],
        label: int | None,
        where: str,
        flag: int = AS_IT_IS,
    ) -> None:
        self.content, self.label, self.where, self.flag = content, label, where, flag
        self.height, self.width = size

    @property
    def encoded(self) -> bool:
        return isinstance(self.content, bytes)

    @cached_property
    def picture(self) -> Array:
        """The encoded picture: uint8 (height, width) or (height, width, channels)."""
        assert isinstance(self.content, bytes)
        planes = decode(self.content, self.flag, self.where)
        return np.ascontiguousarray(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the pixels."""
        if self.encoded:
            return (pixels.channels(self.picture), *self.picture.shape[:2])
        return self.content.shape  # type: ignore[union-attr]

    @property
    def bytes_of(self) -> Array:
        """The numbers of a raw item that is to be expanded or cropped. Raises FormatError if they are float32."""
        assert not isinstance(self.content, bytes)
        if self.content.dtype != np.uint8:
            raise FormatError(self.where, "float_data to expand or crop", expected="bytes")
        return self.content

    def changed(self, made: Array) -> Item:
        """An item of these pixels: a picture encoded again, or raw planes."""
        import cv2

        label = self.label or 0  # the original sets it, given or not
        if not self.encoded:
            return Item(made, made.shape[1:], label, self.where)
        try:
            data = cv2.imencode(".jpg", made)[1].tobytes()
        except cv2.error as error:
            raise ShapeError(
                self.where, f"a picture of shape {made.shape}", expected="one that JPEG can hold"
            ) from error
        return Item(data, made.shape[:2], label, self.where, self.flag)


class SSDTransformer(Transformer):
    """The transformations of a ``transform_param``.

    Args:
        base: those that BVLC has too. p: the message.

    Attributes:
        draws_from: for all but mirroring and the crop's place.
        rand: the C library's, for the order of channels.
    """

    def __init__(self, base: Transformer, p: Any) -> None:
        super().__init__(scale=base.scale, mirror=base.mirror, crop=base.crop, mean=base.mean, train=base.train)
        self.p = p
        self.sides = (base.crop, base.crop) if base.crop else (p.crop_h, p.crop_w)
        self.draws_from: Stream = Stream(0)
        self.rand: CRand | None = None

    # -- shapes --------------------------------------------------------------------------------------------------------

    def made(self, shape: tuple[int, int, int], where: str) -> tuple[int, int, int]:
        """What an item of this shape becomes. Raises ShapeError if it is smaller than the crop."""
        count, height, width = shape
        if self.p.HasField("resize_param"):
            height, width = pixels.resized_size(self.p.resize_param, height, width)
        self._check_crop(height, width, where)
        return count, self.sides[0] or height, self.sides[1] or width

    def _check_crop(self, height: int, width: int, where: str) -> None:
        if height < self.sides[0] or width < self.sides[1] or min(height, width) < 1:
            name = "crop_size" if self.crop else "crop_h and crop_w"
            expected = f"at least the {name}, {self.sides[1]} x {self.sides[0]}"
            raise ShapeError(where, f"{width} x {height} pixels", expected=expected)

    # -- items that become others --------------------------------------------------------------------------------------

    def distorted(self, item: Item) -> Item:
        """Its colours distorted, if it is encoded; the label of a raw one stays too."""
        if not self.p.HasField("distort_param") or not item.encoded:
            return item
        assert self.rand is not None
        return item.changed(pixels.distort(item.picture, self.p.distort_param, self.draws_from, self.rand, item.where))

    def expanded(self, item: Item) -> tuple[Item, Box] | None:
        """Place at random in a larger picture, and that one's box in parts of the item; None if it is to stay."""
        if not self.p.HasField("expand_param"):
            return None
        p, stream = self.p.expand_param, self.draws_from
        if pixels.uniform(stream, 0, 1) > F(p.prob) or abs(p.max_expand_ratio - 1) < 1e-2:
            return None
        ratio = pixels.uniform(stream, 1, p.max_expand_ratio)
        count, height, width = item.shape
        larger = int(F(height) * ratio), int(F(width) * ratio)
        top, left = (
            np.floor(pixels.uniform(stream, 0, new - old)) for new, old in zip(larger, (height, width), strict=True)
        )
        box = Box(
            -left / F(width), -top / F(height), (F(larger[1]) - left) / F(width), (F(larger[0]) - top) / F(height)
        )
        inside = np.s_[int(top) : int(top) + height, int(left) : int(left) + width]
        if item.encoded:
            made = self._background(larger, item)
            made[inside] = item.picture
        else:
            made = np.full((count, *larger), _RAW_BACKGROUND, np.uint8)
            rows, columns = inside
            made[:, rows, columns] = item.bytes_of
        return item.changed(made), box

    def _background(self, size: tuple[int, int], item: Item) -> Array:
        made = np.zeros((*size, *item.picture.shape[2:]), np.uint8)
        count = pixels.channels(made)
        if self.mean is None:
            return made
        if self.mean.ndim == 3:
            if self.mean.shape != (count, *size):
                raise ShapeError(
                    item.where,
                    f"a picture expanded to {size[1]} x {size[0]} pixels",
                    expected="the mean_file's size: the original fills up with it",
                    remedy="mean_value goes with expand_param",
                )
            made[...] = self.mean.astype(np.int64).astype(np.uint8).transpose(1, 2, 0).reshape(made.shape)
            return made
        values = self._mean_under((count, *size), (), item.where).reshape(-1)
        made[...] = np.rint(values).clip(0, 255).astype(np.uint8)
        return made

    def cut(self, item: Item, box: Box) -> Item:
        """Cut to a box. Raises ShapeError if that leaves no pixels."""
        _, height, width = item.shape
        x0, y0, x1, y1 = (v * F(n) for v, n in zip(clipped(box)[:4], (width, height, width, height), strict=True))
        rows, columns = slice(int(y0), int(y0) + int(y1 - y0)), slice(int(x0), int(x0) + int(x1 - x0))
        made = item.picture[rows, columns] if item.encoded else item.bytes_of[:, rows, columns]
        if not made.size:
            raise ShapeError(
                item.where,
                f"a sampled box of {int(x1 - x0)} x {int(y1 - y0)} pixels",
                expected="one that holds pixels",
                remedy="a larger min_scale of its batch_sampler",
            )
        return item.changed(np.ascontiguousarray(made))

    # -- items that become data ----------------------------------------------------------------------------------------

    def data(self, item: Item, out: Array) -> tuple[bool, Box]:
        """Transform an item to ``out``, float32 (channels, height, width).

        Returns:
            Whether it was mirrored, and the box of its crop in parts of it.

        Raises:
            CaffeError: it does not fit ``out``, the crop or the mean.
        """
        if item.encoded:
            return self.picture(item.picture, out, item.where)
        mirrored, top, left = self.item(item.content, out, item.where)
        return mirrored, _part(top, left, out.shape[1:], item.shape[1:])

    def item(self, planes: Array, out: Array, where: str) -> tuple[bool, int, int]:
        count, height, width = planes.shape
        if out.shape != self.shape(count, height, width):
            raise ShapeError(
                where,
                f"raw data of {width} x {height} pixels in {count} channels for {out.shape}",
                expected="data of the same size",
                remedy="resize_param, crop_h and crop_w are for encoded pictures",
            )
        return super().item(planes, out, where)

    def decoded(self, planes: Array, out: Array, where: str) -> None:
        self.picture(planes[0] if len(planes) == 1 else np.ascontiguousarray(planes.transpose(1, 2, 0)), out, where)

    def picture(self, picture: Array, out: Array, where: str) -> tuple[bool, Box]:
        """:meth:`data` of a decoded picture, uint8 (height, width[, channels])."""
        count = pixels.channels(picture)
        if count != out.shape[0]:
            raise ShapeError(
                where,
                f"a picture of {count} channels",
                expected=f"{out.shape[0]}, as the first of the batch",
                remedy="force_color or force_gray makes all equal",
            )
        mirrored = self.mirror and self._below(2) == 1
        if self.p.HasField("resize_param"):
            picture = pixels.resize(picture, self.p.resize_param, self.draws_from, where)
        if self.p.HasField("noise_param"):
            picture = pixels.noised(picture, self.p.noise_param, self.draws_from, where)
        height, width = picture.shape[:2]
        self._check_crop(height, width, where)
        rows, columns = self.sides
        top = left = 0
        if rows and columns:
            down, right = height - rows, width - columns
            top = self._below(down + 1) if self.train else down // 2
            left = self._below(right + 1) if self.train else right // 2
        h, w = out.shape[1:]
        if (h, w) != (rows or height, columns or width):
            raise ShapeError(where, f"a picture of {width} x {height} pixels", expected=f"{w} x {h}, as the first has")
        # A picture that noise gave another number of channels is read byte by byte as if it had not.
        each = picture.size // (height * width)
        flat = picture.reshape(height, -1)[top : top + h, left * each : left * each + w * count]
        planes = flat.reshape(h, w, count).transpose(2, 0, 1)
        np.subtract(planes[..., ::-1] if mirrored else planes, self._mean_at(height, width, out.shape, where), out=out)
        if self.scale != 1:
            out *= self.scale
        return mirrored, _part(top, left, (h, w), (height, width))

    def _mean_at(self, height: int, width: int, shape: tuple[int, ...], where: str) -> Array:
        """The mean for a picture; a mean image is not mirrored with it."""
        if self.mean is None or self.mean.ndim == 1:
            return self._mean_under(shape, (), where)
        if self.mean.shape != (shape[0], height, width) or (all(self.sides) and self.sides != (height, width)):
            size = "x".join(map(str, self.mean.shape))
            raise ShapeError(
                where,
                f"a mean_file of {size} for a picture of {shape[0]}x{height}x{width}"
                + (f" cropped to {shape[1]}x{shape[2]}" if all(self.sides) else ""),
                expected="one of the picture's size, and no crop: the original reads past its end",
            )
        return self.mean[:, : shape[1], : shape[2]]


def _part(top: int, left: int, size: tuple[int, ...], of: tuple[int, int]) -> Box:
    (h, w), (height, width) = size, of
    if (top, left, h, w) == (0, 0, height, width):
        return UNIT
    return Box(F(left) / F(width), F(top) / F(height), F(left + w) / F(width), F(top + h) / F(height))
