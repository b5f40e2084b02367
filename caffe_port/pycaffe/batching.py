"""Many items through a net that takes a few at a time. Source: python/caffe/pycaffe.py (both programs)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.pycaffe.face import Face

__all__ = ["Batching"]

Arrays = dict[str, Any]


class Batching(Face):
    """What a :class:`caffe_port.pycaffe.net.Net` does batch by batch."""

    def forward_all(self, blobs: Iterable[str] | None = None, **inputs: Any) -> Arrays:
        """Run forward over any number of items, the last batch filled up with zeros.

        Args:
            blobs: outputs to return beside the net's own.
            inputs: arrays for all input blobs, as many items as there are.

        Returns:
            Output blobs by name, as many items as ``inputs`` has.
        """
        passes = [_copied(self.forward(blobs=blobs, **batch)) for batch in self._batch(inputs)]
        return _joined(passes, _items(inputs))

    def forward_backward_all(
        self, blobs: Iterable[str] | None = None, diffs: Iterable[str] | None = None, **given: Any
    ) -> tuple[Arrays, Arrays]:
        """Run forward and backward over any number of items, batch by batch.

        Args:
            blobs, diffs: outputs, and diffs, to return beside the net's own.
            given: arrays for input blobs, and diffs for output blobs. Where one of the two is missing or shorter, the
                passes take what the blobs hold.

        Returns:
            Output blobs and input diffs by name, as many items as were given.
        """
        forward = self._batch({name: given[name] for name in self.inputs if name in given})
        backward = self._batch({name: given[name] for name in self.outputs if name in given})
        tops, back = [], []
        for inputs, seeds in zip_longest(forward, backward):
            tops.append(_copied(self.forward(blobs=blobs, **(inputs or {}))))
            back.append(_copied(self.backward(diffs=diffs, **(seeds or {}))))
        return _joined(tops, _items(given)), _joined(back, _items(given))

    def _batch(self, blobs: Mapping[str, Any]) -> Iterator[Arrays]:
        """``blobs`` cut into batches of the net's size, which is that of its first blob; zeros fill the last one."""
        size = next(iter(self.blobs.values())).shape[0]
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
