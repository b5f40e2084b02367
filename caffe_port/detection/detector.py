"""A net with DetectionOutput as a function from pictures to objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caffe_port.detection.objects import Found
from caffe_port.errors import CaffeError, ShapeError

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["Detector", "Preparation", "preparation_of"]

_VGG = (104.0, 117.0, 123.0)
_RES10 = (104.0, 177.0, 123.0)
_MOBILE = (127.5, 127.5, 127.5)


@dataclass(frozen=True)
class Preparation:
    """Preprocessing: resize to the net's input, blue, green, red; minus ``mean``, times ``scale``."""

    mean: tuple[float, ...]
    scale: float
    because: str
    """The reason for these values, as text."""


def preparation_of(net: Net) -> Preparation:
    """The preprocessing for a net, derived from its definition.

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


class Detector:
    """Finds objects by a net whose last layer is a DetectionOutput.

    Args:
        net: in TEST, with one input (num, 3, height, width), and the output of a DetectionOutput.
        mean, scale: what is subtracted from blue, green and red, and multiplied afterwards; None: detected.
        threshold: the smallest score of an object.

    Raises:
        CaffeError: the net has another input, or no DetectionOutput.
    """

    def __init__(
        self, net: Net, *, mean: Sequence[float] | None = None, scale: float | None = None, threshold: float = 0.5
    ) -> None:
        makers = [node for node, _ in net.nodes if node.type == "DetectionOutput" and node.tops[0] in net.graph.outputs]
        path = net.definition.path
        if len(makers) != 1:
            found = f"{len(makers)} outputs of DetectionOutput layers"
            raise CaffeError(path, found, expected="one", remedy="give the deploy net")
        (self.output,) = makers[0].tops
        shapes = {name: net.shapes[name] for name in net.graph.inputs}
        if len(shapes) != 1 or len(next(iter(shapes.values()))) != 4 or next(iter(shapes.values()))[1] != 3:
            raise CaffeError(path, f"inputs {shapes}", expected="one of shape (num, 3, height, width)")
        ((self.input, shape),) = shapes.items()
        self.net, self.size, self.threshold = net, shape[2:], threshold
        own = preparation_of(net)
        self.preparation = Preparation(
            tuple(own.mean if mean is None else mean), own.scale if scale is None else scale, own.because
        )
        if len(self.preparation.mean) != 3:
            raise CaffeError("mean", f"{len(self.preparation.mean)} numbers", expected="3: of blue, green and red")
        classes: Any = {node.index: layer for node, layer in net.nodes}[makers[0].index]
        self.classes = [c for c in range(classes.classes) if c != classes.background]

    def prepared(self, picture: np.ndarray) -> np.ndarray:
        """The net's input (3, height, width) for a picture (height, width, 3) of uint8 red, green, blue."""
        import cv2

        if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ShapeError("picture", f"shape {picture.shape}", expected="(height, width, 3)")
        height, width = self.size
        resized = cv2.resize(np.ascontiguousarray(picture[:, :, ::-1]), (width, height), interpolation=cv2.INTER_LINEAR)
        mean = np.array(self.preparation.mean, np.float32)
        ready = (resized.astype(np.float32) - mean) * np.float32(self.preparation.scale)
        return ready.transpose(2, 0, 1)

    def __call__(self, *pictures: np.ndarray) -> list[list[Found]]:
        """The objects of each picture, best first, in one pass of the net."""
        like = next(self.net.parameters(), torch.zeros(()))
        x = torch.from_numpy(np.stack([self.prepared(p) for p in pictures])).to(like.device, like.dtype)
        with torch.no_grad():
            rows = self.net(**{self.input: x})[self.output].reshape(-1, 7).float().cpu().numpy()
        found: list[list[Found]] = [[] for _ in pictures]
        for item, label, score, *box in rows[rows[:, 2].argsort(kind="stable")[::-1]].tolist():
            if label != -1 and score >= self.threshold:
                height, width = pictures[int(item)].shape[:2]
                edges = np.clip(box, 0, 1) * [width, height, width, height]
                found[int(item)].append(Found(int(label), score, tuple(edges.tolist())))
        return found
