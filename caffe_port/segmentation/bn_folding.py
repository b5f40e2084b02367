"""Folds the statistics of batch normalization into scale and shift, for inference: scale * x + shift.

The fork's BN always normalises by the current batch. For inference its statistics are averaged over many batches and
folded into scale and shift, with which a layer in ``bn_mode: INFERENCE`` normalises any single image.

Source: BN_make_INFERENCE_script.py of DecoupledNet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import CaffeError, DefinitionError
from caffe_port.layers.convolution import Convolution
from caffe_port.layers.normalization import BN
from caffe_port.net import Net

__all__ = ["Moments", "absorb", "fold", "measure"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Moments:
    """A BN layer's statistics, summed over passes.

    Attributes:
        layer: the layer. mean_top, variance_top: the blobs that hold them.
        mean, variance: sums, float32 (channels,), added as in the original.
        passes: their number. count: values of a channel in a pass.
    """

    layer: BN
    mean_top: str
    variance_top: str
    mean: Array = field(init=False)
    variance: Array = field(init=False)
    passes: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        self.mean = np.zeros(self.layer.scale.shape[1], np.float32)
        self.variance = np.zeros_like(self.mean)

    def add(self, tops: Mapping[str, Tensor], count: int) -> None:
        """Adds a pass of the net."""
        self.mean += tops[self.mean_top].numpy(force=True).ravel()
        self.variance += tops[self.variance_top].numpy(force=True).ravel()
        self.passes, self.count = self.passes + 1, count

    def folded(self, *, unbiased: bool) -> tuple[Array, Array]:
        """Scale and shift for INFERENCE, float32 (channels,)."""
        mean, variance = self.mean / np.float32(self.passes), self.variance / np.float32(self.passes)
        if unbiased:
            variance *= np.float32(self.count / max(self.count - 1, 1))
        scale, shift = (p.numpy(force=True).ravel() for p in (self.layer.scale, self.layer.shift))
        deviation = np.sqrt(variance + np.float32(self.layer.eps))
        return scale / deviation, shift - scale * mean / deviation


def measure(net: Net, batches: Iterable[Mapping[str, Tensor]]) -> list[Moments]:
    """The statistics of every BN layer over some passes.

    Args:
        net: in TEST, whose BN layers output their statistics as second and third tops that no layer reads.
        batches: the inputs of each pass, by blob name: empty for a net with a data layer.

    Raises:
        DefinitionError: a BN layer does not output its statistics, or there is none. CaffeError: no batches.
    """
    layers = _layers(net)
    for batch in batches:
        with torch.no_grad():
            tops = net(**batch)
        for top, moments in layers:
            shape = net.shapes[top]
            moments.add(tops, shape[0] * shape[2] * shape[3])
    if not layers[0][1].passes:
        raise CaffeError("measure", "no batches", expected="one or more")
    return [moments for _, moments in layers]


def _layers(net: Net) -> list[tuple[str, Moments]]:
    """The BN layers in LEARN mode, each with its top."""
    found = []
    for node, layer in net.nodes:
        if not isinstance(layer, BN) or not layer.learn:
            continue
        if len(node.tops) < 3 or not {*node.tops[1:]} <= {*net.graph.outputs}:
            raise DefinitionError(
                f"{node.where}: layer {node.name}",
                f"tops {', '.join(node.tops)}",
                expected="two more, its mean and its variance, which no layer reads",
                remedy="prototxt/decouplednet/*_make_inference.prototxt are such nets",
            )
        found.append((node.tops[0], Moments(layer, node.tops[1], node.tops[2])))
    if not found:
        raise DefinitionError(net.definition.path, "no BN layer with bn_mode: LEARN", expected="a net to be folded")
    return found


def fold(moments: Iterable[Moments], *, unbiased: bool = False) -> None:
    """Replace each layer's trained scale and shift by those for INFERENCE.

    Args:
        unbiased: the variance times m / (m - 1), with m values of a channel in a pass. The released script intends
            this, but divides integers in Python 2: its factor is 1, as is the default here.
    """
    for one in moments:
        scale, shift = one.folded(unbiased=unbiased)
        with torch.no_grad():
            one.layer.scale.copy_(torch.from_numpy(scale).view_as(one.layer.scale))
            one.layer.shift.copy_(torch.from_numpy(shift).view_as(one.layer.shift))


def absorb(net: Net, moments: Iterable[Moments]) -> None:
    """Fold BN layers into the convolutions before them: the same net without these layers.

    A layer's scale and shift become 1 and 0, so that the net with ``bn_mode: INFERENCE`` is unchanged, too.

    Raises:
        DefinitionError: a layer is not in place on the top of a convolution with a bias.
    """
    makers: dict[str, torch.nn.Module] = {}
    wanted = {id(one.layer) for one in moments}
    for node, layer in net.nodes:
        if id(layer) in wanted:
            maker = makers.get(node.bottoms[0])
            if not isinstance(maker, Convolution) or maker.bias is None or node.tops[0] != node.bottoms[0]:
                raise DefinitionError(
                    f"{node.where}: layer {node.name}",
                    f"BN of {node.bottoms[0]}",
                    expected="BN in place on the top of a Convolution with a bias",
                )
            with torch.no_grad():
                scale, shift = layer.scale.flatten(), layer.shift.flatten()
                maker.weight.mul_(scale.view(-1, *[1] * (maker.weight.dim() - 1)))
                maker.bias.mul_(scale).add_(shift)
                layer.scale.fill_(1)
                layer.shift.zero_()
        makers.update(dict.fromkeys(node.tops, layer))
