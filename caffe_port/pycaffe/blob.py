"""Blobs: numpy's view of what the net's tensors hold.

Source: blob.cpp, python/caffe/_caffe.cpp (both programs).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import prod

import numpy as np
from torch import Tensor

from caffe_port.dialect import Dialect
from caffe_port.errors import ShapeError
from caffe_port.layers.base import Layer, Shape
from caffe_port.net import legacy

__all__ = ["Blob", "BlobStore", "Parameter"]


class BlobStore(dict[str, Tensor]):
    """Tensors by blob name; one that nobody has written yet is zero, in the shape that the net knows.

    Args:
        shapes: every blob's shape, kept by the net.
        like: gives a tensor of the device and dtype to use.
    """

    def __init__(self, shapes: dict[str, Shape], like: Callable[[], Tensor]) -> None:
        super().__init__()
        self.shapes, self._like = shapes, like
        self._host: dict[str, Tensor] = {}
        """Copies in host memory of tensors on another device, handed out as arrays since the last run."""

    def __missing__(self, name: str) -> Tensor:
        self[name] = self._like().new_zeros(self.shapes[name])
        return self[name]

    def fitting(self, name: str) -> Tensor:
        """The tensor, made anew where the net has been reshaped or moved since."""
        if tuple(self[name].shape) != self.shapes[name]:
            del self[name]
        return self._moved(name)

    def _moved(self, name: str) -> Tensor:
        tensor, like = self[name], self._like()
        if tensor.device != like.device or tensor.dtype != like.dtype:
            tensor = self[name] = tensor.to(like)
        return tensor

    def array(self, name: str) -> np.ndarray:
        """The tensor as a C-contiguous array over its memory; over a copy of it if that is on another device."""
        tensor = self.fitting(name)
        if tensor.device.type != "cpu":
            if name not in self._host:
                self._host[name] = tensor.cpu().contiguous()
            return self._host[name].numpy()
        if not tensor.is_contiguous():
            tensor = self[name] = tensor.contiguous()
        return tensor.numpy()

    def sync(self) -> None:
        """Take over what was written to arrays over copies, and follow the net to its device; call it before a run."""
        for name, copy in self._host.items():
            self[name].copy_(copy)
        self._host.clear()
        for name in self:
            self._moved(name)


class _Shaped:
    """What shape-like questions pycaffe answers about blobs."""

    @property
    def data(self) -> np.ndarray:
        raise NotImplementedError

    @property
    def shape(self) -> Shape:
        return tuple(self.data.shape)

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def num(self) -> int:
        return self._legacy(0)

    @property
    def channels(self) -> int:
        return self._legacy(1)

    @property
    def height(self) -> int:
        return self._legacy(2)

    @property
    def width(self) -> int:
        return self._legacy(3)

    def _legacy(self, axis: int) -> int:
        """A blob of up to four axes seen as four, ones behind (blob.hpp, LegacyShape)."""
        if len(self.shape) > 4:
            raise ShapeError("blob", f"{len(self.shape)} axes", expected="4 or fewer for num, channels, height, width")
        return self.shape[axis] if axis < len(self.shape) else 1


class Blob(_Shaped):
    """A blob of the net: ``data`` and ``diff`` are arrays over its memory; what is written there is used."""

    def __init__(self, data: BlobStore, diff: BlobStore, name: str) -> None:
        self._data, self._diff, self.name = data, diff, name

    @property
    def data(self) -> np.ndarray:
        return self._data.array(self.name)

    @property
    def diff(self) -> np.ndarray:
        return self._diff.array(self.name)

    @property
    def shape(self) -> Shape:
        return tuple(self._data.fitting(self.name).shape)

    def reshape(self, *shape: int) -> None:
        """Give the blob another shape; ``net.reshape()`` or the next forward brings the others after it."""
        self._data.shapes[self.name] = tuple(int(n) for n in shape)
        self._data.fitting(self.name)


class Parameter(_Shaped):
    """A parameter blob of a layer. Its shape is the dialect's: always four axes in noh."""

    def __init__(self, layer: Layer, index: int, dialect: Dialect) -> None:
        self._layer, self._name, self._legacy_shape = layer, layer.blob_names[index], dialect.legacy_shapes

    @property
    def tensor(self) -> Tensor:
        """The parameter itself."""
        return getattr(self._layer, self._name)

    def _seen(self, tensor: Tensor) -> np.ndarray:
        array = tensor.detach().cpu().numpy()
        return array.reshape(legacy(array.shape)) if self._legacy_shape else array

    @property
    def data(self) -> np.ndarray:
        array = self._seen(self.tensor)
        # Views of views keep their root alive, not one another.
        self._layer.lent[self._name] = weakref.ref(array.base if isinstance(array.base, np.ndarray) else array)
        return array

    @property
    def diff(self) -> np.ndarray:
        return self._seen(self._layer.diff(self._name))
