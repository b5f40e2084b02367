"""train_classifier: the classification net under DecoupledNet, from image-level labels (section 4.1 of the paper)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from caffe_port.errors import WeightsError
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
        "solver", metavar="SOLVER.prototxt", nargs="?", default=str(SOLVER), help="default: %(default)s"
    )
    add_stage_options(parser, "classifier.caffemodel")
    parser.reads("solver")
    run(_train, parser, as_gflags(argv))


def _train(arguments: argparse.Namespace) -> None:
    given = arguments.weights

    def start(path: Path) -> str:
        return _start(Path(arguments.solver), given, path)

    solver = Path(arguments.solver)
    train_stage(arguments, solver, start if given else None, what="the classification net")


def _start(solver: Path, weights: str, output: Path) -> str:
    """The weights to start from: the file itself, or ``output`` if inner products were converted to convolutions."""
    from caffe_port.schema import read_solver
    from caffe_port.solver.nets import Nets

    _, definition = Nets(read_solver(solver), str(solver), None, None).train()
    given = open_weights(weights)
    layers = convolved(definition, given.layers)
    if all(a is b for a, b in zip(layers, given.layers, strict=True)):
        return weights
    write_caffemodel(output, layers, generation=1, overwrite=True)
    return str(output)


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
