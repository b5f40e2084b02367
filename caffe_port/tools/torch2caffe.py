"""torch2caffe: a state_dict file as weights that real Caffe loads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from caffe_port.errors import WeightsError, nearest
from caffe_port.formats import BLOB_NAMES, blob_names, open_weights, write_net
from caffe_port.formats.atomic import check_output
from caffe_port.tools.cli import Parser, read_options, run
from caffe_port.tools.progress import progress

if TYPE_CHECKING:
    from google.protobuf.message import Message as LayerParameter

    from caffe_port.schema import Definition

__all__ = ["main"]

_SHOWN = 8


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "torch2caffe",
        "Convert a state_dict back to weights of Caffe, in the form that the net's Caffe reads.",
        example="model.safetensors --prototxt net.prototxt -o again.caffemodel",
    )
    parser.add_argument("weights", metavar="WEIGHTS", help=".safetensors, .pth, .npz or .h5, with keys LAYER.BLOB")
    parser.add_argument(
        "--prototxt", metavar="NET", required=True, help="the net: its layers' order, types and generation"
    )
    parser.add_output(help="default: WEIGHTS.caffemodel")
    parser.add_argument("--format", choices=("caffemodel", "h5"), help="default: h5 if the output ends in .h5")
    parser.add_argument(
        "--phase", choices=("TRAIN", "TEST"), default="TEST", help="which of the net's layers; default: TEST"
    )
    parser.add_argument("--allow-missing", action="store_true", help="leave out layers that WEIGHTS lacks")
    parser.add_quiet()
    parser.add_dialect()
    run(_convert, parser, argv)


def _convert(arguments: argparse.Namespace) -> None:
    from caffe_port.schema import read_net

    output = arguments.output
    if not output:
        suffix = ".caffemodel.h5" if arguments.format == "h5" else ".caffemodel"
        output = str(Path(arguments.weights).with_suffix(suffix))
    format = arguments.format or ("h5" if output.endswith(".h5") else "caffemodel")
    check_output(output, overwrite=arguments.force)
    definition = read_net(arguments.prototxt, phase=arguments.phase, **read_options(arguments))
    types = {layer.name: layer.type for layer in definition.net.layer}
    arrays = open_weights(arguments.weights, writable=False).state_dict(types)
    blobs, missing = gather(definition, arrays, arguments.weights)
    used = {id(blob) for layer in blobs for blob in layer}
    unexpected = [key for key, array in arrays.items() if id(array) not in used]
    if not used or (missing and not arguments.allow_missing):
        known = nearest(missing[0], arrays) if missing else ""
        raise WeightsError(
            arguments.weights,
            f"no {_some(missing)}" if missing else "nothing",
            expected="every blob of the net",
            remedy=f"the nearest keys are {known}" if known else "or pass --allow-missing",
        )
    if format == "h5":
        blobs = _owned_once(blobs)
    total = sum(blob.nbytes for layer in blobs for blob in layer if blob is not None)
    with progress(total, Path(output).name, quiet=arguments.quiet) as told:
        write_net(output, definition, blobs, format=format, overwrite=arguments.force, progress=told)
    if not arguments.quiet:
        print(f"wrote {output}: {len(used)} blobs")
        for what, keys in (("missing, left out", missing), ("not in the net, left out", unexpected)):
            if keys:
                print(f"  {what} ({len(keys)}): {_some(keys)}")


def gather(
    definition: Definition, arrays: dict[str, np.ndarray], path: str
) -> tuple[list[list[np.ndarray | None]], list[str]]:
    """For each layer of the net its blobs, and the keys that are missing for layers of which nothing is there.

    A parameter that a layer shares (``param { name }``) is taken from the layer that owns it if the layer has no key
    of its own.

    Raises:
        WeightsError: a blob has another number of axes than its layer wants, or only some of a layer's blobs are there.
    """
    owners: dict[str, np.ndarray] = {}
    blobs: list[list[np.ndarray | None]] = []
    missing: list[str] = []
    for layer in definition.net.layer:
        found: list[np.ndarray | None] = []
        absent: list[str] = []
        for index, (name, rank) in enumerate(blob_names(layer.type, _blob_count(layer, arrays))):
            key = f"{layer.name}.{name}"
            shared = layer.param[index].name if index < len(layer.param) else ""
            array = arrays.get(key, arrays.get(f"{layer.name}.blob{index}", owners.get(shared) if shared else None))
            if array is None:
                absent.append(key)
                continue
            if rank is not None and array.ndim != rank:
                raise WeightsError(f"{path}: {key}", f"the shape {array.shape}", expected=f"{rank} axes")
            if shared:
                owners.setdefault(shared, array)
            found.append(array)
        if found and absent:
            raise WeightsError(path, f"{layer.name} without {_some(absent)}", expected="all blobs of a layer, or none")
        blobs.append(found)
        missing += absent
    return blobs, missing


def _blob_count(layer: LayerParameter, arrays: dict[str, np.ndarray]) -> int:
    """How many blobs Caffe gives the layer, by its definition; for an unknown type, how many ``arrays`` has."""
    kind, bottoms = layer.type, len(layer.bottom)
    if kind in ("Convolution", "Deconvolution"):
        return 1 + layer.convolution_param.bias_term
    if kind == "InnerProduct":
        return 1 + layer.inner_product_param.bias_term
    if kind == "Embed":
        return 1 + layer.embed_param.bias_term
    if kind == "Scale":
        return (bottoms == 1) + layer.scale_param.bias_term
    if kind == "Bias":
        return int(bottoms == 1)
    if kind in ("LSTM", "RNN"):
        states = (2 if kind == "LSTM" else 1) * layer.recurrent_param.expose_hidden
        static = bottoms > 2 + states
        return len(BLOB_NAMES[kind]) - (not static)
    if kind in BLOB_NAMES:
        return len(BLOB_NAMES[kind])
    return next(i for i in count() if f"{layer.name}.blob{i}" not in arrays)


def _owned_once(blobs: list[list[np.ndarray | None]]) -> list[list[np.ndarray | None]]:
    """``blobs`` with None for each array that an earlier layer has: Caffe's HDF5 stores shared parameters once."""
    seen: set[int] = set()
    out: list[list[np.ndarray | None]] = []
    for layer in blobs:
        out.append([None if id(blob) in seen else blob for blob in layer])
        seen.update(map(id, layer))
    return out


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


if __name__ == "__main__":
    main()
