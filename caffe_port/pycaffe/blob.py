"""Blobs of a net: numpy's view of what its tensors hold.

Source: blob.cpp, python/caffe/_caffe.cpp (both programs).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from caffe_port.layers.base import Shape
from caffe_port.layers.blobs import Copies, Shaped

__all__ = ["Blob", "BlobStore"]


class BlobStore(dict[str, Tensor]):
    """Tensors by blob name; one that nobody has written yet is zero, in the shape that the net knows.

    Args:
        shapes: every blob's shape, kept by the net.
        like: gives a tensor of the device and dtype to use.
    """

    def __init__(self, shapes: dict[str, Shape], like: Callable[[], Tensor]) -> None:
        super().__init__()
        self.shapes, self._like, self._copies = shapes, like, Copies()
        self.reshaped = False
        """Whether the user has given a blob another shape since the last run."""

    def __missing__(self, name: str) -> Tensor:
        self[name] = self._like().new_zeros(self.shapes[name])
        return self[name]

    def fitting(self, name: str) -> Tensor:
        """The tensor, made anew where the net has been reshaped or moved since."""
        if tuple(self[name].shape) != self.shapes[name]:
            del self[name]
        return self._moved(name, self._like())

    def _moved(self, name: str, like: Tensor) -> Tensor:
        tensor = self[name]
        if tensor.device != like.device or tensor.dtype != like.dtype:
            self.flush()
            tensor = self[name] = tensor.to(like)
        return tensor

    def array(self, name: str) -> np.ndarray:
        """The tensor as a C-contiguous array over its memory; over a copy of it if that is on another device."""
        tensor = self.fitting(name)
        if not tensor.is_contiguous():
            tensor = self[name] = tensor.contiguous()
        return self._copies.array(name, tensor)

    def sync(self) -> None:
        """Take over what was written to arrays over copies, and follow the net to its device; call it before a run."""
        self.flush()
        like = self._like()
        for name in self:
            self._moved(name, like)

    def flush(self) -> None:
        """Take over what was written to arrays over copies."""
        self._copies.flush()


class Blob(Shaped):
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
        self._data.reshaped = True
        self._data.fitting(self.name)
