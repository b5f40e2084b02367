"""Which of the data a process reads, when several train one net together.

Caffe's readers of databases and of HDF5 files go through all records and keep one of every ``count``, so that no two
processes see the same one. Its other data layers read everything in every process: shuffled lists are in another order
in each, by their seeds, and of the rest it says to shuffle them or to skip at random.

Source: Skip in data_layer.cpp and hdf5_data_layer.cpp, common.hpp (solver_count, solver_rank), all bvlc.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALL", "Share", "set_share", "share"]


@dataclass(frozen=True)
class Share:
    """The part of process number ``rank`` of ``count``."""

    rank: int = 0
    count: int = 1

    def keeps(self, offset: int) -> bool:
        """Whether record number ``offset`` is in it, counting on from round to round."""
        return offset % self.count == self.rank


ALL = Share()

_share = ALL


def set_share(mine: Share) -> None:
    """Let nets that are built from now on train on this part. A test net always reads all: only one process tests."""
    global _share  # noqa: PLW0603
    _share = mine


def share() -> Share:
    """This process's part."""
    return _share
