"""as_caffe: runs a script that imports ``caffe``."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from caffe_port.tools.cli import Parser, run


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; ends as the script does."""
    parser = Parser("as-caffe", "Run a Python script in which `import caffe` gives caffe_port.", example="script.py")
    add = parser.add_argument
    add("--python-layers", action="store_true", help="allow Python layers to run the code that they name")
    add("--force", action="store_true", help="even where a real Caffe can be imported")
    add("script", metavar="SCRIPT", help="a Python file")
    add("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="arguments of the script")
    parser.reads("script")
    run(_run, parser, argv)


def _run(arguments: argparse.Namespace) -> None:
    script = Path(arguments.script)
    from caffe_port.pycaffe.install import install_as_caffe

    install_as_caffe(force=arguments.force, python_layers=arguments.python_layers)
    sys.argv = [str(script), *arguments.arguments]
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
