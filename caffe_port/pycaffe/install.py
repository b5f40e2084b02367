"""caffe_port under the name ``caffe``, for scripts that import that."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import caffe_port
from caffe_port.errors import CaffeError
from caffe_port.schema import net_spec
from caffe_port.schema.plugins import allow_python_layers

__all__ = ["install_as_caffe"]

_VERSION = "1.0.0"
"""The version of pycaffe that this interface follows."""

_SHIM = "caffe_port"
"""The module's origin given by the finder of shim/."""

_MODULES = {
    "classifier": "caffe_port.pycaffe.classifier",
    "coord_map": "caffe_port.pycaffe.coord_map",
    "detector": "caffe_port.pycaffe.detector",
    "draw": "caffe_port.pycaffe.draw",
    "io": "caffe_port.pycaffe.io",
    "net_spec": "caffe_port.schema.net_spec",
    "proto": "caffe_port.pycaffe.proto",
    "proto.caffe_pb2": "caffe_port.pycaffe.proto.caffe_pb2",
    "pycaffe": "caffe_port",
}


class Caffe(ModuleType):
    """The module ``caffe``: the names of ``caffe_port``, except for ``layers``, which here is only pycaffe's."""

    def __init__(self) -> None:
        super().__init__("caffe", caffe_port.__doc__)
        self.__version__ = _VERSION
        self.__path__: list[str] = []
        self.layers = net_spec.layers

    def __getattr__(self, name: str) -> Any:
        return getattr(caffe_port, name)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *dir(caffe_port)})


def install_as_caffe(*, force: bool = False, python_layers: bool = False) -> ModuleType:
    """Make ``import caffe``, ``from caffe.proto import caffe_pb2`` and the like give caffe_port in this process.

    Args:
        force: even where a real Caffe can be imported, which is then inaccessible.
        python_layers: allow definitions to run Python layers, see :func:`caffe_port.allow_python_layers`.

    Returns:
        The module ``caffe``.

    Raises:
        CaffeError: a real Caffe can be imported, and ``force`` is not given.
    """
    if python_layers:
        allow_python_layers()
    present = sys.modules.get("caffe")
    if isinstance(present, Caffe):
        return present
    if present is not None:
        origin = getattr(present, "__file__", None) or "sys.modules"
    else:
        # Without an origin it is only a folder named caffe, such as a checkout.
        origin = getattr(importlib.util.find_spec("caffe"), "origin", None)
    if origin not in (None, _SHIM) and not force:
        remedy = "import caffe_port as caffe, or force=True to hide the other"
        raise CaffeError("install_as_caffe", f"another Caffe: {origin}", expected="none", remedy=remedy)
    module = Caffe()
    sys.modules["caffe"] = module
    for name, home in _MODULES.items():
        sys.modules[f"caffe.{name}"] = importlib.import_module(home)
    return module
