"""What all commands share: options, one-line errors, exit statuses, completion, JSON and tables."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import caffe_port
from caffe_port import dialects
from caffe_port.errors import CaffeError, WeightsError

if TYPE_CHECKING:
    from caffe_port.net import Net
    from caffe_port.schema import Definition

__all__ = [
    "EITHER",
    "FILE",
    "FOLDER",
    "Parser",
    "as_gflags",
    "commas",
    "count",
    "numbers",
    "print_json",
    "read_options",
    "run",
    "share",
    "size",
    "table",
    "trained_net",
]

_WRONG, _INTERRUPTED, _TERMINATED = 2, 130, 143


class _Help(argparse.HelpFormatter):
    """Does not wrap the example's line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("example:") else super()._fill_text(text, width, indent)


FILE, FOLDER, EITHER = "file", "folder", "file or folder"


class Path(NamedTuple):
    """How the value of an argument names files.

    Attributes:
        kind: FILE, FOLDER or EITHER. part: the path or paths in it. written: is an output.
    """

    kind: str
    part: Callable[[str], str | list[str]]
    written: bool = False

    def check(self, given: Any) -> None:
        """Refuse the paths that cannot be used.

        Raises:
            FileError: naming the first.
        """
        from caffe_port.formats.atomic import check_input, check_output, check_output_folder  # imports numpy

        for value in given if isinstance(given, list) else [given]:
            parts = self.part(str(value))
            for path in [parts] if isinstance(parts, str) else parts:
                if not self.written:
                    check_input(path, folder={FILE: False, FOLDER: True, EITHER: None}[self.kind])
                elif self.kind == FOLDER:
                    check_output_folder(path)
                else:
                    check_output(path, overwrite=True)


class Parser(argparse.ArgumentParser):
    """An argument parser with the options that commands share; its errors are one line.

    Args:
        name: of the command. description: what it does.
        example: arguments for ``--help`` to show; a test runs them.
    """

    def __init__(self, name: str, description: str, *, example: str | None = None, **options: Any) -> None:
        options.setdefault("prog", f"caffe-port {name}")
        if example is not None:
            options["epilog"] = f"example:\n  {options['prog']} {example}".rstrip()
        super().__init__(description=description, allow_abbrev=False, formatter_class=_Help, **options)
        self.add_argument("--version", action="version", version=f"caffe_port {caffe_port.__version__}")
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        self.paths: dict[str, Path] = {}

    def reads(self, *names: str, kind: str = FILE, part: Callable[[str], str | list[str]] = str) -> None:
        """These arguments name what is read: it is looked for before anything is done.

        Args:
            kind: FILE, FOLDER or EITHER. part: the path or paths in a value.
        """
        self.paths.update((name, Path(kind, part)) for name in names)

    def writes(self, *names: str, kind: str = FILE, part: Callable[[str], str | list[str]] = str) -> None:
        """These arguments name what is written: whether that can be is looked at before anything is done.

        Whether it may replace what is there, the command says itself.
        """
        self.paths.update((name, Path(kind, part, written=True)) for name in names)

    def check_paths(self, arguments: argparse.Namespace) -> None:
        """Refuse what cannot be read, then what cannot be written.

        Raises:
            FileError: naming the first.
        """
        for written in (False, True):
            for name, path in self.paths.items():
                given = getattr(arguments, name)
                if path.written == written and given not in (None, []):
                    path.check(given)

    def add_dialect(self, what: str = "which Caffe the net is for") -> None:
        """--dialect, --proto, --plugin and --python-layers, for a command that reads a definition."""
        add = self.add_argument_group("the net's Caffe").add_argument
        add("--dialect", choices=dialects.names(), help=f"{what}; default: detected")
        self.reads("proto", "plugin")
        add("--proto", metavar="FILE", help="another Caffe's caffe.proto, whose fields and types are then accepted")
        add(
            "--plugin",
            metavar="FILE",
            action="append",
            default=[],
            help="a Python file with @layer, @policy, @rule",
        )
        add("--python-layers", action="store_true", help="allow Python layers to run the code that they name")
        add("--allow-writes", action="store_true", help="allow layers such as HDF5Output to write the files they name")

    def add_output(self, metavar: str = "FILE", help: str = "", kind: str = FILE, **options: Any) -> None:
        """-o and -f, for a command that writes a file, or into a folder."""
        self.add_argument("-o", "--output", metavar=metavar, help=help, **options)
        self.writes("output", kind=kind)
        self.add_force()

    def add_force(self) -> None:
        """-f, for a command that writes."""
        self.add_argument("-f", "--force", action="store_true", help="overwrite existing files")

    def add_quiet(self, help: str = "print nothing but errors") -> None:
        """-q, for a command that prints or shows progress."""
        self.add_argument("-q", "--quiet", action="store_true", help=help)

    def add_json(self, help: str) -> None:
        """--json, for a command whose results programs may read."""
        self.add_argument("--json", action="store_true", help=help)

    def add_device(self) -> None:
        """--device, for a command that runs nets."""
        help = "cpu, cuda, cuda:1, auto; default: %(default)s"
        self.add_argument("--device", default="cpu", metavar="D", help=help)

    def add_precision(self) -> None:
        """``--precision``, of a net that only runs forward."""
        help = "of convolutions and products; bf16: faster, with eight binary digits (docs/speed.md); default: fp32"
        self.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help=help)

    def error(self, message: str) -> NoReturn:
        self.exit(_WRONG, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of :meth:`Parser.add_dialect` as ``read_net`` and ``Net`` take them.

    Plugins are run, and Python layers and layers that write files are allowed, in this process. The .proto is read even
    where the command then needs no definition, so that a wrong one is an error.

    Raises:
        CaffeError: a plugin is missing or fails, or the .proto is wrong.
    """
    if arguments.plugin or arguments.python_layers or arguments.allow_writes:
        from caffe_port.schema.plugins import allow_python_layers, allow_writes, load_plugin

        for plugin in arguments.plugin:
            load_plugin(plugin)
        if arguments.python_layers:
            allow_python_layers()
        if arguments.allow_writes:
            allow_writes()
    if arguments.proto:
        from caffe_port.schema import load_proto

        load_proto(arguments.proto)
    return {"dialect": arguments.dialect, "proto": arguments.proto}


def count(text: str) -> int:
    """The value of an option that is a whole number above 0, for argparse."""
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number above 0")


def share(text: str) -> float:
    """The value of an option that is a number from 0 to 1, for argparse."""
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}, expected a number from 0 to 1")


def commas(text: str) -> list[str]:
    """The parts of A,B."""
    return text.split(",")


def numbers(option: str, text: str | None, kind: type = float) -> list[Any]:
    """The value of an option such as ``--mean 104,117,123``; [] without one.

    Raises:
        CaffeError: it is something else.
    """
    try:
        return [kind(part) for part in text.split(",")] if text else []
    except ValueError:
        expected = "numbers separated by commas, such as 104,117,123"
        raise CaffeError(option, repr(text), expected=expected) from None


def size(option: str, text: str | None) -> tuple[int, int] | None:
    """The value of an option such as ``--input-size 224x320``, as height and width; None without one.

    Raises:
        CaffeError: it is something else.
    """
    if not text:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise CaffeError(option, repr(text), expected="HEIGHTxWIDTH, such as 224x224")
    return int(height), int(width)


_FLAG = re.compile(r"--?([A-Za-z]\w[\w-]*)(=.*)?", re.DOTALL)


def as_gflags(argv: Sequence[str] | None, booleans: Sequence[str] = ()) -> list[str]:
    """Arguments (the process's by default) with options in one spelling: gflags also takes -name and --na_me.

    Args:
        booleans: options that take no value, which in gflags may also be --name=true, --name=false and --noname.
    """
    spelled = []
    for word in sys.argv[1:] if argv is None else argv:
        match = _FLAG.fullmatch(word)
        if match is None:
            spelled.append(word)
            continue
        name, value = match[1].replace("_", "-"), match[2] or ""
        if name in booleans and value[1:].lower() in ("true", "t", "1", "yes", "y", "false", "f", "0", "no", "n"):
            spelled += [f"--{name}"] if value[1:2].lower() in ("t", "1", "y") else []
        elif not (name.startswith("no") and name[2:] in booleans and not value):
            spelled.append(f"--{name}{value}")
    return spelled


def run(
    main: Callable[[argparse.Namespace], int | None], parser: Parser, argv: Sequence[str] | None = None
) -> NoReturn:
    """Parses ``argv`` (the process's by default), calls ``main`` and exits with its status.

    A wrong input (:class:`CaffeError`, a file that cannot be opened, a full disk) is one line on stderr and status 2;
    ``--debug`` adds the traceback. Ctrl-C gives 130, a closed pipe (``| head``) ends quietly.
    """
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # unwinds, so that temporary files are removed
    try:
        parser.check_paths(arguments)
        status = main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        _print_error(parser.prog, "interrupted", arguments.debug)
        sys.exit(_INTERRUPTED)
    except CaffeError as error:
        _print_error(parser.prog, f"error: {error}", arguments.debug)
        sys.exit(_WRONG)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _print_error(parser.prog, f"error: {where}{error.strerror or error}", arguments.debug)
        sys.exit(_WRONG)
    sys.exit(status or 0)


def _print_error(prog: str, message: str, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)


def trained_net(
    definition: str | Definition, weights: str | Sequence[str], *, quiet: bool = False, **options: Any
) -> Net:
    """A net in TEST with all of its parameters from a file, or several.

    Args:
        quiet: print no report of them. options: as :class:`caffe_port.net.Net` takes them.

    Raises:
        WeightsError: the files lack some of them.
    """
    from caffe_port.net import Net
    from caffe_port.pycaffe.mode import init_log

    if quiet:
        init_log(1)
    net = Net(definition, weights, **options)
    missing = [name for name in net.accounts[0].missing if all(name in one.missing for one in net.accounts)]
    if missing:
        raise WeightsError(
            weights if isinstance(weights, str) else ",".join(weights),
            f"no {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}",
            expected=f"all {len(net.state_dict())} blobs of {net.definition.path}",
            remedy="check that they are this net's",
        )
    return net


def print_json(value: dict[str, Any]) -> None:
    """Prints a result on one line; numbers that JSON lacks (NaN, infinities) become null."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else None  # -0 + 0 is 0
    return value


def table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """``rows`` under ``header`` as aligned text, columns two blanks apart; those in ``right`` are right-aligned."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = (
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)
