"""A function applied to many items in several processes, results in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple, TypeVar

from caffe_port.errors import CaffeError

__all__ = ["in_processes", "usable_cores"]

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
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _quiet() -> None:
    """Ignores Ctrl-C, which the parent process handles; uses one thread."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def _caught(function: Callable[[T], R], thing: T) -> R | _Failed:
    try:
        return function(thing)
    except CaffeError as error:
        return _Failed(type(error), error.where, error.found, error.expected, error.remedy)
