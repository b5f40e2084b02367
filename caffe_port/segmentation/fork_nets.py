"""Nets of SegNet, PSPNet and DeepLab on whole pictures, prepared and read as each fork's own scripts do.

Source: Scripts/webcam_demo.py, test_bayesian_segnet.py of alexgkendall/SegNet-Tutorial; evaluation/eval_sub.m,
scale_process.m, pre_img.m, caffe_process.m of hszhao/PSPNet; voc12/config/*/test.prototxt of DeepLab, with
image_seg_data_layer.cpp and data_transformer.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import torch

from caffe_port.data.pictures import resize
from caffe_port.definitions import voc
from caffe_port.errors import CaffeError, DefinitionError, ShapeError
from caffe_port.net import Net
from caffe_port.segmentation.ensembles import present
from caffe_port.segmentation.fcn import FullyConvolutional
from caffe_port.segmentation.imresize import imresize
from caffe_port.segmentation.inference import DATA, checked
from caffe_port.segmentation.system import Segmentation, System

__all__ = ["PSPNET_MEAN", "DeepLab", "PSPNet", "SegNet", "base_of"]

Array = np.ndarray[Any, np.dtype[Any]]

PSPNET_MEAN = (103.939, 116.779, 123.68)
"""Blue, green, red."""

_VOC, _ADE, _CITYSCAPES = 21, 150, 19


class _Scores:
    """A net from ``data`` to scores of all labels: what its ArgMax or Softmax reads, or its output.

    Raises:
        DefinitionError: it has other inputs, or more than one such output.
    """

    def __init__(self, net: Net) -> None:
        path, shape = net.definition.path, net.shapes.get(DATA, ())
        ends = [node for node, _ in net.nodes if node.tops and {*node.tops} & {*net.graph.outputs}]
        if [*net.graph.inputs] != [DATA] or len(shape) != 4 or shape[1] != 3 or len(ends) != 1:
            found = f"inputs {', '.join(net.graph.inputs) or 'none'}, outputs {', '.join(net.graph.outputs)}"
            raise DefinitionError(
                path, found, expected=f"one input, {DATA}, of (num, 3, height, width), and one output"
            )
        self.net, self.count, self.size = net, shape[0], shape[2:]
        last = ends[0]
        self.blob = last.bottoms[0] if last.type in ("ArgMax", "Softmax") else last.tops[0]
        made = net.shapes[self.blob]
        if len(made) != 4 or not 2 <= made[1] <= 255:
            raise DefinitionError(path, f"scores of shape {made}", expected="(num, 2 to 255 labels, height, width)")
        self.labels = made[1]

    def __call__(self, data: Array) -> Array:
        """The scores, float32 (n, labels, ...), of float32 (n, 3, height, width)."""
        like = next(self.net.parameters())
        with torch.no_grad():
            made = self.net.forward(blobs=[self.blob], **{DATA: torch.from_numpy(data).to(like)})
        return made[self.blob].float().numpy(force=True)


class _Mapped(System):
    """A system that gives each label's share at each pixel.

    Args:
        first: the label of the net's first channel: 1 where 0 is none of the net's.
        background: whether label 0 is the background, which is not listed among the classes found.
    """

    def __init__(self, net: Net, *, first: int, background: bool) -> None:
        self._run = _Scores(net)
        self.labels = tuple(range(first, first + self._run.labels))
        self.first = 1 if background else first
        self.nets, self.classes = (net,), self._run.labels - background

    def prepare(self, picture: Array) -> Array:
        return checked(picture)

    def compute(self, prepared: Sequence[Array]) -> list[Array]:
        return [self.maps(picture) for picture in prepared]

    def finish(self, picture: Array, computed: Array) -> Segmentation:
        maps = computed
        pixels = np.array(self.labels, np.uint8)[maps.argmax(0)]
        own = len(maps) - self.classes
        return Segmentation(pixels, maps[own:].max((1, 2)), self.labels, maps, present(pixels, self.first), self.first)

    def maps(self, picture: Array) -> Array:
        """Each label's share, float32 (labels, height, width)."""
        raise NotImplementedError


class SegNet(_Mapped):
    """A net of SegNet: the picture is resized to its input, in BGR, nothing is subtracted.

    A net whose input holds several items (Bayesian SegNet) gets the picture in each, and its softmaxes are averaged.
    The scripts show labels at the net's size; here the shares are enlarged to the picture's, bilinearly.

    Args:
        net: in TEST, from ``data`` to scores or their softmax or argmax. Label 0 is the background where there are 21
            labels, as in its nets for PASCAL VOC, and a class elsewhere.
    """

    def __init__(self, net: Net) -> None:
        super().__init__(net, first=0, background=net_labels(net) == _VOC)

    def maps(self, picture: Array) -> Array:
        height, width = self._run.size
        resized = resize(np.ascontiguousarray(picture[:, :, ::-1]), (height, width), "picture")
        data = np.repeat(resized.transpose(2, 0, 1)[None].astype(np.float32), self._run.count, 0)
        shares = softmax(self._run(data)).mean(0)
        return resize(np.ascontiguousarray(shares.transpose(1, 2, 0)), picture.shape[:2], "picture").transpose(2, 0, 1)


class PSPNet(_Mapped):
    """A net of PSPNet: the picture at one or more scales, in windows of the net's input and mirrored too.

    Scores of a window and of its mirror image are added, then comes the softmax; shares are averaged where windows
    overlap, and over the scales.

    Args:
        net: in TEST, from ``data`` to scores. Labels count from 1 where there are 150, as its script writes those of
            ADE20K, and from 0 elsewhere; with 21, 0 is the background.
        base: the longer side of a picture at scale 1, less a pixel; default: 2048 for 19 labels (Cityscapes), 512 else.
        scales: what ``base`` is multiplied by. mean: subtracted from blue, green and red.

    Raises:
        CaffeError: no scale, or one below or at 0; a base below 1.
    """

    def __init__(
        self,
        net: Net,
        *,
        base: int | None = None,
        scales: Sequence[float] = (1.0,),
        mean: Sequence[float] = PSPNET_MEAN,
    ) -> None:
        labels = net_labels(net)
        super().__init__(net, first=int(labels == _ADE), background=labels == _VOC)
        self.base, self.scales, self.mean = base or base_of(labels), tuple(scales), np.array(mean, np.float32)
        if not self.scales or min(self.scales) <= 0 or self.base < 1:
            raise CaffeError("scales", f"{self.scales} of base {self.base}", expected="numbers above 0")
        if len(self.mean) != 3 or self._run.size[0] != self._run.size[1]:
            found = f"input {self._run.size}, {len(self.mean)} means"
            raise DefinitionError(net.definition.path, found, expected="a square one, and 3 means")

    def maps(self, picture: Array) -> Array:
        height, width = picture.shape[:2]
        total = np.zeros((height, width, len(self.labels)), np.float32)
        for scale in self.scales:
            long = self.base * scale + 1
            size = [long, long]
            if height > width:
                size[1] = _rounded(np.float32(long) / np.float32(height) * np.float32(width))
            else:
                size[0] = _rounded(np.float32(long) / np.float32(width) * np.float32(height))
            if min(size) < 1:
                found = f"a picture of {width} x {height} pixels, which scale {scale:g} makes {size[1]:g} x {size[0]:g}"
                raise ShapeError("picture", found, expected="one that keeps pixels")
            shares = self._at(imresize(picture, [ceil(n) for n in size], "bilinear"))
            found_shares = imresize(shares, (height, width), "bilinear")
            total += found_shares / found_shares.sum(2, keepdims=True)
        return (total / len(self.scales)).transpose(2, 0, 1)

    def _at(self, picture: Array) -> Array:
        """Shares (height, width, labels) of the picture at one size."""
        rows, columns = picture.shape[:2]
        crop = self._run.size[0]
        less = picture[:, :, ::-1].astype(np.float32) - self.mean
        if max(rows, columns) <= crop:
            return self._window(np.pad(less, ((0, crop - rows), (0, crop - columns), (0, 0))))[:rows, :columns]
        # The script fills up a picture of bytes here: with the mean rounded to whole numbers, which then leaves a rest.
        rest = np.floor(self.mean + np.float32(0.5)) - self.mean
        wide = np.broadcast_to(rest, (max(rows, crop), max(columns, crop), 3)).copy()
        wide[:rows, :columns] = less
        sides = wide.shape[:2]
        shares = np.zeros((*sides, len(self.labels)), np.float32)
        counts = np.zeros((*sides, 1), np.float32)
        step = ceil(crop * (2 / 3))
        starts = [[min(step * i, n - crop) for i in range(ceil((n - crop) / step) + 1)] for n in sides]
        for y in starts[0]:
            for x in starts[1]:
                window = np.s_[y : y + crop, x : x + crop]
                shares[window] += self._window(wide[window])
                counts[window] += 1
        return (shares / counts)[:rows, :columns]

    def _window(self, data: Array) -> Array:
        """Shares (crop, crop, labels) of a window (crop, crop, 3)."""
        planes = np.ascontiguousarray(data.transpose(2, 0, 1))[None]
        scores = self._run(planes) + self._run(np.ascontiguousarray(planes[..., ::-1]))[..., ::-1]
        if scores.shape[2:] != data.shape[:2]:
            found = f"scores of {scores.shape[2:]} for an input of {data.shape[:2]}"
            raise DefinitionError(self._run.net.definition.path, found, expected="one for each pixel")
        return softmax(scores)[0].transpose(1, 2, 0)


class DeepLab(FullyConvolutional):
    """A net of DeepLab: as :class:`FullyConvolutional` with zeros around the picture, and DeepLab's mean.

    Args:
        mean: subtracted from blue, green and red; None: of a ``transform_param`` in the net, or 104.008, 116.669,
            122.675.
    """

    def __init__(self, net: Net, *, mean: Sequence[float] | None = None) -> None:
        own = (tuple(layer.transform_param.mean_value) for layer in net.definition.net.layer)
        super().__init__(net, fit="pad", mean=mean or next((it for it in own if len(it) == 3), voc.MEAN))


def base_of(labels: int) -> int:
    """PSPNet's base size for a net of so many labels."""
    return 2048 if labels == _CITYSCAPES else 512


def net_labels(net: Net) -> int:
    """The channels of a net's scores."""
    return _Scores(net).labels


def softmax(scores: Array) -> Array:
    """Over the channels, axis 1."""
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def _rounded(number: Any) -> int:
    """MATLAB's round: halves away from 0."""
    return int(np.floor(number + np.float32(0.5)))
