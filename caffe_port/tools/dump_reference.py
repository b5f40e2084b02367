"""dump_reference: writes the script that stores what a net computes, to be run inside another Caffe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from caffe_port.definitions import data
from caffe_port.formats.atomic import atomic_write
from caffe_port.tools.cli import Parser, run

__all__ = ["main"]

_SCRIPT = "dump_reference.py"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "dump-reference",
        f"Write {_SCRIPT}. Inside another Caffe, with Python 2.7 or 3, it stores every blob of a net in an .npz that"
        f" parity compares: python {_SCRIPT} net.prototxt model.caffemodel.",
        example="",
    )
    parser.add_output(default=_SCRIPT, help="default: %(default)s")
    parser.add_quiet()
    run(_write, parser, argv)


def _write(arguments: argparse.Namespace) -> None:
    text = (data("converters", "scripts") / _SCRIPT).read_bytes()
    with atomic_write(arguments.output, overwrite=arguments.force) as file:
        file.write(text)
    if not arguments.quiet:
        print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
