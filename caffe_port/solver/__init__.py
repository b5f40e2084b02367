"""The solver: ``python -m caffe_port.solver solver.prototxt``. Torch is loaded with these names, not before.

A plugin adds a learning-rate policy with ``@policy("name")`` on a subclass of ``Policy``, an update rule with
``@rule("name")`` on one of ``Rule``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caffe_port.solver.optimizers import Rates, Rule, rule
    from caffe_port.solver.schedule import Policy, policy
    from caffe_port.solver.solver import Solver

__all__ = ["Policy", "Rates", "Rule", "Solver", "policy", "rule"]

_MODULES = {"Solver": "solver", "Policy": "schedule", "policy": "schedule"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"caffe_port.solver.{_MODULES.get(name, 'optimizers')}"), name)
