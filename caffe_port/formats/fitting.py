"""Checks a weight file against a net and reports on every blob. Needs no torch.

Source: net.cpp, CopyTrainedLayersFrom (both programs). Caffe skips layers that the net lacks and layers that the
file lacks; a different number of blobs or another shape is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

import numpy as np

from caffe_port.errors import WeightsError, nearest
from caffe_port.formats.weights import LayerWeights, Weights
from caffe_port.spec import Shape, Spec

__all__ = ["Account", "fit", "fits"]

L = TypeVar("L", bound=Spec)


@dataclass
class Account:
    """A report on every blob of a weight file.

    Attributes:
        path: the file. done: "copied" or "checked", for the blobs that fit.
        copied: their ``layer.blob`` names. count: their numbers.
        missing: blobs of the net that the file lacks. unexpected: layers with blobs that the net lacks.
        mismatched: (``layer.blob``, the net's shape, the file's), skipped because the caller allowed it.
    """

    path: str
    done: str = "copied"
    copied: list[str] = field(default_factory=list)
    count: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, Shape, Shape]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.done} {len(self.copied)} blobs, {self.count:,} numbers"]
        for what, names in (("missing from the file", self.missing), ("not in the net, ignored", self.unexpected)):
            if names:
                lines.append(f"  {what} ({len(names)}): {some(names)}")
        lines += [f"  mismatched, skipped: {n}: net has {a}, file has {b}" for n, a, b in self.mismatched]
        return "\n".join(lines)


def some(names: Sequence[str], limit: int = 12) -> str:
    """The first names, and the number of the others."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def fit(
    weights: Weights,
    layers: Iterable[L],
    take: Callable[[L, str, np.ndarray], object] | None = None,
    *,
    strict: bool = False,
    ignore_mismatched: bool = False,
    remedy: str = "rename the layer in the prototxt to train it from its filler ({where}), or allow mismatches",
) -> Account:
    """Passes every blob of a file to the layer of its name.

    Args:
        layers: a net's, in order of execution; of several with one name the first is used.
        take: called with a layer, a blob's name and its array, in the layer's shape; None: only compares shapes.
        strict: a file that lacks blobs of the net or has layers that the net lacks is an error.
        ignore_mismatched: skip blobs that do not fit instead of raising.
        remedy: the error's remedy, in which ``{where}`` is the layer's place.

    Raises:
        WeightsError: a different number of blobs, or other shapes; with ``strict`` also missing or unexpected layers.
    """
    account = Account(weights.path, "copied" if take else "checked")
    targets: dict[str, L] = {}
    for target in layers:
        targets.setdefault(target.name, target)
    if not any(source.blobs for source in weights.layers):
        raise WeightsError(weights.path, "a file without any parameter blob", expected="trained weights")
    for source in weights.layers:
        layer = targets.get(source.name)
        if layer is None:
            account.unexpected += [source.name] if source.blobs else []
            continue
        _check_count(weights.path, layer, source, ignore=ignore_mismatched, remedy=remedy)
        for i, (name, array) in enumerate(zip(layer.blob_names, _in_order(layer, source), strict=False)):
            if array is None:
                continue
            wanted, key = layer.blob_shapes[name], f"{layer.name}.{name}"
            if fits(array.shape, wanted) or (not layer.strict_dim and array.size == prod(wanted)):
                if take:
                    take(layer, name, array.reshape(wanted))
                account.copied.append(key)
                account.count += array.size
            elif ignore_mismatched:
                account.mismatched.append((key, wanted, tuple(array.shape)))
            else:
                raise WeightsError(
                    f"{weights.path}: {layer.name}[{i}] ({name})",
                    f"shape {array.shape} in the file",
                    expected=f"{wanted} as the net has ({layer.where})",
                    remedy=remedy.format(where=layer.where),
                )
    done = {*account.copied, *(name for name, _, _ in account.mismatched)}
    account.missing = [
        f"{layer.name}.{blob}"
        for layer in targets.values()
        for blob in layer.blob_names
        if f"{layer.name}.{blob}" not in done and blob not in layer.shared
    ]
    if not account.copied and not account.mismatched:
        near = nearest(next(s.name for s in weights.layers if s.blobs), targets)
        raise WeightsError(
            weights.path,
            f"no layer of the net: {some(account.unexpected, 4)}",
            expected=some([n for n, t in targets.items() if t.blob_names], 4),
            remedy="check that the file belongs to this prototxt" + (f" (near: {near})" if near else ""),
        )
    if strict and (account.missing or account.unexpected):
        raise WeightsError(
            weights.path,
            f"missing {some(account.missing) or 'nothing'}, unexpected {some(account.unexpected) or 'nothing'}",
            expected="exactly the net's blobs",
        )
    return account


def _check_count(path: str, layer: Spec, source: LayerWeights, *, ignore: bool, remedy: str) -> None:
    names, blobs = layer.blob_names, source.blobs
    if len(blobs) != len(names) and not ignore:
        shapes = ", ".join(str(tuple(b.shape)) for b in blobs if b is not None)
        raise WeightsError(
            f"{path}: layer {layer.name}",
            f"{len(blobs)} blobs {shapes} in the file",
            expected=f"{len(names)} ({', '.join(names) or 'none'}) as the net has ({layer.where})",
            remedy=remedy.format(where=layer.where),
        )


def _in_order(layer: Spec, source: LayerWeights) -> list[np.ndarray | None]:
    """The source's blobs in the layer's order: state_dict files name them, Caffe's files number them."""
    by_name = dict(zip(source.names, source.blobs, strict=False))
    return [by_name[n] for n in layer.blob_names] if set(by_name) == set(layer.blob_names) else list(source.blobs)


def fits(file: Sequence[int], net: Sequence[int]) -> bool:
    """Whether the shapes are equal except for leading ones, which the four-axis form adds (blob.cpp, ShapeEquals)."""
    n = max(len(file), len(net))
    return (1,) * (n - len(file)) + tuple(file) == (1,) * (n - len(net)) + tuple(net)
