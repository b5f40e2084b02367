"""Training of one net in several processes, as Caffe's with several GPUs, over torch.distributed.

Started by ``torchrun --nproc_per_node=N -m caffe_port.solver ...``, every process has a solver of its own, with the
seed ``random_seed`` + its rank and its own shard of the data (:mod:`caffe_port.data.shard`). At the start all get the
first process's parameters. In every iteration gradients are averaged over the processes, and each makes the same
update. So ``batch_size`` counts for one process: N processes use N times as many items in an iteration. Only the first
process tests, and writes the log and the snapshots; a snapshot also holds the positions of the others, so that the same
number of processes resumes exactly.

HDF5Data shuffles by rand(), which is equal in all processes, so that their shards stay disjoint, unless a test net's
HDF5Data shuffles too, since only the first process tests. As in Caffe each process has its own statistics of BatchNorm
and BN, and the first one's are kept. The fork cannot train with several GPUs; its nets train in the same way here.

Source: parallel.cpp, solver.cpp, tools/caffe.cpp (bvlc). ``layer_wise_reduce``, which sums while backward still runs,
changes no numbers and has no effect.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from caffe_port.data.shard import Share, launched, set_share
from caffe_port.errors import CaffeError

__all__ = ["Group", "join"]

_PIECE = 1 << 23
"""Numbers that are summed at a time: few enough to need little memory, many enough for the network's bandwidth."""

_TIMEOUT = timedelta(days=1)
"""How long a process waits for another one, which may be testing."""

_REQUESTS = ("none", "snapshot", "stop")
"""From least to most urgent."""


@dataclass(frozen=True)
class Group:
    """The processes that train together, and the rank of this one. A group of one sends nothing."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the process that tests, logs and writes snapshots."""
        return self.rank == 0

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's numbers to all others."""
        if self.count > 1:
            with self._together():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes: the sum first, then the division, as Caffe does it."""
        if self.count == 1:
            return
        for some in _pieces(tensors):
            flat = torch.cat([t.reshape(-1) for t in some])
            with self._together():
                dist.all_reduce(flat)
            flat *= 1 / self.count
            parts = flat.split([t.numel() for t in some])
            torch._foreach_copy_(some, [part.view_as(t) for part, t in zip(parts, some, strict=True)])

    def gather(self, facts: Any) -> list[Any]:
        """The facts of all processes, by rank, in the first; nothing in the others."""
        if self.count == 1:
            return [facts]
        gathered: list[Any] | None = [None] * self.count if self.first else None
        with self._together():
            dist.gather_object(facts, gathered)
        return gathered or []

    def agree(self, request: str) -> str:
        """The most urgent of the requests to the processes."""
        return _REQUESTS[self._most(_REQUESTS.index(request))]

    def any(self, fact: bool) -> bool:
        """Whether the fact holds in any of the processes."""
        return bool(self._most(int(fact)))

    def _most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.count == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        with self._together():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Around a collective operation: a process that waits for one that has stopped raises one line.

        Raises:
            CaffeError: another process is gone.
        """
        try:
            yield
        except RuntimeError as error:
            who = f"process {self.rank} of {self.count}"
            raise CaffeError(who, "another process has stopped", remedy="see its error") from error

    def leave(self) -> None:
        """Leave the group at the end of the training."""
        set_share(Share())
        if self.count > 1:
            dist.destroy_process_group()


def join(device: torch.device) -> Group:
    """The group in which torchrun started this process, from the environment; otherwise a group of one.

    Args:
        device: of the training; with "cuda" without a number each process takes the GPU of its local rank, with one
            all share it and communicate through gloo, as NCCL refuses several processes on a GPU.

    Raises:
        CaffeError: this machine has fewer GPUs than processes.
    """
    mine = launched()
    if mine.count == 1:
        return Group(device=device)
    backend = "nccl" if device.type == "cuda" and device.index is None else "gloo"
    device = local_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=_TIMEOUT)
    set_share(mine)
    return Group(mine.rank, mine.count, device)


def local_device(device: torch.device) -> torch.device:
    """The device of this process among those that torchrun started: of "cuda" without a number the GPU of its local
    rank.

    Raises:
        CaffeError: this machine has fewer GPUs than processes.
    """
    mine = launched()
    if mine.count == 1 or device.type != "cuda" or device.index is not None:
        return device
    number, there = int(os.environ.get("LOCAL_RANK") or mine.rank), torch.cuda.device_count()
    if number >= there:
        where, wanted = f"process {mine.rank} of {mine.count}", f"{number + 1} or more"
        raise CaffeError(where, f"{there} GPUs here", expected=wanted, remedy="--device cpu")
    return torch.device("cuda", number)


def _pieces(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in chunks of about ``_PIECE`` numbers."""
    some: list[Tensor] = []
    for tensor in tensors:
        if some and sum(t.numel() for t in some) + tensor.numel() > _PIECE:
            yield some
            some = []
        some.append(tensor)
    if some:
        yield some
