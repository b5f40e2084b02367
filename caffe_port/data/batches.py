"""Sources of batches, and the position in the list that most of them go through."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe_port.data.transform import Transformer
from caffe_port.errors import CaffeError
from caffe_port.random import Stream

__all__ = ["Array", "Batches", "Cursor", "State", "check_order", "too_large"]

Array = Any  # np.ndarray; numpy's own generic form differs between the versions supported

State = dict[str, Array]
"""A position: arrays by name."""


def too_large(shapes: Sequence[tuple[int, ...]]) -> CaffeError:
    """The error for batches of these shapes that do not fit into memory."""
    size = 4 * sum(math.prod(shape) for shape in shapes)
    return CaffeError(
        "the data", f"batches of {size} bytes", expected="batches that fit the memory", remedy="a smaller batch_size"
    )


def check_order(at: int, order: Array, count: int) -> None:
    """Refuse a position ``at`` that is none of ``count`` items, and an ``order`` that is none of theirs."""
    if not 0 <= at < count or not np.array_equal(np.sort(order), np.arange(count)):
        found = f"item {at} in an order of {len(order)}"
        raise CaffeError("the data's position", found, expected=f"one of {count} items")


class Batches(ABC):
    """Makes batches, one after another, endlessly.

    Attributes:
        shapes: of the arrays that :meth:`make` returns; of the first batch, where batches differ.
        transformer: what it does to its items, None if nothing that draws.
    """

    shapes: list[tuple[int, ...]]
    transformer: Transformer

    @abstractmethod
    def make(self) -> tuple[Array, ...]:
        """The next batch, float32.

        Raises:
            CaffeError: an item cannot be read or is wrong; the position is then undefined.
        """

    @abstractmethod
    def position(self) -> State:
        """Where the items of the next batch start."""

    @abstractmethod
    def move(self, state: State) -> None:
        """Move to a :meth:`position`. Raises CaffeError if it is not one of this source."""

    def get_state(self) -> State:
        """All that decides what :meth:`make` returns next. Its arrays are never changed later."""
        stream = self.transformer.stream
        thread = self.transformer.draws_from
        return (
            self.position()
            | ({"transformations": stream.get_state()} if stream else {})
            | ({"thread": thread.get_state()} if thread else {})
        )

    def set_state(self, state: State) -> None:
        """Continue from a :meth:`get_state` of the same source.

        Raises:
            CaffeError: the data or the definition has changed since.
        """
        drew = "transformations" in state
        if drew != self.transformer.draws:
            raise CaffeError(
                "the data's position",
                f"{'a' if drew else 'no'} stream of random numbers for transformations",
                expected="the same transform_param as when it was saved",
            )
        self.move(state)
        if self.transformer.draws_from:
            self.transformer.draws_from.set_state(state["thread"])
        if drew:
            self.transformer.stream = Stream(0)
            self.transformer.stream.set_state(state["transformations"])


class Cursor:
    """A position among ``count`` items that are read in a cycle.

    Args:
        stream: shuffles the items now and after every round; None leaves them in order.
        skip: items to pass over in the first round.

    Source: image_data_layer.cpp (both programs).
    """

    def __init__(self, count: int, stream: Stream | None = None, skip: int = 0) -> None:
        self._stream, self._at = stream, skip
        self._order = np.arange(count, dtype=np.int32)
        self._shuffle()

    @property
    def index(self) -> int:
        """The current item."""
        return int(self._order[self._at])

    def advance(self) -> None:
        """On to the next item."""
        self._at += 1
        if self._at == self._order.size:
            self._at = 0
            self._shuffle()

    def _shuffle(self) -> None:
        if self._stream:
            order = self._order.tolist()
            self._stream.shuffle(order)
            self._order = np.array(order, np.int32)  # a new one: states share the old

    def get_state(self) -> State:
        """The current position."""
        if self._stream is None:
            return {"at": np.array([self._at, self._order.size])}
        return {"at": np.array([self._at, self._order.size]), "order": self._order, "shuffle": self._stream.get_state()}

    def set_state(self, state: State) -> None:
        """Move to a position. Raises CaffeError if the list has changed since."""
        at, count = state["at"].tolist()
        if count != self._order.size or ("shuffle" in state) != (self._stream is not None):
            raise CaffeError(
                "the data's position",
                f"one among {count} {'shuffled ' if 'shuffle' in state else ''}items",
                expected=f"one among {self._order.size} {'shuffled ' if self._stream else ''}items",
                remedy="the list or its shuffle field has changed since it was saved",
            )
        order = state["order"] if self._stream else self._order
        check_order(at, order, count)
        self._at = at
        if self._stream:
            self._order = order
            self._stream.set_state(state["shuffle"])
