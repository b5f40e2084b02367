"""MATLAB's imresize: against its formula, pixel by pixel, and properties that hold without a formula."""

from __future__ import annotations

from math import ceil, floor

import numpy as np
import pytest

from caffe_port.errors import CaffeError
from caffe_port.segmentation.imresize import imresize


def kernel(method: str, x: float) -> float:
    x = abs(x)
    if method == "bilinear":
        return max(1 - x, 0)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0


def line(values: np.ndarray, length: int, factor: float, method: str, antialias: bool) -> list[float]:
    """One line resized: every new pixel is a weighted mean of those around it in the line and its mirror images."""
    n, stretch = len(values), factor if antialias and factor < 1 else 1.0
    new = []
    for i in range(length):
        centre = (i + 0.5) / factor - 0.5
        reach = range(floor(centre - 2 / stretch) - 1, ceil(centre + 2 / stretch) + 2)
        weights = [kernel(method, (centre - k) * stretch) for k in reach]
        pixels = [values[min(k % (2 * n), 2 * n - 1 - k % (2 * n))] for k in reach]
        new.append(sum(w * p for w, p in zip(weights, pixels, strict=True)) / sum(weights))
    return new


def formula(array: np.ndarray, size: tuple[int, int], factors: list[float], method: str, antialias: bool) -> np.ndarray:
    tall = np.array([line(column, size[0], factors[0], method, antialias) for column in array.T]).T
    return np.array([line(row, size[1], factors[1], method, antialias) for row in tall])


SIZES = [  # (height, width) before and after
    ((7, 5), (3, 11)),
    ((7, 5), (14, 10)),
    ((5, 7), (5, 7)),
    ((9, 4), (2, 3)),
    ((2, 3), (8, 5)),
    ((1, 6), (4, 2)),
    ((40, 3), (3, 2)),
]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
def test_the_formula(before: tuple[int, int], after: tuple[int, int], method: str, antialias: bool) -> None:
    array = np.random.RandomState(0).rand(*before, 2)
    factors = [b / a for a, b in zip(before, after, strict=True)]
    wanted = np.stack([formula(array[:, :, c], after, factors, method, antialias) for c in range(2)], 2)
    np.testing.assert_allclose(imresize(array, after, method, antialias=antialias), wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("factor", "size"), [(0.5, (4, 3)), (0.3, (3, 2)), (1.5, (11, 8)), (2, (14, 10))])
def test_a_factor(factor: float, size: tuple[int, int]) -> None:
    """Sizes are rounded up, and pixel positions follow the factor, not the sizes."""
    array = np.random.RandomState(0).rand(7, 5)
    wanted = formula(array, size, [factor, factor], "bicubic", True)
    np.testing.assert_allclose(imresize(array, factor), wanted, rtol=0, atol=1e-14)


def test_twice_the_size() -> None:
    twice = imresize(np.array([[1.0, 2.0], [3.0, 4.0]]), 2, "bilinear")
    assert twice.tolist() == [[1, 1.25, 1.75, 2], [1.5, 1.75, 2.25, 2.5], [2.5, 2.75, 3.25, 3.5], [3, 3.25, 3.75, 4]]


def test_a_constant_stays_and_a_ramp_keeps_its_mean() -> None:
    assert imresize(np.full((6, 8), 0.3), (17, 3)) == pytest.approx(np.full((17, 3), 0.3), abs=1e-15)
    ramp = np.arange(40.0)[None].repeat(4, 0)
    assert imresize(ramp, (4, 10)).mean() == pytest.approx(ramp.mean())


def test_types() -> None:
    """Each axis's result has the array's type: uint8 is rounded and clipped twice, float32 rounded twice."""
    board = np.array([[0, 9, 0, 9, 0], [0, 0, 9, 9, 9], [255] * 5, [255] * 5], np.uint8)
    first = np.clip(np.floor(imresize(board.astype(float), (4, 3)) + 0.5), 0, 255)
    unclipped = imresize(first, (9, 3))
    assert imresize(board, (9, 3)).dtype == np.uint8
    assert (imresize(board, (9, 3)) == np.clip(np.floor(unclipped + 0.5), 0, 255)).all()
    assert unclipped.min() < -1
    assert unclipped.max() > 256
    single = np.random.RandomState(0).rand(4, 5).astype(np.float32)
    wanted = imresize(imresize(single.astype(float), (4, 3)).astype(np.float32).astype(float), (9, 3))
    assert (imresize(single, (9, 3)) == wanted.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("array", "size", "method", "says"),
    [
        (np.zeros((2, 2)), (3, 3), "nearest", "expected bicubic or bilinear, found method 'nearest'"),
        (np.zeros((2, 2), np.int64), (3, 3), "bicubic", "an array of int64"),
        (np.zeros((0, 2)), (3, 3), "bicubic", "shape (0, 2) to (3, 3)"),
        (np.zeros((2, 2)), (0, 3), "bicubic", "shape (2, 2) to (0, 3)"),
        (np.zeros((2, 2)), (3, 3, 3), "bicubic", "shape (2, 2) to (3, 3, 3)"),
        (np.zeros(2), (3, 3), "bicubic", "shape (2,) to (3, 3)"),
        (np.zeros((2, 2)), 0, "bicubic", "shape (2, 2) to 0"),
    ],
    ids=str,
)
def test_wrong_input(array: np.ndarray, size, method: str, says: str) -> None:
    with pytest.raises(CaffeError) as error:
        imresize(array, size, method)
    assert says in str(error.value)
