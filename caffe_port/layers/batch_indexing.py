"""Layers that select items of the batch. Source: batch_reindex_layer.cpp, filter_layer.cpp."""

from __future__ import annotations

from torch import Tensor

from caffe_port.layers.base import Layer, layer
from caffe_port.layers.functions import symbolic
from caffe_port.spec import shaping


@layer("BatchReindex")
class BatchReindex(shaping.BatchReindex, Layer):
    """The items that the second bottom lists: top[i] is the first bottom's item number ``index[i]``."""

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        if not symbolic(index) and index.numel() and not (0 <= index.min() and index.max() < len(x)):
            raise self.shape_error(
                f"items {int(index.min())} to {int(index.max())}", expected=f"numbers from 0 to {len(x) - 1}"
            )
        return x.index_select(0, index.long())


@layer("Filter")
class Filter(shaping.Filter, Layer):
    """The items of each bottom for which the last bottom, the selector, is not zero."""

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        *items, selector = bottoms
        chosen = selector.flatten().nonzero().flatten()
        return tuple(x.index_select(0, chosen) for x in items)
