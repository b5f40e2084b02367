"""Compiled kernels: C beside this file, compiled by the machine's own compiler when a net first needs it.

There is nothing to install: where no compiler is found, or it fails (which a line on stderr says), :func:`library` is
None, and the callers compute the same with torch. The result is kept in the user's cache folder ($XDG_CACHE_HOME,
~/.cache), by the source, the compiler and the processor. CAFFE_PORT_NATIVE=0 in the environment leaves it all out.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from caffe_port.console import info

__all__ = ["call", "library"]

_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The functions of ``NAME.c``, or None."""
    if os.environ.get("CAFFE_PORT_NATIVE") == "0" or not sys.platform.startswith("linux"):
        return None
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        return None
    import torch  # noqa: F401  # its OpenMP is the one used

    try:
        return ctypes.CDLL(str(_compiled(name, compiler)))
    except (OSError, subprocess.SubprocessError) as e:
        said = getattr(e, "stderr", None) or b""
        why = next((line for line in said.decode(errors="replace").splitlines() if "error" in line), e)
        info(
            f"{compiler} did not compile {name}.c, which makes nets faster: {why}. CAFFE_PORT_NATIVE=0 does without it"
        )
        return None


def call(name: str, function: str, shape: Sequence[int], *given: Any) -> None:
    """Run a function of ``NAME.c`` on a shape and tensors (contiguous, on the CPU), None, and numbers.

    Raises:
        MemoryError: there is no memory for what it keeps between steps.
    """
    kernel: Any = library(name)
    numbers = (ctypes.c_long * len(shape))(*shape)
    passed = (ctypes.c_void_p(x.data_ptr()) if hasattr(x, "data_ptr") else x for x in given)
    if getattr(kernel, function)(numbers, *passed):
        raise MemoryError(f"{function}: no memory for a part of {tuple(shape)}")


def _compiled(name: str, compiler: str) -> Path:
    """The shared library, compiled unless it is in the cache.

    It is linked without an OpenMP library of its own: a second one would keep a second set of threads.

    Raises:
        OSError, SubprocessError: it cannot be compiled or kept.
    """
    source = Path(__file__).parent / f"{name}.c"
    built = Path(compiler).resolve()
    sources = [path.read_bytes() for path in sorted(source.parent.glob("*.[ch]"))]
    parts = (sources, built, built.stat().st_mtime_ns, built.stat().st_size, _FLAGS, _processor())
    path = _cache() / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder, name)
            for command in ([*_FLAGS, "-c", source, "-o", f"{made}.o"], ["-shared", f"{made}.o", "-o", f"{made}.so"]):
                subprocess.run([compiler, *command], check=True, capture_output=True, timeout=120)
            Path(f"{made}.so").replace(path)
    return path


def _cache() -> Path:
    """A folder that only this user can write to; what it holds is loaded as code.

    Raises:
        PermissionError: it is another's, or others can write to it.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "caffe_port"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise PermissionError(folder)
    return folder


def _processor() -> str:
    """What -march=native depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    kept = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return "\n".join([platform.machine(), *sorted(kept)])
