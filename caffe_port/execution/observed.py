"""Where only the plain way will do: layers that somebody observes or changed, and callers that record what is run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

__all__ = ["all_observed", "observed", "ordinary", "recorded"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL = [getattr(_module, f"_global{hooks}", {}) for hooks in _HOOKS]
"""torch's hooks for every module of the process."""


def observed(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module is more than the ``forward`` of its class ``kind``: hooked, parametrized, patched."""
    if type(module) is not kind:  # parametrize gives the module a class of its own
        return True
    own = module.__dict__
    return any(own.get(hooks) for hooks in _HOOKS) or "forward" in own or own.get("_compiled_call_impl") is not None


def all_observed() -> bool:
    """Whether hooks are registered for all modules."""
    return any(_GLOBAL)


def ordinary(t: Tensor) -> bool:
    """Whether it is a tensor of torch's own class, not of a subclass with ways of its own."""
    return type(t) in (Tensor, nn.Parameter)


def recorded(tensors: Iterable[Tensor]) -> bool:
    """Whether what runs now is traced, compiled, transformed or cast: it then has to be torch's public operations.

    That is so in torch.compile, torch.export, torch.jit.trace and ONNX's exporters, inside torch.func's transforms,
    under modes of torch (fake tensors, counters, autocast), and for tensors of subclasses.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch.is_autocast_enabled("cpu")
        or not all(map(ordinary, tensors))
    )
