"""Writing an LMDB or LevelDB database, atomically.

Source: util/db_lmdb.cpp, util/db_leveldb.cpp.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from caffe_port.errors import CaffeError, FileError
from caffe_port.paths import exists, is_folder

__all__ = ["BACKENDS", "DatabaseWriter"]

BACKENDS = ("lmdb", "leveldb")
_BATCH = 1000
_MAP = 1 << 30


def _missing(path: str, package: str) -> CaffeError:
    return CaffeError(path, f"no Python package {package}, which writes it", remedy=f"pip install {package}")


class DatabaseWriter:
    """A new database, a context manager: it gets its name if the block ends without an error, and is removed otherwise.

    Args:
        path: the folder to make. backend: "lmdb" or "leveldb".

    Raises:
        FileError: the folder is there, or cannot be made. CaffeError: the backend's package is not installed.
    """

    def __init__(self, path: str | Path, backend: str = "lmdb") -> None:
        self.path, self.backend, self.count = Path(path), backend, 0
        if exists(self.path):
            raise FileError(str(path), "exists already", expected="the name of a new database")
        if not is_folder(self.path.parent):
            raise FileError(str(path), f"there is no folder {self.path.parent}")
        self._waiting: list[tuple[bytes, bytes]] = []
        self._folder: Path | None = None
        self._handle: Any = None

    def __enter__(self) -> DatabaseWriter:
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        except OSError as error:
            raise FileError(str(self.path), f"cannot be made: {error.strerror}") from None
        if self.backend == "lmdb":
            try:
                import lmdb
            except ImportError:
                raise _missing(str(self.path), "lmdb") from None
            self._handle = lmdb.open(str(self._folder), map_size=_MAP)
        else:
            try:
                import plyvel
            except ImportError:
                raise _missing(str(self.path), "plyvel") from None
            self._handle = plyvel.DB(str(self._folder), create_if_missing=True)
        return self

    def put(self, key: str, value: bytes) -> None:
        """Add a record; they are read in the order of their keys.

        Raises:
            CaffeError: a key that LMDB cannot hold (more than 511 bytes).
        """
        raw = key.encode("utf-8", "surrogateescape")
        if self.backend == "lmdb" and not 0 < len(raw) <= self._handle.max_key_size():
            raise CaffeError(str(self.path), f"a key of {len(raw)} bytes", expected="1 to 511", remedy="shorter names")
        self._waiting.append((raw, value))
        self.count += 1
        if len(self._waiting) == _BATCH:
            self._commit()

    def _commit(self) -> None:
        if self.backend == "leveldb":
            with self._handle.write_batch() as batch:
                for key, value in self._waiting:
                    batch.put(key, value)
        else:
            import lmdb

            while True:
                try:
                    with self._handle.begin(write=True) as transaction:
                        for key, value in self._waiting:
                            transaction.put(key, value)
                    break
                except lmdb.MapFullError:
                    self._handle.set_mapsize(2 * self._handle.info()["map_size"])
        self._waiting = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
            self._handle.close()
            if kind is None and self._folder is not None:
                self._folder.chmod(0o755)
                self._folder.rename(self.path)
                self._folder = None
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
