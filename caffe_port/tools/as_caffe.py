"""Runs a script that says ``import caffe``: ``python -m caffe_port.tools.as_caffe SCRIPT [ARGUMENT ...]``."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from caffe_port.errors import CaffeError
from caffe_port.tools.cli import Parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command; ends as the script does."""
    parser = Parser("as_caffe", "Run a Python script to which caffe_port is known as caffe.")
    add = parser.add_argument
    add("--python-layers", action="store_true", help="let Python layers run the code that they name")
    add("--force", action="store_true", help="also where a real Caffe could be imported")
    add("script", metavar="SCRIPT", help="a Python file")
    add("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="the script's own")
    arguments = parser.parse_args(argv)
    script = Path(arguments.script)
    if not script.is_file():
        parser.error(f"{script}: no such file")
    from caffe_port.pycaffe.install import install_as_caffe

    try:
        install_as_caffe(force=arguments.force, python_layers=arguments.python_layers)
    except CaffeError as error:
        parser.error(str(error))
    sys.argv = [str(script), *arguments.arguments]
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
