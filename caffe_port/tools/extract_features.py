"""extract_features: blobs of a net over its data, as databases. Source: tools/extract_features.cpp."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

from caffe_port.data.database_writer import BACKENDS, DatabaseWriter
from caffe_port.errors import CaffeError, ShapeError, nearest
from caffe_port.schema.messages import SCHEMA
from caffe_port.tools.cli import FOLDER, Parser, as_gflags, commas, count, read_options, run
from caffe_port.tools.progress import each

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "extract-features",
        "Run a net that has a data layer over N batches, in TEST, and write blobs of every item into databases,"
        " record for record as Caffe's tool does.",
        example="features.caffemodel data.prototxt fc6 features_lmdb 2 lmdb",
    )
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="of any format")
    add("prototxt", metavar="NET", help="the definition, with a data layer")
    add("blobs", metavar="BLOB,...", help="the blobs' names")
    add("databases", metavar="DATABASE,...", help="a folder to create for each of them")
    add("batches", metavar="N", type=count, help="forward passes")
    add("backend", choices=BACKENDS, help="the kind of the databases")
    add("processor", choices=("CPU", "GPU"), nargs="?", default="CPU", help="default: CPU")
    add("device_id", metavar="ID", type=_device, nargs="?", default=0, help="of the GPU: 0 or DEVICE_ID=0")
    parser.add_quiet()
    parser.add_dialect()
    parser.reads("weights", "prototxt")
    parser.writes("databases", kind=FOLDER, part=commas)
    run(_extract, parser, as_gflags(argv))


def _device(text: str) -> int:
    number = text.rpartition("=")[2]
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a device's number")
    return int(number)


def _extract(arguments: argparse.Namespace) -> None:
    names, folders = arguments.blobs.split(","), arguments.databases.split(",")
    if len(names) != len(folders):
        raise CaffeError("blobs", f"{len(names)} names", expected=f"as many as databases, {len(folders)}")
    if len(set(folders)) < len(folders):
        raise CaffeError("databases", "one name twice", expected="a folder for each blob")
    with ExitStack() as stack:
        databases = [stack.enter_context(DatabaseWriter(folder, arguments.backend)) for folder in folders]
        net = _net(arguments)
        for name in names:
            if name not in net.blobs:
                near = nearest(name, net.blobs)
                raise CaffeError(arguments.prototxt, f"no blob {name!r}", remedy=f"near: {near}" if near else "")
        for _ in each(range(arguments.batches), "extract-features", quiet=arguments.quiet):
            net.forward()
            for name, database in zip(names, databases, strict=True):
                for item in _records(net.blobs[name].data, f"{arguments.prototxt}: blob {name}"):
                    database.put(f"{database.count:010d}", item)
    if not arguments.quiet:
        for name, database in zip(names, databases, strict=True):
            print(f"{database.count} items of {name} in {database.path}")


def _net(arguments: argparse.Namespace) -> Any:
    from caffe_port.pycaffe import TEST, Net
    from caffe_port.tools.train import device_of

    device = device_of(f"cuda:{arguments.device_id}" if arguments.processor == "GPU" else "cpu")
    net = Net(arguments.prototxt, TEST, weights=arguments.weights, **read_options(arguments))
    if net.inputs:
        raise CaffeError(arguments.prototxt, f"inputs {', '.join(net.inputs)}", expected="a net with a data layer")
    return net.to(device)


def _records(data: Any, where: str) -> Iterator[bytes]:
    """A Datum for each item of a blob."""
    if data.ndim > 4:
        raise ShapeError(where, f"{data.ndim} axes", expected="4 or fewer, as a Datum has")
    channels, height, width = [*map(int, data.shape), 1, 1, 1, 1][1:4]
    for item in data.reshape(data.shape[0] if data.ndim else 1, -1):
        datum = SCHEMA.Datum(channels=channels, height=height, width=width)
        datum.float_data.extend(item.tolist())
        yield datum.SerializeToString()


if __name__ == "__main__":
    main()
