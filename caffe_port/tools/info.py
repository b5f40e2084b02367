"""info: what definitions and weight files contain, without building a net."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from caffe_port.errors import CaffeError, WeightsError
from caffe_port.schema import scan
from caffe_port.tools.cli import Parser, print_json, read_options, run, table
from caffe_port.tools.summary import Summary, summarize

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, 1 if weights do not fit their net, or 2 if a file could not be read."""
    parser = Parser(
        "info",
        "Show what definitions and weight files contain: the dialect and why, phases and stages, layers with the shapes"
        " of their tops, parameters, multiply-adds and memory, and everything unknown, with the fork that has it;"
        " of a net and its weights also whether they fit: shapes, what is missing, what is unexpected."
        " Builds no net and loads no torch.",
        example="net.prototxt model.caffemodel",
    )
    add = parser.add_argument
    add("files", metavar="FILE", nargs="+", help="a prototxt (a net or a solver), or weights of any format")
    add("--phase", choices=("TEST", "TRAIN"), help="default: TEST, or TRAIN where no net results in TEST")
    add("--level", type=int, default=0, metavar="N", help="the net's level")
    add("--stage", metavar="A,B", default="", help="the net's stages")
    parser.add_json("print a line of JSON for each file: file, kind, dialect, layers, parameters, unknown and more")
    parser.add_quiet("print no table of layers")
    parser.add_dialect()
    run(_info, parser, argv)


def _info(arguments: argparse.Namespace) -> int:
    gc.set_threshold(50_000, 20, 100)  # a file makes very many small objects, and few cycles
    options = read_options(arguments)
    stages = [stage for stage in arguments.stage.split(",") if stage]
    status, kinds = 0, dict[str, Summary]()
    for i, file in enumerate(arguments.files):
        try:
            found = summarize(file, phase=arguments.phase, level=arguments.level, stages=stages, **options)
        except CaffeError as error:
            if len(arguments.files) == 1 and not arguments.json:
                raise
            found = Summary(file, "unreadable", parameters=None, problems=[str(error)])
        status = 2 if found.kind == "unreadable" else status
        if arguments.json:
            print_json(found.as_json())
        else:
            print(("\n" if i else "") + _as_text(found, quiet=arguments.quiet))
        kinds[found.kind] = found
    if len(arguments.files) == 2 and kinds.keys() == {"net", "weights"} and not arguments.json:
        net, weights = kinds["net"], kinds["weights"]
        lines, fits = _comparison(net, weights.file, level=arguments.level, stages=stages, **options)
        print("\n" + "\n".join(lines))
        status = status or int(not fits)
    return status


def _comparison(net: Summary, weights: str, **options: Any) -> tuple[list[str], bool]:
    """Whether a weight file fits a net, in lines, and as a bool: what Caffe would refuse does not."""
    from caffe_port.formats import open_weights
    from caffe_port.schema import read_net
    from caffe_port.tools.caffe2torch import compare

    title = f"{weights} for {net.file}"
    try:
        definition = read_net(net.file, phase=net.phase, **options)
        opened = open_weights(weights, writable=False)
        try:
            return [f"{title}: fits", *compare(definition, opened)], True
        except WeightsError as error:
            lines = [f"{title}: does not fit", f"  {error}"]
            with suppress(WeightsError):  # the same again
                lines += compare(definition, opened, ignore_mismatched=True)
            return lines, False
    except CaffeError as error:
        return [f"{title}: not compared: {error}"], True


def _as_text(found: Summary, *, quiet: bool) -> str:
    layers = f", {len(found.lines)} layers" if found.lines else ""
    lines = [f"{found.file}: {found.kind}{f' {found.name}' if found.name else ''}{layers}"]
    if found.dialect or found.why:
        lines.append(f"  dialect: {found.dialect or 'not determined'}: {found.why}")
    if found.phases:
        lines.append(f"  phases: {', '.join(f'{name} with {n} layers' for name, n in found.phases.items())}")
    for what, values in (("stages", found.stages), ("levels", found.levels)):
        if values:
            lines.append(f"  {what}: {', '.join(map(str, values))}")
    lines += [f"  note: {note}" for note in found.notes]
    if found.lines and not quiet:
        lines += ["", _layers(found), ""]
    if found.kind in ("net", "weights"):
        lines.append(f"  parameters: {_number(found.parameters)}")
    if found.kind == "net" and found.lines:
        lines.append(f"  multiply-adds: {_number(found.macs)} a pass in {found.phase}")
        lines.append(f"  memory: {_bytes(found.memory)} of blobs, {_bytes(_times4(found.parameters))} of parameters")
    for target, lacking in found.exports.items():
        lines.append(f"  export to .{target}: " + (f"all but {', '.join(lacking)}" if lacking else "every layer"))
    lines += _unknown(found)
    lines += [f"  problem: {problem}" for problem in found.problems]
    return "\n".join(lines)


def _layers(found: Summary) -> str:
    if found.kind == "weights":
        rows: list[Sequence[Any]] = [
            (line.name, line.type or "?", ", ".join(_shape(shape) for _, shape in line.tops), _number(line.parameters))
            for line in found.lines
        ]
        return table(("layer", "type", "blobs", "parameters"), rows, right=(3,))
    rows = [
        (
            line.name,
            line.type,
            ", ".join(f"{name} {_shape(shape)}" for name, shape in line.tops),
            _number(line.parameters) if line.parameters != 0 else "",
            _number(line.macs) if line.macs != 0 else "",
        )
        for line in found.lines
    ]
    return table(("layer", "type", "tops", "parameters", "multiply-adds"), rows, right=(3, 4))


def _unknown(found: Summary) -> list[str]:
    groups: dict[str, list[str]] = {}
    for one in found.unknown:
        lines = sorted({scan.line_of(found.text, at) for at in one.at})
        where = f" (line {lines[0]}{f' and {len(lines) - 1} more' if lines[1:] else ''})" if lines else ""
        near = f", near: {one.near}" if one.near and not one.fork else ""
        groups.setdefault(one.fork, []).append(f"{one}{where}{near}")
    listed = []
    for fork, names in groups.items():
        listed.append(f"  unknown{f', of {fork}' if fork else ''}:")
        listed += [f"    {name}" for name in names]
    return listed


def _shape(shape: Sequence[Any]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _number(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _times4(number: int | None) -> int | None:
    return None if number is None else 4 * number


def _bytes(number: int | None) -> str:
    if number is None:
        return "? bytes"
    return f"{number / 1e6:,.1f} MB" if number >= 100_000 else f"{number:,} bytes"


if __name__ == "__main__":
    main()
