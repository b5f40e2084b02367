"""Nets that score a whole picture at once, such as FCN-8s and DeepLab's.

Source: cache_FCN8s_results.m, preprocess_image.m of DeconvNet's release; Chen et al., "Semantic Image Segmentation with
Deep Convolutional Nets and Fully Connected CRFs", 2015, section 2 (scores are interpolated bilinearly).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from caffe_port.errors import CaffeError, DefinitionError
from caffe_port.net import Net
from caffe_port.segmentation.ensembles import ScoreNet, Scoring
from caffe_port.segmentation.imresize import imresize
from caffe_port.segmentation.inference import as_input, checked, prepare
from caffe_port.segmentation.voc import MEAN

__all__ = ["FITS", "FullyConvolutional", "resized"]

Array = np.ndarray[Any, np.dtype[Any]]

FITS = ("pad", "resize")


class FullyConvolutional(Scoring):
    """Segments with a net that scores a whole picture at once.

    Scores coarser than the input are interpolated bilinearly: with aligned corners if the sides are 8n + 1 pixels for n
        + 1
    scores (DeepLab's), else as in ``imresize``.

    Args:
        net: as for :class:`ScoreNet`.
        fit: "pad": zeros at the right and below, after the mean is subtracted, up to the net's input; the input grows
            with larger pictures, for which FCN-8s' released program raises an error. "resize": the picture is padded to
            a square and resized to the input as DecoupledNet's, the scores are resized back, bilinearly. Default: "pad"
            for nets with a score for each pixel or for the first, the last and every nth, "resize" for others.

        mean: with "pad", subtracted from blue, green and red.

    Raises:
        DefinitionError: the net is not such a net. CaffeError: no such fit.
    """

    def __init__(self, net: Net, *, fit: str | None = None, mean: Sequence[float] = MEAN) -> None:
        if fit not in (None, *FITS):
            raise CaffeError("fit", repr(fit), expected=" or ".join(FITS))
        self._run, self._mean = ScoreNet(net), tuple(mean)
        self.nets, self.classes = (net,), self._run.classes
        sides = list(zip(self._run.size, self._run.coarse, strict=True))
        self.fit = fit or ("pad" if all(n == m or _on_corners(n, m) for n, m in sides) else "resize")
        if self.fit == "resize" and self._run.size[0] != self._run.size[1]:
            raise DefinitionError(net.definition.path, f"input {self._run.size}", expected="a square one, to resize to")

    def prepare(self, picture: Array) -> Array:
        return self._padded(picture) if self.fit == "pad" else prepare(picture, self._run.size[0])

    def compute(self, prepared: Sequence[Array]) -> list[tuple[Array, tuple[int, ...]]]:
        return [(self._run(data), data.shape[2:]) for data in prepared]

    def fine(self, picture: Array, computed: tuple[Array, tuple[int, ...]]) -> Array:
        height, width = picture.shape[:2]
        scores = _at_size(*computed)
        if self.fit == "resize":
            scores = resized(scores, max(height, width), max(height, width))
        return scores[:, :height, :width]

    def _padded(self, picture: Array) -> Array:
        """The picture in the upper left of an input of a size that the net accepts."""
        data = as_input(checked(picture).astype(np.float64), self._mean)
        more = []
        for side, coarse, wanted in zip(self._run.size, self._run.coarse, data.shape[2:], strict=True):
            step = (side - 1) // (coarse - 1) if _on_corners(side, coarse) else -(-side // coarse)
            more.append((0, side + step * max(0, -((side - wanted) // step)) - wanted))
        return np.pad(data, [(0, 0), (0, 0), *more])


def _at_size(scores: Array, size: tuple[int, ...]) -> Array:
    """A score for each of an input's pixels, float32 (1 + classes, height, width), of scores (1, 1 + classes, ...)."""
    height, width = size
    if all(_on_corners(*sides) for sides in zip(size, scores.shape[2:], strict=True)):
        fine = torch.nn.functional.interpolate(
            torch.from_numpy(scores), (height, width), mode="bilinear", align_corners=True
        )
        return fine[0].numpy()
    return resized(scores[0], height, width)


def _on_corners(side: int, coarse: int) -> bool:
    """Whether the first and the last score coincide with the first and the last pixel: their distances are even, which
    is impossible if each score is the centre of equally many pixels."""
    return 1 < coarse < side and (side - 1) % (2 * (coarse - 1)) == 0


def resized(scores: Array, height: int, width: int) -> Array:
    """Scores (n, ...) at another size, float32 (n, height, width), as with MATLAB's bilinear ``imresize``."""
    if scores.shape[1:] == (height, width):
        return scores
    return imresize(scores.transpose(1, 2, 0), (height, width), "bilinear").transpose(2, 0, 1)
