"""Runs a net on any number of items, in batches of its size. Source: python/caffe/pycaffe.py (both programs)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np

from caffe_port.errors import CaffeError

__all__ = ["forward_all", "forward_backward_all"]

Arrays = dict[str, Any]


class Runs(Protocol):
    """The part of the net's interface that batches use."""

    @property
    def inputs(self) -> list[str]: ...
    @property
    def outputs(self) -> list[str]: ...

    @property
    def blobs(self) -> Any: ...
    def forward(self, *, blobs: Iterable[str] | None = None, **inputs: Any) -> Arrays: ...
    def backward(self, diffs: Iterable[str] | None = None, **seeds: Any) -> Arrays: ...


def forward_all(net: Runs, blobs: Iterable[str] | None, inputs: Mapping[str, Any]) -> Arrays:
    """:meth:`caffe_port.pycaffe.net.Net.forward_all`."""
    passes = [_copied(net.forward(blobs=blobs, **batch)) for batch in _batches(net, inputs)]
    return _joined(passes, _items(inputs))


def forward_backward_all(
    net: Runs, blobs: Iterable[str] | None, diffs: Iterable[str] | None, given: Mapping[str, Any]
) -> tuple[Arrays, Arrays]:
    """:meth:`caffe_port.pycaffe.net.Net.forward_backward_all`."""
    forward = _batches(net, {name: given[name] for name in net.inputs if name in given})
    backward = _batches(net, {name: given[name] for name in net.outputs if name in given})
    tops, back = [], []
    for inputs, seeds in zip_longest(forward, backward):
        tops.append(_copied(net.forward(blobs=blobs, **(inputs or {}))))
        back.append(_copied(net.backward(diffs=diffs, **(seeds or {}))))
    return _joined(tops, _items(given)), _joined(back, _items(given))


def _batches(net: Runs, blobs: Mapping[str, Any]) -> Iterator[Arrays]:
    """``blobs`` split into batches of the net's size, which is its first blob's; the last is padded with zeros."""
    size = next(iter(net.blobs.values())).shape[0]
    for start in range(0, _items(blobs) if blobs else 0, size):
        batch = {name: np.asarray(array[start : start + size]) for name, array in blobs.items()}
        missing = size - len(next(iter(batch.values())))
        yield {n: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) if missing else a for n, a in batch.items()}


def _items(arrays: Mapping[str, Any]) -> int:
    if not arrays:
        raise CaffeError("batches", "no array", expected="one for each input")
    return len(next(iter(arrays.values())))


def _copied(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {name: array.copy() for name, array in arrays.items()}


def _joined(passes: list[Arrays], items: int) -> Arrays:
    return {name: np.concatenate([np.atleast_1d(one[name]) for one in passes])[:items] for name in passes[0]}
