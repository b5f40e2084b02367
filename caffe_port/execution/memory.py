"""Memory of a run: when blobs can be freed, and the C library's allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache

from caffe_port.graph import Graph

__all__ = ["LARGE", "give_back", "keep_memory", "last_uses"]

LARGE = 1 << 24
"""Numbers of a parameter from which free memory is returned before a backward pass and before its gradient is made."""


def last_uses(graph: Graph) -> dict[int, list[str]]:
    """For each node the blobs that no later node uses."""
    last: dict[str, int] = {}
    for node in graph.nodes:
        for name in (*node.bottoms, *node.tops):
            last[name] = node.index
    at: dict[int, list[str]] = {}
    for name, i in last.items():
        at.setdefault(i, []).append(name)
    return at


@cache
def keep_memory(*, low_memory: bool) -> bool:
    """Ask glibc to keep freed memory instead of returning it to the system, so that activations reuse mapped pages.

    With ``low_memory``, blocks over 32 MB (glibc's highest limit) are still returned: otherwise fragmentation adds a
    quarter to a training's memory. Applies to the whole process; CAFFE_PORT_KEEP_MEMORY=0 in the environment disables
    it. Returns whether it was applied.
    """
    if os.environ.get("CAFFE_PORT_KEEP_MEMORY") == "0" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    kept = mallopt(mmap_threshold, 32 << 20) if low_memory else mallopt(mmap_max, 0)
    return bool(kept and mallopt(trim_threshold, 2**31 - 1))


def give_back() -> None:
    """Return what glibc keeps free, if :func:`keep_memory` was applied.

    For the moments when something large was just made to stay: later it would stand among pages that nothing fits into.
    """
    if keep_memory.cache_info().currsize:
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
