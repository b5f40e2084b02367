"""Blobs as numpy arrays: layers' parameters, and the bottoms and tops of layers in Python.

Source: blob.hpp, python/caffe/_caffe.cpp (both programs).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from math import prod
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from caffe_port.dialects import Dialect
from caffe_port.errors import LayerError, ShapeError
from caffe_port.spec import Shape

__all__ = ["ArrayBlob", "BlobVec", "Copies", "Owner", "Parameter", "Shaped", "legacy"]


def legacy(shape: Iterable[int]) -> Shape:
    """A shape of four axes, with ones in front (blob.hpp)."""
    shape = tuple(shape)
    return (*(1,) * (4 - len(shape)), *shape)


class Shaped:
    """pycaffe's attributes about the shape of a blob."""

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
        return self._four(0)

    @property
    def channels(self) -> int:
        return self._four(1)

    @property
    def height(self) -> int:
        return self._four(2)

    @property
    def width(self) -> int:
        return self._four(3)

    def _four(self, axis: int) -> int:
        """A blob of up to four axes as four, with trailing ones (blob.hpp, LegacyShape)."""
        if len(self.shape) > 4:
            raise ShapeError("blob", f"{len(self.shape)} axes", expected="4 or fewer for num, channels, height, width")
        return self.shape[axis] if axis < len(self.shape) else 1


class Copies:
    """Copies in host memory, as arrays, of tensors that numpy cannot access; bfloat16 as float32.

    :meth:`flush` copies what was written there back to the tensors.
    """

    def __init__(self) -> None:
        self._copies: dict[str, _Copy] = {}

    def array(self, key: str, tensor: Tensor) -> np.ndarray:
        """The tensor's values; without a copy if numpy can access its memory."""
        tensor = tensor.detach()
        if self.seen(tensor):
            return tensor.numpy()
        copy = self._copies.get(key)
        if copy is None or copy.outdated() or copy.tensor.data_ptr() != tensor.data_ptr():
            copy = self._copies[key] = _Copy(tensor)
        return copy.host.numpy()

    @staticmethod
    def seen(tensor: Tensor) -> bool:
        """Whether numpy can access the tensor's memory: on the CPU, and not bfloat16."""
        return tensor.device.type == "cpu" and tensor.dtype != torch.bfloat16

    def flush(self) -> None:
        """Copy the values back to their tensors, unless torch has written to these since, and drop the copies."""
        for copy in self._copies.values():
            if not copy.outdated():
                copy.tensor.copy_(copy.host)
        self._copies.clear()


class _Copy:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version
        host = tensor.to("cpu", copy=True).contiguous()
        self.host = host.float() if host.dtype == torch.bfloat16 else host

    def outdated(self) -> bool:
        return self.tensor._version != self.version


class Owner(Protocol):
    """The layer as parameter blobs see it."""

    type: ClassVar[str]
    name: str
    dialect: Dialect
    filled: set[str]
    copies: Copies
    held_arrays: dict[str, weakref.ref[Any]]

    @property
    def blob_names(self) -> list[str]:
        """Its blobs' names."""

    def diff(self, name: str) -> Tensor:
        """A parameter's diff."""

    def holds(self, name: str) -> bool:
        """Whether the blob is a parameter or buffer of the layer, not computed from others."""

    def blob(self, name: str, shape: Shape) -> None:
        """Create the next blob."""


class Parameter(Shaped):
    """A parameter blob of a layer: ``data`` and ``diff`` are arrays over its memory. It always has four axes in noh."""

    def __init__(self, layer: Owner, name: str) -> None:
        self._layer, self._name = layer, name

    @property
    def tensor(self) -> Tensor:
        """The parameter itself."""
        return getattr(self._layer, self._name)

    def _seen(self, what: str, tensor: Tensor) -> np.ndarray:
        array = self._layer.copies.array(f"{self._name}.{what}", tensor)
        return array.reshape(legacy(array.shape)) if self._layer.dialect.legacy_shapes else array

    @property
    def data(self) -> np.ndarray:
        array = self._seen("data", self.tensor)
        if not self._layer.holds(self._name):
            array.flags.writeable = False  # computed in every pass: writes would be lost
            return array
        # Views of views keep only their base alive.
        self._layer.held_arrays[self._name] = weakref.ref(array.base if isinstance(array.base, np.ndarray) else array)
        return array

    @property
    def diff(self) -> np.ndarray:
        return self._seen("diff", self._layer.diff(self._name))


class BlobVec(list[Any]):
    """A layer's parameter blobs."""

    def __init__(self, layer: Owner) -> None:
        super().__init__(Parameter(layer, name) for name in layer.blob_names)
        self._layer = layer

    def add_blob(self, *shape: int) -> None:
        """Create another one, initially zero: for layers in Python, in their ``setup``.

        Raises:
            LayerError: the layer is of another type.
        """
        if self._layer.type != "Python":
            raise LayerError(
                f"layer {self._layer.name}",
                f"add_blob on a layer of type {self._layer.type}",
                expected="a layer in Python",
            )
        name = f"blob{len(self)}"
        self._layer.blob(name, tuple(int(n) for n in shape))
        getattr(self._layer, name).data.zero_()
        self._layer.filled.add(name)
        self.append(Parameter(self._layer, name))


class ArrayBlob(Shaped):
    """A blob in host memory: a bottom or top of a layer in Python."""

    def __init__(self) -> None:
        self._data = np.zeros(0, np.float32)
        self._diff: np.ndarray | None = None

    @property
    def data(self) -> np.ndarray:
        return self._data

    @property
    def diff(self) -> np.ndarray:
        if self._diff is None or self._diff.shape != self._data.shape:
            self._diff = np.zeros_like(self._data)
        return self._diff

    def reshape(self, *shape: int) -> None:
        """Change the shape; the values are kept if their number is unchanged."""
        size = tuple(int(n) for n in shape)
        if size != self._data.shape:
            fits = prod(size) == self._data.size
            self._data = self._data.reshape(size) if fits else np.zeros(size, self._data.dtype)

    def hold(self, data: np.ndarray, diff: np.ndarray | None = None) -> None:
        """Use these arrays as memory from now on; an omitted diff is zero."""
        self._data, self._diff = data, diff
