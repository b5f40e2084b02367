"""Blobs of a net: numpy views of its tensors.

Source: blob.cpp, python/caffe/_caffe.cpp (both programs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from caffe_port.errors import CaffeError, ShapeError
from caffe_port.layers.base import Shape
from caffe_port.layers.blobs import Copies, Shaped

__all__ = ["Blob", "BlobStore", "fill", "shown_name"]


class BlobStore(dict[str, Tensor]):
    """Tensors by blob name; one that was not written yet is zero, in the net's shape for it.

    Args:
        shapes: every blob's shape, kept by the net.
        like: gives a tensor of the device and dtype to use.
    """

    def __init__(self, shapes: dict[str, Shape], like: Callable[[], Tensor]) -> None:
        super().__init__()
        self.shapes, self._like, self._copies = shapes, like, Copies()
        self.reshaped = False
        """Whether the user has reshaped a blob since the last run."""

    def __missing__(self, name: str) -> Tensor:
        self[name] = self._like().new_zeros(self.shapes[name])
        return self[name]

    def fitting(self, name: str, like: Tensor | None = None) -> Tensor:
        """The tensor, recreated if the net was reshaped or moved, or if ``like`` has another shape."""
        shape = self.shapes[name] if like is None else tuple(like.shape)
        if tuple(self[name].shape) != shape:
            self[name] = self._like().new_zeros(shape)
        return self._moved(name, self._like())

    def _moved(self, name: str, like: Tensor) -> Tensor:
        tensor = self[name]
        if tensor.device != like.device or tensor.dtype != like.dtype:
            self.flush()
            tensor = self[name] = tensor.to(like)
        return tensor

    def array(self, name: str) -> np.ndarray:
        """The tensor as a C-contiguous array over its memory; over a host copy if it is on another device."""
        tensor = self.fitting(name)
        if not tensor.is_contiguous():
            tensor = self[name] = tensor.contiguous()
        return self._copies.array(name, tensor)

    def sync(self) -> None:
        """Copy values written to host copies back, and move tensors to the net's device; call it before a run."""
        self.flush()
        like = self._like()
        for name in self:
            self._moved(name, like)

    def flush(self) -> None:
        """Copy values written to host copies back."""
        self._copies.flush()


class Blob(Shaped):
    """A blob of the net: ``data`` and ``diff`` are writable arrays over its memory."""

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
        """Change the blob's shape; ``net.reshape()`` or the next forward adapts the others."""
        self._data.shapes[self.name] = tuple(int(n) for n in shape)
        self._data.reshaped = True
        self._data.fitting(self.name)


def fill(
    blobs: Mapping[str, Blob], what: str, given: Mapping[str, Any], names: Sequence[str], *, all_or_none: bool
) -> None:
    """Write to the ``what``, data or diff, of the inputs or outputs ``names``.

    Raises:
        CaffeError: another blob, or, where pycaffe requires all or none, one is missing. ShapeError: a value
            does not fit.
    """
    role = "input" if what == "data" else "output"
    for name in given:
        if name not in names:
            raise CaffeError("net", f"no {role} {name!r}", expected=", ".join(names) or f"no {role}s")
    missing = [name for name in names if name not in given]
    if missing and all_or_none:
        raise CaffeError("net", f"nothing for {', '.join(missing)}", expected=f"values for all {role}s, or for none")
    for name, value in given.items():
        array, target = np.asarray(value), getattr(blobs[name], what)
        try:
            if array.shape[:1] != target.shape[:1]:
                raise ValueError
            target[...] = array
        except ValueError:
            where, fits, found = f"{role} {name}", f"{target.shape}", f"shape {array.shape}"
            raise ShapeError(where, found, expected=fits, remedy="reshape the blob first") from None


def shown_name(blob: str) -> str:
    """A blob's name in Caffe, where a loss's unnamed top has no number."""
    return "(automatic)" if blob.startswith("(automatic") else blob
