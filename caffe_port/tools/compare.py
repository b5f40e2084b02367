"""The error between arrays, and its bounds.

The error of an exact port is that of real Caffe against itself under other BLAS kernels: sums in another order differ
by about 1e-6 of a blob's largest value; a wrong formula misses by 1e-3 or more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "BACKWARD",
    "FORWARD",
    "NEAR_TIES",
    "Comparison",
    "allowance",
    "compare",
    "error",
    "flat_switches",
    "masksum",
    "moments",
    "sample",
    "window_switches",
]

FORWARD, BACKWARD = 1e-5, 5e-5
"""Error = max |ours - reference| / max |reference| over a blob."""
NOISE = 10
"""Allowed error as a multiple of real Caffe's distance from itself under other BLAS kernels."""
NOISE_UNIT = 1e-6
"""Where a blob's largest value is smaller, noise is measured in this unit. The true values are zero, and all of it
is rounding: under six other BLAS kernels real Caffe differs from its own reference by 0.2 to 6.6 times the largest."""
NEAR_TIES, NEAR_TIES_FROM = 1e-3, 1000
"""Of a blob with over 1000 values this share may exceed the bound: a pooling window or ReLU whose inputs are equal up
to the last bits may take either branch."""
SAMPLED = 4096
"""Number of values of a large blob that are stored."""


@dataclass(frozen=True)
class Comparison:
    """One array compared with its reference.

    Attributes:
        key: the reference key, ``KIND/NAME``. size: how many values were compared.
        error: the largest distance as a share of the largest reference value; of switches, the share that differs.
        rms: the root of the mean square of the distances, on the same scale.
        outside: how many values exceed ``bound``. allowed: how many may, for near ties.
        found: another problem, such as a wrong shape; empty if there is none.
    """

    key: str
    size: int
    error: float
    rms: float
    outside: int
    bound: float
    allowed: int = 0
    found: str = ""

    @property
    def kind(self) -> str:
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        return self.key.partition("/")[2]

    @property
    def ok(self) -> bool:
        return not self.found and self.outside <= self.allowed

    def __str__(self) -> str:
        if self.found:
            return f"{self.key}: {self.found}"
        return f"{self.key}: error {self.error:.2e}, {self.outside} of {self.size} over {self.bound:.1e}"


def allowance(bound: float, noise: float, largest: float) -> float:
    """The bound for a blob with the largest reference value ``largest``, for which ``noise.json`` holds ``noise``."""
    noise *= NOISE
    return max(bound, noise * max(1.0, NOISE_UNIT / largest) if largest else noise)


def error(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Every value's distance, as a share of the reference's largest. Where both are NaN they agree."""
    scale = np.abs(theirs).max(initial=0.0) or 1.0
    off = np.abs(ours.astype(np.float64) - theirs) / scale
    return np.where(np.isnan(theirs) & np.isnan(ours), 0, off)


def compare(key: str, ours: np.ndarray, theirs: np.ndarray, bound: float, *, ties: bool = True) -> Comparison:
    """Compare an array with its reference; shapes may differ by axes of length one.

    Args:
        bound: the largest error allowed.
        ties: allow one value in 1000 of a large blob to exceed the bound. False where near ties are excluded.
    """
    if ours.size != theirs.size:
        found = f"shape {ours.shape}, reference {theirs.shape}"
        return Comparison(key, theirs.size, np.inf, np.inf, theirs.size, bound, found=found)
    ours = ours.reshape(theirs.shape)
    discrete = key.startswith("switch/")
    off = (ours != theirs).astype(np.float64) if discrete else error(ours, theirs)
    largest = np.inf if np.isnan(off).any() else float(off.max(initial=0.0))
    rms = float(np.sqrt(np.square(off).mean())) if off.size else 0.0
    outside = int((~(off <= bound)).sum())
    allowed = int(NEAR_TIES * off.size) if ties and off.size > NEAR_TIES_FROM and np.isfinite(largest) else 0
    return Comparison(key, off.size, float(off.mean()) if discrete else largest, rms, outside, bound, allowed)


def sample(array: np.ndarray, count: int = SAMPLED) -> np.ndarray:
    """The ``count`` values of a large blob that ``sample/`` keys hold."""
    return array.ravel()[np.random.RandomState(array.size).randint(0, array.size, count)]


def moments(array: np.ndarray) -> np.ndarray:
    """Mean, standard deviation, minimum and maximum, as ``moments/`` keys hold them."""
    wide = array.astype(np.float64)
    return np.array([wide.mean(), wide.std(), wide.min(), wide.max()])


def masksum(array: np.ndarray) -> np.ndarray:
    """The sum, and the sum of every value times its flat index modulo 97, as ``masksum/`` keys hold them."""
    wide = array.astype(np.float64).ravel()
    return np.array([wide.sum(), (wide * (np.arange(wide.size) % 97)).sum()])


def flat_switches(index: np.ndarray, width: int | None = None) -> np.ndarray:
    """Flat switches of a 2x2, stride-2 pooling from positions inside each window (2 * dy + dx).

    Args:
        index: (num, channels, pooled height, pooled width).
        width: of the plane that was pooled; twice the pooled one by default.
    """
    h, w = index.shape[2:]
    y = 2 * np.arange(h)[:, None] + index // 2
    x = 2 * np.arange(w) + index % 2
    return y * (2 * w if width is None else width) + x


def window_switches(flat: np.ndarray, width: int) -> np.ndarray:
    """The inverse: positions inside each window from flat switches over planes of that width."""
    h, w = flat.shape[2:]
    y, x = np.divmod(flat.astype(np.int64), width)
    return 2 * (y - 2 * np.arange(h)[:, None]) + (x - 2 * np.arange(w))
