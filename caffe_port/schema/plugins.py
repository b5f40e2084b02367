"""Users' code: Python files given by ``--plugin``, and permissions for definitions to run code and write files."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from pathlib import Path

from caffe_port.errors import CaffeError, FileError
from caffe_port.paths import is_file

__all__ = [
    "PYTHON_LAYERS",
    "WRITES",
    "allow_python_layers",
    "allow_writes",
    "load_plugin",
    "python_layers_allowed",
    "writes_allowed",
]

PYTHON_LAYERS = "CAFFE_PORT_PYTHON_LAYERS"
"""The environment variable that allows layers of type Python to run the code that a definition names."""

WRITES = "CAFFE_PORT_ALLOW_WRITES"
"""The environment variable that allows layers such as HDF5Output to write the files that a definition names."""


def allow_python_layers(allow: bool = True) -> None:
    """Allow nets to run Python layers' code in this process, as CAFFE_PORT_PYTHON_LAYERS=1 in the environment does."""
    os.environ[PYTHON_LAYERS] = "1" if allow else "0"


def allow_writes(allow: bool = True) -> None:
    """Allow nets' layers to write files in this process, as CAFFE_PORT_ALLOW_WRITES=1 in the environment does."""
    os.environ[WRITES] = "1" if allow else "0"


def python_layers_allowed() -> bool:
    """The default permission of nets to run Python layers."""
    return os.environ.get(PYTHON_LAYERS, "0") not in ("", "0")


def writes_allowed() -> bool:
    """The default permission of nets' layers to write files."""
    return os.environ.get(WRITES, "0") not in ("", "0")


def load_plugin(path: str | Path) -> None:
    """Run a Python file as a module, once in a process, which registers its ``@layer``, ``@policy``, ``@rule`` classes.

    Raises:
        FileError: there is no such file.
        CaffeError: it raised an exception; with file:line.
    """
    file = Path(path).resolve()
    name = f"caffe_port_plugin:{file}"
    if name in sys.modules:
        return
    if not is_file(file):
        raise FileError(str(path), "no such file", expected="a Python file with @layer, @policy or @rule classes")
    try:
        file.open("rb").close()
    except OSError as error:
        raise FileError(str(path), f"cannot be read: {error.strerror}") from None
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise FileError(str(path), "not a Python file", expected="a name that ends in .py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except CaffeError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 1
        raise CaffeError(f"{path}:{line}", f"{type(error).__name__}: {error}", remedy="correct the plugin") from error
