"""Several processes that train one net: Caffe's training with several GPUs, over torch.distributed.

Started by ``torchrun --nproc_per_node=N -m caffe_port.solver ...``, every process has a solver of its own, with the
seed ``random_seed`` + its rank and its own share of the data (:mod:`caffe_port.data.shard`). The first one's parameters
are everybody's at the start. In every iteration the gradients of all are summed and divided by their number, and then
each makes the same update. So ``batch_size`` counts for one process, and N of them learn from N times as many items in
an iteration. The first process alone tests, writes the log and the snapshots; a snapshot says where the others stood,
too, so that as many processes resume exactly.

HDF5Data shuffles by rand(), which is alike in all processes, so that their shares stay disjoint; unless a test net's
HDF5Data shuffles, too, for the first process alone tests. As in Caffe statistics of BatchNorm and BN are each process's
own, of which the first one's are kept. The fork cannot do any of this; its nets train the same way here.

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

from caffe_port.data.shard import Share, set_share
from caffe_port.errors import CaffeError

__all__ = ["Group", "join"]

_PIECE = 1 << 23
"""Numbers that are summed at a time: few enough to need little memory, many enough that the network is kept busy."""

_PATIENCE = timedelta(days=1)
"""How long a process waits for another, which may be testing."""

_REQUESTS = ("none", "snapshot", "stop")
"""From least to most urgent."""


@dataclass(frozen=True)
class Group:
    """The processes that train together, and which of them this is. A group of one sends nothing."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the process that tests, logs and writes."""
        return self.rank == 0

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give everybody the first process's numbers."""
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
        """What every process has to say, by rank, in the first; nothing in the others."""
        if self.count == 1:
            return [facts]
        said: list[Any] | None = [None] * self.count if self.first else None
        with self._together():
            dist.gather_object(facts, said)
        return said or []

    def agree(self, request: str) -> str:
        """The most urgent of what the processes were asked for."""
        return _REQUESTS[self._most(_REQUESTS.index(request))]

    def any(self, fact: bool) -> bool:
        """Whether it is so in any of the processes."""
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
        """Around what all do at once: who waits for one that has stopped says so in a line.

        Raises:
            CaffeError: another process is gone.
        """
        try:
            yield
        except RuntimeError as error:
            who = f"process {self.rank} of {self.count}"
            raise CaffeError(who, "another one has stopped", remedy="its error says why") from error

    def leave(self) -> None:
        """The work is done."""
        set_share(Share())
        if self.count > 1:
            dist.destroy_process_group()


def join(device: torch.device) -> Group:
    """The group that torchrun has started this process in, by what it says in the environment; else a group of one.

    Args:
        device: what all train on; of "cuda" without a number each takes the GPU of its rank on this machine.

    Raises:
        CaffeError: there are fewer GPUs than processes here.
    """
    rank, count = (int(os.environ.get(name) or default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if count == 1:
        return Group(device=device)
    if device.type == "cuda":
        number, there = int(os.environ.get("LOCAL_RANK") or rank), torch.cuda.device_count()
        if number >= there:
            where, wanted = f"process {rank} of {count}", f"{number + 1} or more"
            raise CaffeError(where, f"{there} GPUs here", expected=wanted, remedy="--device cpu")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    set_share(Share(rank, count))
    return Group(rank, count, device)


def _pieces(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups of about ``_PIECE`` numbers."""
    some: list[Tensor] = []
    for tensor in tensors:
        if some and sum(t.numel() for t in some) + tensor.numel() > _PIECE:
            yield some
            some = []
        some.append(tensor)
    if some:
        yield some
