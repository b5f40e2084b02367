"""What a data layer does to an item: crop, mirror, subtract the mean, scale.

Of each item the random numbers are drawn in Caffe's order: whether to mirror it, then the crop's top, then its left.

Source: data_transformer.cpp (both programs).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_port.errors import CaffeError, ShapeError
from caffe_port.random import Stream

__all__ = ["Transformer"]

Array = Any  # np.ndarray; numpy's own generic form differs between the versions supported


class Transformer:
    """The transformations of a ``transform_param``.

    Args:
        scale: multiplies after the mean is subtracted.
        mirror: flip left to right with probability 1/2, in both phases.
        crop: side of the square to cut out, at random in training and else from the middle; 0 for all of it.
        mean: float32 (channels, height, width), the mean image; or (channels,) or (1,), values for channels; or None.
        train: whether the phase is TRAIN.

    Attributes:
        stream: what it draws from; set by :meth:`seed`.
        draws_from: the stream of the layer's thread, where it draws from that too (ssd).
    """

    draws_from: Stream | None = None

    def __init__(self, *, scale: float, mirror: bool, crop: int, mean: Array | None, train: bool) -> None:
        self.scale, self.mirror, self.crop, self.mean, self.train = np.float32(scale), mirror, crop, mean, train
        self.stream: Stream | None = None

    @property
    def draws(self) -> bool:
        """Whether it needs random numbers (InitRand)."""
        return self.mirror or (self.train and self.crop > 0)

    def seed(self, seed: int) -> None:
        """Draw from a new stream from now on."""
        self.stream = Stream(seed)

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The shape of an item of this shape after the transformations."""
        return (channels, self.crop, self.crop) if self.crop else (channels, height, width)

    def made(self, shape: tuple[int, int, int], where: str) -> tuple[int, int, int]:
        """The same; a fork that resizes refuses here what is smaller than its crop."""
        return self.shape(*shape)

    def decoded(self, planes: Array, out: Array, where: str) -> None:
        """Transform a decoded picture, uint8 (channels, height, width); here like any other item."""
        self.item(planes, out, where)

    def item(self, planes: Array, out: Array, where: str) -> tuple[bool, int, int]:
        """Transform one item.

        Args:
            planes: uint8 or float32 (channels, height, width).
            out: float32, filled with the result.

        Returns:
            Whether it was mirrored, and the top and left of the crop.

        Raises:
            ShapeError: smaller than the crop, another size than ``out``, or no fit for the mean.
        """
        height, width = planes.shape[1:]
        if height < self.crop or width < self.crop:
            raise ShapeError(where, f"{width} x {height} pixels", expected=f"at least the crop_size, {self.crop}")
        if self.shape(*planes.shape) != out.shape:
            raise ShapeError(
                where,
                f"an item of {_size(planes)}",
                expected=f"{_size(out)} as the first of the batch",
                remedy="crop_size, or new_height and new_width, make all equal",
            )
        mirrored, top, left = self._draw(height, width)
        window = np.s_[:, top : top + out.shape[1], left : left + out.shape[2]]
        mean = self._mean_under(planes.shape, window, where)
        np.subtract(planes[window], mean, out=out[..., ::-1] if mirrored else out, dtype=np.float32)
        if self.scale != 1:
            out *= self.scale
        return mirrored, top, left

    def picture_and_labels(
        self, planes: Array, labels: Array, out: Array, label_out: Array, ignore: int, where: str
    ) -> None:
        """Transform a picture together with its labels of pixels (TransformImgAndSeg of noh).

        What is smaller than the crop is first filled up on the right and below, with the mean and with ``ignore``.

        Args:
            planes: uint8 (channels, height, width). labels: uint8 (height, width), not smaller than the picture; what
                they have on the right and below is used for filling up.
            out, label_out: float32 (channels, height, width) and (height, width), filled with the results.
            ignore: the label of what is filled up.
        """
        height, width = planes.shape[1:]
        mirrored, top, left = self._draw(max(height, self.crop), max(width, self.crop))
        rows, columns = (slice(at, at + n) for at, n in zip((top, left), label_out.shape, strict=True))
        window = np.s_[:, rows, columns]
        part, label_part = planes[window], labels[rows, columns]
        if mirrored:
            out, label_out = out[..., ::-1], label_out[..., ::-1]
        out[...], label_out[...] = 0, ignore
        inside = out[:, : part.shape[1], : part.shape[2]]
        np.subtract(part, self._mean_under(planes.shape, window, where), out=inside, dtype=np.float32)
        label_out[: label_part.shape[0], : label_part.shape[1]] = label_part
        if self.scale != 1:
            out *= self.scale

    def _draw(self, height: int, width: int) -> tuple[bool, int, int]:
        """Whether to mirror, and the top left corner of the crop in an item of this size."""
        mirrored = self.mirror and self._below(2) == 1
        if not self.crop:
            return mirrored, 0, 0
        down, right = height - self.crop, width - self.crop
        if self.train:
            top = self._below(down + 1)
            return mirrored, top, self._below(right + 1)
        return mirrored, down // 2, right // 2

    def _below(self, limit: int) -> int:
        assert self.stream is not None, "never seeded"
        return self.stream.rand(limit)

    def _mean_under(self, shape: tuple[int, ...], window: tuple[slice, ...], where: str) -> Array:
        """The mean to subtract from a window of an item of this shape; broadcasts."""
        if self.mean is None:
            return np.float32(0)
        if self.mean.ndim == 1:
            if self.mean.size not in (1, shape[0]):
                raise CaffeError(
                    where, f"{self.mean.size} mean_value", expected=f"1 or {shape[0]}, one for each channel"
                )
            return self.mean[:, None, None]
        if self.mean.shape != shape:
            raise ShapeError(
                where,
                f"an item of {'x'.join(map(str, shape))}",
                expected=f"{'x'.join(map(str, self.mean.shape))}, as the mean_file has it",
            )
        return self.mean[window]


def _size(planes: Array) -> str:
    channels, height, width = planes.shape
    return f"{width} x {height} pixels in {channels} channel{'s' * (channels != 1)}"
