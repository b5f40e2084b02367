"""Pictures and messages as arrays, and the preprocessing of a net's inputs.

Source: python/caffe/io.py (both programs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from caffe_port.errors import CaffeError, ShapeError, nearest
from caffe_port.pycaffe.images import load_image, oversample, resize_image
from caffe_port.schema.messages import BlobProto, BlobProtoVector, Datum

__all__ = [
    "Transformer",
    "array_to_blobproto",
    "array_to_datum",
    "arraylist_to_blobprotovector_str",
    "blobproto_to_array",
    "blobprotovector_str_to_arraylist",
    "datum_to_array",
    "load_image",
    "oversample",
    "resize_image",
]


class ArrayError(ShapeError, ValueError):
    """An array or message of the wrong shape; a ValueError too, as in pycaffe."""


# -- messages ----------------------------------------------------------------------------------------------------------


def blobproto_to_array(blob: Any, return_diff: bool = False) -> np.ndarray:
    """A BlobProto's data, or its diff, as a float64 array; four axes if it has the legacy dims.

    Raises:
        ArrayError: the number of values does not match the shape.
    """
    if blob.double_data or blob.double_diff:
        numbers = np.array(blob.double_diff if return_diff else blob.double_data)
    else:
        numbers = np.array(blob.diff if return_diff else blob.data)
    legacy = any(blob.HasField(name) for name in ("num", "channels", "height", "width"))
    shape = (blob.num, blob.channels, blob.height, blob.width) if legacy else tuple(blob.shape.dim)
    try:
        return numbers.reshape(shape)
    except ValueError:
        raise ArrayError("BlobProto", f"{numbers.size} numbers", expected=f"enough for its shape {shape}") from None


def array_to_blobproto(arr: np.ndarray, diff: np.ndarray | None = None) -> Any:
    """An array of any number of axes, and its diff if given, as a BlobProto with a shape."""
    blob = BlobProto()
    blob.shape.dim.extend(arr.shape)
    blob.data.extend(arr.astype(float).flat)
    if diff is not None:
        blob.diff.extend(diff.astype(float).flat)
    return blob


def arraylist_to_blobprotovector_str(arraylist: Iterable[np.ndarray]) -> bytes:
    """Arrays as the bytes of a BlobProtoVector."""
    return BlobProtoVector(blobs=[array_to_blobproto(arr) for arr in arraylist]).SerializeToString()


def blobprotovector_str_to_arraylist(data: bytes) -> list[np.ndarray]:
    """The arrays of a BlobProtoVector's bytes."""
    return [blobproto_to_array(blob) for blob in BlobProtoVector.FromString(data).blobs]


def array_to_datum(arr: np.ndarray, label: int | None = None) -> Any:
    """A (channels, height, width) array as a Datum: uint8 as bytes, anything else as floats.

    Raises:
        ArrayError: the array does not have three axes.
    """
    if arr.ndim != 3:
        raise ArrayError("array_to_datum", f"an array of shape {arr.shape}", expected="(channels, height, width)")
    datum = Datum(channels=arr.shape[0], height=arr.shape[1], width=arr.shape[2])
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(arr.astype(float).flat)
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: Any) -> np.ndarray:
    """A Datum's numbers as a (channels, height, width) array: uint8, or float64 if it holds floats.

    Raises:
        ArrayError: the number of values does not match the shape (an encoded picture, for example).
    """
    shape = datum.channels, datum.height, datum.width
    numbers = np.frombuffer(datum.data, np.uint8).copy() if datum.data else np.array(datum.float_data, float)
    try:
        return numbers.reshape(shape)
    except ValueError:
        remedy = "decode its data, which is a picture file" if datum.encoded else ""
        found = f"{numbers.size} numbers"
        raise ArrayError("Datum", found, expected=f"enough for its shape {shape}", remedy=remedy) from None


# -- pre-processing ----------------------------------------------------------------------------------------------------


class Transformer:
    """Makes a net's input of a picture, (height, width, channels) in RGB and 0 to 1.

    In this order: resize to the input, transpose, swap channels, raw scale, subtract the mean, input scale. Each step
    but the first only if it was set.

    Args:
        inputs: the shape of each input blob by its name.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = {name: tuple(shape) for name, shape in inputs.items()}
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, float] = {}

    def preprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """The picture ``data`` in the form of input ``in_``: float32, (channels, height, width) if transposed so."""
        shape = self._shape(in_)
        image = data.astype(np.float32)
        if image.shape[:2] != shape[2:]:
            image = resize_image(image, shape[2:])
        if in_ in self.transpose:
            image = image.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            image = image[list(self.channel_swap[in_]), :, :]
        # In place, so that a mean or scale in double precision is rounded as in pycaffe.
        if in_ in self.raw_scale:
            image *= self.raw_scale[in_]
        if in_ in self.mean:
            image -= self.mean[in_]
        if in_ in self.input_scale:
            image *= self.input_scale[in_]
        return image

    def deprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`preprocess`, without the resizing."""
        self._shape(in_)
        image = data.copy().squeeze()
        if in_ in self.input_scale:
            image /= self.input_scale[in_]
        if in_ in self.mean:
            image += self.mean[in_]
        if in_ in self.raw_scale:
            image /= self.raw_scale[in_]
        if in_ in self.channel_swap:
            image = image[np.argsort(self.channel_swap[in_]), :, :]
        if in_ in self.transpose:
            image = image.transpose(np.argsort(self.transpose[in_]))
        return image

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """The order of axes: (2, 0, 1) converts (height, width, channels) to (channels, height, width)."""
        if len(order) != len(self._shape(in_)) - 1:
            raise ArrayError(f"transpose of {in_}", f"{tuple(order)}", expected=f"{len(self._shape(in_)) - 1} axes")
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """The order of channels: (2, 1, 0) converts RGB to BGR. Channels are the first axis at this step."""
        if len(order) != self._shape(in_)[1]:
            raise ArrayError(f"channel_swap of {in_}", f"{tuple(order)}", expected=f"{self._shape(in_)[1]} channels")
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """The factor applied before the mean is subtracted: 255 for nets that were trained on 0 to 255."""
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: np.ndarray) -> None:
        """The mean to subtract: one number for each channel, or (channels, height, width), resized if necessary."""
        shape = self._shape(in_)
        if mean.ndim == 1:
            if mean.shape[0] != shape[1]:
                raise ArrayError(f"mean of {in_}", f"{mean.shape[0]} channels", expected=f"{shape[1]}")
            mean = mean[:, np.newaxis, np.newaxis]
        elif mean.ndim not in (2, 3):
            raise ArrayError(f"mean of {in_}", f"shape {mean.shape}", expected="(channels, height, width), or channels")
        elif (1,) * (3 - mean.ndim) + mean.shape != shape[1:]:
            low, high = mean.min(), mean.max()
            normal = ((mean - low) / (high - low)).reshape((1,) * (3 - mean.ndim) + mean.shape).transpose(1, 2, 0)
            mean = resize_image(normal, shape[2:]).transpose(2, 0, 1) * (high - low) + low
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """The factor applied after the mean is subtracted."""
        self._shape(in_)
        self.input_scale[in_] = scale

    def _shape(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            near = nearest(in_, self.inputs)
            raise CaffeError(
                "Transformer",
                f"no input {in_!r}",
                expected=", ".join(self.inputs),
                remedy=f"near: {near}" if near else "",
            )
        return self.inputs[in_]
