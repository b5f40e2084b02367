"""upgrade: rewrites definitions and weights of old generations in the newest form.

Source: tools/upgrade_net_proto_text.cpp, upgrade_net_proto_binary.cpp, upgrade_solver_proto_text.cpp.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from google.protobuf.message import DecodeError

from caffe_port.dialects import dialect as dialect_of
from caffe_port.errors import CaffeError, FormatError
from caffe_port.formats.atomic import atomic_write, check_output
from caffe_port.formats.mapping import map_file
from caffe_port.formats.sniff import kind_of, protobuf_kind, refuse_others
from caffe_port.schema import load_proto, parse_text, read_solver, scan, to_text, upgrade_net
from caffe_port.schema.detect import detect_dialect, evidence_of_text
from caffe_port.schema.merge import schema_of
from caffe_port.schema.text import read_text
from caffe_port.schema.upgrade import generation
from caffe_port.tools.cli import Parser, read_options, run
from caffe_port.tools.progress import working

__all__ = ["main", "read_definition"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "upgrade",
        "Write a net's definition, a solver's or a .caffemodel in the newest form of Caffe's files: layer blocks with"
        " string types, Input layers, transform_param, a solver's type. The kind of file is detected.",
        example="deploy.prototxt upgraded.prototxt",
    )
    add = parser.add_argument
    add("input", metavar="FILE", help="a prototxt (a net or a solver) or a .caffemodel, of any generation")
    add("output", metavar="OUTPUT", help="the new file, of the same kind")
    parser.add_force()
    parser.add_quiet()
    parser.add_dialect()
    parser.reads("input")
    parser.writes("output")
    run(_upgrade, parser, argv)


def _upgrade(arguments: argparse.Namespace) -> None:
    check_output(arguments.output, overwrite=arguments.force)
    options = read_options(arguments)
    source = Path(arguments.input)
    with working(f"upgrading {source.name}", quiet=arguments.quiet):
        if source.is_file() and b"\0" in source.open("rb").read(4096):
            old, data = _binary(arguments.input, options)
        else:
            old, data = _text(arguments.input, options)
        with atomic_write(arguments.output, overwrite=arguments.force) as file:
            file.write(data)
    if not arguments.quiet:
        print(f"wrote {arguments.output}: {old}")


def _text(path: str, options: dict[str, Any]) -> tuple[str, bytes]:
    """A description of the old file, and its new text."""
    text = read_text(path)
    names = {field.name for field in scan.fields(text, path)}
    schema = _schema(text, path, options)
    of_net = set(schema.NetParameter.DESCRIPTOR.fields_by_name)
    of_solver = set(schema.SolverParameter.DESCRIPTOR.fields_by_name)
    if not names & {"layer", "layers"} and len(names & of_solver) > len(names & of_net):
        solver = parse_text(text, schema.SolverParameter, path)
        was = (
            "a solver, its type as a number before"
            if solver.HasField("solver_type")
            else "a solver, already in the newest form"
        )
        upgraded = read_solver(solver, **options)
        return was, to_text(upgraded).encode()
    net = parse_text(text, schema.NetParameter, path)
    return _was(net), to_text(upgrade_net(net, f"{path}: layer {{}}".format).net).encode()


def _binary(path: str, options: dict[str, Any]) -> tuple[str, bytes]:
    buffer = map_file(path, writable=False)
    refuse_others(buffer, path, "a .caffemodel")
    kind = kind_of(buffer)
    kind = protobuf_kind(buffer, path) if kind == "protobuf" else kind
    if kind != "caffemodel":
        raise FormatError(path, kind or "another format", expected="a prototxt or a .caffemodel")
    schema = _schema("", path, options)
    try:
        net = schema.NetParameter.FromString(bytes(buffer))
    except DecodeError:
        raise FormatError(path, "a damaged file", expected="a .caffemodel") from None
    return _was(net), upgrade_net(net, f"{path}: layer {{}}".format).net.SerializeToString()


def read_definition(path: str, options: dict[str, Any]) -> Any:
    """A net's message in the newest form, with the layers of all phases.

    Args:
        options: dialect and proto, as :func:`caffe_port.tools.cli.read_options` gives them.
    """
    text = read_text(path)
    net = parse_text(text, _schema(text, path, options).NetParameter, path)
    return upgrade_net(net, f"{path}: layer {{}}".format).net


def _schema(text: str, path: str, options: dict[str, Any]) -> Any:
    choice = options["dialect"]
    dialect = dialect_of(choice) if choice else detect_dialect(evidence_of_text(text, path))[0]
    schema = schema_of(dialect)
    return load_proto(options["proto"], schema) if options["proto"] else schema


def _was(net: Any) -> str:
    if not net.layers and not net.layer:
        raise CaffeError("upgrade", "a net without layers", expected="a definition or a .caffemodel")
    return f"generation {generation(net)} before" if net.layers or net.input else "already in the newest form"


if __name__ == "__main__":
    main()
