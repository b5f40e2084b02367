"""The solver: ``python -m caffe_port.solver solver.prototxt``. Torch is loaded with ``Solver``, not before."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caffe_port.solver.solver import Solver

__all__ = ["Solver"]


def __getattr__(name: str) -> Any:
    if name != "Solver":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from caffe_port.solver.solver import Solver

    return Solver
