"""fp_bp: weights of the classification net for the net that holds its backward pass as layers.

DecoupledNet's bridge needs the gradient of the class scores with respect to pool5 in its forward pass (section 4.3 of
the paper). So the forward-backward net has, for some layers X of the classification net, a layer ``X-bp`` that computes
X's backward pass: a deconvolution with X's weights, or for a 1x1 kernel a convolution with the transposed ones.
The biases are zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from caffe_port.definitions import published
from caffe_port.errors import DefinitionError, WeightsError, nearest
from caffe_port.formats import Weights, open_weights, write_net
from caffe_port.formats.atomic import check_output
from caffe_port.formats.naming import torch_shape
from caffe_port.spec import infer
from caffe_port.tools.cli import Parser, read_options, run, table
from caffe_port.tools.progress import progress

if TYPE_CHECKING:
    from caffe_port.schema import Definition

__all__ = ["DEFINITION", "DerivedLayer", "convert", "main", "write"]

SUFFIX = "-bp"
DEFINITION = published() / "decouplednet" / "fp_bp_network.prototxt"
_TYPES = ("Convolution", "Deconvolution")


@dataclass(frozen=True)
class DerivedLayer:
    """A layer of the forward-backward net with its parameters: ``how`` they derive from layer ``source``."""

    layer: str
    source: str
    how: str
    blobs: list[np.ndarray]


def convert(definition: Definition, weights: Weights) -> list[DerivedLayer]:
    """The parameters of every layer of ``definition`` that has some.

    Args:
        definition: of a net of convolutions and deconvolutions, with layers ``X-bp`` beside layers ``X``.
        weights: of the classification net; arrays of the result are views of them wherever that is possible.

    Raises:
        DefinitionError: no layer is called ``X-bp``, or one cannot be the backward pass of its X.
        WeightsError: a layer or blob is missing, or has another shape than the net requires.
    """
    layers: dict[str, Any] = {
        layer.message.name: layer.spec for layer in infer(definition, check=False).layers if layer.params
    }
    sources = {source.name: source for source in weights.layers if source.blobs}
    for layer in layers.values():
        if layer.type not in _TYPES:
            where = f"{layer.where}: layer {layer.name}"
            raise DefinitionError(where, f"a {layer.type} with parameters", expected=" or ".join(_TYPES))
    if not any(_base(name, layers) for name in layers):
        raise DefinitionError(
            definition.path, f"no layer X{SUFFIX} beside a layer X", expected="a forward-backward net"
        )
    made = []
    for layer in layers.values():
        base = _base(layer.name, layers)
        name = base or layer.name
        if name not in sources:
            near = nearest(name, sources)
            remedy = f"near: {near}" if near else "check that it is the classification net's file"
            raise WeightsError(weights.path, f"no layer {name!r}", remedy=remedy)
        blobs = [blob for blob in sources[name].blobs if blob is not None]
        _check(weights.path, name, blobs, layers[name].blob_shapes)
        how = "copied"
        if base:
            how = _backward_weights(layers[base], layer)
            blobs = [blobs[0].transpose(1, 0, 2, 3) if how == "transposed" else blobs[0]]
            weight, *others = layer.blob_shapes.values()
            if blobs[0].shape != weight:
                where = f"{layer.where}: layer {layer.name}"
                raise DefinitionError(
                    where, f"weights {weight}", expected=f"{blobs[0].shape} for the backward pass of {base}"
                )
            blobs += [np.zeros(shape, np.float32) for shape in others]
        made.append(DerivedLayer(layer.name, name, how, blobs))
    return made


def _base(name: str, layers: dict[str, Any]) -> str:
    """X, if ``name`` is ``X-bp``."""
    base = name.removesuffix(SUFFIX)
    return base if base != name and base in layers else ""


def _backward_weights(forward: Any, backward: Any) -> str:
    """How the backward layer uses the weights of ``forward``: "unchanged" or "transposed".

    Raises:
        DefinitionError: ``backward`` is not the backward pass of ``forward``.
    """
    geometry = _geometry(forward)
    if forward.type == "Convolution" and _geometry(backward) == geometry:
        if backward.type == "Deconvolution":
            return "unchanged"
        if geometry == ((1, 1), (1, 1), (0, 0), (1, 1), 1):
            return "transposed"
    raise DefinitionError(
        f"{backward.where}: layer {backward.name}",
        f"a {backward.type} that is not the backward pass of {forward.name}, a {forward.type}",
        expected="a Deconvolution with the same kernel, stride, pad, dilation and group (or, for 1x1, a Convolution)",
    )


def _geometry(layer: Any) -> tuple[Any, ...]:
    return layer.kernel, layer.stride, layer.pad, layer.dilation, layer.group


def _check(path: str, name: str, blobs: Sequence[np.ndarray], shapes: dict[str, tuple[int, ...]]) -> None:
    if len(blobs) != len(shapes):
        raise WeightsError(f"{path}: {name}", f"{len(blobs)} blobs", expected=f"{len(shapes)} as the net has")
    for index, (blob, wanted) in enumerate(zip(blobs, shapes.values(), strict=True)):
        if torch_shape(blob.shape, len(wanted)) != wanted:
            raise WeightsError(
                f"{path}: {name}[{index}]",
                f"shape {blob.shape}",
                expected=f"{wanted} as the net has",
                remedy="give the net of the file's width with --prototxt (caffe-port build --width ...)",
            )


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "fp-bp",
        "Make the weights of the forward-backward net from those of the classification net. Needs no torch.",
        example="classifier.caffemodel --prototxt net.prototxt",
    )
    parser.add_argument("weights", metavar="CLASSIFICATION.caffemodel", help="or any other file of weights")
    parser.add_output(help="default: CLASSIFICATION_fp_bp.caffemodel")
    parser.add_argument("--prototxt", metavar="NET", default=str(DEFINITION), help="default: %(default)s")
    parser.add_quiet()
    parser.add_dialect()
    parser.reads("weights", "prototxt")
    run(_convert, parser, argv)


def write(
    source: str | Path,
    output: str | Path,
    prototxt: str | Path = DEFINITION,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> tuple[Weights, dict[str, DerivedLayer]]:
    """:func:`convert` from file to file: the classification net's weights, and the result by layer.

    Args:
        prototxt: the forward-backward net. quiet: without progress. options: as ``read_net`` has them.
    """
    from caffe_port.schema import read_net

    check_output(output, overwrite=overwrite)
    weights = open_weights(source, writable=False)
    definition = read_net(prototxt, **options)
    made = {layer.layer: layer for layer in convert(definition, weights)}
    blobs = [made[layer.name].blobs if layer.name in made else [] for layer in definition.net.layer]
    with progress(sum(b.nbytes for layer in blobs for b in layer), Path(output).name, quiet=quiet) as report:
        write_net(output, definition, blobs, overwrite=overwrite, progress=report)
    return weights, made


def _convert(arguments: argparse.Namespace) -> None:
    source = Path(arguments.weights)
    output = arguments.output or str(source.with_name(f"{source.stem}_fp_bp.caffemodel"))
    weights, made = write(
        source,
        output,
        arguments.prototxt,
        overwrite=arguments.force,
        quiet=arguments.quiet,
        **read_options(arguments),
    )
    if arguments.quiet:
        return
    derived = [m for m in made.values() if m.source != m.layer]
    rows = [(m.layer, m.source, m.how, " x ".join(map(str, m.blobs[0].shape))) for m in derived]
    print(table(("layer", "from", "weights", "shape"), rows))
    print(f"and {len(made) - len(derived)} layers copied; biases of the {len(derived)} above are zero")
    left = [
        layer.name for layer in weights.layers if layer.blobs and layer.name not in {m.source for m in made.values()}
    ]
    if left:
        print(f"not in the net, omitted: {', '.join(left)}")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
