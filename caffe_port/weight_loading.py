"""Weights into a net, with an account of every blob.

Source: net.cpp, CopyTrainedLayersFrom (both programs). Caffe passes over layers that the net lacks and layers that the
file lacks; it refuses another number of blobs and other shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import WeightsError, nearest
from caffe_port.formats import LayerWeights, open_weights
from caffe_port.formats.mapping import file_span, read_spans
from caffe_port.layers.base import Layer
from caffe_port.log import info

__all__ = ["Account", "load"]


@dataclass
class Account:
    """What became of every blob when weights were loaded.

    Attributes:
        path: the file. copied: ``layer.blob`` names. count: numbers copied.
        missing: blobs of the net that the file lacks. unexpected: layers with blobs that the net lacks.
        mismatched: (``layer.blob``, the net's shape, the file's), skipped because the caller allowed it.
    """

    path: str
    copied: list[str] = field(default_factory=list)
    count: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.path}: copied {len(self.copied)} blobs, {self.count:,} numbers"]
        for what, names in (("missing from the file", self.missing), ("not in the net, ignored", self.unexpected)):
            if names:
                lines.append(f"  {what} ({len(names)}): {_some(names)}")
        lines += [f"  mismatched, skipped: {n}: net wants {a}, file has {b}" for n, a, b in self.mismatched]
        return "\n".join(lines)


def _some(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def load(
    layers: Iterable[Layer],
    path: str | Path,
    *,
    strict: bool = False,
    ignore_mismatched: bool = False,
    adopt: bool = False,
) -> Account:
    """Copy the blobs of a weight file into a net's layers by their names.

    Says on stderr what it did, unless GLOG_minloglevel is above 0.

    Args:
        strict: refuse a file that lacks blobs of the net, or has layers that the net lacks.
        ignore_mismatched: skip what does not fit instead of refusing it.
        adopt: let the net's parameters be the file's memory-mapped arrays themselves (a private, writable view); only
            for a net whose parameters nobody has seen yet. Otherwise the numbers are read into the parameters' memory,
            and the file may change afterwards.

    Raises:
        WeightsError: another number of blobs, other shapes; with ``strict`` also missing or unexpected layers.
        FormatError, FileError: the file cannot be read.
    """
    weights = open_weights(path, writable=adopt)
    put = _Put(str(path), adopt)
    account = Account(str(path))
    targets: dict[str, Layer] = {}
    for target in layers:
        targets.setdefault(target.name, target)
    if not any(source.blobs for source in weights.layers):
        raise WeightsError(str(path), "a file without any parameter blob", expected="trained weights")
    for source in weights.layers:
        layer = targets.get(source.name)
        if layer is None:
            if source.blobs:
                account.unexpected.append(source.name)
            continue
        _load_layer(account, layer, source, ignore_mismatched=ignore_mismatched, put=put)
    put.finish()
    done = {*account.copied, *(name for name, _, _ in account.mismatched)}
    account.missing = [
        f"{layer.name}.{blob}"
        for layer in targets.values()
        for blob in layer.fillers
        if f"{layer.name}.{blob}" not in done and blob not in layer.shared
    ]
    if not account.copied and not account.mismatched:
        near = nearest(next(s.name for s in weights.layers if s.blobs), targets)
        raise WeightsError(
            str(path),
            f"no layer of the net: {_some(account.unexpected, 4)}",
            expected=_some([n for n, t in targets.items() if t.blob_names], 4),
            remedy="is it the right file for this prototxt?" + (f" (near: {near})" if near else ""),
        )
    if strict and (account.missing or account.unexpected):
        raise WeightsError(
            str(path),
            f"missing {_some(account.missing) or 'nothing'}, unexpected {_some(account.unexpected) or 'nothing'}",
            expected="exactly the net's blobs",
        )
    info(account)
    return account


def _load_layer(account: Account, layer: Layer, source: LayerWeights, *, ignore_mismatched: bool, put: _Put) -> None:
    names = layer.blob_names
    blobs = _in_order(layer, source)
    if len(blobs) != len(names) and not ignore_mismatched:
        raise WeightsError(
            f"layer {layer.name}",
            f"{len(blobs)} blobs {_shapes(blobs)} in the file",
            expected=f"{len(names)} ({', '.join(names) or 'none'}) as the net has",
            remedy=f"rename the layer in the prototxt to train it anew ({layer.where}), or allow mismatches",
        )
    for i, (name, array) in enumerate(zip(names, blobs, strict=False)):
        if array is None:
            continue
        target: Tensor = getattr(layer, name)
        if not layer.holds(name):
            raise WeightsError(
                f"{layer.where}: layer {layer.name}",
                f"{name} is computed from other parameters (parametrized, normalised or pruned)",
                expected="a parameter to load into",
                remedy="load before that, or remove it first",
            )
        wanted = tuple(target.shape)
        if not fits(array.shape, wanted):
            if not ignore_mismatched:
                raise WeightsError(
                    f"{layer.name}[{i}] ({name})",
                    f"shape {array.shape} in the file",
                    expected=f"{wanted} as the net has",
                    remedy=f"rename the layer in the prototxt to train it anew ({layer.where}), or allow mismatches",
                )
            account.mismatched.append((f"{layer.name}.{name}", wanted, tuple(array.shape)))
            continue
        put(target, array.reshape(wanted))
        account.copied.append(f"{layer.name}.{name}")
        account.count += prod(wanted)


def _in_order(layer: Layer, source: LayerWeights) -> list[np.ndarray | None]:
    """The source's blobs in the layer's order: files of a state_dict name them, Caffe's number them."""
    if not source.names or not set(source.names) <= set(layer.blob_names):
        return list(source.blobs)
    by_name = dict(zip(source.names, source.blobs, strict=True))
    if len(by_name) != len(layer.blob_names):
        return list(source.blobs)
    return [by_name[n] for n in layer.blob_names]


def _shapes(blobs: Iterable[np.ndarray | None]) -> str:
    return ", ".join(str(tuple(b.shape)) for b in blobs if b is not None)


def fits(file: Sequence[int], net: Sequence[int]) -> bool:
    """Whether the shapes are equal but for ones in front, which the four-axis form adds (blob.cpp, ShapeEquals)."""
    n = max(len(file), len(net))
    return (1,) * (n - len(file)) + tuple(file) == (1,) * (n - len(net)) + tuple(net)


class _Put:
    """Arrays of a file into a net's tensors.

    What lies in the file as the tensor has it is read at the end, all at once by several threads (a number shared by
    several layers once, from the last that has it, as if they were taken in order).
    """

    def __init__(self, path: str, adopt: bool) -> None:
        self.path, self.adopt = path, adopt
        self.spans: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, target: Tensor, array: np.ndarray) -> None:
        self.spans.pop(target.data_ptr(), None)
        same = target.device.type == "cpu" and target.is_contiguous() and _DTYPES.get(target.dtype) == array.dtype
        if same and not self.adopt and file_span(array):
            self.spans[target.data_ptr()] = (target.detach().numpy(), array)
            return
        if not array.dtype.isnative or not array.flags.writeable:
            array = array.astype(array.dtype.newbyteorder("="))
        tensor = torch.from_numpy(array)
        if self.adopt and tensor.dtype == target.dtype and target.device.type == "cpu":
            target.data = tensor
        else:
            with torch.no_grad():
                target.copy_(tensor)

    def finish(self) -> None:
        read_spans(self.spans.values(), self.path)


_DTYPES = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
}
