"""DeconvNet over object proposals: each is segmented separately, a pixel's score of a class is the maximum over the
proposals.

Source: generate_EDeconvNet_CRF_results.m and preprocess_image_bb.m of DeconvNet's release; section 4.3 of Noh, Hong and
Han, "Learning Deconvolution Network for Semantic Segmentation", 2015. The release contains files of proposals for
VOC's test pictures, but not the program that derived them from EdgeBox's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.errors import CaffeError, DefinitionError
from caffe_port.net import Net
from caffe_port.segmentation.ensembles import ScoreNet, Scoring
from caffe_port.segmentation.fcn import resized
from caffe_port.segmentation.imresize import imresize
from caffe_port.segmentation.inference import as_input, checked
from caffe_port.segmentation.proposals import Boxes, edge_boxes, enlarged, forest

__all__ = ["PROPOSALS", "SMALLEST", "ProposalSegmenter"]

Array = np.ndarray[Any, np.dtype[Any]]

PROPOSALS = 50
"""The largest number of proposals that are segmented, in the release and here."""
SMALLEST, _OF = 112, 500
"""Proposals with a shorter side are omitted, in pictures whose longer side is 500."""
_CONTEXT = 1.2
"""Ratio of the sides of a window to those of its proposal, as in stage 2 of the training."""
_FOUND = 2000
"""Number of EdgeBox's proposals, of which enough are large (section 4.3)."""


class ProposalSegmenter(Scoring):
    """Segments pictures with DeconvNet: ``ProposalSegmenter(net)(picture)``.

    Args:
        net: as for :class:`ScoreNet`, with a square input and a score for each pixel.
        proposals: the largest number of windows; the first is the whole picture, the others are EdgeBox's best,
            enlarged.
        smallest: windows with a shorter side are omitted, except the whole picture; default: 112 pixels, or less in
            proportion in pictures whose longer side is below 500.
        model: a structured forest's file for EdgeBox (:func:`.proposals.edge_boxes`).
        batch: windows in a pass.
        windows: returns a picture's windows instead, such as those of a file: best first, possibly beyond the picture.
            ``proposals`` and ``smallest`` (default 112) apply, the whole picture is not added.
        aligned: correct positions. The release crops the picture from the padded scores one pixel too far up and left,
            so that its labels are one pixel too far down and right.

    Raises:
        DefinitionError: the net is not such a net. FileError, FormatError: no such model. CaffeError: no proposals.
    """

    def __init__(
        self,
        net: Net,
        *,
        proposals: int = PROPOSALS,
        smallest: float | None = None,
        model: str | Path | None = None,
        batch: int = 8,
        windows: Callable[[Array], Boxes] | None = None,
        aligned: bool = False,
    ) -> None:
        self._run = ScoreNet(net)
        self.nets, self.classes, self._size = (net,), self._run.classes, self._run.size[0]
        if {*self._run.size, *self._run.coarse} != {self._size}:
            raise DefinitionError(
                net.definition.path,
                f"scores {self._run.coarse} of an input {self._run.size}",
                expected="a square input and a score for each of its pixels",
            )
        if min(proposals, batch) < 1:
            raise CaffeError("ProposalSegmenter", f"{proposals} proposals in batches of {batch}", expected="1 or more")
        if model is not None:
            forest(str(model))
        self._proposals, self._smallest, self._model, self._batch = proposals, smallest, model, batch
        self._given, self._shift = windows, int(aligned)

    def prepare(self, picture: Array) -> tuple[Array, Boxes]:
        return checked(picture), self.windows(picture)

    def compute(self, prepared: Sequence[tuple[Array, Boxes]]) -> list[Array]:
        return [self._best(*one) for one in prepared]

    def fine(self, picture: Array, computed: Array) -> Array:
        height, width = picture.shape[:2]
        shift = self._shift
        return computed[:, shift : height + shift, shift : width + shift]

    def _best(self, picture: Array, windows: Boxes) -> Array:
        """Each pixel's largest scores over the windows, float32 (1 + classes, height + 1, width + 1), from the pixel
        (-1, -1); pixels outside all windows score 0, the smallest score."""
        height, width = picture.shape[:2]
        best = np.zeros((1 + self.classes, height + 1, width + 1), np.float32)
        for start in range(0, len(windows), self._batch):
            chunk = windows[start : start + self._batch]
            scores = self._run(np.concatenate([_cut(picture, box, self._size) for box in chunk]))
            for box, one in zip(chunk, scores, strict=True):
                _raise_to(best, one, box + 1)
        return best

    def windows(self, picture: Array) -> Boxes:
        """The windows that are segmented, int64 (n, 4): x1, y1, x2, y2, the last two inclusive."""
        height, width = picture.shape[:2]
        smallest, whole = self._smallest, np.zeros((0, 4), np.int64)
        if self._given is not None:
            boxes = np.asarray(self._given(picture), np.int64).reshape(-1, 4)
            smallest = SMALLEST if smallest is None else smallest
        else:
            whole = np.array([[0, 0, width - 1, height - 1]])
            if self._proposals == 1:
                return whole
            boxes = enlarged(edge_boxes(picture, _FOUND, self._model)[0], _CONTEXT)
            smallest = SMALLEST * min(1, max(height, width) / _OF) if smallest is None else smallest
        large = (boxes[:, 2:] - boxes[:, :2] + 1).min(1) >= smallest
        return np.concatenate([whole, boxes[large]])[: self._proposals]


def _cut(picture: Array, box: Array, size: int) -> Array:
    """A window's pixels, black beyond the picture, as the net's input (1, 3, size, size)."""
    x1, y1, x2, y2 = (int(n) for n in box)
    shown = np.zeros((y2 - y1 + 1, x2 - x1 + 1, 3))
    inside = picture[max(y1, 0) : max(y2 + 1, 0), max(x1, 0) : max(x2 + 1, 0)]
    top, left = max(-y1, 0), max(-x1, 0)
    shown[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return as_input(imresize(shown, (size, size), "bilinear"))


def _raise_to(best: Array, scores: Array, box: Array) -> None:
    """Update ``best`` with the maximum of a window's scores, float32 (n, size, size); ``box`` as in ``best``."""
    x1, y1, x2, y2 = (int(n) for n in box)
    fine = resized(scores, y2 - y1 + 1, x2 - x1 + 1)
    place = best[:, max(y1, 0) : max(y2 + 1, 0), max(x1, 0) : max(x2 + 1, 0)]
    top, left = max(-y1, 0), max(-x1, 0)
    np.maximum(place, fine[:, top : top + place.shape[1], left : left + place.shape[2]], out=place)
