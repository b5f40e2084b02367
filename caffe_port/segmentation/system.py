"""What every system that segments pictures is, and how one runs over many pictures.

A system works in three steps: it prepares a picture, its nets compute, and it finishes the segmentation. Over many
pictures the first and the last run on threads beside the nets, which may take several pictures at a time.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch

from caffe_port.execution.in_parts import available, itemwise
from caffe_port.execution.memory import last_uses, most_numbers
from caffe_port.execution.observed import observed
from caffe_port.net import Net
from caffe_port.segmentation.parallel import usable_cores

__all__ = ["Segmentation", "System", "segment_all"]

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")
R = TypeVar("R")

_ROOM = 1 << 30
"""Bytes of the blobs of all copies of a system. Nets of published width have more in one; their layers take so long
that waiting for threads does not matter."""
_ROWS = 8
"""The most items that systems give a net at a time."""


@dataclass(frozen=True)
class Segmentation:
    """A picture's segmentation.

    Attributes:
        pixels: each pixel's label, uint8 (height, width).
        scores: of every class, float32 (classes,), 0 to 1.
        labels: those of the maps, from 0, the background.
        maps: float32 (len(labels), height, width). Bicubic interpolation overshoots: values may exceed 0 to 1 slightly.
        found: the labels of the classes in the picture.
        first: the label of the first score: 1, or 0 for a net without a background.
    """

    pixels: Array
    scores: Array
    labels: tuple[int, ...]
    maps: Array
    found: tuple[int, ...]
    first: int = 1


class System:
    """A system that segments pictures: ``system(picture)``.

    Attributes:
        classes: without the background. nets: those it runs, one after the other.
        first: the first class's label. least: lower bound of a map before a CRF takes its logarithm.
        batch: how many pictures its nets take at a time where there are many.
    """

    classes: int
    nets: tuple[Net, ...] = ()
    first = 1
    least = 0.0
    batch = 1

    def __call__(self, picture: Array, /) -> Segmentation:
        """Segment a picture of any size, uint8 RGB (height, width, 3)."""
        return self.finish(picture, *self.compute([self.prepare(picture)]))

    def prepare(self, picture: Array) -> Any:
        """What the nets need of a picture. Called on other threads, as :meth:`finish` is."""
        raise NotImplementedError

    def compute(self, prepared: Sequence[Any]) -> list[Any]:
        """The nets' results for one or more prepared pictures. Copies of the system may compute on other threads."""
        raise NotImplementedError

    def finish(self, picture: Array, computed: Any) -> Segmentation:
        """The segmentation from a picture and the nets' results for it."""
        raise NotImplementedError


def segment_all(
    system: System,
    items: Sequence[T],
    read: Callable[[T], Array],
    write: Callable[[T, Array, Segmentation], R],
    *,
    workers: int | None = None,
) -> Iterator[R]:
    """Segment many pictures; yields what ``write(item, picture, segmentation)`` returns, in order.

    ``read`` and ``write`` are called on ``workers`` threads (default: one for each core). Small nets compute several
    pictures at a time, each on one thread, which then do not wait for each other after every layer. An error is raised
    in its item's place, when all items before it are done.
    """
    workers = workers or usable_cores()
    systems = _copies(system, torch.get_num_threads())
    free = SimpleQueue[System]()
    for one in systems:
        free.put(one)

    def before(item: T) -> tuple[Array, Any]:
        picture = read(item)
        return picture, system.prepare(picture)

    def compute(prepared: Sequence[Any]) -> list[Any]:
        one = free.get()
        try:
            return one.compute(prepared)
        finally:
            free.put(one)

    def after(item: T, picture: Array, computed: Any) -> R:
        return write(item, picture, system.finish(picture, computed))

    pool, nets = _threads(workers, 1), _threads(len(systems), torch.get_num_threads() // len(systems))
    try:
        ahead, left = iter(items), len(items)
        waiting = deque[tuple[T, Future[tuple[Array, Any]]]]()
        computing = deque[tuple[list[tuple[T, Array]], Future[list[Any]]]]()
        writing, failed = deque[Future[R]](), None
        while True:
            room = 2 * system.batch * len(systems) + workers - len(waiting)
            for item in islice(ahead, 0 if failed else room):
                waiting.append((item, pool.submit(before, item)))
            while waiting and failed is None and len(computing) <= len(systems):
                group, inputs = list[tuple[T, Array]](), list[Any]()
                size = min(system.batch, -(-left // len(systems)))
                while waiting and len(group) < size and failed is None:
                    item, future = waiting.popleft()
                    failed, left = future.exception(), left - 1
                    if failed is None:
                        picture, prepared = future.result()
                        group.append((item, picture))
                        inputs.append(prepared)
                if group:
                    computing.append((group, nets.submit(compute, inputs)))
            if not computing:
                break
            group, results = computing.popleft()
            if results.exception():
                failed = results.exception()
                break
            for (item, picture), one in zip(group, results.result(), strict=True):
                writing.append(pool.submit(after, item, picture, one))
            while writing and (writing[0].done() or len(writing) > 2 * workers + system.batch):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()
        if failed is not None:
            raise failed
    finally:
        nets.shutdown(cancel_futures=True)
        pool.shutdown(cancel_futures=True)


def _copies(system: System, most: int) -> list[System]:
    """The system, and copies that share its nets' parameters: up to ``most`` together, as their blobs allow.

    A system or net with code of the user's is not copied: it may keep what it computes.
    """
    numbers = 0
    for net in system.nets:
        on_cpu = all(t.device.type == "cpu" for t in net.parameters())
        if net.phase != "TEST" or not on_cpu or observed(net, Net) or not itemwise(net.executor):
            return [system]
        numbers += most_numbers(net.nodes, last_uses(net.graph), net.shapes, net.graph.outputs)
    if not numbers or not all(type(one).__module__.startswith("caffe_port.") for one in _within(system)):
        return [system]
    count = min(most, min(_ROOM, available() // 2) // (4 * _ROWS * numbers))
    shared = {id(t): t for net in system.nets for t in chain(net.parameters(), net.buffers())}
    return [system, *(copy.deepcopy(system, {**shared}) for _ in range(count - 1))]


def _within(system: System) -> Iterator[System]:
    """The system and those that it is made of."""
    yield system
    for value in vars(system).values():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, System):
                yield from _within(one)


def _threads(workers: int, each: int) -> ThreadPoolExecutor:
    """A pool of threads on each of which torch uses ``each`` threads."""
    started, threads = threading.Barrier(workers + 1), torch.get_num_threads()

    def start() -> None:
        torch.get_num_threads()  # a thread's first use of the number sets what was last set on any thread
        torch.set_num_threads(each)
        started.wait()

    pool = ThreadPoolExecutor(workers, "segment", initializer=start)
    for _ in range(workers):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)  # what the threads set is also the setting of threads that start later
    return pool
