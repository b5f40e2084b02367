"""DecoupledNet's inference: the released procedure, and a faster one without repeated computation.

As released, the whole net runs once for the classes' scores, once with the scores of all classes found for the
background's map, and once for each class found, with only its score, for that class's map: :class:`PassByPass`.
:class:`Segmenter` runs the part that depends only on the picture once, and the rest in one batch; with one class found
the background's pass is that class's, and with none no further pass is needed. The labels are the same.

Source: DecoupledNet_inference.m, preprocess_image.m; section 4.3 of the paper, last paragraph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import DefinitionError, ShapeError
from caffe_port.net import Net
from caffe_port.segmentation.imresize import imresize
from caffe_port.segmentation.system import Segmentation, System
from caffe_port.segmentation.two_stage import TwoStage
from caffe_port.segmentation.voc import MEAN

__all__ = [
    "DEPLOY",
    "THRESHOLD",
    "Maps",
    "PassByPass",
    "Segmenter",
    "as_input",
    "checked",
    "enlarge",
    "prepare",
]

Array = np.ndarray[Any, np.dtype[Any]]

THRESHOLD = 0.5
"""A class is found if its score is above this."""

DEPLOY = "prototxt/decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt"
"""A net for inference."""

_ROWS = 8
"""The largest number of passes that run together."""

DATA, MASKED = "data", "cls-score-masked"
SCORES, SEGMENTED = "cls-score-avg-sigmoid", "seg-score"


@dataclass(frozen=True)
class Maps:
    """The results of the passes, at the net's size.

    Attributes:
        scores: of every class, float32 (classes,), 0 to 1.
        labels: 0, the background, and those (from 1) of the classes found.
        maps: of these labels, float32 (len(labels), size, size); their sum at each pixel is 1.
    """

    scores: Array
    labels: tuple[int, ...]
    maps: Array


class Segmenter(System):
    """Segments pictures: ``Segmenter(net)(picture)``.

    Args:
        net: a deploy net in TEST: inputs ``data`` and ``cls-score-masked``, outputs ``cls-score-avg-sigmoid`` and
            ``seg-score`` among others.
        threshold: the score above which a class is found.

    Raises:
        DefinitionError: the net is not such a net.
    """

    least = 1e-5
    """Lower bound of a map before a CRF takes its logarithm: bicubic interpolation undershoots 0."""
    batch = 4
    """The weights of the fully-connected layers are read once for all of these."""

    def __init__(self, net: Net, *, threshold: float = THRESHOLD) -> None:
        self.net, self.nets, self.threshold = net, (net,), threshold
        self.size, self.classes = _check(net)
        self._staged = TwoStage(net, [MASKED])

    def prepare(self, picture: Array) -> Array:
        return prepare(picture, self.size)

    def compute(self, prepared: Sequence[Array]) -> list[Maps]:
        first = self._staged.first(**{DATA: self._tensor(np.concatenate(prepared))})
        scores = first.tops[SCORES].flatten(1)
        found = [self.find(row) for row in scores]
        selections = [_selections(row, some) for row, some in zip(scores, found, strict=True)]
        # A class that is alone is its own background's pass; a picture without classes has none.
        selections = [
            passes if len(some) > 1 else passes[: len(some)] for passes, some in zip(selections, found, strict=True)
        ]
        rows, masked = [i for i, passes in enumerate(selections) for _ in passes], torch.cat(selections)
        tops = [
            self._staged.second(first, rows[i : i + _ROWS], **{MASKED: masked[i : i + _ROWS]})[SEGMENTED]
            for i in range(0, len(rows), _ROWS)
        ]
        segmented = torch.cat([scores.new_empty(0), *tops]).split([len(passes) for passes in selections])
        return [
            _combined(row, some, passes)
            if some
            else Maps(row.float().numpy(force=True), (0,), np.ones((1, self.size, self.size), np.float32))
            for row, some, passes in zip(scores, found, segmented, strict=True)
        ]

    def finish(self, picture: Array, computed: Maps) -> Segmentation:
        maps = enlarge(computed.maps, *picture.shape[:2])
        pixels = np.array(computed.labels, np.uint8)[maps.argmax(0)]
        return Segmentation(pixels, computed.scores, computed.labels, maps, computed.labels[1:])

    def maps(self, data: Array) -> Maps:
        """The maps of a prepared picture, float32 (1, 3, size, size)."""
        return self.compute([data])[0]

    def _tensor(self, data: Array) -> Tensor:
        return torch.from_numpy(data).to(next(self.net.parameters()))

    def find(self, scores: Tensor) -> list[int]:
        """The classes, from 0, that a picture with these scores (classes,) is taken to show."""
        found: list[int] = (scores > self.threshold).nonzero().flatten().tolist()
        return found


class PassByPass(Segmenter):
    """Segments as released, with the whole net for every pass: the reference for the faster method."""

    batch = 1

    def compute(self, prepared: Sequence[Array]) -> list[Maps]:
        return [self._one(self._tensor(data)) for data in prepared]

    def _one(self, x: Tensor) -> Maps:
        scores = self._run(x, x.new_zeros(1, self.classes, 1, 1))[SCORES].flatten()
        found = self.find(scores)
        passes = [self._run(x, row[None])[SEGMENTED] for row in _selections(scores, found)]
        return _combined(scores, found, torch.cat(passes))

    def _run(self, data: Tensor, masked: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.net(**{DATA: data, MASKED: masked})


def _check(net: Net) -> tuple[int, int]:
    """The side of the net's input and its number of classes.

    Raises:
        DefinitionError: not a net for inference.
    """
    inputs, outputs = {DATA, MASKED}, {SCORES, SEGMENTED}
    data, masked = net.shapes.get(DATA, ()), net.shapes.get(MASKED, ())
    fits = {*net.graph.inputs} == inputs and {*net.graph.outputs} >= outputs and net.shapes[SEGMENTED][1:2] == (2,)
    if not fits or len(data) != 4 or data[1] != 3 or data[2] != data[3] or len(masked) != 4:
        raise DefinitionError(
            net.definition.path,
            f"inputs {', '.join(net.graph.inputs) or 'none'}, outputs {', '.join(net.graph.outputs)}",
            expected=f"a deploy net from {DATA} (1 x 3 x N x N) and {MASKED} to {SCORES} and {SEGMENTED} (2 channels)",
            remedy=f"{DEPLOY} is one",
        )
    return data[2], masked[1]


def prepare(picture: Array, size: int) -> Array:
    """A picture as the net's input: float32 (1, 3, size, size), blue first, minus the mean.

    Zeros on the right or below make it square, before the mean is subtracted, and it is resized as MATLAB does.

    Args:
        picture: uint8 RGB (height, width, 3).

    Raises:
        ShapeError: it has another shape, or no pixels.
    """
    height, width = checked(picture).shape[:2]
    side = max(height, width)
    square = np.pad(picture.astype(np.float64), ((0, side - height), (0, side - width), (0, 0)))
    return as_input(imresize(square, (size, size), "bilinear"))


def checked(picture: Array) -> Array:
    """The picture.

    Raises:
        ShapeError: its shape is not (height, width, 3), or it has no pixels.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ShapeError("picture", f"shape {picture.shape}", expected="(height, width, 3)")
    return picture


def as_input(pixels: Array, mean: Sequence[float] = MEAN) -> Array:
    """Pixels (height, width, 3), red first, as VGG's nets' input: float32 (1, 3, height, width), minus the mean."""
    return np.ascontiguousarray((pixels[:, :, ::-1] - np.array(mean)).transpose(2, 0, 1), dtype=np.float32)[None]


def _selections(scores: Tensor, found: list[int]) -> Tensor:
    """The values of ``cls-score-masked``, (1 + classes found, classes, 1, 1): all scores found, then each alone."""
    alone = torch.zeros(len(found), len(scores)).to(scores)
    alone[range(len(found)), found] = scores[found]
    return torch.cat([alone.sum(0, keepdim=True), alone])[:, :, None, None]


def _combined(scores: Tensor, found: list[int], segmented: Tensor) -> Maps:
    """The maps from the passes' two channels: the first pass's background, each class's foreground.

    Args:
        segmented: ``seg-score`` of the background's pass and of each class's; for a single class one pass is both.
    """
    shares = segmented.float().softmax(1).numpy(force=True)
    foregrounds = shares[len(shares) - len(found) :, 1]
    maps = np.concatenate([shares[:1, 0], foregrounds]).astype(np.float64)
    total = maps.sum(0)
    maps[:, total <= 0] = 1
    maps /= np.where(total <= 0, len(maps), total)
    labels = (0, *(index + 1 for index in found))
    return Maps(scores.float().numpy(force=True), labels, maps.astype(np.float32))


def enlarge(maps: Array, height: int, width: int) -> Array:
    """Maps of the padded square at the size of the picture in it: (n, size, size) to (n, height, width)."""
    side = max(height, width)
    # In MATLAB Caffe's blobs have x as the first axis, which is resized first.
    return np.stack([imresize(one.T, (side, side))[:width, :height].T for one in maps])
