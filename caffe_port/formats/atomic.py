"""Atomic writing: files appear complete or not at all; what cannot be read or written is refused first."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from caffe_port.errors import FileError, nearest
from caffe_port.paths import exists, is_folder, names_in

__all__ = ["atomic_path", "atomic_write", "check_input", "check_output", "check_output_folder"]


def check_output(path: str | os.PathLike, *, overwrite: bool) -> None:
    """Checks before the work that an output can be written.

    Raises:
        FileError: ``path`` exists and ``overwrite`` is false, is a folder or a dangling symbolic link, or its
            folder is missing or not writable.
    """
    target = Path(path)
    folder = target.parent
    if is_folder(target):
        raise FileError(str(path), "a folder", expected="a file name", remedy=f"give {target / 'NAME'}")
    if target.is_symlink() and not exists(target):
        found = f"a symbolic link to {target.readlink()}, which does not exist"
        raise FileError(str(path), found, remedy="remove the link, or create its target")
    if exists(target) and not overwrite:
        raise FileError(str(path), "exists already", remedy="pass -f to overwrite it, or -o for another name")
    if not is_folder(folder):
        raise FileError(str(path), f"there is no folder {folder}", remedy="create it first")
    if not os.access(folder, os.W_OK):
        raise FileError(str(path), f"the folder {folder} is not writable", remedy="choose another with -o")


def check_input(path: str | os.PathLike, *, folder: bool | None = False) -> None:
    """Refuses an input that cannot be read, before the work on it.

    Args:
        folder: it must be one; None takes a file or a folder.

    Raises:
        FileError: there is no such file or folder, it is the other, or permission is missing.
    """
    file = Path(path)
    if not exists(file):
        near = nearest(file.name, (name for name in names_in(file.parent) if name.endswith(file.suffix)))
        what = {False: "file", True: "folder", None: "file or folder"}[folder]
        raise FileError(str(path), f"no such {what}", remedy=f"did you mean {near}?" if near else "check the path")
    if folder is not None and is_folder(file) != folder:
        kinds = ("a file", "a folder")
        raise FileError(str(path), kinds[not folder], expected=kinds[folder])
    if not os.access(file, os.R_OK | os.X_OK if is_folder(file) else os.R_OK):
        raise FileError(str(path), "without permission to read it", remedy="check its permissions")


def check_output_folder(path: str | os.PathLike) -> None:
    """Checks before the work that a folder can be written into, or created.

    Raises:
        FileError: it is a file, or neither it nor the nearest of its parents that exists may be written.
    """
    folder = Path(path)
    there = next(parent for parent in (folder, *folder.parents, Path()) if os.path.lexists(parent))
    if not is_folder(there):
        kind = f"a symbolic link to {there.readlink()}, which does not exist" if there.is_symlink() else "a file"
        where = "" if there == folder else f"{there} is "
        raise FileError(str(path), f"{where}{kind}", expected="a folder", remedy="choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FileError(str(path), f"the folder {there} is not writable", remedy="choose another")


@contextmanager
def atomic_path(path: str | os.PathLike, *, overwrite: bool = False, durable: bool = False) -> Iterator[Path]:
    """The name of a file to create that becomes ``path`` when the block ends normally, and is removed otherwise.

    It is in ``path``'s folder until one rename puts it in place, and follows a symbolic link at ``path``.
    Leaving by any exception, Ctrl-C included, removes it. Create it in mode "x": ext4 writes out a file that was
    truncated on opening before it is closed, which doubles the time for large files.

    Args:
        overwrite: replace an existing file, keeping its permissions.
        durable: also wait until the bytes are on the disk, so that even a power failure leaves no partial file. For
            files that cannot be recreated (snapshots), not for conversions.

    Raises:
        FileError: see :func:`check_output`; or the disk is full.
    """
    check_output(path, overwrite=overwrite)
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        if exists(target):
            temporary.chmod(target.stat().st_mode & 0o777)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FileError(str(path), f"cannot be written: {error.strerror or error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_write(path: str | os.PathLike, *, overwrite: bool = False, durable: bool = False) -> Iterator[BinaryIO]:
    """:func:`atomic_path`, opened for writing bytes."""
    with atomic_path(path, overwrite=overwrite, durable=durable) as temporary, temporary.open("xb") as file:
        yield file
