"""Whether snapshots can be written under a solver's prefix, checked before the training; and the lock on the prefix."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from caffe_port.errors import CaffeError, FileError, WeightsError
from caffe_port.formats.caffemodel_writer import LARGEST_FILE
from caffe_port.formats.hdf5 import unfit_name
from caffe_port.layers.foreign import check_savable
from caffe_port.schema.scan import mistaken

try:
    import fcntl
except ImportError:  # no Unix: trainings are not kept apart
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from caffe_port.net import Net

__all__ = ["Lock", "alone", "check_form", "check_prefix"]

_LONGEST = "..new-_iter_2147483647.solverstate.h5.12345678.tmp"
"""What is added to the prefix for the longest name of a file that is ever written."""
_LONGEST_NAME, _LONGEST_PATH = 255, 4000

Method = TypeVar("Method", bound=Callable[..., Any])


def check_prefix(param: Any, where: str) -> None:
    """Refuse a ``snapshot_prefix`` that nothing could be written to, before a training rather than after it.

    Raises:
        CaffeError: none is set. FileError: its folder is missing or not writable, or it is too long.
    """
    if not writes(param):
        return
    prefix = param.snapshot_prefix
    if not prefix:
        raise CaffeError(where, "snapshot without snapshot_prefix", expected="where to write snapshots")
    folder, name = os.path.split(prefix)
    longest = max(len(os.fsencode(part)) for part in prefix.split("/"))
    most = _LONGEST_NAME - len(_LONGEST)
    if longest > _LONGEST_NAME or len(os.fsencode(name)) > most or len(os.fsencode(prefix)) > _LONGEST_PATH:
        found = f"snapshot_prefix {prefix}, a name of {len(os.fsencode(name))} bytes"
        raise FileError(where, found, expected=f"at most {most}: file systems take no longer names")
    if not os.path.isdir(folder or "."):  # noqa: PTH112, which raises for names that cannot be
        raise FileError(
            where, f"snapshot_prefix {prefix}, no folder {folder or '.'}", remedy=mistaken(prefix) or "make the folder"
        )
    if not os.access(folder or ".", os.W_OK):
        raise FileError(where, f"snapshot_prefix {prefix}, and {folder or '.'} is not writable")


def writes(param: Any) -> bool:
    """Whether a training with these settings writes snapshots by itself."""
    return bool(param.snapshot or (param.snapshot_after_train and param.snapshot_prefix))


def check_form(param: Any, net: Net, where: str) -> None:
    """Refuse a ``snapshot_format`` that cannot hold the net, before a training rather than at its first snapshot.

    Raises:
        WeightsError: HDF5, and a layer's name that it cannot hold; binary, and more than a file of Caffe's may have.
        CaffeError: another module is in a layer's place, whose parameters no file of Caffe's holds.
    """
    if not writes(param):
        return
    try:
        check_savable(layer for _, layer in net.nodes)
    except CaffeError as error:
        raise error.advised("or train without snapshots: snapshot: 0 snapshot_after_train: false") from None
    holders = [layer for _, layer in net.nodes if layer.blob_names]
    if param.snapshot_format == param.HDF5:
        names: set[str] = set()
        for layer in holders:
            unfit = unfit_name(layer.name, names)
            if unfit:
                raise WeightsError(
                    f"{where}: snapshot_format: HDF5",
                    f"{unfit} ({layer.where})",
                    expected="names that HDF5 can hold: not empty, no slash, each once",
                    remedy="rename the layer, or snapshot_format: BINARYPROTO",
                )
            names.add(layer.name)
        return
    size = sum(blob.numel() * 4 for layer in holders for blob in layer.caffe_blobs) * (2 if param.snapshot_diff else 1)
    if size > LARGEST_FILE:
        raise WeightsError(
            f"{where}: snapshot_format: BINARYPROTO",
            f"a net of {size:,} bytes",
            expected=f"at most {LARGEST_FILE:,}, which is all that Caffe reads of a .caffemodel",
            remedy="snapshot_format: HDF5, which writes .caffemodel.h5",
        )


class Lock:
    """Keeps two processes from writing snapshots of one prefix at a time.

    The lock is the kernel's, on the file ``.PREFIX.lock``, which names the holder: when the process ends, in whatever
    way, the lock is free, and a lock file that remains has no effect. Within a process it may be taken any number of
    times.
    """

    _held: dict[str, tuple[int, int]] = {}  # noqa: RUF012
    """The descriptor and how often it was taken, by the file's path."""

    def __init__(self, prefix: str, where: str) -> None:
        folder, name = os.path.split(os.path.realpath(prefix))
        self.prefix, self.where = prefix, where
        self.path = os.path.join(folder, f".{name}.lock")  # noqa: PTH118

    def __enter__(self) -> None:
        descriptor, times = self._held.get(self.path, (-1, 0))
        self._held[self.path] = (self._take() if descriptor < 0 else descriptor, times + 1)

    def __exit__(self, *_: object) -> None:
        descriptor, times = self._held.pop(self.path)
        if times > 1:
            self._held[self.path] = (descriptor, times - 1)
            return
        Path(self.path).unlink(missing_ok=True)  # while it is held: who opened it meanwhile looks again
        os.close(descriptor)

    def _take(self) -> int:
        while True:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise FileError(self.where, f"the lock {self.path} cannot be made: {error.strerror}") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                who = self._holder(descriptor)
                os.close(descriptor)
                remedy = "wait for it, end it, or take another snapshot_prefix"
                raise FileError(
                    self.where, f"snapshots {self.prefix} are being written by {who}", remedy=remedy
                ) from None
            if self._is(descriptor):
                break
            os.close(descriptor)  # its holder removed it on leaving
        os.ftruncate(descriptor, 0)
        facts = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.write(descriptor, json.dumps(facts).encode())
        return descriptor

    def _is(self, descriptor: int) -> bool:
        try:
            there = Path(self.path).stat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(descriptor))

    def _holder(self, descriptor: int) -> str:
        try:
            facts = json.loads(os.pread(descriptor, 1000, 0))
            return f"process {facts['process']} on {facts['host']} since {facts['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def alone(method: Method) -> Method:
    """Let a solver's method run only while no other process writes snapshots of its prefix."""

    @wraps(method)
    def locked(self: Any, *args: Any, **options: Any) -> Any:
        prefix = self.param.snapshot_prefix and (writes(self.param) or method.__name__ == "snapshot")
        wanted = prefix and self.group.first and fcntl is not None
        with Lock(self.param.snapshot_prefix, self.path) if wanted else _nothing():
            return method(self, *args, **options)

    return locked  # type: ignore[return-value]
