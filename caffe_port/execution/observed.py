"""Layers that are observed or changed, which must be called as modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules import module as _module

__all__ = ["Unobserved", "all_observed", "observed"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL = [getattr(_module, f"_global{hooks}", {}) for hooks in _HOOKS]
"""torch's hooks for every module of the process."""


def observed(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module is more than the ``forward`` of its class ``kind``: hooked, parametrized, patched."""
    if type(module) is not kind:  # parametrize gives the module a new class
        return True
    own = module.__dict__
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return True
    return "forward" in own or own.get("_compiled_call_impl") is not None


class Unobserved:
    """Whether none of these modules is :func:`observed`, in a few calls for all of them."""

    def __init__(self, modules: Sequence[nn.Module], kinds: Sequence[type[nn.Module]]) -> None:
        self._modules, self._kinds = modules, [*kinds]
        names = (*_HOOKS, "forward", "_compiled_call_impl")
        self._tables = [module.__dict__ for module in modules for _ in names]
        self._names = [*names] * len(modules)

    def __call__(self) -> bool:
        if any(map(dict.get, self._tables, self._names)):
            return False
        return [*map(type, self._modules)] == self._kinds and not all_observed()


def all_observed() -> bool:
    """Whether hooks are registered for all modules."""
    return any(_GLOBAL)
