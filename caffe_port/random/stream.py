"""One Mersenne Twister and the distributions Caffe draws from it, equal to the last bit.

Caffe makes a new distribution for every call and boost's keep no state, so all there is to a stream is its
position in the Mersenne Twister's output of 32-bit *words*. Every method takes exactly the words that Caffe takes
(math_functions.cpp, util/rng.hpp; boost 1.74: uniform_real_distribution, normal_distribution, bernoulli_distribution,
uniform_int_distribution).

The last step of a uniform or normal number is a product plus an offset. A Caffe compiled for processors with fused
multiply-add rounds that once, in float32, others twice, and so the last bits differ. The program behind the reference
numbers of bvlc was of the first kind, noh of the second; ``fused`` chooses.
"""

from __future__ import annotations

import os
from collections.abc import MutableSequence
from typing import Any

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.random import ziggurat

__all__ = ["Stream"]

Array = Any  # np.ndarray; numpy's own generic form differs between the versions supported

_BLOCK = 1 << 19
"""Numbers made at a time: few enough for the processor's cache, many enough to make numpy's overhead small."""

_TILE = 1 << 14
"""Numbers worked on at a time in double precision."""

_KEY = 624
"""Words of a Mersenne Twister's state."""


class Stream:
    """A stream of random words (boost::mt19937) and what Caffe makes of them.

    Args:
        seed: Caffe's ``random_seed``, of which the low 32 bits count; None takes one from the operating system.

    Attributes:
        seeded: whether the seed was set by a caller.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed(int.from_bytes(os.urandom(4), "little") if seed is None else seed)
        self.seeded = seed is not None

    def seed(self, seed: int) -> None:
        """Restart the stream from ``seed`` (Caffe::set_random_seed)."""
        self._source = np.random.RandomState(int(seed) & 0xFFFFFFFF)
        self.seeded = True
        self._ahead = np.empty(0, np.uint32)
        self._next = 0

    def get_state(self) -> Array:
        """The stream's position: a uint32 array of 624, the key of a Mersenne Twister about to give its first word.

        Equal positions give equal states, however they were reached.
        """
        return _untemper(self.peek(_KEY))

    def set_state(self, state: Array) -> None:
        """Go to a position from :meth:`get_state`.

        Raises:
            CaffeError: ``state`` is not a uint32 array of 624.
        """
        state = np.asarray(state)
        if state.shape != (_KEY,) or state.dtype != np.uint32:
            raise CaffeError("random state", f"{state.dtype} {state.shape}", expected=f"uint32 ({_KEY},)")
        self.seed(0)
        self._source.set_state({"bit_generator": "MT19937", "state": {"key": state, "pos": 0}})

    def peek(self, count: int) -> Array:
        """The next ``count`` words, uint32, without taking them; valid until the next call."""
        short = self._next + count - self._ahead.size
        if short > 0:
            fresh = self._source.randint(0, 2**32, short, dtype=np.uint32)
            rest = self._ahead[self._next :]
            self._ahead, self._next = np.concatenate([rest, fresh]) if rest.size else fresh, 0
        return self._ahead[self._next : self._next + count]

    def skip(self, count: int) -> None:
        """Take ``count`` words that were peeked at."""
        self._next += count

    def words(self, count: int) -> Array:
        """The next ``count`` words, uint32 (caffe_rng_rand)."""
        result = self.peek(count).copy()
        self.skip(count)
        return result

    def rand(self, below: int) -> int:
        """A whole number in [0, below) as Caffe's data layers draw one: the next word modulo ``below``."""
        return int(self.words(1)[0]) % below

    def uniform(self, low: float, high: float, count: int, dtype: Any = np.float32, *, fused: bool = True) -> Array:
        """``count`` numbers in [low, high], both ends included (caffe_rng_uniform).

        Args:
            fused: as a Caffe with fused multiply-add; float64 is never fused.

        Raises:
            CaffeError: ``low > high`` or one of them is not finite in ``dtype``.
        """
        real = _real(dtype)
        with np.errstate(over="ignore"):
            low, high, largest = real(low), real(high), np.finfo(real).max
        if not (-largest <= low <= high < largest):
            raise CaffeError("uniform", f"{low} and {high}", expected="finite bounds, the lower one first")
        high, factor = np.nextafter(high, largest), real(1)
        if high / 2 - low / 2 > largest / 2:
            low, high, factor = low / 2, high / 2, real(2)
        result: Array = np.empty(count, real)
        done = 0
        while done < count:
            taken = min(count - done, _BLOCK)
            block = ziggurat.unit(self.peek(taken), real)
            self.skip(taken)
            _scale_and_shift(block, high - low, low, fused)
            inside = block < high
            if not inside.all():
                block = block[inside]
            np.multiply(block, factor, out=result[done : done + block.size])
            done += block.size
        return result

    def gaussian(self, mean: float, std: float, count: int, dtype: Any = np.float32, *, fused: bool = True) -> Array:
        """``count`` numbers of the normal distribution (caffe_rng_gaussian).

        Args:
            fused: as a Caffe with fused multiply-add; float64 is never fused.

        Raises:
            CaffeError: ``std`` is not above zero.
        """
        real = _real(dtype)
        mean, std = real(mean), real(std)
        if not std > 0:
            raise CaffeError("gaussian", f"std {std}", expected="a standard deviation above 0")
        step = ziggurat.words_per_candidate(real)
        result: Array = np.empty(count, real)
        done = 0
        while done < count:
            wanted = min(count - done, _BLOCK // step)
            block, used = ziggurat.normals(self.peek(wanted * step + ziggurat.MARGIN), wanted, real)
            self.skip(used)
            _scale_and_shift(block, std, mean, fused)
            result[done : done + block.size] = block
            done += block.size
        return result

    def bernoulli(self, p: float, count: int, dtype: Any = np.float64) -> Array:
        """``count`` booleans, true with probability ``p`` (caffe_rng_bernoulli); ``p`` of exactly 0 takes no words.

        Args:
            dtype: the precision Caffe compares in: float64 for dropout, the net's own for the sparse gaussian filler.

        Raises:
            CaffeError: ``p`` lies outside [0, 1].
        """
        real = _real(dtype)
        p = real(p)
        if not 0 <= p <= 1:
            raise CaffeError("bernoulli", f"probability {p}", expected="one from 0 to 1")
        result = np.zeros(count, bool)
        if p == 0:
            return result
        for start in range(0, count, _BLOCK):
            words = self.words(min(count - start, _BLOCK))
            np.less_equal(words.astype(real), p * real(0xFFFFFFFF), out=result[start : start + _BLOCK])
        return result

    def shuffle(self, items: MutableSequence[Any]) -> None:
        """Shuffle ``items`` in place (caffe::shuffle: Fisher-Yates from the end, partners by boost::uniform_int)."""
        last = len(items) - 1
        while last > 0:
            for word in self.words(min(last, _BLOCK)).tolist():
                partner = word // (2**32 // (last + 1))
                if partner <= last:
                    items[last], items[partner] = items[partner], items[last]
                    last -= 1


def _real(dtype: Any) -> type:
    """np.float32 or np.float64; these two are Caffe's."""
    kind = np.dtype(dtype).type
    if kind not in (np.float32, np.float64):
        raise CaffeError("random draws", str(np.dtype(dtype)), expected="float32 or float64")
    return kind


def _scale_and_shift(x: Array, scale: Any, offset: Any, fused: bool) -> None:
    """``x * scale + offset`` in place, rounded once if ``fused`` (float32 only), else after each operation."""
    if not fused or offset == 0 or x.dtype != np.float32:
        x *= scale
        x += offset
        return
    offset = np.float64(offset)
    for start in range(0, x.size, _TILE):
        part = x[start : start + _TILE]
        product = part.astype(np.float64)
        product *= scale  # exact: 24 times 24 bits
        total = product + offset
        # Rounded here already, a sum may seem to lie midway between two float32. Move it to the side where it was.
        midway = np.flatnonzero(total.view(np.int64) & 0x1FFFFFFF == 0x10000000)
        if midway.size:
            p, t = product[midway], total[midway]
            lost = (p - (t - (t - p))) + (offset - (t - p))
            total[midway] = np.where(lost == 0, t, np.nextafter(t, np.copysign(np.inf, lost)))
        part[:] = total


def _untemper(words: Array) -> Array:
    """The state behind the given output of a Mersenne Twister: its tempering undone, step by step in reverse."""
    y = words ^ (words >> 18)
    y ^= (y << 15) & 0xEFC60000
    low = y
    for _ in range(4):  # each round restores seven more bits
        low = y ^ ((low << 7) & 0x9D2C5680)
    y = low ^ (low >> 11)
    return low ^ (y >> 11)
