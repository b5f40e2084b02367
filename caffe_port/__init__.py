"""Caffe in PyTorch: definitions, weights, layers and the solver of two real Caffes, with equal results.

``import caffe_port`` imports nothing else: names are imported from their modules on first use, so that tools which only
convert files never load torch. ``import caffe_port as caffe`` has all of pycaffe's names.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & {*os.environ}:
    # Read when torch loads its OpenMP: threads that wait for each other sleep after some tens of microseconds. By
    # default they spin for milliseconds, and where another process has one of the cores, for most of the time.
    os.environ["GOMP_SPINCOUNT"] = "10000"

__version__ = "0.1.0"

_HOMES = {
    "caffe_port.dialects": ["BVLC", "NOH"],
    "caffe_port.errors": ["CaffeError"],
    "caffe_port.layers": ["layer"],
    "caffe_port.schema.plugins": ["allow_python_layers", "allow_writes"],
    "caffe_port.pycaffe": ["TEST", "TRAIN", "Net"],
    "caffe_port.pycaffe.classifier": ["Classifier"],
    "caffe_port.pycaffe.detector": ["Detector"],
    "caffe_port.pycaffe.install": ["install_as_caffe"],
    "caffe_port.pycaffe.mode": [
        *("NCCL", "Timer", "has_nccl", "init_log", "layer_type_list", "log", "set_device", "set_mode_cpu"),
        *("set_mode_gpu", "set_multiprocess", "set_solver_count", "set_solver_rank", "solver_count", "solver_rank"),
    ],
    "caffe_port.random": ["set_random_seed"],
    "caffe_port.schema.net_spec": ["NetSpec", "params", "to_proto"],
    "caffe_port.solver.pycaffe_solvers": [
        *("AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "NesterovSolver", "RMSPropSolver", "SGDSolver"),
        "get_solver",
    ],
}
_HOME = {name: (home, name) for home, names in _HOMES.items() for name in names}
_MODULES = ("classifier", "coord_map", "detector", "draw", "io", "proto")
_HOME |= {
    "Layer": ("caffe_port.layers.python", "PythonLayer"),
    **{name: (f"caffe_port.pycaffe.{name}", "") for name in _MODULES},
    "layers": ("caffe_port.layers", ""),
    "net_spec": ("caffe_port.schema.net_spec", ""),
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'caffe_port' has no attribute {name!r}")
    home, inside = _HOME[name]
    value = importlib.import_module(home)
    if inside:
        value = getattr(value, inside)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
