"""What every command has in common: options, one-line errors, exit statuses, progress and tables."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import caffe_port
from caffe_port.errors import CaffeError, WeightsError

if TYPE_CHECKING:
    from caffe_port.net import Net
    from caffe_port.schema import Definition

__all__ = ["Parser", "each", "print_line", "progress", "run", "table", "trained_net"]

T = TypeVar("T")

_WRONG, _INTERRUPTED, _TERMINATED = 2, 130, 143
_SLOW_BYTES, _SLOW_SECONDS = 200_000_000, 2.0


class Parser(argparse.ArgumentParser):
    """An argument parser with the options that all commands share; its complaints are one line."""

    def __init__(self, prog: str, description: str, **options: Any) -> None:
        super().__init__(prog=prog, description=description, **options)
        self.add_argument("--version", action="version", version=f"caffe_port {caffe_port.__version__}")
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        self.exit(_WRONG, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def run(
    main: Callable[[argparse.Namespace], int | None], parser: Parser, argv: Sequence[str] | None = None
) -> NoReturn:
    """Parses ``argv`` (the process's by default), calls ``main`` and exits with its status.

    A wrong input (:class:`CaffeError`, a file that cannot be opened, a full disk) is one line on stderr and status 2;
    ``--debug`` adds the traceback. Ctrl-C gives 130, a closed pipe (``| head``) ends quietly.
    """
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # unwinds, so that temporary files go
    try:
        status = main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        _complain(parser.prog, "interrupted", arguments.debug)
        sys.exit(_INTERRUPTED)
    except CaffeError as error:
        _complain(parser.prog, f"error: {error}", arguments.debug)
        sys.exit(_WRONG)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(parser.prog, f"error: {where}{error.strerror or error}", arguments.debug)
        sys.exit(_WRONG)
    sys.exit(status or 0)


def _complain(prog: str, message: str, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)


@contextmanager
def progress(total: int, what: str, *, quiet: bool = False) -> Iterator[Callable[[int], object] | None]:
    """A progress bar on stderr for work on ``total`` bytes, shown once it has taken two seconds and only on a terminal.

    Yields a function that takes the number of bytes done since its last call; None when there will be no bar.
    """
    if quiet or total < _SLOW_BYTES or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="B", unit_scale=True, delay=_SLOW_SECONDS, leave=False) as bar:
        yield bar.update


def each(things: Sequence[T], what: str, *, quiet: bool = False) -> Iterator[T]:
    """The things one by one, with a progress bar on stderr once it takes over two seconds, and only on a terminal."""
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty()
    with tqdm(things, what, delay=_SLOW_SECONDS, leave=False, dynamic_ncols=True, disable=hidden) as bar:
        yield from bar


def print_line(line: str) -> None:
    """Prints a line on stdout, above the bar of :func:`each` where there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def trained_net(definition: str | Definition, weights: str, *, quiet: bool = False, **options: Any) -> Net:
    """A net in TEST with all of its parameters from a file.

    Args:
        quiet: print no account of them. options: as :class:`caffe_port.net.Net` has them.

    Raises:
        WeightsError: the file lacks some of them.
    """
    from caffe_port.net import Net
    from caffe_port.pycaffe.mode import init_log

    if quiet:
        init_log(1)
    net = Net(definition, weights, **options)
    missing = net.accounts[0].missing
    if missing:
        raise WeightsError(
            weights,
            f"no {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}",
            expected=f"all {len(net.state_dict())} blobs of {net.definition.path}",
            remedy="are they this net's?",
        )
    return net


def table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """``rows`` under ``header`` as aligned text, columns two blanks apart; those numbered in ``right`` end flush."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = (
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)
