"""Products in bfloat16, on parameters kept in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from caffe_port.errors import CaffeError
from caffe_port.graph import Node
from caffe_port.layers.base import Layer
from caffe_port.native import library

__all__ = ["PRECISIONS", "call_in_bf16", "check_half_kernels", "check_precision", "refuse_other_ways"]

PRECISIONS = ("fp32", "bf16")

_PRODUCTS = ("Convolution", "Deconvolution", "InnerProduct")
"""Computed in bfloat16, with copies of the parameters."""

_EITHER_PRECISION = ("ReLU", "Dropout", "DropoutChannel", "Concat", "Slice", "Split", "Crop", "Flatten", "Reshape")
"""Computed in what their bottoms have, for no digit is lost there."""

_NARROWED = ("Pooling", "Unpooling", "BN", "BatchNorm", "Scale", "Bias", "LRN", "PReLU")
"""Computed in float32; their first top then has the first bottom's precision again. Switches keep their digits."""


def check_precision(precision: str) -> str:
    """The value, checked.

    Raises:
        CaffeError: it is not one of :data:`PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise CaffeError("precision", repr(precision), expected=" or ".join(map(repr, PRECISIONS)))
    return precision


def check_half_kernels() -> None:
    """Check that this machine multiplies in bfloat16 in the compiled kernels.

    Raises:
        CaffeError: it cannot, and why.
    """
    kernels = library("steps")
    if kernels is None:
        remedy = "install a C compiler (cc), and unset CAFFE_PORT_NATIVE"
        raise CaffeError("precision 'bf16' on the CPU", "no compiled kernels", remedy=remedy)
    if not kernels.has_half():
        found = "a processor without avx512_bf16"
        raise CaffeError("precision 'bf16' on the CPU", found, remedy="use 'fp32', which is faster there")


def refuse_other_ways(blobs: Mapping[str, Tensor], how: str) -> None:
    """Raise for a pass on the CPU that does not multiply in bfloat16, rather than running it in float32.

    Raises:
        CaffeError: a blob is on the CPU.
    """
    if any(t.device.type == "cpu" for t in blobs.values()):
        check_half_kernels()
        expected = "net(...) on tensors, without gradients, in TEST"
        raise CaffeError("precision 'bf16' on the CPU", how, expected=expected)


def call_in_bf16(layer: Layer, node: Node, bottoms: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """A layer's tops: products in bfloat16; what sums many numbers, or computes indices, in float32."""
    given = bottoms[0].dtype if bottoms else torch.float32
    if node.type in _PRODUCTS:
        halves = {name: p.bfloat16() for name, p in layer.named_parameters(recurse=False)}
        tops = functional_call(layer, halves, tuple(b.bfloat16() for b in bottoms))
    elif node.type in _EITHER_PRECISION:
        tops = layer(*bottoms)
    else:
        tops = layer(*(b.float() if b.dtype == torch.bfloat16 else b for b in bottoms))
    if node.type in _NARROWED and given == torch.bfloat16:
        return (tops[0].bfloat16(), *tops[1:]) if isinstance(tops, tuple) else tops.bfloat16()
    found: Tensor | tuple[Tensor, ...] = tops
    return found
