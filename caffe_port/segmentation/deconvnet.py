"""DeconvNet over object proposals: each is segmented alone, a pixel's score of a class is the largest that any gave it.

Source: generate_EDeconvNet_CRF_results.m and preprocess_image_bb.m of DeconvNet's release; section 4.3 of Noh, Hong and
Han, "Learning Deconvolution Network for Semantic Segmentation", 2015. The release came with proposals for VOC's test
pictures in files; how they were made of EdgeBox's is not part of it.
"""

from __future__ import annotations

from collections.abc import Callable
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
"""At most so many are segmented, in the release and here."""
SMALLEST, _OF = 112, 500
"""Proposals with a side below are left out, in pictures whose longer side is 500."""
_CONTEXT = 1.2
"""How much longer than the proposal's the sides of its window are; stage 2 of the training has it so."""
_FOUND = 2000
"""EdgeBox's proposals among which there are enough large ones (section 4.3)."""


class ProposalSegmenter(Scoring):
    """Segments pictures with DeconvNet: ``ProposalSegmenter(net)(picture)``.

    Args:
        net: as :class:`ScoreNet` wants it, with a square input and a score for each pixel.
        proposals: at most so many windows; the first is the whole picture, the others are EdgeBox's best, enlarged.
        smallest: windows with a side below are left out, the whole picture never; without, 112 pixels, or less in
            pictures whose longer side is below 500, in proportion.
        model: a structured forest's file for EdgeBox (:func:`.proposals.edge_boxes`).
        batch: windows in a pass.
        windows: finds the windows in a picture in place of all this, such as those of a file: best first, some reach
            beyond it. ``proposals`` and ``smallest`` (112 without) count, the whole picture is not added.
        aligned: put scores where they belong. The release cuts the picture out of the padded scores one pixel too far
            up and left, so that its labels lie one pixel too far down and right.

    Raises:
        DefinitionError: the net is another one. FileError, FormatError: no such model. CaffeError: no proposals.
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
        self.classes, self._size = self._run.classes, self._run.size[0]
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

    def scores(self, picture: Array) -> Array:
        height, width = checked(picture).shape[:2]
        windows = self.windows(picture)
        # From the pixel (-1, -1) on; what no window shows scores 0, and no score is below.
        best = np.zeros((1 + self.classes, height + 1, width + 1), np.float32)
        for start in range(0, len(windows), self._batch):
            chunk = windows[start : start + self._batch]
            scores = self._run(np.concatenate([_cut(picture, box, self._size) for box in chunk]))
            for box, one in zip(chunk, scores, strict=True):
                _raise_to(best, one, box + 1)
        shift = self._shift
        return best[:, shift : height + shift, shift : width + shift]

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
    """What a window shows, black beyond the picture, as the net's input (1, 3, size, size)."""
    x1, y1, x2, y2 = (int(n) for n in box)
    shown = np.zeros((y2 - y1 + 1, x2 - x1 + 1, 3))
    inside = picture[max(y1, 0) : max(y2 + 1, 0), max(x1, 0) : max(x2 + 1, 0)]
    top, left = max(-y1, 0), max(-x1, 0)
    shown[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return as_input(imresize(shown, (size, size), "bilinear"))


def _raise_to(best: Array, scores: Array, box: Array) -> None:
    """Raise ``best`` to a window's scores, float32 (n, size, size), where it lies in it; ``box`` as in ``best``."""
    x1, y1, x2, y2 = (int(n) for n in box)
    fine = resized(scores, y2 - y1 + 1, x2 - x1 + 1)
    place = best[:, max(y1, 0) : max(y2 + 1, 0), max(x1, 0) : max(x2 + 1, 0)]
    top, left = max(-y1, 0), max(-x1, 0)
    np.maximum(place, fine[:, top : top + place.shape[1], left : left + place.shape[2]], out=place)
