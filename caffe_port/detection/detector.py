"""A net with DetectionOutput as a function from pictures to objects, and which detector a net is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caffe_port.detection.objects import Found
from caffe_port.detection.preparation import checked, preparation_of
from caffe_port.detection.regions import RegionDetector
from caffe_port.errors import CaffeError

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["Detector", "detector_of"]


class Detector:
    """Finds objects by a net whose last layer is a DetectionOutput.

    Args:
        net: in TEST, with one input (num, 3, height, width), and the output of a DetectionOutput.
        mean, scale: what is subtracted from blue, green and red, and multiplied afterwards; None: detected.
        threshold: the smallest score of an object.

    Raises:
        CaffeError: the net has another input, or no DetectionOutput.
    """

    batch: int | None = None
    """The most pictures in a pass."""
    first_pixel = 0.0
    """What VOC's files and scores have added to coordinates: nothing, as in the original."""

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
        self.preparation = preparation_of(net).changed(mean, scale)
        classes: Any = {node.index: layer for node, layer in net.nodes}[makers[0].index]
        self.classes = [c for c in range(classes.classes) if c != classes.background]

    def prepared(self, picture: np.ndarray) -> np.ndarray:
        """The net's input (3, height, width) for a picture (height, width, 3) of uint8 red, green, blue."""
        import cv2

        height, width = self.size
        resized = cv2.resize(
            np.ascontiguousarray(checked(picture)[:, :, ::-1]), (width, height), interpolation=cv2.INTER_LINEAR
        )
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


def detector_of(net: Net, **options: Any) -> Detector | RegionDetector:
    """The detector that a net is for, with ``mean``, ``scale`` and ``threshold`` as both take them.

    Raises:
        CaffeError: it is for none.
    """
    if RegionDetector.fits(net):
        return RegionDetector(net, **options)
    if "rois" in net.graph.inputs:
        expected = "a net with DetectionOutput, or one from data and im_info that makes its own rois"
        raise CaffeError(
            net.definition.path, "rois as an input, of proposals made elsewhere (Fast R-CNN)", expected=expected
        )
    return Detector(net, **options)
