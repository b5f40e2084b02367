"""The paths of the files that a definition names, and the text files that list pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from caffe_port.errors import FileError, FormatError
from caffe_port.paths import is_file
from caffe_port.schema.scan import mistaken

__all__ = ["Places", "lines", "whole"]

_WHOLE = re.compile(r"[-+]?[0-9]{1,20}")
_LONGEST_LINE = 1 << 20


def whole(word: str) -> int | None:
    """The whole number that a list's word is, as the originals' ``int`` holds it; None for anything else."""
    number = int(word) if _WHOLE.fullmatch(word) else 2**31
    return number if -(2**31) <= number < 2**31 else None


class Places:
    """The folders that a definition's relative names start from.

    The working directory (as it was when this was made) is the first, as in Caffe. What is not there is looked for
    beside the definition.

    Args:
        definition: the prototxt's path; one that is not a file (text, a message) has no folder of its own.
    """

    def __init__(self, definition: str) -> None:
        folders = [Path.cwd(), Path(definition).resolve().parent] if is_file(definition) else [Path.cwd()]
        self.folders = [str(folder) for folder in dict.fromkeys(folders)]

    def find(self, name: str, what: str, where: str, *, folder: bool = False) -> str:
        """The path of the file ``name``.

        Args:
            what: what it is ("picture"), and ``where`` it is asked for ("train.txt:3"), for the error.
            folder: whether it may be a folder.

        Raises:
            FileError: it is in none of the places, or a folder.
        """
        candidates = [str(Path(place, name)) for place in self.folders] if name else []
        for path in candidates:
            # faster than Path's methods; these run for every picture
            if os.path.exists(path):  # noqa: PTH110
                if not folder and os.path.isdir(path):  # noqa: PTH112
                    raise FileError(where, f"the folder {path}", expected=f"a {what}")
                return path
        looked = f" (looked for {' and for '.join(dict.fromkeys(candidates))})" if candidates else ""
        raise FileError(
            where, f"no {what} {name!r}{looked}", remedy=mistaken(name) or "names are relative to the working directory"
        )


def lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers from 1, without blank ones and white space around.

    Raises:
        FileError: the file cannot be read. FormatError: it has no such lines, or one that is not text.
    """
    empty, number = True, 0
    try:
        # File names are bytes in any encoding, which is kept.
        with Path(path).open(encoding="utf-8", errors="surrogateescape") as file:
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise FormatError(f"{path}:{number}", f"a line of {_LONGEST_LINE} letters", expected="a text file")
                text = line.strip()
                if text:
                    empty = False
                    yield number, text
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from error
    if empty:
        raise FormatError(path, "an empty list", expected="a line for each item")
