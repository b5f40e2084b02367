"""Caffe numbers a layer's blobs; PyTorch names them. The names, the shapes, and both ways between.

A key is ``LAYER.BLOB``. Blob names hold no dot, so the last dot of a key ends the layer's name, whatever that is.
Where each name comes from: convolution, inner product, embedding and PReLU have PyTorch's; the rest are named after
what the layer's source calls them (batch_norm_layer.cpp, scale_layer.cpp, the fork's bn_layer.cpp; the recurrent
layers' are the parameter names of the net they unroll, lstm_layer.cpp and rnn_layer.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from caffe_port.errors import WeightsError
from caffe_port.formats.weights import LayerWeights, Weights

__all__ = ["BLOB_NAMES", "blob_names", "layers_of", "state_dict", "torch_shape"]

_AFFINE = (("weight", None), ("bias", 1))
_TABLE = (("weight", 2), ("bias", 1))

BLOB_NAMES: dict[str, tuple[tuple[str, int | None], ...]] = {
    "Convolution": _AFFINE,
    "Deconvolution": _AFFINE,
    "InnerProduct": _TABLE,
    "Embed": _TABLE,
    "Scale": (("weight", None), ("bias", None)),
    "Bias": (("bias", None),),
    "PReLU": (("weight", None),),
    "Parameter": (("weight", None),),
    "BN": (("scale", 4), ("shift", 4)),
    "BatchNorm": (("mean", 1), ("variance", 1), ("scale_factor", 1)),
    "LSTM": (("W_xc", 2), ("b_c", 1), ("W_xc_static", 2), ("W_hc", 2)),
    "RNN": (("W_xh", 2), ("b_h", 1), ("W_xh_static", 2), ("W_hh", 2), ("W_ho", 2), ("b_o", 1)),
}
"""V2 type -> (blob name, rank). Rank None: as stored; else leading ones of a legacy shape are dropped down to it. A
recurrent layer has its ``_static`` blob only when it has a static input."""

_NUMBERED = re.compile(r"blob(\d+)")


def blob_names(type: str, count: int) -> tuple[tuple[str, int | None], ...]:
    """Name and rank of each of a layer's ``count`` blobs; ``blob0``, ``blob1`` ... where the type is not known."""
    known = BLOB_NAMES.get(type, ())
    if type in ("LSTM", "RNN") and count < len(known):
        known = tuple(k for k in known if not k[0].endswith("_static"))
    return known[:count] + tuple((f"blob{i}", None) for i in range(len(known), count))


def torch_shape(shape: tuple[int, ...], rank: int | None) -> tuple[int, ...]:
    """``shape`` without the leading ones that legacy files put in front of a blob of ``rank`` axes."""
    extra = len(shape) - rank if rank is not None else 0
    return shape[extra:] if extra > 0 and all(n == 1 for n in shape[:extra]) else shape


def state_dict(weights: Weights, types: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """The blobs of ``weights`` by key, each a view of what ``weights`` holds, in PyTorch's shape.

    Args:
        weights: any file's weights; of a state_dict file the keys and shapes come back as they were.
        types: layer name to V2 type, used where the file does not say. Blobs of unknown types get numbers as names.

    Raises:
        WeightsError: two layers that hold blobs have one name, or a layer that holds blobs has none.
    """
    out: dict[str, np.ndarray] = {}
    owner: dict[str, int] = {}
    for index, layer in enumerate(weights.layers):
        if all(b is None for b in layer.blobs):
            continue
        if not layer.name:
            raise WeightsError(
                weights.path,
                f"layer {index} ({layer.type or 'of unknown type'}) with blobs and no name",
                expected="a name for each layer with blobs",
                remedy="name it in the prototxt and save the weights again",
            )
        if layer.name in owner:
            raise WeightsError(
                weights.path,
                f"layers {owner[layer.name]} and {index} both named {layer.name!r}, both with blobs",
                expected="one layer with blobs for each name",
                remedy="rename one of them in the prototxt and save the weights again",
            )
        owner[layer.name] = index
        if layer.names:
            named: Sequence[tuple[str, int | None]] = [(name, None) for name in layer.names]
        else:
            named = blob_names(layer.type or (types or {}).get(layer.name, ""), len(layer.blobs))
        for (name, rank), blob in zip(named, layer.blobs, strict=True):
            if blob is not None:
                out[f"{layer.name}.{name}"] = blob.reshape(torch_shape(blob.shape, rank))
    return out


def _rank_of(name: str) -> tuple[int, int]:
    """Where a blob of that name stands among its layer's blobs, whatever the layer's type is."""
    numbered = _NUMBERED.fullmatch(name)
    if numbered:
        return 1, int(numbered[1])
    places = [i for blobs in BLOB_NAMES.values() for i, (known, _) in enumerate(blobs) if known == name]
    return (0, max(places)) if places else (2, 0)


def layers_of(arrays: Iterable[tuple[str, np.ndarray]], path: str) -> list[LayerWeights]:
    """The layers that a state_dict's keys speak of, in order of first appearance, each with its blobs in Caffe's order.

    Raises:
        WeightsError: a key without a dot: it names no layer.
    """
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for key, array in arrays:
        layer, dot, blob = key.rpartition(".")
        if not (dot and layer and blob):
            raise WeightsError(
                path, f"the key {key!r}", expected="LAYER.BLOB, such as conv1.weight", remedy="rename it before saving"
            )
        found.setdefault(layer, []).append((blob, array))
    layers = []
    for name, blobs in found.items():
        blobs.sort(key=lambda item: _rank_of(item[0]))
        layers.append(LayerWeights(name, "", [b for _, b in blobs], names=tuple(n for n, _ in blobs)))
    return layers
