"""The solver: ``python -m caffe_port.solver solver.prototxt``."""

from caffe_port.solver.solver import Solver

__all__ = ["Solver"]
