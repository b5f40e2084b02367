"""Normal numbers by the ziggurat method, exactly as boost 1.74 draws them (boost/random/normal_distribution.hpp), many at once.

A *candidate* is read at some word of the Mersenne Twister's output: eight bits choose a layer of the ziggurat (and the
sign), the remaining 24 bits, in double precision followed by 29 of the next word, the place within it. In 98.8 % of cases
that is all. Otherwise the candidate lies in a layer's *wedge* and reads one more word, to be accepted or rejected, or in
the *tail* and reads as many as it needs. So where a candidate starts depends on all before it. The way out: nearly all
words could only start a plain candidate. The few that could not are evaluated as if a candidate started at each of
them; then it is known how many words each would take, and following these links from the block's first word tells which of
them really are candidates. Everything between two of them is plain.

Every operation is in the precision of the result, in boost's order, so results are equal to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["MARGIN", "normals", "unit", "words_per_candidate"]

Array = Any  # np.ndarray; numpy's own generic form differs between the versions supported

MARGIN = 256
"""Words that must follow a block: no candidate reads more (the chance that one would is below 1e-100)."""


@dataclass(frozen=True)
class Layers:
    """A ziggurat of n layers: the right ends ``x`` (falling, the last 0) and the heights ``y`` (rising to 1) of n + 1 lines."""

    x: Array
    y: Array

    def cast(self, real: type) -> Layers:
        return Layers(self.x.astype(real), self.y.astype(real))


def _layers(count: int, base: str, edge: str, *, normal: bool) -> Layers:
    """Layers of equal area below exp(-x^2/2) or exp(-x).

    ``edge`` is where the tail starts, ``base`` the width of a box of height f(edge) whose area equals all below the lowest line.
    The two close the ziggurat; all else follows from them.
    """
    with localcontext() as context:
        context.prec = 40
        x, y = [Decimal(base), Decimal(edge)], [Decimal(0)]
        y.append((-x[1] * x[1] / 2).exp() if normal else (-x[1]).exp())
        area = x[0] * y[1]
        for k in range(1, count - 1):
            y.append(y[k] + area / x[k])
            x.append((-2 * y[-1].ln()).sqrt() if normal else -y[-1].ln())
        return Layers(np.array([*map(float, x), 0.0]), np.array([*map(float, y), 1.0]))


@lru_cache(maxsize=None)
def _normal_layers() -> Layers:
    return _layers(128, "3.7130862467403632609", "3.4426198558966521214", normal=True)


@lru_cache(maxsize=None)
def _exponential_layers() -> Layers:
    return _layers(256, "8.6971174701310497140", "7.6971174701310497140", normal=False)


_TILE = 1 << 14
"""Positions worked on at a time where each is treated alike: their intermediate arrays stay in the processor's cache."""

_LOW = 0x1FFFFFFF
"""The 29 bits that a candidate in double precision takes from its second word."""


def words_per_candidate(real: type) -> int:
    """Words that a plain candidate reads: 1 in float32, 2 in float64."""
    return 1 if real is np.float32 else 2


@lru_cache(maxsize=None)
def _plain(real: type) -> tuple[Array, Array]:
    """For each of a word's low eight bits: the signed layer width, and the key at which a candidate may cease to be plain.

    The key is the word that says most of the place within the layer. A hair early is fine: whatever is not sure to be
    plain is evaluated in full.
    """
    x = _normal_layers().x
    keys = 2**32 if real is np.float32 else 2**29
    limit = np.repeat(x[1:] / x[:-1] * (1 - 1e-6) * keys, 2).astype(np.uint32)
    width = np.repeat(x[:-1], 2) * np.tile([-1.0, 1.0], 128)
    return width.astype(real), limit


def _place(words: Array, following: Array, real: type) -> Array:
    """The place within the layer, in [0, 1): 24 bits of a word, below them 29 bits of the following one in double precision."""
    place = (words >> 8).view(np.int32).astype(real)
    place *= real(2.0**-24)
    if real is not np.float32:
        place += following & _LOW
        place *= 2.0**-29
    return place


def unit(words: Array, real: type) -> Array:
    """Words as numbers from 0 up to 1; in float32 the largest 128 words round to 1 itself, which callers reject."""
    return words.astype(real) * real(2.0**-32)


def _units(words: Array, at: Array, real: type) -> tuple[Array, Array]:
    """For each position a number in [0, 1) and the position after it."""
    value, at = unit(words[at], real), at + 1
    while (again := np.flatnonzero(value >= 1)).size:
        value[again] = unit(words[at[again]], real)
        at[again] += 1
    return value, at


def _exp(x: Array, real: type) -> Array:
    # The C library's expf is correctly rounded but for about one argument in 500, numpy's is not.
    return np.exp(x.astype(np.float64)).astype(real)


def _exponentials(words: Array, at: Array, real: type) -> tuple[Array, Array]:
    """For each position a number of the unit exponential distribution and the position after it."""
    table = _exponential_layers().cast(real)
    rise = np.diff(_exponential_layers().y).astype(real)
    run = -np.diff(_exponential_layers().x).astype(real)
    value, at, todo = np.zeros(at.size, real), at.copy(), np.arange(at.size)
    while todo.size:
        here = at[todo]
        layer = words[here] & 255
        x = _place(words[here], words[here + 1], real) * table.x[layer]
        here += words_per_candidate(real)
        accepted = x < table.x[layer + 1]
        wedge = np.flatnonzero(~accepted & (layer > 0))
        if wedge.size:
            k, inside = layer[wedge], table.x[layer[wedge]] - x[wedge]
            u, here[wedge] = _units(words, here[wedge], real)
            y = table.y[k] + u * rise[k]
            above_chord = run[k] * u - inside
            above_tangent = y - (table.y[k + 1] + (table.x[k + 1] - x[wedge]) * table.y[k + 1])
            accepted[wedge] = (above_chord < 0) & ((above_tangent < 0) | (y < _exp(-x[wedge], real)))
        at[todo] = here
        # Below the lowest line but past its edge lies the same distribution once more, shifted by the edge.
        value[todo] += np.where(accepted, x, np.where(layer == 0, table.x[1], real(0)))
        todo = todo[~accepted]
    return value, at


def _tails(words: Array, at: Array, real: type) -> tuple[Array, Array]:
    """For each position a number of the normal distribution's tail and the position after it."""
    edge = real(_normal_layers().x[1])
    value, at, todo = np.zeros(at.size, real), at.copy(), np.arange(at.size)
    while todo.size:
        x, here = _exponentials(words, at[todo], real)
        x /= edge
        y, at[todo] = _exponentials(words, here, real)
        value[todo] = x + edge
        todo = todo[2 * y <= x * x]
    return value, at


def _candidates(words: Array, at: Array, real: type) -> tuple[Array, Array, Array]:
    """For each position, if a candidate starts there: its number, the position after it, whether it is accepted."""
    exact = _normal_layers()
    table = exact.cast(real)
    layer = (words[at] & 255) >> 1
    x = _place(words[at], words[at + 1], real) * table.x[layer]
    end = at + words_per_candidate(real)
    # boost compares with the double precision table here, whatever the precision of x.
    accepted = x < exact.x[layer + 1]
    wedge = np.flatnonzero(~accepted & (layer > 0))
    if wedge.size:
        k, inside = layer[wedge], table.x[layer[wedge]] - x[wedge]
        u, end[wedge] = _units(words, end[wedge], real)
        y = table.y[k] + u * np.diff(exact.y).astype(real)[k]
        above_chord = -np.diff(exact.x).astype(real)[k] * u - inside
        above_tangent = y - (table.y[k] + inside * table.y[k] * table.x[k])
        convex = exact.x[k] >= 1
        surely_out = np.where(convex, above_chord, above_tangent) >= 0
        surely_in = np.where(convex, above_tangent, above_chord) < 0
        accepted[wedge] = ~surely_out & (surely_in | (y < _exp(-(x[wedge] * x[wedge] / 2), real)))
    tail = np.flatnonzero(~accepted & (layer == 0))
    if tail.size:
        x[tail], end[tail] = _tails(words, end[tail], real)
        accepted[tail] = True
    return np.where(words[at] & 1, x, -x), end, accepted


def _happening(at: Array, end: Array, step: int) -> Array:
    """Which events happen: from position 0 on, each is followed by the first one at or after its end and in step with it."""
    count = at.size
    end = np.append(end, 0)
    follower = np.empty(count + 1, np.intp)
    for phase in range(step):
        lane = np.flatnonzero(at & (step - 1) == phase)
        ends = np.flatnonzero(end & (step - 1) == phase)
        follower[ends] = np.append(lane, count)[np.searchsorted(at[lane], end[ends])]
    followers, happens = follower.tolist(), bytearray(count)
    k = followers[count]
    while k < count:
        happens[k] = 1
        k = followers[k]
    return np.flatnonzero(np.frombuffer(happens, np.uint8))


def _plain_pass(words: Array, span: int, real: type) -> tuple[Array, Array]:
    """The number each of the first ``span`` positions would give as a plain candidate, and the positions not sure to be one."""
    width, limit = _plain(real)
    step = words_per_candidate(real)
    number, doubtful = np.empty(span, real), np.empty(span, bool)
    for start in range(0, span, _TILE):
        stop = min(start + _TILE, span)
        here, following = words[start:stop], words[start + 1 : stop + 1]
        bits = np.bitwise_and(here, 255, dtype=np.intp)
        key = here if step == 1 else following & _LOW
        np.greater_equal(key, limit.take(bits, mode="wrap"), out=doubtful[start:stop])
        np.multiply(_place(here, following, real), width.take(bits, mode="wrap"), out=number[start:stop])
    return number, np.flatnonzero(doubtful)


def normals(words: Array, count: int, real: type) -> tuple[Array, int]:
    """At most ``count`` unit normal numbers, and how many words they and the rejected candidates among them took.

    Candidates are taken from ``count * words_per_candidate(real)`` words; the last may read further. A caller that wants
    ``count`` numbers calls again for what rejections left out.

    Args:
        words: uint32, ``count * words_per_candidate(real) + MARGIN`` of them.
        real: np.float32 or np.float64.
    """
    step = words_per_candidate(real)
    span = count * step
    number, at = _plain_pass(words, span, real)
    value, end, accepted = _candidates(words, at, real)
    happening = _happening(at, end, step)
    at, end, value, accepted = at[happening], end[happening], value[happening], accepted[happening]
    number[at] = value

    # Plain candidates start at the first word and after each event, in step with it. Of the words an event took only the
    # first stands for a number, and only if accepted.
    start = np.append(0, end)
    runs = np.diff(np.append(np.minimum(start, span), span))
    phase = np.repeat((start % step).astype(np.int8), runs)
    keep = phase == np.tile(np.arange(step, dtype=np.int8), count)
    extra = end - at - accepted
    total = np.cumsum(extra)
    dropped = np.repeat(at + accepted - (total - extra), extra) + np.arange(extra.sum())
    keep[dropped[dropped < span]] = False
    last = int(start[-1])
    return number[keep], max(last, span + (last - span) % step)
