"""The contents of a weight file of any format: layers with their arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

__all__ = ["LayerWeights", "Weights", "is_shape"]

_MOST_AXES = 32  # blob.hpp, kMaxBlobAxes
_MOST_NUMBERS = 2**48


def is_shape(shape: object) -> bool:
    """Whether a file's ``shape`` is one: up to 32 whole numbers, not negative, of which numpy can make an array."""
    if not isinstance(shape, (tuple, list)) or len(shape) > _MOST_AXES:
        return False
    return all(type(n) is int and n >= 0 for n in shape) and prod(max(n, 1) for n in shape) <= _MOST_NUMBERS


@dataclass
class LayerWeights:
    """The parameter blobs of one layer, as stored in its file.

    ``blobs`` are float32, float64 or float16 arrays in the file's shape: legacy files always have four axes (num,
    channels, height, width). They are writable views of a private memory map where the format allows it: writing to
    them changes neither the file nor other maps of it. They may be unaligned. A blob is None only in
    HDF5 files, where a parameter shared with another layer is stored once, under its owner.
    """

    name: str
    type: str = ""
    """The layer's type by its V2 name ("Convolution"); empty where the file lacks it."""
    blobs: list[np.ndarray | None] = field(default_factory=list)
    diffs: list[np.ndarray | None] = field(default_factory=list)
    """For each blob its stored gradient, or None; empty when the file holds none at all."""
    names: tuple[str, ...] = ()
    """The file's name of each blob ("weight", "bias"); empty for Caffe's own files, which number them."""
    definition: bytes = field(default=b"", repr=False)
    """The layer's message without its blobs, in the file's generation (0 as 1); needed to write the file again."""


@dataclass
class Weights:
    """A weight file.

    Attributes:
        path: the file.
        kind: "caffemodel", "hdf5" (Caffe's), "safetensors", "pth", "npz" or "h5" (the last four hold a state_dict).
        name: the net's name, empty where the file lacks it.
        generation: the form of a caffemodel's layers: 0 and 1 are ``layers`` (with legacy dims), 2 is ``layer``.
        layers: in the file's order; also those without blobs.
        definition: a caffemodel's fields other than layers and name, serialised.
    """

    path: str
    kind: str
    name: str = ""
    generation: int = 2
    layers: list[LayerWeights] = field(default_factory=list, repr=False)
    definition: bytes = field(default=b"", repr=False)

    def state_dict(self, types: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
        """The blobs under the names and in the shapes of PyTorch: ``conv1.weight`` (O,I,h,w), ``conv1.bias`` (O,).

        Args:
            types: layer name to V2 type, for files that do not hold types (HDF5); see :func:`state_dict`.
        """
        from caffe_port.formats.naming import state_dict

        return state_dict(self, types)
