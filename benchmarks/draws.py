"""How fast random numbers are drawn, next to the limit: the Mersenne Twister's own words, one or two for a number.

    python benchmarks/draws.py [--count N] [--repeats R]

Prints millions a second on one core, the best of R repeats, and the seconds for DecoupledNet's 427 million parameters.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from caffe_port.random import Stream

PARAMETERS = 427_078_678

ROWS: list[tuple[str, Callable[[Stream, int], object]]] = [
    ("words (the limit, one a number)", lambda s, n: s.words(n)),
    ("uniform float32", lambda s, n: s.uniform(0, 1, n)),
    ("uniform float32, lower end not 0", lambda s, n: s.uniform(-1, 1, n)),
    ("uniform float64", lambda s, n: s.uniform(0, 1, n, np.float64)),
    ("bernoulli (dropout)", lambda s, n: s.bernoulli(0.5, n)),
    ("gaussian float32", lambda s, n: s.gaussian(0, 0.01, n)),
    ("gaussian float32, mean not 0", lambda s, n: s.gaussian(1, 0.01, n)),
    ("gaussian float64 (two words)", lambda s, n: s.gaussian(0, 0.01, n, np.float64)),
    ("shuffle", lambda s, n: s.shuffle(list(range(n // 16)))),
]


def rate(draw: Callable[[Stream, int], object], count: int, repeats: int) -> float:
    """Numbers a second in chunks of ``count``: the best of ``repeats``, after a warm-up that makes the tables."""
    stream = Stream(1)
    draw(stream, 1000)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        draw(stream, count)
        best = min(best, time.perf_counter() - start)
    return count / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000_000, help="numbers drawn at a time")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{'':34s} {'M/s':>7s} {'s for 427 M':>12s}")
    for name, draw in ROWS:
        speed = rate(draw, options.count, options.repeats)
        if name == "shuffle":
            speed /= 16
        print(f"{name:34s} {speed / 1e6:7.1f} {PARAMETERS / speed:12.1f}")
    numpys = np.random.RandomState(1)
    speed = rate(lambda _, n: numpys.standard_normal(n), options.count, options.repeats)
    print(f"{'numpy RandomState.standard_normal':34s} {speed / 1e6:7.1f} {PARAMETERS / speed:12.1f}")


if __name__ == "__main__":
    main()
