"""Preprocessing inside an exported graph, from a picture to the net's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.export.onnx_graph import Graph, Value

__all__ = ["Picture", "Preprocessing"]


@dataclass
class Picture(Value):
    """A graph's input for pictures: uint8 (batch, height, width, channels) of any size."""

    picture: bool = True


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a picture, in this order: resize, reverse the channels, subtract the mean, scale.

    Attributes:
        mean: a number for each channel in the net's order (Caffe's: blue, green, red), or one for all.
        scale: multiplies after the mean is subtracted.
        size: (height, width) to resize to, bilinearly with pixel centres as OpenCV's; None takes the net's input size.
        rgb: pictures are red, green, blue, and the net's input is blue, green, red.
    """

    mean: Sequence[float] = ()
    scale: float = 1.0
    size: tuple[int, int] | None = None
    rgb: bool = False

    def write(self, g: Graph, name: str, shape: tuple[int, ...]) -> tuple[Picture, Value]:
        """The picture's input and the net's input value.

        Raises:
            CaffeError: the mean has another number of channels than the input, or the size is not the net's.
        """
        from onnx import TensorProto

        n, channels, *size = shape
        if len(self.mean) not in (0, 1, channels):
            raise CaffeError("mean", f"{len(self.mean)} numbers", expected=f"1 or {channels}, one for each channel")
        height, width = self.size or size
        if [height, width] != size and not g.dynamic_size:
            remedy = "write the size into the definition, or export with --dynamic-size"
            raise CaffeError(
                "input size", f"{height}x{width}", expected=f"the net's, {size[0]}x{size[1]}", remedy=remedy
            )
        picture = Picture(g.fresh(name), (n, height, width, channels))
        x = g.node("Cast", [picture], picture.shape, to=TensorProto.FLOAT)
        x = g.node("Transpose", [x], (n, channels, height, width), perm=[0, 3, 1, 2])
        batch = g.node("Shape", [x], (1,), start=0, end=1)
        sizes = g.node("Concat", [batch, g.constant([channels, height, width])], (4,), axis=0)
        x = g.node(
            "Resize",
            [x, "", "", sizes],
            (n, channels, height, width),
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
        if self.rgb:
            x = g.node("Gather", [x, g.constant(np.arange(channels)[::-1].copy())], x.shape, axis=1)
        if self.mean:
            mean = np.array(self.mean, np.float32).reshape(1, -1, 1, 1)
            x = g.node("Sub", [x, g.initializer(f"{name}.mean", mean)], x.shape)
        if self.scale != 1:
            x = g.node("Mul", [x, g.initializer(f"{name}.scale", np.float32(self.scale))], x.shape)
        return picture, x
