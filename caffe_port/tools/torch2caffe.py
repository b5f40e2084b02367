"""torch2caffe: converts a state_dict file to weights that real Caffe loads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from caffe_port.errors import WeightsError, nearest
from caffe_port.formats import open_weights, write_net
from caffe_port.formats.atomic import check_output
from caffe_port.schema.messages import PHASES
from caffe_port.spec import RECORDS, infer
from caffe_port.tools.cli import Parser, read_options, run
from caffe_port.tools.progress import progress

if TYPE_CHECKING:
    from caffe_port.schema import Definition

__all__ = ["main"]

_SHOWN = 8


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "torch2caffe",
        "Convert a state_dict to Caffe's weights, in the generation that the net's Caffe reads.",
        example="model.safetensors --prototxt net.prototxt -o again.caffemodel",
    )
    parser.add_argument("weights", metavar="WEIGHTS", help=".safetensors, .pth, .npz or .h5, with keys LAYER.BLOB")
    parser.add_argument(
        "--prototxt", metavar="NET", required=True, help="the net, which gives the layers' order, types and generation"
    )
    parser.add_output(help="default: WEIGHTS.caffemodel")
    parser.add_argument("--format", choices=("caffemodel", "h5"), help="default: h5 if the output ends in .h5")
    parser.add_argument(
        "--phase", choices=PHASES.values(), default="TEST", help="which of the net's layers; default: TEST"
    )
    parser.add_argument("--allow-missing", action="store_true", help="omit layers that WEIGHTS lacks")
    parser.add_quiet()
    parser.add_dialect()
    parser.reads("weights", "prototxt")
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
    with progress(total, Path(output).name, quiet=arguments.quiet) as report:
        write_net(output, definition, blobs, format=format, overwrite=arguments.force, progress=report)
    if not arguments.quiet:
        print(f"wrote {output}: {len(used)} blobs")
        for what, keys in (("missing, omitted", missing), ("not in the net, omitted", unexpected)):
            if keys:
                print(f"  {what} ({len(keys)}): {_some(keys)}")


def gather(
    definition: Definition, arrays: dict[str, np.ndarray], path: str
) -> tuple[list[list[np.ndarray | None]], list[str]]:
    """For each layer of the net its blobs, and the missing keys of layers that have no key at all.

    A parameter that a layer shares (``param { name }``) is taken from the layer that owns it if the layer has no key
    for it.

    Raises:
        WeightsError: a blob has another number of axes than its layer requires, only some of a layer's blobs are
            present, or blobs that the layer does not have.
    """
    held: dict[str, list[str]] = {}
    for key in arrays:
        held.setdefault(key.rpartition(".")[0], []).append(key.rpartition(".")[2])
    owners: dict[str, np.ndarray] = {}
    blobs: list[list[np.ndarray | None]] = []
    missing: list[str] = []
    for i, layer in enumerate(definition.net.layer):
        own = held.get(layer.name, [])
        named = _blobs(definition, i, own, path)
        numbered = [f"blob{index}" for index in range(len(named))]
        foreign = [blob for blob in own if blob not in (*numbered, *(name for name, _ in named))]
        if foreign:
            raise WeightsError(
                f"{path}: {layer.name}",
                f"blobs {_some(foreign)}",
                expected=f"{_some([name for name, _ in named]) or 'none'}, as a {layer.type} has",
            )
        found: list[np.ndarray | None] = []
        absent: list[str] = []
        for index, (name, rank) in enumerate(named):
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


def _blobs(definition: Definition, i: int, own: Sequence[str], path: str) -> list[tuple[str, int | None]]:
    """Name and rank of each blob of layer ``i`` in Caffe's order; ``own``: their names in the state_dict."""
    layer = definition.net.layer[i]
    record = RECORDS.find(layer.type, definition.dialect)
    if record is None and own:
        orders = [f"blob{index}" for index in range(len(own))], ["weight", "bias"][: len(own)]
        order = next((names for names in orders if set(names) == set(own)), None)
        if order is None:
            raise WeightsError(
                f"{path}: {layer.name}",
                f"blobs {_some(sorted(own))} of a {layer.type}, a type whose order of blobs is not known",
                expected="blob0, blob1 ..., or weight and bias",
                remedy="pass --plugin FILE with a class for the type",
            )
        return [(name, None) for name in order]
    if record is None or not record.blob_specs:  # a plugin's setup may declare blobs that its class does not
        return [(name, None) for name in infer(definition, check=False).layers[i].params] if record and own else []
    return [(blob.name, blob.rank) for blob in record(layer, definition.dialect, definition.where(i)).blobs_here()]


def _owned_once(blobs: list[list[np.ndarray | None]]) -> list[list[np.ndarray | None]]:
    """``blobs`` with None for each array of an earlier layer: Caffe's HDF5 stores shared parameters once."""
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
