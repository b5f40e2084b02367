"""What the page shows of an array: statistics, a histogram, its first channels as a picture."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

__all__ = ["BINS", "SIDE", "as_url", "channels", "picks", "statistics"]

BINS = 32
"""Bars of a histogram."""
SIDE = 56
"""Pixels of a channel's longer side; of a larger one every so many are shown."""
_CHUNK = 1 << 22
_LARGEST = 5


def statistics(array: np.ndarray) -> dict[str, Any]:
    """Count, mean, standard deviation, minimum, maximum, zeros, what is not finite, and a histogram of the rest.

    Returns:
        ``counts`` are those of :data:`BINS` bins of equal width from ``min`` to ``max``; where both are equal, one.
    """
    flat = np.asarray(array).reshape(-1)
    pieces = [flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK)]
    low, high, total, zeros, odd = np.inf, -np.inf, 0.0, 0, 0
    for piece in pieces:
        values = _finite(piece)
        odd += piece.size - values.size
        zeros += int((values == 0).sum())
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            total += float(values.sum(dtype=np.float64))
    count = flat.size - odd
    found = {"count": flat.size, "zeros": zeros, "not_finite": odd}
    if not count:
        return {**found, "mean": None, "std": None, "min": None, "max": None, "counts": []}
    mean, squares = total / count, 0.0
    counts = np.zeros(BINS if low < high else 1, np.int64)
    for piece in pieces:
        values = _finite(piece).astype(np.float64)
        squares += float(np.square(values - mean).sum())
        if low < high:
            counts += np.histogram(values, BINS, (low, high))[0]
        else:
            counts += values.size
    std = float(np.sqrt(squares / count))
    return {**found, "mean": mean, "std": std, "min": low, "max": high, "counts": counts.tolist()}


def _finite(values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    return values if finite.all() else values[finite]


def picks(length: int) -> np.ndarray:
    """Which of ``length`` pixels a channel's picture shows."""
    return np.arange(length) if length <= SIDE else np.linspace(0, length - 1, SIDE).round().astype(np.int64)


def channels(array: np.ndarray, most: int) -> dict[str, Any]:
    """The first item's first channels side by side as one grey picture, each from its smallest value to its largest.

    Of an item without height and width, its largest values in place of a picture.

    Args:
        array: (items, channels, height, width), or anything else.
    """
    if array.ndim != 4 or array.shape[2] * array.shape[3] == 1:
        if array.ndim < 2 or not array.size:
            return {}
        values = np.asarray(array[0]).reshape(-1)
        values = np.where(np.isfinite(values), values, -np.inf)
        best = np.argsort(-values, kind="stable")[:_LARGEST]
        return {"largest": [[int(i), float(values[i])] for i in best]}
    if not array.size:
        return {}
    rows, columns = picks(array.shape[2]), picks(array.shape[3])
    shown = np.asarray(array[0, :most], np.float64)
    ranges, strip = [], []
    for plane in shown:
        finite = _finite(plane)
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        ranges.append([low, high])
        grey = (plane[np.ix_(rows, columns)] - low) * (255 / (high - low) if high > low else 0)
        strip.append(np.nan_to_num(grey, nan=0, posinf=255, neginf=0).clip(0, 255).astype(np.uint8))
    return {
        **{"url": as_url(np.concatenate(strip, 1)), "ranges": ranges, "height": len(rows), "width": len(columns)},
        "channels": array.shape[1],
    }


def as_url(picture: np.ndarray) -> str:
    """A uint8 picture (height, width) or (height, width, RGB) as a ``data:`` address: PNG, or JPEG in colour."""
    from PIL import Image

    file = io.BytesIO()
    kind = "png" if picture.ndim == 2 else "jpeg"
    Image.fromarray(picture).save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
