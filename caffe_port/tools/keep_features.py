"""keep_features: what a net makes of its data, as rows of HDF5 files for a training that leaves that part unchanged."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from caffe_port.errors import CaffeError, FileError
from caffe_port.formats.atomic import atomic_write, check_output
from caffe_port.formats.hdf5_access import open_hdf5
from caffe_port.tools.cli import FOLDER, Parser, read_options, run
from caffe_port.tools.progress import each
from caffe_port.tools.train import device_of

if TYPE_CHECKING:
    from torch import Tensor

    from caffe_port.net import Net

__all__ = ["main", "smallest"]

Array = np.ndarray[Any, np.dtype[Any]]

LIST = "list.txt"
"""Names the files, for HDF5_DATA."""
_MADE_OF, _ROWS = "made_of", "rows"
"""Attributes of a file: a digest of the net, the weights and the options; its number of rows."""
_KINDS = (np.uint8, np.int16)
"""Types in which whole numbers are stored, exactly, where they fit."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "keep-features",
        "Run a net that has a data layer, in TRAIN, and write the blobs that no layer reads into HDF5 files, which"
        " HDF5_DATA reads in place of that net. The same command continues where it was interrupted: the files are"
        " those of an uninterrupted run.",
        example="data.prototxt features.caffemodel -o kept --items 8 --rows 4",
    )
    add = parser.add_argument
    add("prototxt", metavar="NET", help="the definition, with a data layer")
    add("weights", metavar="WEIGHTS", help="of any format")
    parser.add_output("DIR", kind=FOLDER, required=True, help="folder of the files and of their list, list.txt")
    add("--items", type=int, required=True, metavar="N", help="items of the data to run, rounded up to whole batches")
    add("--rows", type=int, default=128, metavar="N", help="items of a file, rounded up as well; default: %(default)s")
    add("--seed", type=int, default=1, metavar="N", help="of shuffling, cropping, mirroring; default: %(default)s")
    parser.add_device()
    parser.add_quiet()
    parser.add_dialect()
    parser.reads("prototxt", "weights")
    run(_keep, parser, argv)


def _keep(arguments: argparse.Namespace) -> None:
    for option, number in (("--items", arguments.items), ("--rows", arguments.rows)):
        if number < 1:
            raise CaffeError(option, str(number), expected="1 or more")
    folder = Path(arguments.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(str(folder), f"cannot be created: {error.strerror}", remedy="choose another with -o") from None
    check_output(folder / LIST, overwrite=arguments.force)
    net = _net(arguments)
    made_of = _digest(net, arguments)
    made = _Files(folder, made_of, overwrite=arguments.force)
    files = keep(net, made, arguments.items, arguments.rows, quiet=arguments.quiet)
    with atomic_write(folder / LIST, overwrite=True) as file:
        file.write("".join(f"{path}\n" for path in files).encode())
    if not arguments.quiet:
        print(f"{len(files)} files of {', '.join(net.graph.outputs)} in {folder}")


def _net(arguments: argparse.Namespace) -> Net:
    from caffe_port.net import Net
    from caffe_port.random import set_random_seed

    set_random_seed(arguments.seed)
    net = Net(arguments.prototxt, arguments.weights, "TRAIN", **read_options(arguments))
    if net.graph.inputs:
        raise CaffeError(
            arguments.prototxt, f"inputs {', '.join(net.graph.inputs)}", expected="a net with a data layer"
        )
    if missing := net.accounts[0].missing:
        raise CaffeError(arguments.weights, f"no {', '.join(missing[:3])}", expected=f"all of {arguments.prototxt}")
    return net.to(device_of(arguments.device))


def _digest(net: Net, arguments: argparse.Namespace) -> str:
    """Of all that the files depend on, except how many there are."""
    digest = hashlib.sha256(Path(arguments.weights).read_bytes())
    digest.update(net.definition.net.SerializeToString(deterministic=True))
    digest.update(f"{net.dialect.name} {arguments.seed} {arguments.rows}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Files:
    """The files of a folder, each with the digest of what it was made of."""

    folder: Path
    digest: str
    overwrite: bool

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06}.h5"

    def has(self, number: int, rows: int) -> bool:
        """Whether a file is there.

        Raises:
            FileError: one is, but made of something else, and may not be overwritten.
        """
        path = self.path(number)
        if not path.exists():
            return False
        with open_hdf5(str(path)) as file:
            same = file.attrs.get(_MADE_OF) == self.digest and file.attrs.get(_ROWS) == rows
        if not same and not self.overwrite:
            raise FileError(
                str(path),
                "of another net, weights, seed or number of rows",
                remedy="pass -f to overwrite it, or -o for another folder",
            )
        return same

    def write(self, number: int, blobs: Mapping[str, Array], rows: int) -> None:
        import h5py

        with atomic_write(self.path(number), overwrite=True) as file, h5py.File(file, "w") as made:
            made.attrs[_MADE_OF], made.attrs[_ROWS] = self.digest, rows
            for name, values in blobs.items():
                made.create_dataset(name, data=smallest(values))


def keep(net: Net, made: _Files, items: int, rows: int, *, quiet: bool = True) -> list[Path]:
    """Writes the files that are not there, each atomically; returns the names of all.

    Where a file is there, only the data layers run, so that random numbers are those of an uninterrupted run.

    Args:
        net: without inputs; its outputs are the data sets, float32 (rows, ...) or, with the same numbers, whole ones.
    """
    outputs = net.graph.outputs
    everything = range(len(net.nodes))
    reading = [i for i, (node, _) in enumerate(net.nodes) if not node.bottoms]
    batch = net.shapes[outputs[0]][0]
    passes = [-(-min(rows, items - start) // batch) for start in range(0, items, rows)]
    for number, count in each(list(enumerate(passes)), "keep-features", quiet=quiet):
        if made.has(number, count * batch):
            for _ in range(count):
                net.run_nodes({}, reading, ())
        else:
            blobs = [_copied(net.run_nodes({}, everything, outputs)) for _ in range(count)]
            made.write(number, {name: np.concatenate([one[name] for one in blobs]) for name in outputs}, count * batch)
    return [made.path(number) for number in range(len(passes))]


def _copied(blobs: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: np.array(blob.numpy(force=True)) for name, blob in blobs.items()}


def smallest(values: Array) -> Array:
    """The same numbers in the smallest of the types that hold them."""
    return next(_fitting(values), values)


def _fitting(values: Array) -> Iterator[Array]:
    for kind in _KINDS:
        limits = np.iinfo(kind)
        if limits.min <= values.min(initial=0) and values.max(initial=0) <= limits.max:
            whole = values.astype(kind)
            if (whole == values).all():
                yield whole


if __name__ == "__main__":
    main()
