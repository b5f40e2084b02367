"""Interp, a layer of the DeepLab and PSPNet forks, in one file: bilinear resizing with aligned corners."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers import Layer, layer
from caffe_port.layers.base import Shape


@layer("Interp", param="interp_param")
class Interp(Layer):
    """Resizes to ``height`` x ``width``, or first shrinks by ``shrink_factor``, then zooms by ``zoom_factor``.

    A negative ``pad_beg`` or ``pad_end`` crops that many rows and columns before or behind.
    """

    def setup(self, x: Shape) -> None:
        p = self.p
        self.crop = -p.pad_beg, -p.pad_end
        self.factors = p.shrink_factor, p.zoom_factor
        self.target = (p.height, p.width) if p.has("height") and p.has("width") else None
        if min(self.crop) < 0 or min(self.factors) < 1:
            raise self.error("a positive pad, or a factor below 1", expected="pads of 0 or less, factors of 1 or more")

    def reshape(self, x: Shape) -> list[Shape]:
        if len(x) != 4:
            raise self.shape_error(f"a bottom of shape {x}", expected="4 axes: num, channels, height, width")
        shrink, zoom = self.factors
        kept = [n - sum(self.crop) for n in x[2:]]
        return [(*x[:2], *(self.target or [(n - 1) // shrink * zoom + 1 for n in kept]))]

    def forward(self, x: Tensor) -> Tensor:
        size = self.reshape(tuple(x.shape))[0][2:]
        before, behind = self.crop
        x = x[:, :, before : x.shape[2] - behind, before : x.shape[3] - behind]
        return F.interpolate(x, size, mode="bilinear", align_corners=True)
