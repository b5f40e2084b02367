"""Reduction over axes. Source: reduction_layer.cpp."""

from __future__ import annotations

from torch import Tensor

from caffe_port.layers.base import Layer, layer
from caffe_port.spec import shaping


@layer("Reduction")
class Reduction(shaping.Reduction, Layer):
    """SUM, ASUM (of absolute values), SUMSQ (of squares) or MEAN over all axes from ``axis`` on, times ``coeff``."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(self.from_axis)
        if self.operation == "ASUM":
            y = x.abs().sum(-1)
        elif self.operation == "SUMSQ":
            y = (x * x).sum(-1)
        else:
            y = x.mean(-1) if self.operation == "MEAN" else x.sum(-1)
        return y if self.coeff == 1 else y * self.coeff
