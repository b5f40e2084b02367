"""What SSD puts between its feature maps and its boxes: Permute, Normalize, PriorBox.

Source: permute_layer.cpp, normalize_layer.cpp, prior_box_layer.cpp (ssd).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caffe_port.layers.backward import Backward, Gradients
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.functions import Function
from caffe_port.spec import ssd


@layer("Permute")
class Permute(ssd.Permute, Layer):
    """The axes in another ``order``; those that it does not list follow in rising order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view_as(x) if self.shares_memory else x.permute(self.order).contiguous()


class _Normalized(Function):
    """scale * x / norm. The gradient is Caffe's: that of scale is read off the top, sum(y dy) / scale."""

    own_gradient = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float, over: tuple[int, ...]) -> Tensor:
        norm = (x * x).sum(over, keepdim=True).add_(eps).sqrt_()
        y = (x / norm).mul_(scale)
        ctx.save_for_backward(x, y, norm, scale)
        ctx.over = over
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, y, norm, scale = ctx.saved_tensors
        dx = _to_bottom(grad, x, norm, scale, ctx.over) if ctx.needs_input_grad[0] else None
        return dx, _to_scale(grad, y, scale) if ctx.needs_input_grad[1] else None, None, None


def _to_bottom(grad: Tensor, x: Tensor, norm: Tensor, scale: Tensor, over: tuple[int, ...]) -> Tensor:
    along = (x * grad).sum(over, keepdim=True) / norm / norm
    return (grad - x * along).div_(norm).mul_(scale)


def _to_scale(grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return (y * grad).sum([i for i in range(y.dim()) if scale.shape[i] == 1], keepdim=True) / scale


@layer("Normalize")
class Normalize(ssd.Normalize, Layer):
    """``scale`` * x / sqrt(sum of squares + ``eps``), the sum over an item or (``across_spatial: false``) a cell.

    ``scale`` is learned, one for all channels or (``channel_shared: false``) one for each. Gradients are Caffe's: that
    of a scale is sum(y dy) / scale, nan for a scale of 0; that of the bottom is the true one only where all channels
    have one scale, and 0 in place. In a cell of zeros it is dy scale / sqrt(eps), 10^5 dy by default.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _Normalized.run(x, self._scale(x), self.eps, self._over(x))

    def _scale(self, x: Tensor) -> Tensor:
        return self.scale.reshape(1, -1, *(1,) * (x.dim() - 2))

    def _over(self, x: Tensor) -> tuple[int, ...]:
        return tuple(range(1, x.dim())) if self.across else (1,)

    def caffe_gradient(self, b: Backward) -> Gradients:
        given, x, y, grad = b.given[0], b.bottoms[0], b.tops[0], b.diffs[0]
        scale, over = self._scale(given).detach(), self._over(given)
        dscale = _to_scale(grad, y, scale).reshape(self.scale.shape)
        if not b.wanted[0]:
            return [None], {"scale": dscale}
        if b.in_place:  # what is subtracted has been written over what it is subtracted from
            return [torch.zeros_like(grad)], {"scale": dscale}
        norm = (given * given).sum(over, keepdim=True).add_(self.eps).sqrt_()
        return [_to_bottom(grad, x, norm, scale, over)], {"scale": dscale}


@dataclass(frozen=True)
class Priors:
    """How PriorBox lays boxes over the cells of a feature map.

    Attributes:
        sizes, larger: ``min_size`` and ``max_size``, cut to whole numbers. ratios: width by height, without 1.
        image, step: (height, width) in pixels, or None to take them from the bottoms.
    """

    sizes: tuple[int, ...]
    larger: tuple[int, ...]
    ratios: tuple[float, ...]
    variances: tuple[float, ...]
    image: tuple[int, int] | None
    step: tuple[float, float] | None
    offset: float
    clip: bool

    @property
    def count(self) -> int:
        """Boxes in a cell."""
        return len(self.sizes) * (1 + len(self.ratios)) + len(self.larger)

    def shapes(self) -> np.ndarray:
        """(count, 2) widths and heights in pixels, single precision."""
        found: list[tuple[Any, Any]] = []
        for i, size in enumerate(self.sizes):
            found.append((size, size))
            if self.larger:
                found.append((np.sqrt(size * self.larger[i]),) * 2)
            roots = np.sqrt(np.array(self.ratios, np.float32))
            found += [(np.float32(size) * root, np.float32(size) / root) for root in roots]
        return np.array(found, np.float32)

    def boxes(self, cells: tuple[int, int], image: tuple[int, int]) -> np.ndarray:
        """(rows * columns * count * 4,) xmin, ymin, xmax, ymax in parts of the image; rounded where Caffe rounds."""
        image = self.image or image
        single = np.float32
        step = self.step or tuple(single(n) / single(c) for n, c in zip(image, cells, strict=True))
        y, x = (
            (np.arange(c, dtype=single) + single(self.offset)) * single(s) for c, s in zip(cells, step, strict=True)
        )
        halves = self.shapes().astype(np.float64) / 2
        made = np.empty((*cells, self.count, 4))
        for axis, centre, n in ((0, x[None, :, None], image[1]), (1, y[:, None, None], image[0])):
            made[..., axis] = (centre - halves[:, axis]) / n
            made[..., axis + 2] = (centre + halves[:, axis]) / n
        rounded = made.astype(single).ravel()
        return rounded.clip(0, 1) if self.clip else rounded


@lru_cache(maxsize=64)
def _laid(priors: Priors, cells: tuple[int, int], image: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(1, 2, n) boxes over their variances. No tensor: one made while torch exports has no values."""
    boxes = priors.boxes(cells, image)
    variances = np.resize(np.array(priors.variances, np.float32), boxes.shape)
    return np.stack((boxes, variances))[None]


@layer("PriorBox")
class PriorBox(ssd.PriorBox, Layer):
    """Boxes of set sizes and shapes around every cell of the first bottom, in parts of the second one's image.

    Of both bottoms only height and width count. Top: (1, 2, cells * boxes * 4), boxes, and their variances. For each
    ``min_size`` a cell has a square, one of sqrt(min_size * max_size) if there are ``max_size``, then one box of each
    ratio (with ``flip`` its inverse too). Sizes are cut to whole numbers.
    """

    def setup(self, x: Shape, data: Shape) -> None:
        super().setup(x, data)
        self.priors = Priors(
            sizes=tuple(map(int, self.min_size)),
            larger=tuple(map(int, self.max_size)),
            ratios=self.ratios,
            variances=self.variances,
            image=self.image,
            step=self.step,
            offset=self.offset,
            clip=self.clip,
        )

    def forward(self, x: Tensor, data: Tensor) -> Tensor:
        found = _laid(self.priors, ssd.full(tuple(x.shape))[2:], ssd.full(tuple(data.shape))[2:])
        return torch.tensor(found, device=x.device, dtype=x.dtype)
