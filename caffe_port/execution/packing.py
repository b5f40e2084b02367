"""Packed weights: a linear layer and the in-place layers on its top as one call of oneDNN.

Without this PyTorch reorders every weight for its kernels on each call, and runs bias, normalization and ReLU as
separate passes (docs/speed.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers import winograd
from caffe_port.layers.base import Layer
from caffe_port.layers.capabilities import Filters, Fusible
from caffe_port.layers.functions import ordinary
from caffe_port.native import call, library

__all__ = ["Packed", "pack", "state_of", "suits"]

FEW_ROWS = 48
"""Up to this number, reading a matrix bounds the product."""

Packed = Callable[[Tensor], Tensor]


@cache
def _ops() -> Any:
    """torch's prepacked kernels; they are not public, so that the code also works without them."""
    try:
        if not torch.backends.mkldnn.is_available():
            return None
        ops = torch.ops.mkldnn
        _ = ops._convolution_pointwise, ops._linear_pointwise, ops._reorder_linear_weight
        _ = torch._C._nn.mkldnn_reorder_conv2d_weight
        return ops
    except (AttributeError, RuntimeError):
        return None


def suits(x: Tensor) -> bool:
    """Whether the kernels accept such a tensor."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0 and ordinary(x) and _ops() is not None


def state_of(t: Tensor) -> tuple[Any, ...]:
    """The data for detecting that a parameter changed: address, torch's version counter, and a few of its values."""
    flat = t.detach().view(-1) if t.is_contiguous() else t.detach().reshape(-1)
    return t.data_ptr(), t._version, t.dtype, tuple(flat[:: max(1, flat.numel() // 16)].tolist())


def pack(layer: Layer, affine: Sequence[Layer], relu: bool, x: Tensor, *, low_memory: bool) -> Packed:
    """The layer, the affine ones after it and the ReLU as one function of bottoms like ``x``.

    Args:
        low_memory: make no copies of the weights that are used as matrices.
    """
    assert isinstance(layer, Fusible)
    bias: Tensor = x.new_zeros(layer.num_output) if layer.bias is None else layer.bias.detach()
    scale: Tensor | None = None
    for a, b in filter(None, (other.channel_affine() for other in affine)):
        scale = a if scale is None else scale * a
        bias = bias * a + b
    form = layer.form(x, scale, bias)
    if isinstance(form, Filters):
        pays = winograd.kernel_pays if low_memory else winograd.pays
        if pays(x, form.weight, form.stride, form.pad, form.dilation, form.group):
            return winograd.prepared(form.weight, form.bias, form.pad, form.dilation[0], relu=relu)
        return _convolution(form, relu, x)
    run, after, scale = form.run, form.after, form.scale
    if after is None:
        linear = _linear(form.matrix, scale, form.bias, relu, form.rows, low_memory)
        return lambda x: run(x, linear)
    linear = _linear(form.matrix, None, None, False, form.rows, low_memory)
    offset, factor = after.view(1, -1, 1, 1), None if scale is None else scale.view(1, -1, 1, 1)
    return lambda x: _finished(run(x, linear), factor, offset, relu)


def _finished(y: Tensor, scale: Tensor | None, bias: Tensor | None, relu: bool) -> Tensor:
    y = y if scale is None else y.mul_(scale)
    y = y if bias is None else y.add_(bias)
    return y.relu_() if relu else y


def _linear(
    matrix: Tensor, scale: Tensor | None, bias: Tensor | None, relu: bool, rows: int, low_memory: bool
) -> Packed:
    """x M' times ``scale`` + b for an (outputs, inputs) ``matrix`` and about that many rows.

    Few rows are multiplied with the matrix as it lies in memory; else it is copied into oneDNN's layout, unless memory
    is low.
    """
    if rows <= FEW_ROWS and matrix.t().is_contiguous() | matrix.is_contiguous() and library("product") is not None:
        return partial(_by_kernel, matrix, scale, bias, relu)
    if low_memory:
        return lambda x: _finished(F.linear(x, matrix), scale, bias, relu)
    ops = _ops()
    packed = ops._reorder_linear_weight(matrix.contiguous(), rows)
    added, later = (bias, None) if scale is None else (None, bias)
    return lambda x: _finished(ops._linear_pointwise(x, packed, added, "none", [], ""), scale, later, relu)


def _by_kernel(matrix: Tensor, scale: Tensor | None, bias: Tensor | None, relu: bool, x: Tensor) -> Tensor:
    x, (outputs, inputs) = x.contiguous(), matrix.shape
    y = x.new_empty(len(x), outputs)
    name = "product_rows" if matrix.is_contiguous() else "product_columns"
    call("product", name, (len(x), inputs, outputs), x, matrix, scale, bias, int(relu), y, torch.get_num_threads())
    return y


def _convolution(form: Filters, relu: bool, x: Tensor) -> Packed:
    ops, bias, group = _ops(), form.bias, form.group
    pad, stride, dilation = list(form.pad), list(form.stride), list(form.dilation)
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its type stub lacks the shape
    packed = reorder(form.weight.contiguous().to_mkldnn(), pad, stride, dilation, group, list(x.shape))

    def run(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        # Without its own ReLU, which makes 0 of NaN.
        y = ops._convolution_pointwise(x, packed, bias, pad, stride, dilation, group, "none", [], "")
        return _finished(y, None, None, relu)

    return run
