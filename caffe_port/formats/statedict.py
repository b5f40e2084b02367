"""Writing a state_dict in any of the containers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from caffe_port.errors import FileError, WeightsError

__all__ = ["STATE_FORMATS", "format_of", "save_state_dict"]

STATE_FORMATS = ("safetensors", "pth", "h5", "npz")
_SUFFIXES = {".safetensors": "safetensors", ".pth": "pth", ".pt": "pth", ".h5": "h5", ".hdf5": "h5", ".npz": "npz"}


def format_of(path: str | os.PathLike) -> str:
    """The container that ``path``'s extension names.

    Raises:
        FileError: it is not the extension of one.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        found = f"the extension {suffix!r}" if suffix else "no extension"
        raise FileError(str(path), found, expected=" ".join(_SUFFIXES), remedy="or pass --format")
    return _SUFFIXES[suffix]


def save_state_dict(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    *,
    format: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Writes ``arrays`` (key to array) as .safetensors, .pth, .h5 or .npz, atomically.

    Args:
        format: one of ``STATE_FORMATS``; by default the one of ``path``'s extension.
        overwrite: replace an existing file.
        progress: called with numbers of bytes written.

    Raises:
        FileError: unknown extension, or the file exists or cannot be written.
        WeightsError: what is no array of real numbers, or the container cannot hold a key or a dtype.
    """
    format = format or format_of(path)
    for key, array in arrays.items():
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        if not isinstance(kind, np.dtype) or kind.kind not in "biuf":
            raise WeightsError(str(path), f"{key}: {kind}", expected="a numpy array of real numbers")
    if format == "safetensors":
        from caffe_port.formats.safetensors import write_safetensors as write
    elif format == "h5":
        from caffe_port.formats.hdf5 import write_state_hdf5 as write
    elif format == "npz":
        from caffe_port.formats.zipped import write_npz as write
    else:
        from caffe_port.formats.zipped import write_pth as write
    write(path, arrays, overwrite=overwrite, progress=progress)
