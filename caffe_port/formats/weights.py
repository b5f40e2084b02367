"""The contents of a weight file of any format: layers with their arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from caffe_port.errors import WeightsError
from caffe_port.formats.naming import in_caffes_order, names_of, torch_shape

__all__ = ["LayerWeights", "Weights", "is_shape", "layers_of"]

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
        """The blobs by key, each a view of what this holds, in the names and shapes of PyTorch: ``conv1.weight``
        (O,I,h,w), ``conv1.bias`` (O,). Of a state_dict file the keys and shapes are unchanged.

        Args:
            types: layer name to V2 type, for files that do not hold types (HDF5). Blobs of unknown types are numbered.

        Raises:
            WeightsError: two layers that hold blobs have one name, or a layer that holds blobs has none.
        """
        out: dict[str, np.ndarray] = {}
        owner: dict[str, int] = {}
        for index, layer in enumerate(self.layers):
            if all(b is None for b in layer.blobs):
                continue
            if not layer.name:
                raise WeightsError(
                    self.path,
                    f"layer {index} ({layer.type or 'of unknown type'}) with blobs and no name",
                    expected="a name for each layer with blobs",
                    remedy="name it in the prototxt and save the weights again",
                )
            if layer.name in owner:
                raise WeightsError(
                    self.path,
                    f"layers {owner[layer.name]} and {index} both named {layer.name!r}, both with blobs",
                    expected="one layer with blobs for each name",
                    remedy="rename one of them in the prototxt and save the weights again",
                )
            owner[layer.name] = index
            if layer.names:
                named: Sequence[tuple[str, int | None]] = [(name, None) for name in layer.names]
            else:
                named = names_of(layer.type or (types or {}).get(layer.name, ""), layer.blobs)
            for (name, rank), blob in zip(named, layer.blobs, strict=True):
                if blob is not None:
                    out[f"{layer.name}.{name}"] = blob.reshape(torch_shape(blob.shape, rank))
        return out


def layers_of(arrays: Iterable[tuple[str, np.ndarray]], path: str) -> list[LayerWeights]:
    """The layers in a state_dict's keys, in order of first appearance, each with its blobs in Caffe's order.

    Raises:
        WeightsError: a key without a dot, hence without a layer; or numbers that are not real.
    """
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for key, array in arrays:
        if array.dtype.kind not in "fiub":
            raise WeightsError(f"{path}: {key}", f"an array of {array.dtype}", expected="real numbers")
        layer, dot, blob = key.rpartition(".")
        if not (dot and layer and blob):
            raise WeightsError(
                path, f"the key {key!r}", expected="LAYER.BLOB, such as conv1.weight", remedy="rename it before saving"
            )
        found.setdefault(layer, []).append((blob, array))
    layers = []
    for name, blobs in found.items():
        order = in_caffes_order(blob for blob, _ in blobs)
        blobs.sort(key=lambda item: order[item[0]])
        layers.append(LayerWeights(name, "", [b for _, b in blobs], names=tuple(n for n, _ in blobs)))
    return layers
