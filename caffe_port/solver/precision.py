"""Training with products in bfloat16: half the memory for activations, and faster where the processor multiplies it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from caffe_port.graph import Node
from caffe_port.layers.base import Layer
from caffe_port.pycaffe import Net

__all__ = ["Bf16Net"]

_PRODUCTS = ("Convolution", "Deconvolution", "InnerProduct")
"""Computed in bfloat16, with copies of the parameters."""

_EITHER_PRECISION = ("ReLU", "Dropout", "DropoutChannel", "Concat", "Slice", "Split", "Crop", "Flatten", "Reshape")
"""Computed in what their bottoms have, for no digit is lost there."""

_NARROWED = ("Pooling", "Unpooling", "BN", "BatchNorm", "Scale", "Bias", "LRN", "PReLU")
"""Computed in float32; their first top then has the first bottom's precision again. Switches keep their digits."""


class Bf16Net(Net):
    """A net whose convolutions, deconvolutions and inner products run in bfloat16 on parameters kept in float32.

    What sums many numbers (losses, statistics, scores) runs in float32, and so do updates: gradients arrive in float32.
    Layers that no gradient reaches stay in float32 on the CPU.
    """

    def call_layer(self, node: Node, layer: Layer, bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
        given = bottoms[0].dtype if bottoms else torch.float32
        if node.type in _PRODUCTS:
            halves = {name: p.bfloat16() for name, p in layer.named_parameters(recurse=False)}
            tops = functional_call(layer, halves, tuple(b.bfloat16() for b in bottoms))
        elif node.type in _EITHER_PRECISION:
            tops = layer(*bottoms)
        else:
            tops = layer(*(b.float() if b.dtype == torch.bfloat16 else b for b in bottoms))
        tops = tops if isinstance(tops, tuple) else (tops,)
        if node.type in _NARROWED and given == torch.bfloat16:
            tops = (tops[0].bfloat16(), *tops[1:])
        return tuple(self.blob_view(t) for t in tops)
