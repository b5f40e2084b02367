"""Normal numbers by the ziggurat method, many at once, exactly as boost 1.74 draws them.

A *candidate* is read at some word of the Mersenne Twister's output: eight bits choose a layer of the ziggurat and the
sign, the other 24 (and in double precision 29 of the next word) the place within the layer. In 97.2 % of cases that
is all. Otherwise the candidate lies in a layer's *wedge* and reads one more word, to be accepted or rejected, or in
the *tail* and reads as many as it needs. So where a candidate starts depends on all before it.

The way out: most words could only start a plain candidate. The few that may not, the *events*, are evaluated as if a
candidate started at each. Then it is known where each would end, and following these links from the first word on tells
which of them happen. Everything between two that happen is plain.

Every operation is in the precision of the result and in boost's order (boost/random/normal_distribution.hpp,
exponential_distribution.hpp, detail/int_float_pair.hpp), so results are equal to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np

__all__ = ["MARGIN", "normals", "unit", "words_per_candidate"]

Array = Any  # np.ndarray; numpy's own generic form differs between the versions supported

MARGIN = 256
"""Words that must follow a block: no candidate reads that many (the chance that one would is below 1e-70)."""


@dataclass(frozen=True)
class Layers:
    """A ziggurat of n layers between n + 1 lines: right ends ``x`` (falling to 0) and heights ``y`` (rising to 1).

    From line k to the next one x falls by ``run[k]`` and y rises by ``rise[k]``.
    """

    x: Array
    y: Array
    run: Array
    rise: Array


def _layers(count: int, base: str, edge: str, real: type, *, normal: bool) -> Layers:
    """Layers of equal area below exp(-x^2/2) or exp(-x).

    ``edge`` is where the tail starts, ``base`` how wide a layer of height f(edge) must be to have the area of all
    that lies below that height, the tail included. All else follows from these two.
    """
    with localcontext() as context:
        context.prec = 40
        x, y = [Decimal(base), Decimal(edge)], [Decimal(0)]
        y.append((-x[1] * x[1] / 2).exp() if normal else (-x[1]).exp())
        area = x[0] * y[1]
        for k in range(1, count - 1):
            y.append(y[k] + area / x[k])
            x.append((-2 * y[-1].ln()).sqrt() if normal else -y[-1].ln())
    lines = np.array([*map(float, x), 0.0]), np.array([*map(float, y), 1.0])
    return Layers(*(a.astype(real) for a in (*lines, -np.diff(lines[0]), np.diff(lines[1]))))


@cache
def _normal_layers(real: type) -> Layers:
    return _layers(128, "3.7130862467403632609", "3.4426198558966521214", real, normal=True)


@cache
def _exponential_layers(real: type) -> Layers:
    return _layers(256, "8.6971174701310497140", "7.6971174701310497140", real, normal=False)


_TILE = 1 << 14
"""Positions worked on at a time where all are treated alike: what is in between stays in the processor's cache."""

_LOW = 0x1FFFFFFF
"""The 29 bits that a candidate in double precision takes from its second word."""


def words_per_candidate(real: type) -> int:
    """Words that a plain candidate reads: 1 in float32, 2 in float64."""
    return 1 if real is np.float32 else 2


@cache
def _plain(real: type) -> tuple[Array, Array]:
    """For each value of the low eight bits: the layer's signed width, and the key from which on it may not be plain.

    The key is the word with the leading bits of the place within the layer. The limit may lie a little low, as what
    is not sure to be plain is evaluated in full.
    """
    x = _normal_layers(np.float64).x
    keys = 2**32 if real is np.float32 else 2**29
    limit = np.repeat(x[1:] / x[:-1] * (1 - 1e-6) * keys, 2).astype(np.uint32)
    width = np.repeat(x[:-1], 2) * np.tile([-1.0, 1.0], 128)
    return width.astype(real), limit


def _place(words: Array, following: Array, real: type) -> Array:
    """The place within the layer, in [0, 1): 24 bits of a word and, in double precision, 29 of the next one above."""
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
    table, step = _exponential_layers(real), words_per_candidate(real)
    value, at, todo = np.zeros(at.size, real), at.copy(), np.arange(at.size)
    while todo.size:
        here = at[todo]
        layer = (words[here] & 255).astype(np.intp)
        x = _place(words[here], words[here + 1], real) * table.x[layer]
        plain, base = x < table.x[layer + 1], layer == 0
        u, after = _units(words, here + step, real)
        y = table.y[layer] + u * table.rise[layer]
        above_chord = table.run[layer] * u - (table.x[layer] - x)
        above_tangent = y - (table.y[layer + 1] + (table.x[layer + 1] - x) * table.y[layer + 1])
        below = (above_chord < 0) & ((above_tangent < 0) | (y < _exp(-x, real)))
        accepted = plain | (~base & below)
        at[todo] = np.where(plain | base, here + step, after)
        # Below the lowest line but past its edge lies the same distribution once more, shifted by the edge.
        value[todo] += np.where(accepted, x, np.where(base, table.x[1], real(0)))
        todo = todo[~accepted]
    return value, at


def _tails(words: Array, at: Array, real: type) -> tuple[Array, Array]:
    """For each position a number of the normal distribution's tail and the position after it."""
    edge = _normal_layers(real).x[1]
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
    table, exact, step = _normal_layers(real), _normal_layers(np.float64).x, words_per_candidate(real)
    first = words[at]
    layer = ((first & 255) >> 1).astype(np.intp)
    left, height = table.x[layer], table.y[layer]
    x = _place(first, words[at + 1], real) * left
    # boost compares with the double precision table here, whatever the precision of x.
    plain, base = x < exact[layer + 1], layer == 0
    u, after = _units(words, at + step, real)
    y = height + u * table.rise[layer]
    above_chord = table.run[layer] * u - (left - x)
    above_tangent = y - (height + (left - x) * height * left)
    convex = exact[layer] >= 1
    out = np.where(convex, above_chord, above_tangent) >= 0
    sure = np.where(convex, above_tangent, above_chord) < 0
    accepted = plain | base | (~out & (sure | (y < _exp(-(x * x / 2), real))))
    end = np.where(plain, at + step, after)
    tail = np.flatnonzero(base & ~plain)
    x[tail], end[tail] = _tails(words, at[tail] + step, real)
    return np.where(first & 1, x, -x), end, accepted


def _happening(at: Array, end: Array, step: int) -> Array:
    """Which events happen: from position 0 on, each is followed by the first at or after its end and in step."""
    count = at.size
    end = np.append(end, 0)
    follower = np.empty(count + 1, np.intp)
    for phase in range(step):
        lane = np.flatnonzero(at & (step - 1) == phase)
        ends = np.flatnonzero(end & (step - 1) == phase)
        follower[ends] = np.append(lane, count)[np.searchsorted(at[lane], end[ends])]
    happens = bytearray(b"\1") * count
    happens[: follower[-1]] = bytes(follower[-1])
    # Most are followed by the very next; else those in between do not happen, if this one does.
    skips = np.flatnonzero(follower[:-1] > np.arange(1, count + 1))
    for k, following in zip(skips.tolist(), follower[skips].tolist(), strict=True):
        if happens[k]:
            happens[k + 1 : following] = bytes(following - k - 1)
    return np.frombuffer(happens, bool)


def _plain_pass(words: Array, span: int, real: type) -> tuple[Array, Array]:
    """What each of the first ``span`` positions gives if a plain candidate starts there, and which may not be plain."""
    width, limit = _plain(real)
    step = words_per_candidate(real)
    number: Array = np.empty(span, real)
    doubtful = np.empty(span, bool)
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

    Candidates start within ``count * words_per_candidate(real)`` words; the last may read on. A caller that wants
    ``count`` numbers calls again for those that were rejected.

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

    # Plain candidates follow the block's start and each event, in step with it. Of the words of an event only the first
    # gives a number, and only if accepted.
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
