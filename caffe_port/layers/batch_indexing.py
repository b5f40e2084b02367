"""Layers that pick items of the batch. Source: batch_reindex_layer.cpp, filter_layer.cpp."""

from __future__ import annotations

from torch import Tensor

from caffe_port.layers.base import Layer, Shape, layer


@layer("BatchReindex", dialects=("bvlc",))
class BatchReindex(Layer):
    """The items that the second bottom counts out: top[i] is the first bottom's item number ``index[i]``."""

    bottoms = (2, 2)
    labels = (1,)

    def reshape(self, x: Shape, index: Shape) -> list[Shape]:
        if len(index) != 1 or not x:
            raise self.shape_error(f"bottoms of shapes {x} and {index}", expected="items, and a row of their numbers")
        return [(*index, *x[1:])]

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        if index.numel() and not (0 <= index.min() and index.max() < len(x)):
            raise self.shape_error(
                f"items {int(index.min())} to {int(index.max())} asked for", expected=f"numbers from 0 to {len(x) - 1}"
            )
        return x.index_select(0, index.long())


@layer("Filter", dialects=("bvlc",))
class Filter(Layer):
    """The items of each bottom for which the last bottom, the selector, is not zero."""

    bottoms = (2, None)
    tops = (1, None)
    data_shaped = True

    def setup(self, *shapes: Shape) -> None:
        if self.n_tops != self.n_bottoms - 1:
            raise self.error(
                f"{self.n_tops} tops", expected=f"{self.n_bottoms - 1}: one for each bottom but the selector"
            )
        self.labels = (self.n_bottoms - 1,)

    def reshape(self, *shapes: Shape) -> list[Shape]:
        *items, selector = shapes
        if not selector or any(n != 1 for n in selector[1:]):
            raise self.shape_error(f"a selector of shape {selector}", expected="one number for each item")
        for x in items:
            if x[:1] != selector[:1]:
                raise self.shape_error(
                    f"a bottom of shape {x} with {selector[0]} selectors", expected="one for each item"
                )
        return items

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        *items, selector = bottoms
        chosen = selector.flatten().nonzero().flatten()
        return tuple(x.index_select(0, chosen) for x in items)
