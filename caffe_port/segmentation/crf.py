"""The dense CRF: labels of pixels with a preference for equal labels of near pixels and of similar colours.

Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import CaffeError, ShapeError
from caffe_port.layers.lattice import Lattice

__all__ = ["DECONVNET", "NORMALIZATIONS", "SETTINGS", "Kernel", "Setting", "dense_crf", "mean_field", "normalized"]

Array = np.ndarray[Any, np.dtype[Any]]
NORMALIZATIONS = ("none", "after", "symmetric")


class Filter(Protocol):
    """Weighted sums over all pixels: (pixels, channels) to the same; as :meth:`Lattice.filter`."""

    def __call__(self, values: Tensor, *, scale: float = 1, onto: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Kernel:
    """The cost of two pixels with different labels: ``weight * exp(-|p - q|^2 / 2)``.

    Attributes:
        space: the standard deviation of a pixel's position, in pixels.
        colour: of each of its colours, in 256 steps; None where colours are not used.
    """

    weight: float
    space: float
    colour: float | None = None

    def points(self, picture: Array) -> Array:
        """The picture's pixels as points in standard deviations, float64 (pixels, 2 or 5)."""
        y, x = np.indices(picture.shape[:2], np.float64)
        place = np.stack([x, y], -1) / self.space
        if self.colour is not None:
            place = np.concatenate([place, picture / self.colour], -1)
        return place.reshape(-1, place.shape[-1])


DECONVNET = (Kernel(3, space=3), Kernel(5, space=20, colour=3))
"""The settings of DeconvNet's ensemble: ten iterations, without normalization."""


@dataclass(frozen=True)
class Setting:
    """A published setting of :func:`dense_crf`."""

    kernels: tuple[Kernel, ...]
    iterations: int = 10
    normalization: str = "none"


SETTINGS = {
    "deconvnet": Setting(DECONVNET),
    "deeplab": Setting((Kernel(3, space=3), Kernel(4, space=49, colour=5)), normalization="after"),
}
"""By name: DeconvNet's ensemble (generate_EDeconvNet_CRF_results.m); DeepLab, WSSL too (their run_densecrf.sh, whose
program is the authors' of 2011)."""


def dense_crf(
    scores: Array,
    picture: Array,
    kernels: Sequence[Kernel] = DECONVNET,
    *,
    iterations: int = 10,
    normalization: str = "none",
    device: torch.device | str = "cpu",
) -> Array:
    """Each pixel's probability of each class.

    Args:
        scores: (classes, height, width), whose softmax over the classes is the unary probability. Logarithms of
            probabilities are such scores.
        picture: uint8 (height, width, 3).
        iterations: of the mean field.
        normalization: of the kernels' sums over a picture. "none": not normalised, as in the released DeconvNet.
            "after": divided by the sum of the pixel's weights, as in the paper of 2011. "symmetric": by its root
            before and after, as in newer versions of the authors' program.

    Returns:
        float32 (classes, height, width).

    Raises:
        ShapeError: scores and picture differ in size. CaffeError: no such normalization, or a standard deviation of 0
            or less.
    """
    if scores.ndim != 3 or picture.shape != (*scores.shape[1:], 3):
        raise ShapeError(
            "dense_crf",
            f"scores {scores.shape} with a picture {picture.shape}",
            expected="(classes, height, width) and (height, width, 3)",
        )
    if iterations < 0:
        raise CaffeError("dense_crf", f"{iterations} iterations", expected="0 or more")
    for kernel in kernels:
        if kernel.space <= 0 or (kernel.colour is not None and kernel.colour <= 0):
            raise CaffeError("dense_crf", f"{kernel}", expected="standard deviations above 0")
    flat = torch.from_numpy(np.array(scores.reshape(len(scores), -1).T, np.float32, order="C")).to(device)
    filters = [
        (kernel.weight, normalized(Lattice(kernel.points(picture), device).filter, flat[:, :1], normalization))
        for kernel in kernels
    ]
    probabilities = mean_field(flat, filters, iterations)
    return np.ascontiguousarray(probabilities.T.cpu().numpy()).reshape(scores.shape)


def mean_field(scores: Tensor, filters: Sequence[tuple[float, Filter]], iterations: int) -> Tensor:
    """The mean field's probabilities (pixels, classes), for the Potts model.

    A pixel is one of its own neighbours, as in the authors' program.

    Args:
        scores: (pixels, classes). filters: each with its weight.
    """
    probabilities, logits = scores.softmax(1), torch.empty_like(scores)
    for _ in range(iterations):
        logits.copy_(scores)
        for weight, run in filters:
            run(probabilities, scale=weight, onto=logits)
        torch.softmax(logits, 1, out=probabilities)
    return probabilities


def normalized(run: Filter, like: Tensor, kind: str) -> Filter:
    """A filter with one of the NORMALIZATIONS; ``like`` is (pixels, 1).

    Raises:
        CaffeError: no such kind.
    """
    if kind not in NORMALIZATIONS:
        raise CaffeError("dense_crf", f"normalization {kind!r}", expected=" or ".join(NORMALIZATIONS))
    if kind == "none":
        return run
    sums = run(torch.ones_like(like)) + 1e-20
    before, after = (None, sums) if kind == "after" else (sums.sqrt(),) * 2

    def divided(values: Tensor, *, scale: float = 1, onto: Tensor | None = None) -> Tensor:
        found = run(values if before is None else values / before).div_(after)
        return found.mul_(scale) if onto is None else onto.add_(found, alpha=scale)

    return divided
