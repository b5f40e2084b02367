"""pycaffe's state of the process: the device, the log, the number of solvers.

Source: common.cpp (both programs), python/caffe/_caffe.cpp.
"""

from __future__ import annotations

import os
import time
import warnings

import torch

from caffe_port.console import info
from caffe_port.errors import CaffeError
from caffe_port.layers import REGISTRY

__all__ = [
    "NCCL",
    "Timer",
    "device",
    "has_nccl",
    "init_log",
    "layer_type_list",
    "log",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_solver_count",
    "set_solver_rank",
    "solver_count",
    "solver_rank",
]

_LOG_LEVEL = "GLOG_minloglevel"


class _State:
    gpu, index, warned, rank = False, 0, False, 0


def device() -> torch.device:
    """The device of nets built from now on."""
    return torch.device("cuda", _State.index) if _State.gpu else torch.device("cpu")


def set_mode_cpu() -> None:
    """Place nets built from now on on the CPU."""
    _State.gpu = False


def set_mode_gpu(stacklevel: int = 2) -> None:
    """Place nets built from now on on the GPU, if torch has one; else on the CPU, with one warning."""
    _State.gpu = torch.cuda.is_available()
    if not _State.gpu and not _State.warned:
        _State.warned = True
        warnings.warn("set_mode_gpu: torch finds no GPU; everything runs on the CPU", stacklevel=stacklevel)


def set_device(device_id: int) -> None:
    """Choose the GPU of ``set_mode_gpu``.

    Raises:
        CaffeError: torch has GPUs, but not this one.
    """
    found = torch.cuda.device_count()
    if found and not 0 <= device_id < found:
        raise CaffeError("set_device", f"GPU {device_id}", expected=f"0 to {found - 1}")
    _State.index = device_id


def layer_type_list() -> list[str]:
    """The layer types that a definition may use."""
    return sorted(REGISTRY)


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Log only messages of ``level`` or above: 0 everything, 1 warnings, 2 errors. The log is always on stderr."""
    os.environ[_LOG_LEVEL] = str(int(level))


def log(message: str) -> None:
    """A line in the log, at level 0."""
    info(message)


class Timer:
    """Milliseconds between ``start`` and ``stop``; a GPU is synchronized first."""

    def __init__(self) -> None:
        self._start = self._stop = 0.0

    def start(self) -> None:
        self._start = self._now()

    def stop(self) -> None:
        self._stop = self._now()

    @property
    def ms(self) -> float:
        return 1000 * (self._stop - self._start)

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


# -- several solvers ---------------------------------------------------------------------------------------------------


def solver_count() -> int:
    """The number of solvers that train together; here one."""
    return 1


def set_solver_count(count: int) -> None:
    """Set the number of solvers that train together.

    Raises:
        CaffeError: more than one.
    """
    if count != 1:
        raise CaffeError("set_solver_count", f"{count} solvers", expected="1", remedy="raise iter_size instead")


def solver_rank() -> int:
    """This solver's rank."""
    return _State.rank


def set_solver_rank(rank: int) -> None:
    """Set this solver's rank."""
    _State.rank = rank


def set_multiprocess(multiprocess: bool) -> None:
    """Set whether solvers are processes, which has no effect on one solver."""


def has_nccl() -> bool:
    """Whether NCCL is available: no."""
    return False


class NCCL:
    """Defined for compatibility; creating one raises."""

    def __init__(self, *_: object) -> None:
        self.new_uid()

    @staticmethod
    def new_uid() -> bytes:
        raise CaffeError("NCCL", "training on several GPUs", expected="one", remedy="raise iter_size instead")
