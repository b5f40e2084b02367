"""Operations with custom gradients, and detection of tracers.

A tracer (torch.jit.trace, and the ONNX exporter based on it) and the transforms of torch.func cannot see the operations
inside an ``autograd.Function``: for them the operations run outside of one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Function", "as_numbers", "ordinary", "recorded", "symbolic", "traced"]


def ordinary(t: Tensor) -> bool:
    """Whether it is a tensor of torch's class, not of a subclass with other behaviour."""
    return type(t) in (Tensor, nn.Parameter)


def as_numbers(index: Tensor, like: Tensor) -> Tensor:
    """Indices as a blob: in the dtype of ``like``, but in float32 for one of 16 bits, which cannot hold them."""
    return index.to(like.dtype if like.dtype.itemsize > 2 else torch.float32)


def traced() -> bool:
    """Whether operations are being recorded, to run later on other values: torch.jit.trace, torch.export, ONNX."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()


def symbolic(*tensors: Tensor) -> bool:
    """Whether a tensor may have no values, so that control flow must not depend on them.

    That is the case where it is traced or compiled, inside torch.func's transforms, under dispatch modes of torch (fake
    tensors), and for tensors of subclasses.
    """
    return (
        torch.compiler.is_compiling()
        or traced()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or not all(map(ordinary, tensors))
    )


def recorded(*tensors: Tensor) -> bool:
    """Whether only torch's public operations may run: symbolic, or observed or cast by a mode of torch."""
    return symbolic(*tensors) or torch._C._len_torch_function_stack() > 0 or torch.is_autocast_enabled("cpu")


class _Context:
    """The context of ``forward`` where no backward pass follows."""

    def save_for_backward(self, *tensors: Any) -> None:
        pass

    def mark_non_differentiable(self, *tensors: Any) -> None:
        pass


class Function(torch.autograd.Function):
    """An operation whose ``backward`` defines its gradient; call :meth:`run` where torch has ``apply``.

    In a trace, and under torch.func, the gradient is that of the operations in ``forward``. Where Caffe's differs
    (``own_gradient``), the operation raises under torch.func.
    """

    own_gradient = False

    @classmethod
    def run(cls, *inputs: Any) -> Any:
        """The outputs."""
        transformed = torch._C._are_functorch_transforms_active() and not cls.own_gradient
        if transformed or torch._C._get_tracing_state() is not None:
            return cls.forward(_Context(), *inputs)
        return cls.apply(*inputs)


def made_again(t: Tensor, how: Callable[[], Tensor]) -> Tensor:
    """The tensor, with the way to compute it again: :func:`without_saving` may keep that in its place.

    Args:
        how: gives the same numbers in the same layout, from tensors that are kept for the backward pass anyway.
    """
    t._caffe_port_again = how  # type: ignore[attr-defined]
    return t


def without_saving(x: Tensor) -> AbstractContextManager[Any]:
    """While an operation on ``x`` runs: what its backward pass needs of ``x`` is computed again, if that is known."""
    how = getattr(x, "_caffe_port_again", None)
    if how is None or not torch.is_grad_enabled():
        return nullcontext()
    at, shape = x.data_ptr(), x.shape

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return kept()

    return torch.autograd.graph.saved_tensors_hooks(
        lambda t: how if t.data_ptr() == at and t.shape == shape else t, unpack
    )
