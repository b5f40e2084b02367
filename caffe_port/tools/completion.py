"""completion: ``eval "$(caffe-port completion bash)"`` in a shell's start-up file completes commands and options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from caffe_port.errors import CaffeError
from caffe_port.tools.cli import Parser, run

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser(
        "completion",
        "Print what a shell evaluates to complete caffe-port's commands and options: eval \"$(caffe-port completion"
        ' bash)" in ~/.bashrc, or the same with zsh in ~/.zshrc; caffe-port completion fish | source in fish.',
        example="bash",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    run(_print, parser, argv)


def _print(arguments: argparse.Namespace) -> None:
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise CaffeError("argcomplete", "not installed", remedy="pip install argcomplete") from None
    print(shellcode(["caffe-port"], shell=arguments.shell))


if __name__ == "__main__":
    main()
