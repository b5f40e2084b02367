"""What is done to a picture before a detector's net reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from caffe_port.errors import CaffeError, ShapeError

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["Preparation", "checked", "preparation_of"]

_VGG = (104.0, 117.0, 123.0)
_RES10 = (104.0, 177.0, 123.0)
_MOBILE = (127.5, 127.5, 127.5)


@dataclass(frozen=True)
class Preparation:
    """Preprocessing: blue, green, red; minus ``mean``, times ``scale``."""

    mean: tuple[float, ...]
    scale: float
    because: str
    """The reason for these values, as text."""

    def changed(self, mean: Sequence[float] | None, scale: float | None) -> Preparation:
        """With values of the user's, where they are given.

        Raises:
            CaffeError: not three means.
        """
        if mean is not None and len(mean) != 3:
            raise CaffeError("mean", f"{len(mean)} numbers", expected="3: of blue, green and red")
        return Preparation(
            tuple(self.mean if mean is None else mean), self.scale if scale is None else scale, self.because
        )


def preparation_of(net: Net) -> Preparation:
    """The preprocessing for an SSD net, derived from its definition.

    A ``transform_param`` with ``mean_value`` determines it. Otherwise it is that of well-known nets: MobileNet-SSD, the
    face detector of residual blocks, whose first layer is a BatchNorm, and those based on VGG-16.
    """
    layers = net.definition.net.layer
    for layer in layers:
        t = layer.transform_param
        if len(t.mean_value):
            mean = tuple(t.mean_value) * (3 if len(t.mean_value) == 1 else 1)
            return Preparation(mean, t.scale, f"transform_param of layer {layer.name}")
    if "mobilenet" in net.definition.net.name.lower():
        return Preparation(_MOBILE, 0.007843, "a MobileNet")
    if any(layer.type == "BatchNorm" and layer.bottom[0].split("_input")[0] in net.graph.inputs for layer in layers):
        return Preparation(_RES10, 1.0, "a net that begins with BatchNorm, as the face detector res10")
    return Preparation(_VGG, 1.0, "nets based on VGG-16")


def checked(picture: np.ndarray) -> np.ndarray:
    """The picture. Raises ShapeError if it is not of (height, width, 3)."""
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ShapeError("picture", f"shape {picture.shape}", expected="(height, width, 3)")
    return picture
