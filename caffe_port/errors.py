"""One family of errors, each a sentence written for the person who reads it.

A message says where the fault lies, what was expected there, what was found and what to do about it, in one line.
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
    """The root of every error that a wrong file, definition or argument can cause.

    Args:
        where: the place of the fault (``file:line:column``, a file, a layer).
        found: what is there.
        expected: what should be there, if that is not plain from ``found``.
        remedy: what the reader can do.
    """

    def __init__(self, where: str, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.where, self.found, self.expected, self.remedy = str(where), found, expected, remedy
        where, found, expected, remedy = _short([str(where), found, expected, remedy])
        middle = f"expected {expected}, found {found}" if expected else found
        super().__init__(f"{where}: {middle}" + (f"; {remedy}" if remedy else ""))

    def advised(self, remedy: str) -> CaffeError:
        """The same error with one more thing that the reader can do."""
        more = "; ".join(filter(None, (self.remedy, remedy)))
        return type(self)(self.where, self.found, expected=self.expected, remedy=more)


def _short(parts: list[str]) -> list[str]:
    """The parts of a message, each on one line, and so much of the middle of the longest left out that they fit one.

    Names and numbers in a message come from files: they may hold line ends and terminals' control characters, and may
    be millions of characters long.
    """
    clean = [_printable(part[:_LONGEST] + part[-_LONGEST:] if len(part) > 2 * _LONGEST else part) for part in parts]
    share = next(n for n in (_LONGEST, 600, 450, 300, 230) if sum(min(len(c), n) for c in clean) <= _LONGEST)
    return [c if len(c) <= share else f"{c[: share // 2 - 2]} ... {c[3 - share // 2 :]}" for c in clean]


_LONGEST = 930
"""Characters of a message's parts together; with the words between them it stays under 1000."""


def _printable(text: str) -> str:
    return " ".join("".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in text).split())


class FileError(CaffeError):
    """A file or folder is missing, unreadable, already there, or cannot be written."""


class FormatError(CaffeError):
    """The bytes of a file are not what its name or its use promises."""


class DefinitionError(CaffeError):
    """A prototxt is wrong: syntax, an unknown field or type, a bottom nobody makes, a duplicate top."""


class LayerError(DefinitionError):
    """One layer's parameters are wrong or not understood."""


class ShapeError(CaffeError):
    """A blob's shape does not fit the layer that is to use it, or cannot be."""


class WeightsError(CaffeError):
    """Weights do not fit the net they are loaded into."""


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """``name``'s nearest relatives among ``known`` as text for a message; empty when nothing is near."""
    folded = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), folded, n=limit, cutoff=0.6)
    return ", ".join(folded[c] for c in close)
