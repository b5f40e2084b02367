"""Atomic output of lists with folders of pictures: all appear together at the end or none."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from caffe_port.errors import CaffeError, FileError
from caffe_port.formats.atomic import atomic_write
from caffe_port.segmentation.folder import MASKS, PHOTOGRAPHS, Folder

__all__ = ["ROOT", "Outputs", "replacing"]

ROOT = "VOC2012"
"""The folder of pictures and masks, by its name in the published definitions."""


class Outputs:
    """A folder of lists.

    Args:
        paths: the lists that will be written.

    Raises:
        FileError: one exists, and ``overwrite`` is false.

    Attributes:
        lines: of every list that was opened.
    """

    def __init__(self, folder: Path, paths: Sequence[str], overwrite: bool) -> None:
        self.folder, self.overwrite = folder, overwrite
        self.lines: dict[str, int] = {}
        for path in paths:
            if not overwrite and (folder / path).exists():
                raise FileError(str(folder / path), "exists already", remedy="pass -f to overwrite it, or another -o")
        self._stack = ExitStack()

    def __enter__(self) -> Outputs:
        (self.folder / ROOT).mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def open(self, path: str) -> BinaryIO:
        """A list to be written, by its path in the folder."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        self.lines[path] = 0
        return self._stack.enter_context(atomic_write(self.folder / path, overwrite=self.overwrite))

    def add(self, path: str, file: BinaryIO, lines: Sequence[str]) -> None:
        """Adds lines."""
        file.writelines(f"{line}\n".encode(errors="surrogateescape") for line in lines)
        self.lines[path] += len(lines)

    def write(self, path: str, lines: Sequence[str]) -> None:
        """Writes a complete list.

        Raises:
            CaffeError: it is empty.
        """
        if not lines:
            raise CaffeError(path, "no line", expected="at least one picture")
        self.add(path, self.open(path), lines)

    def pictures(self, name: str) -> Path:
        """A folder below VOC2012 that replaces the one of this name at the end."""
        return self._stack.enter_context(replacing(self.folder / ROOT / name, self.overwrite))

    def link(self, source: Folder) -> None:
        """Links VOC2012 to the pictures and masks."""
        for name in (PHOTOGRAPHS, MASKS):
            link, target = self.folder / ROOT / name, (source.root / name).resolve()
            if link.is_symlink() and link.resolve() != target and self.overwrite:
                link.unlink()
            if not link.exists():
                try:
                    link.symlink_to(target, target_is_directory=True)
                except OSError as error:
                    raise FileError(
                        str(link), f"a link cannot be created: {error.strerror}", remedy=f"copy or link {target} there"
                    ) from error
            elif link.resolve() != target:
                raise FileError(str(link), f"leads to {link.resolve()}", expected=str(target))


@contextmanager
def replacing(path: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that becomes ``path`` when the block ends normally, and is removed otherwise."""
    if path.exists() and not overwrite:
        raise FileError(str(path), "exists already", remedy="pass -f to overwrite it, or -o for another name")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
