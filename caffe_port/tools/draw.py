"""draw: a net's definition as a picture of boxes. Source: python/draw_net.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from caffe_port.formats.atomic import check_output
from caffe_port.schema import TEST, TRAIN
from caffe_port.tools.cli import Parser, as_gflags, read_options, run

__all__ = ["main"]

_PHASES = {"TRAIN": TRAIN, "TEST": TEST, "ALL": None}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "draw",
        "Draw a net's definition: boxes for layers, octagons for blobs. Pictures need Graphviz; .gv is its text.",
        example="net.prototxt net.gv",
    )
    add = parser.add_argument
    add("prototxt", metavar="NET", help="the definition")
    add("output", metavar="FILE", help="the drawing, in the format of its extension: .png, .svg, .pdf, .gv")
    add(
        "--rankdir", choices=("LR", "TB", "BT", "RL"), default="LR", help="direction of the graph; default: %(default)s"
    )
    add("--phase", choices=tuple(_PHASES), default="ALL", help="only the layers of a phase; default: %(default)s")
    add("--display-lrm", action="store_true", help="with the learning rate multipliers")
    parser.add_force()
    parser.add_quiet()
    parser.add_dialect()
    parser.reads("prototxt")
    parser.writes("output")
    run(_draw, parser, as_gflags(argv))


def _draw(arguments: argparse.Namespace) -> None:
    from caffe_port.pycaffe.draw import draw_net_to_file
    from caffe_port.tools.upgrade import read_definition

    check_output(arguments.output, overwrite=arguments.force)
    net = read_definition(arguments.prototxt, read_options(arguments))
    phase = _PHASES[arguments.phase]
    draw_net_to_file(net, arguments.output, arguments.rankdir, phase, arguments.display_lrm)
    if not arguments.quiet:
        print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
