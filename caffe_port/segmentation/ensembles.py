"""Systems that segment pictures, each a :class:`~.system.System`.

DecoupledNet's is :class:`~.inference.Segmenter`, DeconvNet's :class:`~.deconvnet.ProposalSegmenter`, that of other nets
which score every class at every pixel :class:`~.fcn.FullyConvolutional`. This module has their common base, the
product of two of them, and a dense CRF for any.

Source: generate_EDeconvNet_CRF_results.m of DeconvNet's release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import CaffeError, DefinitionError
from caffe_port.net import Net
from caffe_port.segmentation.crf import SETTINGS, Setting, dense_crf
from caffe_port.segmentation.inference import DATA, MASKED, SEGMENTED
from caffe_port.segmentation.system import Segmentation, System

__all__ = ["KINDS", "Product", "Refined", "ScoreNet", "Scoring", "System", "kind_of", "present"]

Array = np.ndarray[Any, np.dtype[Any]]

KINDS = ("decouplednet", "deconvnet", "segnet", "pspnet", "deeplab", "plain")


def kind_of(net: Net) -> str:
    """A net's kind, one of KINDS: DecoupledNet has a second input, DeconvNet unpools, others go by their Caffe."""
    if MASKED in net.graph.inputs:
        return "decouplednet"
    if any(node.type == "Unpooling" for node, _ in net.nodes):
        return "deconvnet"
    of_caffe = {"segnet": "segnet", "pspnet": "pspnet", "deeplab1": "deeplab", "deeplab2": "deeplab"}
    return of_caffe.get(net.dialect.name, "plain")


class Scoring(System):
    """A system that scores each class at each pixel; the first of those with the largest score is the pixel's label.

    A segmentation's ``maps`` are the softmax of the scores, of all labels; its ``scores`` each class's largest share. A
    subclass defines :meth:`scores`, or the steps :meth:`prepare`, :meth:`compute` and :meth:`fine`.
    """

    def scores(self, picture: Array) -> Array:
        """The scores, float32 (1 + classes, height, width)."""
        return self.fine(picture, *self.compute([self.prepare(picture)]))

    def prepare(self, picture: Array) -> Any:
        return picture

    def compute(self, prepared: Sequence[Any]) -> list[Any]:
        return [self.scores(picture) for picture in prepared]

    def fine(self, picture: Array, computed: Any) -> Array:
        """The scores from the nets' results."""
        scores: Array = computed
        return scores

    def finish(self, picture: Array, computed: Any) -> Segmentation:
        scores = self.fine(picture, computed)
        maps = np.exp(scores - scores.max(0))
        maps /= maps.sum(0)
        pixels = scores.argmax(0).astype(np.uint8)
        return Segmentation(pixels, maps[1:].max((1, 2)), tuple(range(len(maps))), maps, present(pixels))


def present(pixels: Array, first: int = 1) -> tuple[int, ...]:
    """The labels from ``first`` on that a picture has."""
    return tuple(int(label) for label in np.unique(pixels) if label >= first)


class ScoreNet:
    """A net from ``data`` to the classes' scores, run without gradients.

    Args:
        net: in TEST: input ``data``, one output (or ``seg-score`` among others) with a channel for each label.

    Attributes:
        size, coarse: (height, width) of its input and of its scores, as declared. classes: without the background.

    Raises:
        DefinitionError: the net is not such a net.
    """

    def __init__(self, net: Net) -> None:
        outputs = [SEGMENTED] if SEGMENTED in net.graph.outputs else list(net.graph.outputs)
        data, made = net.shapes.get(DATA, ()), net.shapes[outputs[0]] if len(outputs) == 1 else ()
        if [*net.graph.inputs] != [DATA] or len(data) != 4 or data[1] != 3 or len(made) != 4 or not 2 <= made[1] <= 255:
            raise DefinitionError(
                net.definition.path,
                f"inputs {', '.join(net.graph.inputs) or 'none'}, outputs {', '.join(net.graph.outputs)}",
                expected=f"a deploy net from {DATA} (1 x 3 x height x width) to scores with a channel for each label",
            )
        maker = next(node for node, _ in reversed(net.nodes) if outputs[0] in node.tops)
        if maker.type == "Softmax":
            raise DefinitionError(maker.where, f"the softmax {maker.name}", expected="scores", remedy="remove it")
        self.net, self.classes, self._top = net, made[1] - 1, outputs[0]
        self.size, self.coarse = (data[2], data[3]), (made[2], made[3])

    def __call__(self, data: Array) -> Array:
        """The scores, float32 (n, 1 + classes, ...), of inputs float32 (n, 3, height, width)."""
        with torch.no_grad():
            scores: Tensor = self.net(**{DATA: torch.from_numpy(data).to(next(self.net.parameters()))})[self._top]
        return scores.float().numpy(force=True)


class Product(Scoring):
    """The ensemble: the product of two systems' scores, in which negative ones are 0.

    Raises:
        CaffeError: their numbers of classes differ.
    """

    def __init__(self, first: Scoring, second: Scoring) -> None:
        if first.classes != second.classes:
            found = f"nets of {first.classes} and of {second.classes} classes"
            raise CaffeError("the ensemble", found, expected="the same classes in both")
        self.nets, self.classes, self._both = (*first.nets, *second.nets), first.classes, (first, second)

    def prepare(self, picture: Array) -> tuple[Any, ...]:
        return tuple(system.prepare(picture) for system in self._both)

    def compute(self, prepared: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        ways = zip(self._both, zip(*prepared, strict=True), strict=True)
        return list(zip(*(system.compute(given) for system, given in ways), strict=True))

    def fine(self, picture: Array, computed: tuple[Any, ...]) -> Array:
        one, other = (
            np.maximum(system.fine(picture, its), 0) for system, its in zip(self._both, computed, strict=True)
        )
        product: Array = one * other
        return product


class Refined(System):
    """A system with a dense CRF over its maps. The segmentation's ``maps`` are the CRF's probabilities.

    Args:
        setting: default: DeconvNet's. device: of the CRF.
    """

    def __init__(
        self, system: System, setting: Setting = SETTINGS["deconvnet"], *, device: torch.device | str = "cpu"
    ) -> None:
        self.nets, self.classes, self.first, self.batch = system.nets, system.classes, system.first, system.batch
        self._system, self._setting, self._device = system, setting, device

    def prepare(self, picture: Array) -> Any:
        return self._system.prepare(picture)

    def compute(self, prepared: Sequence[Any]) -> list[Any]:
        return self._system.compute(prepared)

    def finish(self, picture: Array, computed: Any) -> Segmentation:
        found, setting = self._system.finish(picture, computed), self._setting
        with np.errstate(divide="ignore"):  # a share of 0 stays 0, as in the original
            logarithms = np.log(found.maps.clip(self._system.least))
        maps = dense_crf(
            logarithms,
            picture,
            setting.kernels,
            iterations=setting.iterations,
            normalization=setting.normalization,
            device=self._device,
        )
        pixels = np.array(found.labels, np.uint8)[maps.argmax(0)]
        return Segmentation(pixels, found.scores, found.labels, maps, present(pixels, found.first), found.first)
