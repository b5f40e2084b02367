"""Shapes of blobs and parameters of a net, by arithmetic alone, for the layer types that are used here."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, prod

from caffe_port.errors import LayerError
from prototxt.definition import Fields, Layer, Net

__all__ = ["Shape", "Shapes", "infer"]

Shape = tuple[int, ...]


@dataclass
class Shapes:
    """Blob name -> shape, and layer name -> shapes of its parameters."""

    blobs: dict[str, Shape] = field(default_factory=dict)
    params: dict[str, list[Shape]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The number of parameters."""
        return sum(prod(shape) for shapes in self.params.values() for shape in shapes)


def infer(net: Net, phase: str = "TEST") -> Shapes:
    """All shapes of ``net`` in ``phase``; a blob that is written in place has its last one.

    Raises:
        LayerError: a layer of a type that is not used here.
    """
    found = Shapes(blobs={name: tuple(shape) for name, shape in net.inputs.items()})
    for layer in net.layers(phase):
        bottoms = [found.blobs[name] for name in layer.bottoms]
        tops, params = _rule(layer, bottoms)
        found.blobs |= zip(layer.tops, tops, strict=True)
        if params:
            found.params[layer.name] = params
    return found


def _rule(layer: Layer, bottoms: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    """The shapes of a layer's tops and of its parameters."""
    of, n = layer.param, len(layer.tops)
    if "label_type" in of:
        images, size = of["batch_size"], of["crop_size"]
        pixels = (images, 1, size, size)
        labels = {"cls-label": (images, of.get("label_dim", 0), 1, 1), "seg-label": pixels, "weak-label": pixels}
        return [labels.get(top, (images, 3, size, size)) for top in layer.tops], []
    first = bottoms[0]
    images, channels, *sides = first
    kernel, stride, pad = of.get("kernel_size", 1), of.get("stride", 1), of.get("pad", 0)
    if layer.type == "CONVOLUTION":
        out = of["num_output"]
        reach = (kernel - 1) * of.get("dilation", 1)
        top = (images, out, *((side + 2 * pad - reach - 1) // stride + 1 for side in sides))
        return [top], [(out, channels, kernel, kernel), *_bias(of)]
    if layer.type == "DECONVOLUTION":
        out = of["num_output"]
        top = (images, out, *((side - 1) * stride + kernel - 2 * pad for side in sides))
        return [top], [(channels, out, kernel, kernel), *_bias(of)]
    if layer.type == "POOLING":
        return [(images, channels, *(ceil((side + 2 * pad - kernel) / stride) + 1 for side in sides))] * n, []
    if layer.type == "UNPOOLING":
        return [(images, channels, of["unpool_size"], of["unpool_size"])], []
    if layer.type == "BN":
        each = (1, channels, 1, 1)
        return [first, each, each][:n], [each, each]
    if layer.type == "CONCAT":
        if of.get("concat_dim") == 0:
            return [(sum(shape[0] for shape in bottoms), channels, *sides)], []
        return [(images, sum(shape[1] for shape in bottoms), *sides)], []
    if layer.type == "SLICE":  # in two, along the images
        (point,) = of["slice_point"]
        return [(count, channels, *sides) for count in (point, images - point)], []
    if layer.type == "UNIQUE_LABEL":
        return [(images, of["max_labels"], 1, 1)], []
    if layer.type == "ARGMAX":
        return [(images, 1, *sides)], []
    if layer.type == "CROP":
        return [(images, channels, *bottoms[1][2:])], []
    if layer.type in ("RELU", "SIGMOID", "DROPOUT", "ELTWISE", "ADAPTIVE_BIAS_CHANNEL"):
        return [first] * n, []
    if layer.type.endswith(("_ACCURACY", "_LOSS")):
        return [(1, 1, 1, 1)], []
    raise LayerError(layer.name or layer.type, f"no shape rule for {layer.type}", remedy="add it in prototxt/shapes.py")


def _bias(of: Fields) -> list[Shape]:
    return [(of["num_output"],)] if of.get("bias_term", True) else []
