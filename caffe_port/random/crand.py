"""The C library's rand() of Linux, which std::random_shuffle draws from, and so HDF5Data's shuffling.

Caffe never seeds it: it starts from 1 in every process, and ``random_seed`` does not affect it. Source: glibc's
rand(3) (its TYPE_3 generator), and bits/stl_algo.h of libstdc++ for the shuffle.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

import numpy as np

from caffe_port.errors import CaffeError

__all__ = ["CRand"]

_LAG, _SHORT = 31, 3


class CRand:
    """rand() of glibc.

    Args:
        seed: as given to srand().
    """

    def __init__(self, seed: int = 1) -> None:
        words = [seed or 1]
        for _ in range(_LAG - 1):
            words.append(16807 * words[-1] % 0x7FFFFFFF)
        self._words = words
        self._at = _SHORT
        for _ in range(10 * _LAG):
            self.rand()

    def rand(self) -> int:
        """The next number, 0 to 2^31 - 1."""
        at, words = self._at, self._words
        word = words[at] = (words[at] + words[at - _SHORT]) & 0xFFFFFFFF
        self._at = (at + 1) % _LAG
        return word >> 1

    def shuffle(self, items: MutableSequence[Any]) -> None:
        """std::random_shuffle in place."""
        for i in range(1, len(items)):
            j = self.rand() % (i + 1)
            items[i], items[j] = items[j], items[i]

    def get_state(self) -> Any:
        """The position: uint32 array of 31."""
        return np.array(self._words[self._at :] + self._words[: self._at], np.uint32)

    def set_state(self, state: Any) -> None:
        """Move to a position. Raises CaffeError if it is damaged."""
        state = np.asarray(state)
        if state.shape != (_LAG,) or state.dtype != np.uint32:
            raise CaffeError("rand() state", f"{state.dtype} {state.shape}", expected=f"uint32 ({_LAG},)")
        self._words, self._at = state.tolist(), 0
