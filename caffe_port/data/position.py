"""Positions in data as what JSON holds, so that a snapshot can keep them."""

from __future__ import annotations

import base64
import re

import numpy as np

from caffe_port.data.batches import State
from caffe_port.errors import CaffeError

__all__ = ["pack", "unpack"]


def pack(state: State) -> dict[str, str]:
    """A position as text: each array's type and its numbers in base 64."""
    return {
        name: f"{_little(a).dtype.str} {base64.b64encode(_little(a).tobytes()).decode()}" for name, a in state.items()
    }


def unpack(state: dict[str, str]) -> State:
    """The position in a text of :func:`pack`. Raises CaffeError if the text is damaged."""
    try:
        split = {name: text.split(" ") for name, text in state.items()}
        return {name: _array(*parts) for name, parts in split.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CaffeError("the data's position", f"damaged text: {error}") from error


def _little(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _array(kind: str, numbers: str) -> np.ndarray:
    if not re.fullmatch("[<|][iuf][1248]", kind):
        raise ValueError(f"numbers of type {kind!r}")
    array = np.frombuffer(base64.b64decode(numbers, validate=True), kind)
    return array.astype(array.dtype.newbyteorder("="))
