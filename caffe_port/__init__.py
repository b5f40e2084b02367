"""Caffe in PyTorch: definitions, weights, layers and the solver of two real Caffes, exact to their numbers.

``import caffe_port`` itself costs nothing: names are fetched from their rooms when first used, so that tools which only
move numbers never load torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "BVLC": "caffe_port.dialect",
    "NOH": "caffe_port.dialect",
    "CaffeError": "caffe_port.errors",
    "Net": "caffe_port.pycaffe",
    "TEST": "caffe_port.pycaffe",
    "TRAIN": "caffe_port.pycaffe",
    "layer": "caffe_port.layers",
    "set_random_seed": "caffe_port.random",
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'caffe_port' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
