"""Boxes to crop pictures to, drawn until they satisfy a constraint about the objects in the picture.

Source: util/sampler.cpp of weiliu89/caffe, branch ssd. Where it takes the square root of a float, compilers of its time
had only the one in double precision, and so that is taken. (A build with a newer one can get a box wider than the
picture and then stops.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe_port.data.batches import Array
from caffe_port.data.ssd_boxes import Box, area
from caffe_port.errors import CaffeError
from caffe_port.random import Stream
from caffe_port.random.ziggurat import unit

__all__ = ["Sampler"]

F = np.float32
_AT_ONCE = 64
"""Trials drawn together."""
_WORDS = 4
"""Random words of a trial, unless one is rejected."""


class Sampler:
    """A ``batch_sampler`` message.

    Several kinds of constraint do not combine in the original: a box passes as soon as it and any object pass the first
    kind given, of jaccard_overlap, sample_coverage and object_coverage in this order.

    Args:
        where: the layer, for errors.

    Attributes:
        never_passes: in words, why no box can ever pass; "" if one may.

    Raises:
        CaffeError: ranges that no box can be drawn from.
    """

    def __init__(self, p: Any, where: str) -> None:
        s, c = p.sampler, p.sample_constraint
        self.trials = p.max_trials if p.use_original_image else 0  # nothing else draws
        self.most = p.max_sample if p.HasField("max_sample") else self.trials
        self.scale, self.aspect = (F(s.min_scale), F(s.max_scale)), (F(s.min_aspect_ratio), F(s.max_aspect_ratio))
        self.kind, self.bounds, self.never_passes = "", (None, None), ""
        for kind in ("object_coverage", "sample_coverage", "jaccard_overlap"):
            low, high = (F(getattr(c, n)) if c.HasField(n) else None for n in (f"min_{kind}", f"max_{kind}"))
            if low is not None or high is not None:
                self.kind, self.bounds = kind, (low, high)
        low, high = self.bounds
        if (low is not None and low > 1) or (high is not None and high < 0):
            self.never_passes = f"{self.kind} lies between 0 and 1"
        elif low is not None and high is not None and low > high:
            self.never_passes = f"min_{self.kind} {low:g} is above max_{self.kind} {high:g}"
        if not self.trials or not self.most:
            return
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            found = "min_scale {:g} and max_scale {:g}".format(*self.scale)
            raise CaffeError(where, f"a sampler with {found}", expected="0 < min_scale <= max_scale <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1] < np.finfo(F).max:
            found = "min_aspect_ratio {:g} and max_aspect_ratio {:g}".format(*self.aspect)
            raise CaffeError(where, f"a sampler with {found}", expected="0 < min_aspect_ratio <= max_aspect_ratio")

    def boxes(self, objects: Sequence[Box], stream: Stream) -> list[Box]:
        """Draw until enough boxes are found or all trials are used up.

        Args:
            objects: those of the picture.
        """
        found: list[Box] = []
        left = self.trials
        with np.errstate(all="ignore"):
            corners = np.array([box[:4] for box in objects], F).reshape(-1, 4)
            sizes = np.array([area(box) for box in objects], F)
            while left and len(found) < self.most:
                drawn, words = self._draw(stream, min(left, _AT_ONCE))
                good = np.flatnonzero(self._accepts(drawn, corners, sizes))[: self.most - len(found)]
                used = int(good[-1]) + 1 if len(found) + len(good) == self.most else len(drawn)
                stream.skip(words * used)
                found += [Box(*drawn[i]) for i in good]
                left -= used
        return found

    def _draw(self, stream: Stream, count: int) -> tuple[Array, int]:
        """Boxes of up to ``count`` trials, one at least, and the words that each of them takes from the stream."""
        units = unit(stream.peek(_WORDS * count), F).reshape(count, _WORDS)
        boxes, fits = self._boxes(*(_between(units[:, i]) for i in range(_WORDS)))
        regular = count if fits.all() else int(np.argmin(fits))
        if regular:
            return boxes[:regular], _WORDS

        def one(low: Any, high: Any) -> tuple[Array, Any]:
            return stream.uniform(low.item(), high.item(), 1, fused=False), True

        return self._boxes(one, one, one, one)[0], 0

    def _boxes(self, *draws: Any) -> tuple[Array, Any]:
        """Boxes (n, 4) from four sources of uniform numbers, and whether none of these numbers would be drawn again."""
        scale, fits = draws[0](*self.scale)
        aspect, more = draws[1](*self.aspect)
        fits = fits & more
        square = scale.astype(np.float64) ** 2
        aspect = np.maximum(aspect, square.astype(F))
        aspect = np.minimum(aspect, (1 / square).astype(F))
        root = np.sqrt(aspect.astype(np.float64))
        width, height = (scale * root).astype(F), (scale / root).astype(F)
        left, more = draws[2](F(0), F(1) - width)
        top, most = draws[3](F(0), F(1) - height)
        return np.stack([left, top, left + width, top + height], 1), fits & more & most

    def _accepts(self, drawn: Array, corners: Array, sizes: Array) -> Array:
        """Which of the drawn boxes (n, 4) pass with any of the objects (m, 4), whose areas are ``sizes``."""
        if not self.kind:
            return np.ones(len(drawn), bool)
        a, b = drawn[:, None], corners[None]
        apart = (b[..., :2] > a[..., 2:]).any(-1) | (b[..., 2:] < a[..., :2]).any(-1)
        sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
        sides[apart] = 0
        shared = np.where((sides < 0).any(-1), F(0), sides[..., 0] * sides[..., 1])
        own = ((drawn[:, 2] - drawn[:, 0]) * (drawn[:, 3] - drawn[:, 1]))[:, None]
        if self.kind == "jaccard_overlap":
            value = np.where((sides > 0).all(-1), shared / (own + sizes - shared), F(0))
        else:
            value = np.where(shared > 0, shared / (own if self.kind == "sample_coverage" else sizes), F(0))
        low, high = self.bounds
        fails = np.zeros(value.shape, bool)
        if low is not None:
            fails |= value < low
        if high is not None:
            fails |= value > high
        return ~fails.all(1)


def _between(units: Array) -> Any:
    """Scales numbers from 0 to 1 to a range, as boost does; with them, which boost would not draw again."""

    def scaled(low: Any, high: Any) -> tuple[Array, Array]:
        end = np.nextafter(high, F(np.finfo(F).max))
        value = units * (end - low) + low
        return value, value < end

    return scaled
