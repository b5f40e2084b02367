"""Packed weights: a linear layer and the in-place layers on its top as one call of oneDNN.

Without this PyTorch reorders every weight for its kernels on each call, and runs bias, normalization and ReLU as
separate passes (docs/speed.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers import winograd
from caffe_port.layers.base import Layer
from caffe_port.layers.capabilities import Filters, Fusible
from caffe_port.layers.functions import ordinary

__all__ = ["Packed", "pack", "state_of", "suits"]

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
    run, after = form.run, form.after
    linear = _linear(form.matrix, form.bias, relu and after is None, form.rows, low_memory)
    if after is None:
        return lambda x: run(x, linear)
    return lambda x: _finished(run(x, linear).add_(after.view(1, -1, 1, 1)), relu)


def _finished(y: Tensor, relu: bool) -> Tensor:
    return y.relu_() if relu else y


def _linear(matrix: Tensor, bias: Tensor | None, relu: bool, rows: int, low_memory: bool) -> Packed:
    """x M' + b for an (outputs, inputs) ``matrix``, in oneDNN's layout for about that many rows, or unpacked."""
    if low_memory:
        return lambda x: _finished(F.linear(x, matrix, bias), relu)
    ops, after = _ops(), "relu" if relu else "none"
    packed = ops._reorder_linear_weight(matrix.contiguous(), rows)
    return lambda x: ops._linear_pointwise(x, packed, bias, after, [], "")


def _convolution(form: Filters, relu: bool, x: Tensor) -> Packed:
    ops, after, bias, group = _ops(), "relu" if relu else "none", form.bias, form.group
    pad, stride, dilation = list(form.pad), list(form.stride), list(form.dilation)
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its type stub lacks the shape
    packed = reorder(form.weight.contiguous().to_mkldnn(), pad, stride, dilation, group, list(x.shape))

    def run(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return ops._convolution_pointwise(x, packed, bias, pad, stride, dilation, group, after, [], "")

    return run
