"""train_classifier: the classification net under DecoupledNet, from image-level labels (section 4.1 of the paper)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from caffe_port.definitions.vgg import STAGES
from caffe_port.errors import CaffeError, WeightsError
from caffe_port.formats import LayerWeights, open_weights, write_caffemodel
from caffe_port.spec import infer
from caffe_port.tools.cli import Parser, as_gflags, run
from caffe_port.tools.train_stage import PROTOTXT, add_stage_options, train_stage

if TYPE_CHECKING:
    from caffe_port.schema import Definition

__all__ = ["convolved", "main"]

SOLVER = PROTOTXT / "classification" / "train_cls_voc_solver.prototxt"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0 when done or stopped, 2 after an error."""
    parser = Parser(
        "train-classifier",
        "Train the classification net from image-level labels, in the folder of the lists. --weights takes"
        " any VGG-16, whose inner products become convolutions; without it, the net starts from its fillers.",
        example="solver.prototxt -o cls.caffemodel",
    )
    parser.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="a VGG-16 whose convolutions conv1_1 to conv5_3 to start from; the layers after them are drawn. If the"
        " net reads what they gave (build --kept), they are added to the result",
    )
    parser.add_argument(
        "solver", metavar="SOLVER.prototxt", nargs="?", default=str(SOLVER), help="default: %(default)s"
    )
    add_stage_options(parser, "classifier.caffemodel")
    parser.reads("solver", "init")
    run(_train, parser, as_gflags(argv))


def _train(arguments: argparse.Namespace) -> None:
    given, solver = arguments.weights, Path(arguments.solver)
    if given and arguments.init:
        raise CaffeError("--init and --weights", "both", expected="one: convolutions, or all layers to start from")
    fixed = _convolutions(arguments.init) if arguments.init else []
    names = {layer.name for layer in _definition(solver).net.layer} if fixed and solver.is_file() else {}

    def start(path: Path) -> str:
        if not fixed:
            return _start(solver, given, path)
        write_caffemodel(path, fixed, generation=1, overwrite=True)
        return str(path)

    begins = given or any(layer.name in names for layer in fixed)
    train_stage(arguments, solver, start if begins else None, what="the classification net", fixed=fixed)


def _convolutions(path: str) -> list[LayerWeights]:
    """The 13 convolutions of a VGG-16.

    Raises:
        WeightsError: one is missing.
    """
    layers = {layer.name: layer for layer in open_weights(path).layers if layer.blobs}
    names = [f"conv{stage}_{step}" for stage, (_, depth) in enumerate(STAGES, 1) for step in range(1, depth + 1)]
    if missing := [name for name in names if name not in layers]:
        raise WeightsError(path, f"no layer {missing[0]}", expected="the 13 convolutions of a VGG-16")
    return [LayerWeights(name, "Convolution", layers[name].blobs) for name in names]


def _start(solver: Path, weights: str, output: Path) -> str:
    """The weights to start from: the file itself, or ``output`` if inner products were converted to convolutions."""
    given = open_weights(weights)
    layers = convolved(_definition(solver), given.layers)
    if all(a is b for a, b in zip(layers, given.layers, strict=True)):
        return weights
    write_caffemodel(output, layers, generation=1, overwrite=True)
    return str(output)


def _definition(solver: Path) -> Definition:
    """The training net's."""
    from caffe_port.schema import read_solver
    from caffe_port.solver.nets import Nets

    return Nets(read_solver(solver), str(solver), None, None).train()[1]


def convolved(definition: Definition, layers: Sequence[LayerWeights]) -> list[LayerWeights]:
    """The layers with inner products as the convolutions that ``definition`` has under their names.

    An inner product over all of its bottom (N, C, H, W) is a convolution with windows of H x W: the same numbers,
    (outputs, C * H * W) as (outputs, C, H, W).

    Raises:
        WeightsError: a layer's size does not match such windows.
    """
    found = infer(definition, check=False).layers
    kernels = {
        spec.name: spec.kernel for spec in (layer.spec for layer in found) if spec and spec.type == "Convolution"
    }
    return [_convolved(layer, kernels[layer.name]) if layer.name in kernels else layer for layer in layers]


def _convolved(layer: LayerWeights, kernel: tuple[int, ...]) -> LayerWeights:
    weight = layer.blobs[0] if layer.blobs else None
    if weight is None or weight.shape[-2:] == kernel or prod(weight.shape[:-2]) != 1:
        return layer  # already a convolution's, or not an inner product's
    rows, columns = weight.shape[-2:]
    if columns % prod(kernel):
        raise WeightsError(
            f"{layer.name}[0]", f"shape {weight.shape}", expected=f"rows of {kernel[0]} x {kernel[1]} windows"
        )
    blobs = [weight.reshape(rows, -1, *kernel), *layer.blobs[1:]]
    return LayerWeights(layer.name, "Convolution", blobs)


if __name__ == "__main__":
    main()
