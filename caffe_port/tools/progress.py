"""Progress of work that takes over two seconds: a bar on a terminal, lines at growing intervals in a file."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["each", "print_line", "progress", "working"]

T = TypeVar("T")

_SLOW_BYTES, _SLOW_SECONDS = 50_000_000, 2.0
_LINES_APART = 10.0
"""Seconds before the first line in a log; the interval doubles each time."""


class _Lines:
    """Progress as lines on stderr: the first after two seconds, the next at growing intervals."""

    def __init__(self, total: int, what: str, unit: float = 1, unit_name: str = "") -> None:
        self.total, self.what, self.unit, self.unit_name = total, what, unit, unit_name
        self.done, self.start = 0, time.monotonic()
        self.next, self.gap = _SLOW_SECONDS, _LINES_APART

    def update(self, n: int = 1) -> None:
        self.done += n
        spent = time.monotonic() - self.start
        if spent < self.next or self.done >= self.total:
            return
        left = spent / self.done * (self.total - self.done) if self.done else 0.0
        done, total = (f"{n / self.unit:.0f}" for n in (self.done, self.total))
        print(
            f"{self.what}: {done} of {total}{self.unit_name}, {spent:.0f} s, about {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
        self.next, self.gap = spent + self.gap, 2 * self.gap


@contextmanager
def progress(total: int, what: str, *, quiet: bool = False) -> Iterator[Callable[[int], object] | None]:
    """Progress of work on ``total`` bytes.

    Yields a function that takes the number of bytes done since its last call; None if no progress is shown.
    """
    if quiet or total < _SLOW_BYTES:
        yield None
        return
    if not sys.stderr.isatty():
        yield _Lines(total, what, 1e6, " MB").update
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="B", unit_scale=True, delay=_SLOW_SECONDS, leave=False) as bar:
        yield bar.update


def each(things: Iterable[T], what: str, *, total: int | None = None, quiet: bool = False) -> Iterator[T]:
    """Iterates over the items with progress.

    Args:
        total: their number, where they have no length.
    """
    if total is None:
        things = list(things)
        total = len(things)
    if quiet:
        yield from things
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(things, what, total, delay=_SLOW_SECONDS, leave=False, dynamic_ncols=True) as bar:
            yield from bar
    else:
        lines = _Lines(total, what)
        for thing in things:
            yield thing
            lines.update()


@contextmanager
def working(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Reports from time to time that work of unknown length continues."""
    if quiet:
        yield
        return
    over, start = threading.Event(), time.monotonic()
    tty = sys.stderr.isatty()

    def report_elapsed() -> None:
        gap = _SLOW_SECONDS
        while not over.wait(gap):
            line = f"{what} ... {time.monotonic() - start:.0f} s"
            print(f"\r{line}" if tty else line, end="" if tty else "\n", file=sys.stderr, flush=True)
            gap = 1.0 if tty else _LINES_APART if gap == _SLOW_SECONDS else 2 * gap
        if tty and time.monotonic() - start > _SLOW_SECONDS:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    reporter = threading.Thread(target=report_elapsed, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        over.set()
        reporter.join()


def print_line(line: str) -> None:
    """Prints a line on stdout, above the bar of :func:`each` if one is shown."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(line, file=sys.stdout)
    else:
        sys.stdout.write(f"{line}\n")  # at once: print writes the end by itself where stdout is not buffered
    sys.stdout.flush()
