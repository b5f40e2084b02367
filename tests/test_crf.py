"""The dense CRF compared with its authors' program and with sums over all pairs of pixels.

``reference/crf/densecrf.npz`` holds what ``DenseCRF2D::inference`` of Krähenbühl's densecrf gives, in the copy that
johannesu/meanfield-matlab carries (222c877), which the released DeconvNet calls. Its keys: normalization, then weight
and deviation of the smoothness, then weight and deviations (place, colour) of the bilateral kernel, then iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_port.errors import CaffeError, ShapeError
from caffe_port.layers import lattice
from caffe_port.layers.lattice import Lattice
from caffe_port.native import library
from caffe_port.segmentation.crf import DECONVNET, NORMALIZATIONS, Filter, Kernel, dense_crf, mean_field, normalized

RECORDED = dict(np.load(Path(__file__).parent / "reference" / "crf" / "densecrf.npz"))
PICTURE, SCORES = RECORDED.pop("picture"), RECORDED.pop("scores")


def exact(points: np.ndarray) -> np.ndarray:
    """The Gaussian's values between all points."""
    return np.exp(-((points[:, None] - points[None]) ** 2).sum(-1) / 2)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.fixture(params=["kernel", "torch"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(lattice, "library", lambda name: None)
    elif library("lattice") is None:
        pytest.skip("needs a C compiler")


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("key", RECORDED)
def test_as_the_authors_program(key: str) -> None:
    kind, numbers, iterations = key.split("/")
    smooth, near, bilateral, far, colour = map(float, numbers.split(","))
    kernels = (Kernel(smooth, near), Kernel(bilateral, far, colour))
    found = dense_crf(SCORES, PICTURE, kernels, iterations=int(iterations), normalization=kind)
    np.testing.assert_allclose(found, RECORDED[key], atol=5e-4)
    assert (found.argmax(0) == RECORDED[key].argmax(0)).all()


def test_defaults_are_the_released_settings() -> None:
    assert (DECONVNET[0].weight, DECONVNET[0].space, DECONVNET[0].colour) == (3, 3, None)
    np.testing.assert_array_equal(
        dense_crf(SCORES, PICTURE), dense_crf(SCORES, PICTURE, DECONVNET, iterations=10, normalization="none")
    )


@pytest.mark.parametrize(("d", "bound"), [(1, 0.01), (2, 0.02), (3, 0.04)])
def test_the_lattice_filters_as_the_gaussian_does(d: int, bound: float) -> None:
    rng = np.random.default_rng(d)
    points, values = rng.normal(size=(900, d)), rng.random((900, 3), np.float32)
    run = Lattice(points).filter
    means = run(torch.from_numpy(values)) / run(torch.ones(900, 1))
    weights = exact(points)
    np.testing.assert_allclose(means, weights @ values / weights.sum(1, keepdims=True), atol=bound)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_lattice_is_linear_and_symmetric_where_it_is_full(d: int) -> None:
    rng = np.random.default_rng(d)
    points = rng.normal(scale=0.3, size=(700, d))
    run = Lattice(points).filter
    a, b = torch.from_numpy(rng.random((2, 700, 1), np.float32))
    torch.testing.assert_close(run(2 * a + 3 * b), 2 * run(a) + 3 * run(b))
    torch.testing.assert_close((run(a) * b).sum(), (a * run(b)).sum(), rtol=0.02, atol=0)


@pytest.mark.skipif(library("lattice") is None, reason="needs a C compiler")
@pytest.mark.parametrize(("n", "d", "spread"), [(1, 1, 1), (7, 2, 9), (3000, 3, 2), (2500, 5, 4), (40000, 2, 20)])
def test_the_kernel_filters_as_torch_does_with_any_number_of_threads(
    n: int, d: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(n)
    points, before = rng.normal(scale=spread, size=(n, d)), torch.get_num_threads()
    values = [torch.from_numpy(rng.random((n, c), np.float32)) for c in (1, 3, 8, 13, 21, 32, 45)]
    onto = [torch.from_numpy(rng.random(v.shape, np.float32)) for v in values]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        made = Lattice(points)
        results.append([made.filter(v, scale=0.5, onto=o.clone()) for v, o in zip(values, onto, strict=True)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    monkeypatch.setattr(lattice, "library", lambda name: None)
    plain = Lattice(points)
    assert plain.corners == made.corners
    for found, v, o in zip(results[0], values, onto, strict=True):
        torch.testing.assert_close(found, o + 0.5 * plain.filter(v), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(made.filter(v), plain.filter(v), rtol=1e-5, atol=1e-6)


def test_distant_points_do_not_affect_each_other() -> None:
    run = Lattice(np.array([[0.0, 0, 0], [90, 0, 0], [0, 70, 500]])).filter
    values = torch.eye(3)
    found = run(values)
    assert torch.equal(found * (1 - values), torch.zeros(3, 3))
    assert (found.diagonal() > 0.2).all()


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_mean_field_with_exact_kernels_is_the_sum_over_all_pairs(kind: str) -> None:
    """The oracle: float64, pixel by pixel, class by class, with the cost of every other label."""
    kernels = (Kernel(0.4, 2.0), Kernel(0.6, 4.0, 30.0))
    scores, picture = SCORES[:3, :6, :7], PICTURE[:6, :7]
    flat = scores.reshape(3, -1).T.astype(np.float64)
    weights = []
    for kernel in kernels:
        matrix, sums = exact(kernel.points(picture)), exact(kernel.points(picture)).sum(1)
        scales = {"none": 1, "after": sums[:, None], "symmetric": np.sqrt(np.outer(sums, sums))}
        weights.append(kernel.weight * matrix / scales[kind])
    expected = softmax(flat)
    for _ in range(4):
        costs = np.zeros_like(flat)
        for i in range(len(flat)):
            for label in range(3):
                others = 1 - expected[:, label]
                costs[i, label] = sum(float(matrix[i] @ others) for matrix in weights)
        expected = softmax(flat - costs)

    def dense(kernel: Kernel) -> Filter:
        matrix = torch.from_numpy(exact(kernel.points(picture)))

        def run(values: torch.Tensor, *, scale: float = 1, onto: torch.Tensor | None = None) -> torch.Tensor:
            found = (matrix @ values) * scale
            return found if onto is None else onto.add_(found)

        return run

    like = torch.zeros(len(flat), 1, dtype=torch.float64)
    filters = [(kernel.weight, normalized(dense(kernel), like, kind)) for kernel in kernels]
    np.testing.assert_allclose(mean_field(torch.from_numpy(flat), filters, 4), expected, atol=1e-12)


def test_no_iteration_is_the_softmax() -> None:
    found = dense_crf(SCORES, PICTURE, iterations=0)
    np.testing.assert_allclose(found.reshape(4, -1).T, softmax(SCORES.reshape(4, -1).T), atol=1e-6)


WRONG: dict[str, tuple[Callable[[], object], type[CaffeError], str]] = {
    "size": (lambda: dense_crf(SCORES, PICTURE[:-1]), ShapeError, r"scores \(4, 29, 37\) with a picture"),
    "normalization": (lambda: dense_crf(SCORES, PICTURE, normalization="before"), CaffeError, "none or after"),
    "deviation": (lambda: dense_crf(SCORES, PICTURE, [Kernel(1, 0)]), CaffeError, "above 0"),
    "iterations": (lambda: dense_crf(SCORES, PICTURE, iterations=-1), CaffeError, "0 or more"),
    "no points": (lambda: Lattice(np.zeros((0, 2))), ShapeError, "finite"),
    "infinite": (lambda: Lattice(np.array([[0, np.inf]])), ShapeError, "finite"),
    "too wide": (lambda: Lattice(np.array([[0.0] * 5, [1e6] * 5])), ShapeError, "larger standard deviations"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused(case: str) -> None:
    call, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        call()
