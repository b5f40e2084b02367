"""The limit of memory, checked before an allocation: a request beyond it kills the process without a message."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

__all__ = ["memory_limit"]

try:
    import resource
except ImportError:  # no Unix
    resource = None  # type: ignore[assignment]

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit() -> int:
    """The most bytes that one array can take: all memory of the machine or the container, or ``ulimit -v``."""
    limits = [_machine()]
    if resource is not None:
        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    return min(limits)


@cache
def _machine() -> int:
    """The memory of the machine or, where that is less, of the container, in bytes."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [2**63]
    for name in _CGROUPS:
        try:
            sizes.append(int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return min(sizes)
