"""parity: a net compared with the numbers that another Caffe computed for it, layer by layer."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from caffe_port.errors import CaffeError, WeightsError
from caffe_port.formats.atomic import atomic_write, check_output
from caffe_port.tools import compare
from caffe_port.tools.cli import Parser, print_json, read_options, run, table
from caffe_port.tools.compare import Comparison
from caffe_port.tools.progress import working

if TYPE_CHECKING:
    from caffe_port.graph import Node
    from caffe_port.pycaffe import Net
    from caffe_port.tools.replay import Reference

__all__ = ["Report", "Row", "check_parameters", "main", "makers", "measure"]

_TOP = 12
_FEW = 0.01
"""Share of an array's values up to which those over the bound look like near ties."""


@dataclass(frozen=True)
class Row:
    """One array of the reference, with the layer that computed it.

    Attributes:
        index: the layer's position in the net. turn: order of computation, backward after forward.
        layer, type: of an in-place blob those of the first and the last layer that wrote it, ``conv1 .. relu1``.
    """

    index: int
    turn: int
    layer: str
    type: str
    comparison: Comparison

    @property
    def severity(self) -> tuple[bool, float]:
        """Sort key of the worst rows: those over the bound first, then by error divided by bound."""
        return not self.comparison.ok, self.comparison.error / self.comparison.bound

    @property
    def verdict(self) -> str:
        c = self.comparison
        return c.found or ("over" if not c.ok else "near ties" if c.outside else "ok")

    def as_json(self) -> dict[str, Any]:
        c = self.comparison
        return {
            **{"layer": self.layer, "type": self.type, "array": c.key, "values": c.size, "verdict": self.verdict},
            **{"error": float(c.error), "rms": float(c.rms), "bound": float(c.bound), "outside": c.outside},
        }


@dataclass(frozen=True)
class Report:
    """A net compared with a reference. ``rows`` are in the order of the net, backward after forward."""

    net: str
    reference: str
    setting: str
    rows: list[Row]
    lacking: list[str] = field(default_factory=list)
    """Outputs of the net that the reference does not have."""

    @property
    def over(self) -> list[Row]:
        return [row for row in self.rows if not row.comparison.ok]

    @property
    def worst_first(self) -> list[Row]:
        return sorted(self.rows, key=lambda row: row.severity, reverse=True)

    @property
    def layers(self) -> list[list[Row]]:
        """The rows of each layer, in the order of the net."""
        layers: dict[int, list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: row.index):
            layers.setdefault(row.index, []).append(row)
        return list(layers.values())

    @property
    def head(self) -> str:
        """What was compared."""
        size = f"{len(self.rows)} arrays of {len(self.layers)} layers"
        return f"{self.net} beside {self.reference}: {size}, {self.setting}"

    @property
    def verdict(self) -> str:
        """One sentence: whether all arrays are within their bounds, or the first layer that is not."""
        lacking = f"; the reference lacks the net's outputs {', '.join(self.lacking)}" if self.lacking else ""
        return self._verdict() + lacking

    @property
    def first(self) -> Row | None:
        """The array that is over its bound and was computed first; None where all is well."""
        return min(self.over, key=lambda row: row.turn, default=None)

    @property
    def near_ties(self) -> bool:
        """Whether the arrays over their bounds look like near ties: few values of the first one are over."""
        if self.first is None:
            return False
        first = self.first.comparison
        return not first.found and 0 < first.outside < _FEW * first.size

    def _verdict(self) -> str:
        first = self.first
        if first is None:
            worst = max((row.comparison for row in self.rows if not row.comparison.outside), key=lambda c: c.error)
            ties = sum(row.comparison.outside for row in self.rows)
            return f"all within their bounds; the largest error is {worst.error:.1e} ({worst.key})" + (
                f"; {ties} values exceed them, as near ties may" if ties else ""
            )
        return (
            f"{len(self.over)} of {len(self.rows)} arrays over their bounds, first at layer {first.layer}"
            f" ({first.type}): {first.comparison}"
        )


def measure(net: Net, reference: Reference, *, forwards: int = 1, own_switches: bool = False) -> Report:
    """Run ``net`` as the reference was run and compare; see :func:`caffe_port.tools.replay.replay`.

    Raises:
        CaffeError: the reference does not fit the net, or lacks one of its inputs.
    """
    from caffe_port.tools.replay import replay

    for name in net.inputs:
        if f"in/{name}" not in reference:
            raise CaffeError(reference.path, f"no in/{name}", expected="a value for each input of the net")
    rows = []
    for comparison in replay(net, reference, forwards=forwards, own_switches=own_switches):
        made = makers(net, comparison)
        index = made[-1].index
        turn = 2 * len(net.nodes) - index if comparison.kind in ("diff", "pdiff") else index
        names = [node.name or f"({node.type})" for node in made]
        rows.append(Row(index, turn, _from_to(names), _from_to([node.type for node in made]), comparison))
    if all(row.type == "Input" for row in rows):
        found = f"nothing that a layer computed ({len(rows)} arrays, all of inputs)"
        remedy = "dump it again: caffe-port dump-reference"
        raise CaffeError(reference.path, found, expected="out/BLOB of the net's layers", remedy=remedy)
    held = {key.partition("/")[2] for key in reference.keys("out", "sample", "moments", "masksum", "switch")}
    lacking = [name for name in net.outputs if name not in held]
    rows.sort(key=lambda row: row.turn)
    setting = f"phase {net.phase}, dialect {net.dialect.name}" + (", the reference's switches" if own_switches else "")
    return Report(net.definition.path, reference.path, setting, rows, lacking)


def makers(net: Net, comparison: Comparison) -> list[Node]:
    """The layers that wrote an array: several for an in-place blob."""
    kind, name = comparison.kind, comparison.name
    nodes = [node for node, _ in net.nodes]
    if kind in ("pdiff", "after"):
        return [node for node in nodes if node.name == name.rpartition("/")[0]][:1]
    readers = [node for node in nodes if name in node.bottoms] if kind == "diff" else []
    return readers[:1] or [node for node in nodes if name in node.tops]


def _from_to(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"


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
    add("--forwards", type=_count, default=1, metavar="N", help="forward passes before comparing; default: 1")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--top", type=_count, default=_TOP, metavar="N", help="show the worst N; default: %(default)s")
    shown.add_argument("--all", action="store_true", help="show all, in the order of the net")
    add("--html", metavar="FILE", help="also write the report as an HTML page")
    parser.add_force()
    parser.add_json("print the report as one line of JSON, with every array")
    parser.add_quiet("print the verdict only")
    parser.add_dialect()
    parser.reads("prototxt", "weights", "reference", "noise")
    run(_main, parser, argv)


def _bound(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}, expected a number above 0")


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}, expected 1, 2, ...")


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


def check_parameters(net: Net, weights: str | None, reference: Reference) -> None:
    """Refuse a net without trained parameters.

    Raises:
        WeightsError: there are neither weights nor parameters in the reference.
    """
    if net.params and not weights and not reference.keys("param"):
        raise WeightsError(reference.path, "no parameters", expected="MODEL.caffemodel before it on the command line")


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
