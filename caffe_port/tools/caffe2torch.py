"""caffe2torch: Caffe's weights as a state_dict file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from caffe_port.console import info
from caffe_port.errors import WeightsError
from caffe_port.formats import Weights, open_weights, save_state_dict
from caffe_port.formats.atomic import check_output
from caffe_port.formats.fitting import fit, some
from caffe_port.formats.statedict import STATE_FORMATS, format_of
from caffe_port.schema import Definition, read_net
from caffe_port.spec import infer, is_known
from caffe_port.tools.cli import Parser, print_json, read_options, run, table
from caffe_port.tools.progress import progress

__all__ = ["convert", "main"]

_CAFFE_SUFFIXES = (".caffemodel.h5", ".caffemodel", ".h5")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    run(_convert, _parser("caffe2torch"), argv)


def convert(argv: Sequence[str] | None = None) -> NoReturn:
    """The command ``convert``: the same, and the next steps printed at its end."""
    run(_convert_and_print, _parser("convert"), argv)


def _parser(name: str) -> Parser:
    parser = Parser(
        name,
        "Convert Caffe's weights to a file of PyTorch. Needs no Caffe, and torch only for .pth.",
        example="model.caffemodel",
    )
    parser.add_argument("weights", metavar="MODEL.caffemodel", help=".caffemodel (any generation) or .caffemodel.h5")
    parser.add_output(help="default: MODEL.safetensors")
    parser.add_argument("--format", choices=STATE_FORMATS, help="default: by the output's extension, else safetensors")
    parser.add_argument("--list", action="store_true", help="only print what the file holds")
    parser.add_json("print what the file holds as one line of JSON")
    parser.add_argument("--prototxt", metavar="NET", help="also check the weights against this net")
    parser.add_quiet()
    parser.add_dialect()
    parser.reads("weights", "prototxt")
    return parser


def _convert_and_print(arguments: argparse.Namespace) -> None:
    _convert(arguments)
    if arguments.quiet or arguments.json or arguments.list:
        return
    output, source = _target(arguments)[0], arguments.weights
    net = arguments.prototxt or "NET.prototxt"
    loads = {".safetensors": f"safetensors.torch.load_file({output!r})", ".pth": f"torch.load({output!r})"}
    print("\nnext:")
    for what, how in (
        ("its arrays in PyTorch", loads.get(Path(output).suffix, f"numpy.load({output!r})")),
        ("the net in PyTorch", f"caffe_port.Net({net!r}, {source!r})"),
        ("its layers and shapes", f"caffe-port info {net} {source}"),
        ("a page to look at", f"caffe-port view {net} {source} -o net.html"),
        ("ONNX, checked", f"caffe-port export {net} {source} -o {Path(output).with_suffix('.onnx')}"),
        ("one PyTorch file", f"caffe-port export {net} {source} -o net.py"),
        ("check against Caffe", f"caffe-port dump-reference; caffe-port parity {net} {source} REFERENCE.npz"),
        ("back to Caffe", f"caffe-port torch2caffe {output} --prototxt {net}"),
    ):
        print(f"  {what:22} {how}")


def _convert(arguments: argparse.Namespace) -> None:
    output, format = _target(arguments)
    if not arguments.list:
        check_output(output, overwrite=arguments.force)
    weights = open_weights(arguments.weights, writable=False)
    types = {layer.name: layer.type for layer in weights.layers}
    options = read_options(arguments)
    definition = read_net(arguments.prototxt, **options) if arguments.prototxt else None
    if definition:
        types.update((layer.name, layer.type) for layer in definition.net.layer)
    arrays = weights.state_dict(types)
    if not arrays:
        raise WeightsError(arguments.weights, "no layer with blobs", expected="trained weights")
    if definition:
        remedy = "is it the right net? Without --prototxt nothing is compared"
        info("\n".join(compare(definition, weights, remedy=remedy)))
    if arguments.json:
        blobs = {key: {"shape": list(array.shape), "dtype": str(array.dtype)} for key, array in arrays.items()}
        print_json({"file": arguments.weights, "output": None if arguments.list else output, "blobs": blobs})
    elif not arguments.quiet:
        print(_listing(weights, arrays, types))
    if arguments.list:
        return
    with progress(sum(a.nbytes for a in arrays.values()), Path(output).name, quiet=arguments.quiet) as report:
        save_state_dict(output, arrays, format=format, overwrite=arguments.force, progress=report)
    if not (arguments.quiet or arguments.json):
        print(f"wrote {output}")


def _target(arguments: argparse.Namespace) -> tuple[str, str]:
    """The output file and its format."""
    if arguments.output:
        return arguments.output, arguments.format or format_of(arguments.output)
    format = arguments.format or "safetensors"
    suffix = next((s for s in _CAFFE_SUFFIXES if arguments.weights.lower().endswith(s)), Path(arguments.weights).suffix)
    return arguments.weights[: len(arguments.weights) - len(suffix)] + "." + format, format


def compare(
    definition: Definition, weights: Weights, *, ignore_mismatched: bool = False, remedy: str = ""
) -> list[str]:
    """Compare the blobs' numbers and shapes with the net's: lines on what fits, what is missing and unexpected.

    No net is built and no data is read: blobs whose shapes depend on the data are listed as not compared.

    Args:
        ignore_mismatched: list what does not match, instead of refusing the first. remedy: of that error.

    Raises:
        WeightsError: a shape or a number of blobs does not match, or no layer matches.
    """
    lines: list[str] = []
    layers = infer(definition).layers
    known = {layer.spec.name: layer.spec for layer in reversed(layers) if layer.spec}
    unknown = {layer.message.name for layer in layers} - known.keys()
    unchecked = [source.name for source in weights.layers if source.blobs and source.name in unknown]
    rest = [source for source in weights.layers if source.name not in unchecked]
    if not unchecked or any(source.blobs for source in rest):
        checked = replace(weights, layers=rest)
        lines.append(str(fit(checked, known.values(), remedy=remedy, ignore_mismatched=ignore_mismatched)))
    partly = [
        f"{layer.name}.{name} {shape}"
        for layer in known.values()
        for name, shape in layer.blob_shapes.items()
        if not is_known(shape)
    ]
    for what, names in (("compared in part, the rest depends on the data", partly), ("of unknown types", unchecked)):
        if names:
            lines.append(f"  {what} ({len(names)}): {some(names)}")
    return lines


def _listing(weights: Weights, arrays: dict[str, np.ndarray], types: dict[str, str]) -> str:
    rows, total = [], 0
    for key, array in arrays.items():
        layer, _, blob = key.rpartition(".")
        shape = " x ".join(map(str, array.shape)) or "scalar"
        rows.append((layer, types.get(layer) or "?", blob, shape, array.dtype, f"{array.size:,}"))
        total += array.size
    lines = [table(("layer", "type", "blob", "shape", "dtype", "count"), rows, right=(5,))]
    layers = len({row[0] for row in rows})
    name = f" of {weights.name}" if weights.name else ""
    lines.append(f"{total:,} numbers in {len(rows)} blobs of {layers} layers{name}")
    if weights.kind == "hdf5" and any(row[1] == "?" for row in rows):
        lines.append("HDF5 files do not hold layer types: with --prototxt blobs are named (weight, bias)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
