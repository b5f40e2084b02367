"""compute_image_mean: the mean picture of a database. Source: tools/compute_image_mean.cpp."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from caffe_port.console import number
from caffe_port.data.database_writer import BACKENDS
from caffe_port.data.databases import open_records, read_datum
from caffe_port.data.pictures import AS_IT_IS, decode
from caffe_port.errors import FormatError
from caffe_port.formats.atomic import check_output
from caffe_port.formats.meanfile import write_mean
from caffe_port.tools.cli import EITHER, Parser, as_gflags, print_json, run
from caffe_port.tools.progress import working

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "compute-image-mean",
        "Average the pictures of a database, all of one size, in single precision and in their order as Caffe does;"
        " print each channel's mean and write the mean picture (.binaryproto).",
        example="pictures_lmdb mean.binaryproto",
    )
    add = parser.add_argument
    add("database", metavar="DATABASE", help="an LMDB or LevelDB folder of Datum records")
    add("output", metavar="FILE", nargs="?", help="the mean picture; without it, only the means are printed")
    add("--backend", choices=BACKENDS, default="lmdb", help="default: %(default)s")
    parser.add_force()
    parser.reads("database", kind=EITHER)
    parser.writes("output")
    parser.add_json("print the number of pictures and the channels' means as one line of JSON")
    parser.add_quiet()
    run(_mean, parser, as_gflags(argv))


def _mean(arguments: argparse.Namespace) -> None:
    records = open_records(arguments.database, arguments.backend.upper())
    if arguments.output:
        check_output(arguments.output, overwrite=arguments.force)
    total, count = None, 0
    with working("compute-image-mean", quiet=arguments.quiet or arguments.json):
        there = True
        while there:
            where = f"{arguments.database}: record {records.key.decode('utf-8', 'replace')}"
            numbers, *_ = read_datum(records.value, lambda data, where: decode(data, AS_IT_IS, where), where)
            if total is None:
                total = np.zeros(numbers.shape, np.float32)
            if numbers.shape != total.shape:
                raise FormatError(where, f"a picture of {numbers.shape}", expected=f"{total.shape}, as the first")
            total += numbers
            count += 1
            there = records.next()
    assert total is not None, "a database has a record"
    total /= np.float32(count)
    flat = total.reshape(len(total), -1)
    means = [float(np.add.accumulate(channel)[-1] / np.float32(flat.shape[1])) for channel in flat]
    if arguments.output:
        write_mean(arguments.output, total, overwrite=arguments.force)
    if arguments.json:
        print_json({"pictures": count, "means": means, "output": arguments.output})
    elif not arguments.quiet:
        print(f"{count} pictures of {' x '.join(map(str, total.shape))}")
        for channel, mean in enumerate(means):
            print(f"mean_value channel [{channel}]: {number(mean)}")
        if arguments.output:
            print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
