"""DeepLab v2's dense CRF as a layer.

Source: densecrf_layer.cpp, util/densecrf_pairwise.cpp, util/permutohedral.cpp (cdmh/deeplab-public-ver2).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.lattice import Array, Lattice

_VECTOR = 4
"""The original's lattice takes so many pixels at once; what fills up the last ones lies at 0 and adds corners there."""


@layer("DenseCRF", param="dense_crf_param", dialects=("deeplab2",))
class DenseCRF(Layer):
    """Mean-field inference over a picture's pixels; no gradient.

    Bottoms: scores (N, C, H, W), each item's real height and width (N, 1, 1, 2), pictures (N, 3, H, W). The top holds
    probabilities, or with ``output_probability: false`` their logarithms, and 0 outside the real size. As in the
    original all items are filtered by the first one's picture.
    """

    untraceable = "it works in host memory"

    bottoms = (3, 3)
    labels = (0, 1, 2)

    def setup(self, x: Shape, size: Shape, picture: Shape) -> None:
        p = self.p
        self.rounds, self.gives_probability = p.max_iter, p.output_probability
        position = p.pos_w, p.pos_xy_std
        bilateral = p.bi_w, p.bi_xy_std, p.bi_rgb_std
        for what, lists in (("pos_w, pos_xy_std", position), ("bi_w, bi_xy_std, bi_rgb_std", bilateral)):
            if len({len(values) for values in lists}) > 1:
                raise self.error(
                    f"{what} given {', '.join(str(len(v)) for v in lists)} times", expected="equally often"
                )
        if not bilateral[0]:
            raise self.error("no bi_w", expected="one or more, for the picture")
        if any(deviation == 0 for values in (*position[1:], *bilateral[1:]) for deviation in values):
            raise self.error("a standard deviation of 0", expected="numbers other than 0")
        self.kernels: list[tuple[float, float, float | None]] = [(w, s, None) for w, s in zip(*position, strict=True)]
        self.kernels += list(zip(*bilateral, strict=True))

    def reshape(self, x: Shape, size: Shape, picture: Shape) -> list[Shape]:
        if len(x) != 4 or size != (x[0], 1, 1, 2) or picture != (x[0], 3, *x[2:]):
            raise self.shape_error(
                f"bottoms of shapes {x}, {size} and {picture}", expected="(N, C, H, W), (N, 1, 1, 2) and (N, 3, H, W)"
            )
        return [x]

    def forward(self, x: Tensor, size: Tensor, picture: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        colours = picture[0].detach().float().cpu().numpy()
        for score, out, (h, w) in zip(x.detach(), y, size.flatten(1).long().tolist(), strict=True):
            if x.shape[2] <= h and x.shape[3] <= w:
                h, w = x.shape[2:]  # the picture was cropped
            elif h > x.shape[2] or w > x.shape[3] or min(h, w) < 1:
                raise self.shape_error(f"a real size of {(h, w)}", expected=f"at most {tuple(x.shape[2:])}")
            flat = score[:, :h, :w].permute(1, 2, 0).reshape(h * w, -1).float()
            probability = self.infer(flat, colours[:, :h, :w])
            if not self.gives_probability:
                probability = probability.clamp(min=torch.finfo(torch.float32).tiny).log()
            out[:, :h, :w] = probability.view(h, w, -1).permute(2, 0, 1)
        return y

    def infer(self, scores: Tensor, picture: Array) -> Tensor:
        """Probabilities (pixels, classes) of float32 scores, and a picture (3, height, width)."""
        filters = []
        for weight, space, colour in self.kernels:
            lattice = Lattice(_points(picture, space, colour), scores.device)
            share = 1 / (lattice.filter(_filled(torch.ones_like(scores[:, :1])))[: len(scores)] + 1e-20)
            filters.append((lattice, weight * share))
        probability = _softmax(scores)
        for _ in range(self.rounds):
            logits = scores.clone()
            for lattice, share in filters:
                logits += share * lattice.filter(_filled(probability))[: len(scores)]
            probability = _softmax(logits)
        return probability


def _filled(values: Tensor) -> Tensor:
    """With zeros at the end, up to a whole number of vectors."""
    return torch.nn.functional.pad(values, (0, 0, 0, -len(values) % _VECTOR))


def _points(picture: Array, space: float, colour: float | None) -> Array:
    """The pixels as points in standard deviations, float32 (pixels, 2 or 5), filled up with zeros."""
    y, x = np.indices(picture.shape[1:], np.float32)
    axes = [x / np.float32(space), y / np.float32(space)]
    if colour is not None:
        axes += [plane / np.float32(colour) for plane in picture]
    points = np.stack(axes, -1).reshape(-1, len(axes))
    return np.pad(points, ((0, -len(points) % _VECTOR), (0, 0)))


def _softmax(x: Tensor) -> Tensor:
    """The softmax over classes, where what lies more than 20 below the largest is exactly 0."""
    behind = x - x.max(1, keepdim=True).values
    e = torch.where(behind < -20, 0, behind.exp())
    return e / e.sum(1, keepdim=True)
