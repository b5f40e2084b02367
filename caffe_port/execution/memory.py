"""Memory of a run: when blobs can be freed, and the C library's allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from functools import cache
from math import prod

from caffe_port.graph import Graph, Node
from caffe_port.layers.base import Layer, Shape

__all__ = ["LARGE", "SMALL", "give_back", "keep_memory", "last_uses", "most_numbers"]

LARGE = 1 << 24
"""Numbers of a parameter from which free memory is returned before a backward pass and before its gradient is made."""


SMALL = 256 << 20
"""Bytes of blobs for which a pass does not ask how much memory is free."""


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


def most_numbers(
    nodes: Iterable[tuple[Node, Layer]],
    last_use: Mapping[int, Collection[str]],
    shapes: Mapping[str, Shape],
    keep: Collection[str],
) -> int:
    """About how many numbers the blobs have that a run holds at a time, besides its inputs.

    Args:
        last_use: see :func:`last_uses`. shapes: of all blobs. keep: the blobs that are kept to the end.
    """
    held, most = dict[str, int](), 0
    for node, layer in nodes:
        if layer.shares_memory:  # the last to be used has all of it
            held[node.tops[-1]] = held.pop(node.bottoms[0], 0)
        elif node.type != "Input":
            held.update((top, prod(shapes[top])) for top in node.tops)
        most = max(most, sum(held.values()))
        for name in last_use.get(node.index, ()):
            if name not in keep:
                held.pop(name, None)
    return most


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
