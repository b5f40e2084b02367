"""What lies at a path that a user gave: pathlib's questions, where the answer may be denied.

A path inside a folder that may not be entered makes ``Path.exists`` raise PermissionError, one longer than the file
system takes OSError; which of them, depends on Python's version.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from caffe_port.errors import FileError

__all__ = ["exists", "is_file", "is_folder", "names_in"]


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or folder. FileError: that may not be known."""
    return _asked(path, Path.exists)


def is_file(path: str | os.PathLike) -> bool:
    """Whether it is a file, or a link to one. FileError: that may not be known."""
    return _asked(path, Path.is_file)


def is_folder(path: str | os.PathLike) -> bool:
    """Whether it is a folder, or a link to one. FileError: that may not be known."""
    return _asked(path, Path.is_dir)


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where it is missing or may not be read. For remedies."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return []


def _asked(path: str | os.PathLike, question: Callable[[Path], bool]) -> bool:
    try:
        return question(Path(path))
    except OSError as error:
        raise FileError(os.fspath(path), f"cannot be looked at: {error.strerror}", remedy="check the path") from None
