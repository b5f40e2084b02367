"""A function applied to many items in several processes, and on several machines, results in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import chain, zip_longest
from multiprocessing import get_context
from typing import Any, NamedTuple, TypeVar

from caffe_port.data.shard import launched
from caffe_port.errors import CaffeError

__all__ = ["everywhere", "helping", "in_processes", "usable_cores"]

T = TypeVar("T")
R = TypeVar("R")


class _Failed(NamedTuple):
    """A CaffeError in a form that can be pickled."""

    kind: type[CaffeError]
    where: str
    found: str
    expected: str
    remedy: str


def usable_cores() -> int:
    """The number of cores that this process may use, by which torchrun's processes on a machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def in_processes(function: Callable[[T], R], things: Sequence[T], workers: int) -> Generator[R, None, None]:
    """``map(function, things)`` in this many processes; in the current one if it is 1.

    The processes are spawned, so that none inherits a library's threads; a script that calls this needs
    ``if __name__ == "__main__":``.

    Raises:
        CaffeError: what a call raised, at its place; a process was killed.
    """
    if min(workers, len(things)) <= 1:
        yield from map(function, things)
        return
    chunk = max(1, min(16, len(things) // (4 * workers)))
    with ProcessPoolExecutor(workers, get_context("spawn"), _quiet) as pool:
        try:
            for result in pool.map(partial(_caught, function), things, chunksize=chunk):
                if isinstance(result, _Failed):
                    raise result.kind(result.where, result.found, expected=result.expected, remedy=result.remedy)
                yield result
        except BrokenProcessPool as error:
            found = "one ended before its work was done (killed, or out of memory)"
            raise CaffeError("worker processes", found, remedy="use fewer of them") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits: without that the block's end would not wait either
            raise


@contextmanager
def helping(workers: int) -> Iterator[bool]:
    """Within it :func:`everywhere` reaches all processes that torchrun started. True in the first of them, or the only
    one; the others work for it, in ``workers`` processes each, and get False when it is done."""
    mine = launched()
    if mine.count == 1:
        yield True
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        if mine.rank:
            while (task := _from_first(None)) is not None:
                function, part = task
                _together(function, part, workers)
        try:
            yield not mine.rank
        finally:
            if not mine.rank:
                _from_first((None,))
    finally:
        dist.destroy_process_group()


def everywhere(function: Callable[[T], R], things: Sequence[T], workers: int) -> Generator[R, None, None]:
    """:func:`in_processes` in every process that torchrun started; called by the first, within :func:`helping`."""
    count = launched().count
    if count == 1:
        yield from in_processes(function, things, workers)
        return
    for start in range(0, len(things), size := 64 * workers * count):
        part = things[start : start + size]
        _from_first(((function, part),))
        for result in _together(function, part, workers):
            if isinstance(result, _Failed):
                raise result.kind(result.where, result.found, expected=result.expected, remedy=result.remedy)
            yield result


def _from_first(given: tuple[Any] | None) -> Any:
    """What the first process gives, in all of them."""
    import torch.distributed as dist

    box = [given[0] if given else None]
    dist.broadcast_object_list(box)
    return box[0]


def _together(function: Callable[[T], R], things: Sequence[T], workers: int) -> list[R | _Failed]:
    """This process's part of a task; in the first one the results of all, in order."""
    import torch.distributed as dist

    mine, own = launched(), list[Any]()
    try:
        own += in_processes(partial(_caught, function), things[mine.rank :: mine.count], workers)
    except CaffeError as error:
        own.append(_failed(error))
    parts: list[Any] = [None] * mine.count
    dist.gather_object(own, None if mine.rank else parts)
    return [] if mine.rank else list(chain.from_iterable(zip_longest(*parts)))[: len(things)]


def _quiet() -> None:
    """Ignores Ctrl-C, which the parent process handles; uses one thread."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def _caught(function: Callable[[T], R], thing: T) -> R | _Failed:
    try:
        return function(thing)
    except CaffeError as error:
        return _failed(error)


def _failed(error: CaffeError) -> _Failed:
    return _Failed(type(error), error.where, error.found, error.expected, error.remedy)
