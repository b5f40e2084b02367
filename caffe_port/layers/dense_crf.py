"""DeepLab v2's dense CRF as a layer.

Source: densecrf_layer.cpp, util/densecrf_pairwise.cpp, util/permutohedral.cpp (cdmh/deeplab-public-ver2).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caffe_port.layers.base import Layer, layer
from caffe_port.layers.lattice import Array, Lattice
from caffe_port.spec import deeplab2

_VECTOR = 4
"""Vector length of the original's lattice; padding of the last vector lies at 0 and adds corners there."""


@layer("DenseCRF")
class DenseCRF(deeplab2.DenseCRF, Layer):
    """Mean-field inference over a picture's pixels; no gradient.

    Bottoms: scores (N, C, H, W), each item's real height and width (N, 1, 1, 2), pictures (N, 3, H, W). The top holds
    probabilities, or with ``output_probability: false`` their logarithms, and 0 outside the real size. As in the
    original all items are filtered by the first one's picture.
    """

    untraceable = "it works in host memory"

    def forward(self, x: Tensor, size: Tensor, picture: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        colours = picture[0].detach().float().cpu().numpy()
        for score, out, (h, w) in zip(x.detach(), y, size.flatten(1).long().tolist(), strict=True):
            if x.shape[2] <= h and x.shape[3] <= w:
                h, w = x.shape[2:]  # of a cropped picture
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
    """Padded with zeros to a multiple of the vector length."""
    return torch.nn.functional.pad(values, (0, 0, 0, -len(values) % _VECTOR))


def _points(picture: Array, space: float, colour: float | None) -> Array:
    """The pixels as points in standard deviations, float32 (pixels, 2 or 5), padded with zeros."""
    y, x = np.indices(picture.shape[1:], np.float32)
    axes = [x / np.float32(space), y / np.float32(space)]
    if colour is not None:
        axes += [plane / np.float32(colour) for plane in picture]
    points = np.stack(axes, -1).reshape(-1, len(axes))
    return np.pad(points, ((0, -len(points) % _VECTOR), (0, 0)))


def _softmax(x: Tensor) -> Tensor:
    """The softmax over classes; inputs more than 20 below the largest give exactly 0."""
    behind = x - x.max(1, keepdim=True).values
    e = torch.where(behind < -20, 0, behind.exp())
    return e / e.sum(1, keepdim=True)
