"""parity: a net compared with the numbers that another Caffe computed for it, layer by layer."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from caffe_port.formats.atomic import atomic_write, check_output
from caffe_port.tools import compare
from caffe_port.tools.cli import Parser, count, print_json, read_options, run, table
from caffe_port.tools.parity_report import Report, Row, check_parameters, measure
from caffe_port.tools.progress import working

if TYPE_CHECKING:
    from caffe_port.pycaffe import Net
    from caffe_port.tools.replay import Reference

__all__ = ["listing", "main", "write_page"]

_TOP = 12


def listing(rows: Iterable[Row]) -> str:
    """The rows as an aligned table."""
    header = ("layer", "type", "array", "values", "error", "rms", "outside", "bound", "")
    cells = [
        (
            row.layer,
            row.type,
            row.comparison.key,
            f"{row.comparison.size:,}",
            f"{row.comparison.error:.1e}",
            f"{row.comparison.rms:.1e}",
            row.comparison.outside or "",
            f"{row.comparison.bound:.1e}",
            row.verdict,
        )
        for row in rows
    ]
    return table(header, cells, right=(3, 4, 5, 6, 7))


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, 1 if something is over its bound, 2 after an error."""
    parser = Parser(
        "parity",
        "Run a net on the inputs of a reference and compare every array in it, layer by layer. The reference is an .npz"
        " that converters/dump_reference.py writes inside another Caffe. Exit status 1 if an array exceeds its bound.",
        example="net.prototxt model.caffemodel reference.npz",
    )
    add = parser.add_argument
    add("prototxt", metavar="NET.prototxt", help="the definition")
    add(
        "weights", metavar="MODEL.caffemodel", nargs="?", help="may be omitted if the reference contains the parameters"
    )
    add("reference", metavar="REFERENCE.npz", help="what another Caffe computed")
    add("--phase", choices=("TEST", "TRAIN"), default="TEST", help="default: TEST")
    forward, backward = f"default: {compare.FORWARD}", f"default: {compare.BACKWARD}"
    add("--tolerance", type=_bound, default=compare.FORWARD, metavar="E", help=f"of max|ours-ref|/max|ref|; {forward}")
    add("--backward-tolerance", type=_bound, default=compare.BACKWARD, metavar="E", help=f"of diffs; {backward}")
    add("--noise", metavar="FILE", help="noise.json: real Caffe's distance from itself; ten times as much is allowed")
    add("--case", metavar="NAME", help="the case in it; default: the reference's name")
    add("--switches", action="store_true", help="unpool with the reference's switches, which excludes near ties")
    add("--forwards", type=count, default=1, metavar="N", help="forward passes before comparing; default: 1")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--top", type=count, default=_TOP, metavar="N", help="show the worst N; default: %(default)s")
    shown.add_argument("--all", action="store_true", help="show all, in the order of the net")
    add("--html", metavar="FILE", help="also write the report as an HTML page")
    parser.add_force()
    parser.add_json("print the report as one line of JSON, with every array")
    parser.add_quiet("print the verdict only")
    parser.add_dialect()
    parser.reads("prototxt", "weights", "reference", "noise")
    parser.writes("html")
    run(_main, parser, argv)


def _bound(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}, expected a number above 0")


def _main(arguments: argparse.Namespace) -> int:
    if arguments.html:
        check_output(arguments.html, overwrite=arguments.force)
    from caffe_port.tools.replay import Reference, read_noise

    case = arguments.case or Path(arguments.reference).stem
    noise = read_noise(arguments.noise, case) if arguments.noise else None
    bounds = {"forward": arguments.tolerance, "backward": arguments.backward_tolerance}
    reference = Reference(arguments.reference, noise, **bounds)
    with working("parity", quiet=arguments.quiet):
        net = _build(arguments, reference)
        report = measure(net, reference, forwards=arguments.forwards, own_switches=arguments.switches)
    if arguments.html:
        write_page(arguments.html, report, overwrite=arguments.force)
    if arguments.json:
        print_json(_as_json(report))
        return 1 if report.over else 0
    if arguments.quiet:
        print(report.verdict)
        return 1 if report.over else 0
    print(report.head)
    rows = report.rows if arguments.all else report.worst_first[: arguments.top]
    print(listing(rows))
    if len(rows) < len(report.rows):
        over = max(0, len(report.over) - len(rows))
        print(f"({len(report.rows) - len(rows)} more{f', {over} of them over' if over else ''}; --all shows them)")
    print(report.verdict)
    if report.over and not arguments.switches and reference.keys("switch"):
        print("near ties may have changed deeper layers: --switches excludes them")
    elif report.near_ties and not arguments.switches:
        print(
            "so few values look like near ties: a pooling window or a class whose inputs differ in their last bits;"
            " where layers unpool, a reference with their switches and --switches exclude them"
        )
    if arguments.html:
        print(f"wrote {arguments.html}")
    return 1 if report.over else 0


def _build(arguments: argparse.Namespace, reference: Reference) -> Net:
    from caffe_port.pycaffe import Net

    options = read_options(arguments)
    net = Net(arguments.prototxt, weights=arguments.weights, phase=arguments.phase, **options)
    check_parameters(net, arguments.weights, reference)
    return net


def _as_json(report: Report) -> dict[str, Any]:
    return {
        **{"net": report.net, "reference": report.reference, "setting": report.setting, "ok": not report.over},
        "verdict": report.verdict,
        "lacking": report.lacking,
        "rows": [row.as_json() for row in report.rows],
    }


def write_page(path: str | Path, report: Report, *, overwrite: bool = False) -> None:
    """Writes the report as one self-contained page, atomically.

    Raises:
        FileError: the file exists or cannot be written.
    """
    from caffe_port.tools.parity_page import page

    with atomic_write(path, overwrite=overwrite) as file:
        file.write(page(report).encode())


if __name__ == "__main__":
    main()
