"""Reference cases: numbers that the two real programs computed, and how close ours must come.

Cases lie in ``tests/reference`` (part of the repository) and, all of them, in ``../shared/reference`` where that is there.
A case is a prototxt and an .npz whose keys say what each array is::

    in/BLOB param/LAYER/I   set before forward          seed/BLOB  diff set before backward
    out/BLOB                data after forward           diff/BLOB pdiff/LAYER/I  diffs after backward
    sample/BLOB             4096 values of it            after/LAYER/I  a parameter that forward changed
    moments/BLOB            mean, std, min, max          switch/BLOB masksum/BLOB  pooling switches
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

EMBEDDED = Path(__file__).parent / "reference"
SHARED = Path(__file__).resolve().parents[2] / "shared"

FORWARD, BACKWARD = 1e-5, 5e-5
"""Error = max |ours - reference| / max |reference| over a blob. Sums in another order differ by about 1e-6."""
NOISE = 10
"""How often real Caffe's own distance from itself, under other BLAS kernels, a case may be off (each suite's noise.json)."""
NOISE_UNIT = 1e-6
"""Where a blob's largest value is smaller, noise.json counts in this unit. Such numbers have the true value zero and are all
rounding: real Caffe under six other BLAS kernels differs from its own reference there by 0.2 to 6.6 times the blob's maximum."""
NEAR_TIES = 1e-3
"""Of a blob with over 1000 values this share may lie outside: a pooling window or ReLU whose inputs are equal to the last bits
may fall either way."""

_KINDS = {"out": FORWARD, "sample": FORWARD, "moments": FORWARD, "after": FORWARD, "diff": BACKWARD, "pdiff": BACKWARD}


@dataclass(frozen=True)
class Case:
    """One net with its numbers. ``prototxt`` is text or a path, as ``read_net`` takes it."""

    suite: str
    name: str
    prototxt: str
    npz: Path
    phase: str
    backward: bool
    dialect: str
    forwards: int = 1

    def __str__(self) -> str:
        return f"{self.suite}/{self.name}"

    @property
    def arrays(self) -> np.lib.npyio.NpzFile:
        return np.load(self.npz, allow_pickle=False)

    def bound(self, key: str) -> float:
        """How far the largest-scaled error of ``key`` may go."""
        bound = _KINDS[key.split("/")[0]]
        noise = NOISE * _noise(self.suite).get(self.name, {}).get(key, 0.0)
        largest = np.abs(self.arrays[key]).max(initial=0.0) if noise else 0.0
        return max(bound, noise * max(1.0, NOISE_UNIT / largest) if largest else noise)


def folder(suite: str) -> Path | None:
    """Where a suite lies: the whole one if it is there, else its embedded part."""
    for root in (SHARED / "reference", EMBEDDED):
        if (root / suite).is_dir():
            return root / suite
    return None


@cache
def _noise(suite: str) -> dict[str, dict[str, float]]:
    where = folder(suite)
    path = where / "noise.json" if where else None
    return json.loads(path.read_text()) if path and path.exists() else {}


def cases(suite: str, dialect: str) -> list[Case]:
    """The cases of a suite by its manifest; those whose .npz is not here are left out."""
    where = folder(suite)
    if where is None:
        return []
    manifest = json.loads((where / "manifest.json").read_text())
    return [
        Case(
            suite,
            name,
            entry.get("prototxt") or str(where / f"{name}.prototxt"),
            where / f"{name}.npz",
            entry["phase"],
            entry.get("backward", False),
            entry.get("dialect", dialect),
            entry.get("forwards", 1),
        )
        for name, entry in sorted(manifest.items())
        if (where / f"{name}.npz").exists()
    ]


def needs_shared(path: str):  # noqa: ANN201
    """Skip, visibly, where ``../shared/PATH`` is not there."""
    return pytest.mark.skipif(not (SHARED / path).exists(), reason=f"needs ../shared/{path}")


def sample(array: np.ndarray) -> np.ndarray:
    """The 4096 values that ``sample/`` keys hold."""
    return array.ravel()[np.random.RandomState(array.size).randint(0, array.size, 4096)]


def moments(array: np.ndarray) -> np.ndarray:
    """Mean, standard deviation, minimum and maximum, as ``moments/`` keys hold them."""
    wide = array.astype(np.float64)
    return np.array([wide.mean(), wide.std(), wide.min(), wide.max()])


def error(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Every value's distance, as a share of the blob's largest."""
    scale = np.abs(theirs).max(initial=0.0) or 1.0
    return np.abs(ours.astype(np.float64) - theirs) / scale


def outside(key: str, ours: np.ndarray, theirs: np.ndarray, bound: float, *, ties: bool = True) -> str:
    """What is wrong with an array, as text; empty if it is close enough."""
    if ours.size != theirs.size:
        return f"{key}: shape {ours.shape}, reference {theirs.shape}"
    off = error(ours.reshape(theirs.shape), theirs)
    off = np.where(np.isnan(theirs) & np.isnan(ours.reshape(theirs.shape)), 0, off)
    allowed = NEAR_TIES * off.size if ties and off.size > 1000 else 0
    if not (np.isnan(off) | (off > bound)).sum() <= allowed:
        return f"{key}: error {off.max():.2e} over {bound:.1e} in {(off > bound).sum()} of {off.size}"
    return ""


def switches(index: np.ndarray, window: np.ndarray | None = None) -> np.ndarray:
    """Flat switches of a 2x2, stride-2 pooling from positions inside each window (2 * dy + dx), for planes of twice the size."""
    h, w = index.shape[2:]
    y = 2 * np.arange(h)[:, None] + index // 2
    x = 2 * np.arange(w) + index % 2
    return y * (2 * w) + x
