"""What every system that segments pictures is, and how one runs over many pictures.

A system works in three steps: it prepares a picture, its nets compute, and it finishes the segmentation. Over many
pictures the first and the last run on threads beside the nets, which may take several pictures at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from caffe_port.segmentation.parallel import usable_cores

__all__ = ["Segmentation", "System", "segment_all"]

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")
R = TypeVar("R")


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
        classes: without the background. first: the first class's label. least: lower bound of a map before a CRF takes
            its logarithm.
        batch: how many pictures its nets take at a time where there are many.
    """

    classes: int
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
        """The nets' results for one or more prepared pictures; always called on one thread."""
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

    ``read`` and ``write`` are called on ``workers`` threads (default: one for each core). An error is raised in its
    item's place, when all items before it are done.
    """
    workers = workers or usable_cores()

    def before(item: T) -> tuple[Array, Any]:
        picture = read(item)
        return picture, system.prepare(picture)

    def after(item: T, picture: Array, computed: Any) -> R:
        return write(item, picture, system.finish(picture, computed))

    pool = _threads(workers)
    try:
        ahead, waiting = iter(items), deque[tuple[T, Future[tuple[Array, Any]]]]()
        writing = deque[Future[R]]()
        while True:
            for item in ahead:
                waiting.append((item, pool.submit(before, item)))
                if len(waiting) >= 2 * system.batch + workers:
                    break
            if not waiting:
                break
            group, failed = list[tuple[T, Array, Any]](), None
            while waiting and len(group) < system.batch and failed is None:
                item, future = waiting.popleft()
                failed = future.exception()
                if failed is None:
                    group.append((item, *future.result()))
            computed = system.compute([prepared for _, _, prepared in group]) if group else []
            for (item, picture, _), one in zip(group, computed, strict=True):
                writing.append(pool.submit(after, item, picture, one))
            while writing and (failed or writing[0].done() or len(writing) > 2 * workers + system.batch):
                yield writing.popleft().result()
            if failed is not None:
                raise failed
        while writing:
            yield writing.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _threads(workers: int) -> ThreadPoolExecutor:
    """A pool of threads on each of which torch uses one thread."""
    started, threads = threading.Barrier(workers + 1), torch.get_num_threads()

    def start() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(workers, "segment", initializer=start)
    for _ in range(workers):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)  # what the threads set is also the setting of threads that start later
    return pool
