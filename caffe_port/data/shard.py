"""Which of the data a process reads, when several train one net together.

Caffe's readers of databases and of HDF5 files go through all records and keep one of every ``count``, so that no two
processes see the same one. Its other data layers read everything in every process: shuffled lists are in another order
in each, by their seeds, and of the rest it says to shuffle them or to skip at random.

Source: Skip in data_layer.cpp and hdf5_data_layer.cpp, common.hpp (solver_count, solver_rank), all bvlc.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar

__all__ = ["ALL", "Share", "gather", "launched", "set_share", "share"]


T = TypeVar("T")
_NONE: Any = object()


@dataclass(frozen=True)
class Share:
    """The part of process number ``rank`` of ``count``."""

    rank: int = 0
    count: int = 1

    def keeps(self, offset: int) -> bool:
        """Whether record number ``offset`` is in it, counting on from round to round."""
        return offset % self.count == self.rank


ALL = Share()


def launched() -> Share:
    """This process's part among those that torchrun started, from the environment; otherwise all."""
    rank, count = (int(os.environ.get(name) or default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    return Share(rank, count)


_share = ALL


def set_share(mine: Share) -> None:
    """Let nets that are built from now on train on this part. A test net always reads all: only one process tests."""
    global _share  # noqa: PLW0603
    _share = mine


def share() -> Share:
    """This process's part."""
    return _share


def gather(own: Sequence[T]) -> list[T] | None:
    """The items of all processes that torchrun started, in the order from which each took its part; None on others
    than the first, which wait for it."""
    mine = launched()
    if mine.count == 1:
        return list(own)
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        parts: list[list[T]] | None = [[] for _ in range(mine.count)] if mine.rank == 0 else None
        dist.gather_object(list(own), parts)
    finally:
        dist.destroy_process_group()
    if parts is None:
        return None
    turns = zip_longest(*parts, fillvalue=_NONE)
    return [item for turn in turns for item in turn if item is not _NONE]
