"""Steps with a gradient of their own, and who records what runs.

A tracer (torch.jit.trace, and ONNX's exporter on it) and the transforms of torch.func cannot look into an
``autograd.Function``: for them a step runs its operations in plain sight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Function", "ordinary", "recorded", "symbolic", "traced"]


def ordinary(t: Tensor) -> bool:
    """Whether it is a tensor of torch's own class, not of a subclass with ways of its own."""
    return type(t) in (Tensor, nn.Parameter)


def traced() -> bool:
    """Whether what runs now is written down, to be run later on other numbers: torch.jit.trace, torch.export, ONNX."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()


def symbolic(*tensors: Tensor) -> bool:
    """Whether a tensor need not have numbers to be looked at, so that what runs must not depend on them.

    That is so where it is traced or compiled, inside torch.func's transforms, under dispatch modes of torch (fake
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
    """Whether what runs now has to be torch's public operations: symbolic, or watched or cast by a mode of torch."""
    return symbolic(*tensors) or torch._C._len_torch_function_stack() > 0 or torch.is_autocast_enabled("cpu")


class _Context:
    """What ``forward`` writes to where nobody goes back."""

    def save_for_backward(self, *tensors: Any) -> None:
        pass

    def mark_non_differentiable(self, *tensors: Any) -> None:
        pass


class Function(torch.autograd.Function):
    """A step whose ``backward`` says its gradient; call :meth:`run` where torch has ``apply``.

    In a trace, and under torch.func, the gradient is that of the operations in ``forward``. Where Caffe's is another
    (``own_gradient``), torch.func refuses the step.
    """

    own_gradient = False

    @classmethod
    def run(cls, *inputs: Any) -> Any:
        """The outputs."""
        transformed = torch._C._are_functorch_transforms_active() and not cls.own_gradient
        if transformed or torch._C._get_tracing_state() is not None:
            return cls.forward(_Context(), *inputs)
        return cls.apply(*inputs)
