"""Atomic output of lists with folders of pictures: all appear together at the end or none."""

from __future__ import annotations

import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from caffe_port.errors import CaffeError, FileError
from caffe_port.formats.atomic import atomic_write
from caffe_port.paths import exists
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
            if not overwrite and exists(folder / path):
                raise FileError(str(folder / path), "exists already", remedy="pass -f to overwrite it, or another -o")
        self._stack = ExitStack()
        self._folders: list[Path] = []
        """Those made, outer ones first."""
        self._links: list[tuple[Path, Path | None]] = []
        """Those made, with what each led to before."""

    def __enter__(self) -> Outputs:
        self._make(self.folder / ROOT)
        return self

    def __exit__(self, *error: Any) -> None:
        with _uninterrupted():
            try:
                self._stack.__exit__(*error)
            finally:
                if error[0] is not None:
                    self._remove()

    def _make(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not exists(path)]
        with _uninterrupted():
            folder.mkdir(parents=True, exist_ok=True)
            self._folders += reversed(missing)

    def _remove(self) -> None:
        """Leave the folder as it was found."""
        for link, before in reversed(self._links):
            link.unlink(missing_ok=True)
            if before is not None:
                link.symlink_to(before, target_is_directory=True)
        for folder in reversed(self._folders):
            with suppress(OSError):  # not empty: files of other programs
                folder.rmdir()

    def open(self, path: str) -> BinaryIO:
        """A list to be written, by its path in the folder."""
        self._make((self.folder / path).parent)
        self.lines[path] = 0
        with _uninterrupted():
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
        """A folder below VOC2012 that takes the place of the one of this name at the end."""
        with _uninterrupted():
            return self._stack.enter_context(replacing(self.folder / ROOT / name, self.overwrite))

    def link(self, source: Folder) -> None:
        """Links VOC2012 to the pictures and masks."""
        for name in (PHOTOGRAPHS, MASKS):
            link, target = self.folder / ROOT / name, (source.root / name).resolve()
            before = link.readlink() if link.is_symlink() else None
            if before and link.resolve() != target and self.overwrite:
                link.unlink()
            if not exists(link):
                try:
                    with _uninterrupted():
                        self._links.append((link, before))
                        link.symlink_to(target, target_is_directory=True)
                except OSError as error:
                    raise FileError(
                        str(link), f"a link cannot be created: {error.strerror}", remedy=f"copy or link {target} there"
                    ) from error
            elif link.resolve() != target:
                raise FileError(str(link), f"leads to {link.resolve()}", expected=str(target))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread only
        return
    received: list[int] = []
    before = {n: signal.signal(n, lambda n, _: received.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


@contextmanager
def replacing(path: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that becomes ``path`` when the block ends normally, and is removed otherwise."""
    if exists(path) and not overwrite:
        raise FileError(str(path), "exists already", remedy="pass -f to overwrite it, or -o for another name")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if exists(path):
            shutil.rmtree(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
