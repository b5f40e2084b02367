"""``import caffe`` gives caffe_port wherever no Caffe is installed. Its .pth file loads this when Python starts."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _Finder:
    """Finds ``caffe`` unless there is a real one; a mere folder of that name is none."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "caffe":
            return None
        real = PathFinder.find_spec(name)
        if real is not None and real.origin is not None:
            return None
        return ModuleSpec(name, _Loader(), origin="caffe_port", is_package=True)


class _Loader:
    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        from caffe_port.pycaffe.install import install_as_caffe

        return install_as_caffe(force=True)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Nothing is left to do."""


sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
