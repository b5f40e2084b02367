"""The error classes.

A message gives in one line the place of the error, what was expected there, what was found and a remedy.
Command-line tools print that line and exit with status 2; programs catch :class:`CaffeError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CaffeError",
    "DefinitionError",
    "FileError",
    "FormatError",
    "LayerError",
    "ShapeError",
    "WeightsError",
    "nearest",
]


class CaffeError(Exception):
    """The base class of all errors caused by wrong files, definitions or arguments.

    Args:
        where: the place of the error (``file:line:column``, a file, a layer).
        found: what was found there.
        expected: what was expected, unless ``found`` implies it.
        remedy: what the user can do.
    """

    def __init__(self, where: str, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.where, self.found, self.expected, self.remedy = str(where), found, expected, remedy
        where, found, expected, remedy = _short([str(where), found, expected, remedy])
        middle = f"expected {expected}, found {found}" if expected else found
        super().__init__(f"{where}: {middle}" + (f"; {remedy}" if remedy else ""))

    def advised(self, remedy: str) -> CaffeError:
        """The same error with one more remedy."""
        more = "; ".join(filter(None, (self.remedy, remedy)))
        return type(self)(self.where, self.found, expected=self.expected, remedy=more)


def _short(parts: list[str]) -> list[str]:
    """The parts of a message, each on one line, with the middle of the longest shortened so that all fit one line.

    Names and numbers in a message come from files: they may contain line ends and terminal control characters, and may
    be millions of characters long.
    """
    clean = [_printable(part[:_LONGEST] + part[-_LONGEST:] if len(part) > 2 * _LONGEST else part) for part in parts]
    share = next(n for n in (_LONGEST, 600, 450, 300, 230) if sum(min(len(c), n) for c in clean) <= _LONGEST)
    return [c if len(c) <= share else f"{c[: share // 2 - 2]} ... {c[3 - share // 2 :]}" for c in clean]


_LONGEST = 930
"""Total length of a message's parts; with the words between them it is below 1000."""


def _printable(text: str) -> str:
    return " ".join("".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in text).split())


class FileError(CaffeError):
    """A file or folder is missing, unreadable, exists, or cannot be written."""


class FormatError(CaffeError):
    """The bytes of a file are not of the expected format."""


class DefinitionError(CaffeError):
    """A prototxt is wrong: syntax, an unknown field or type, a bottom that no layer computes, a duplicate top."""


class LayerError(DefinitionError):
    """One layer's parameters are wrong or not supported."""


class ShapeError(CaffeError):
    """A blob's shape does not fit its layer, or is invalid."""


class WeightsError(CaffeError):
    """Weights do not fit the net they are loaded into."""


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """The names in ``known`` that are most similar to ``name``, as text for a message; empty if none is similar."""
    folded = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), folded, n=limit, cutoff=0.6)
    return ", ".join(folded[c] for c in close)
