"""Elementwise combinations of several blobs. Source: eltwise_layer.cpp."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from caffe_port.layers.backward import Backward, Gradients, at_the_blobs
from caffe_port.layers.base import Layer, layer
from caffe_port.layers.comparisons import above
from caffe_port.layers.functions import Function
from caffe_port.spec import elementwise


class _UnstableProduct(Function):
    """A product whose gradient is top / bottom * diff: faster for many bottoms, infinite at zeros."""

    own_gradient = True

    @staticmethod
    def forward(ctx: Any, *bottoms: Tensor) -> Tensor:
        top = reduce(torch.mul, bottoms)
        ctx.save_for_backward(top, *bottoms)
        return top

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        top, *bottoms = ctx.saved_tensors
        return tuple((top / b).mul_(grad) for b in bottoms)


class _Larger(Function):
    """The maximum of two; the gradient goes to the larger, for equal values to the second."""

    own_gradient = True

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        return torch.maximum(first, second)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        first, second = ctx.saved_tensors
        from_first = grad * above(first, second)
        return from_first, grad - from_first


@layer("Eltwise")
class Eltwise(elementwise.Eltwise, Layer):
    """PROD, SUM (with ``coeff``) or MAX of equally shaped bottoms.

    Of equal maxima the second bottom is taken before the first, and both before the others in their order. In place
    Caffe clears the top before a SUM or MAX, and with it the first bottom, which then has no effect.
    """

    def forward(self, *bottoms: Tensor) -> Tensor:
        if self.is_in_place and self.operation != "PROD":
            nothing = 0 if self.operation == "SUM" else -torch.finfo(bottoms[0].dtype).max
            bottoms = (torch.full_like(bottoms[0], nothing), *bottoms[1:])
        if self.operation == "PROD":
            return reduce(torch.mul, bottoms) if self.stable else _UnstableProduct.run(*bottoms)
        if self.operation == "SUM":
            first = bottoms[0] if self.coeff[0] == 1 else bottoms[0] * self.coeff[0]
            others = zip(bottoms[1:], self.coeff[1:], strict=True)
            return reduce(lambda top, b: torch.add(top, b[0], alpha=b[1]), others, first)
        first, second, *rest = bottoms
        return reduce(lambda top, b: _Larger.run(b, top), rest, _Larger.run(first, second))

    def caffe_gradient(self, b: Backward) -> Gradients:
        if self.operation == "MAX":
            grads, _ = at_the_blobs(self, b)
            if not (b.in_place and b.wanted[0]):
                return grads, {}
            return [torch.zeros_like(d) for d in b.given], {}  # all read the first one's diff, which is zero
        d, found = b.diffs[0], list[Tensor | None]()
        for i, wanted in enumerate(b.wanted):
            if self.operation == "SUM":
                factor = torch.full_like(d, self.coeff[i])
            elif self.stable:
                factor = reduce(torch.mul, (x for j, x in enumerate(b.bottoms) if j != i))
            else:
                factor = b.tops[0] / b.bottoms[i]
            shared = b.in_place and i == 0 and wanted
            grad = factor * (factor if shared and self.operation == "PROD" else d)
            found.append(grad if wanted else None)
            d = grad if shared else d
        return found, {}
