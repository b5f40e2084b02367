"""State_dicts in zip archives: PyTorch's .pth and NumPy's .npz. No pickle is ever read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from caffe_port.errors import FormatError
from caffe_port.formats.atomic import atomic_write
from caffe_port.formats.naming import layers_of
from caffe_port.formats.weights import Weights

__all__ = ["read_zip", "write_npz", "write_pth"]

_Progress = Callable[[int], object] | None


def read_zip(path: str) -> Weights:
    """The state_dict in a .pth or .npz file.

    Raises:
        FormatError: the archive is damaged, holds something else, or objects other than arrays.
        WeightsError: a key is not of the form LAYER.BLOB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise FormatError(path, "a damaged or truncated zip archive", remedy="fetch it again") from None
    if any(name.endswith("/data.pkl") for name in names):
        return _read_pth(path)
    if names and all(name.endswith(".npy") for name in names):
        return _read_npz(path)
    first = ", ".join(names[:3]) or "nothing"
    raise FormatError(
        path, f"a zip archive that holds {first}", expected="a net's weights", remedy="unpack it with unzip"
    )


def _read_npz(path: str) -> Weights:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = [(key, archive[key]) for key in archive.files]
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise FormatError(path, f"an .npz that cannot be read: {error}", expected="plain arrays") from None
    return Weights(path, "npz", layers=layers_of(arrays, path))


def _read_pth(path: str) -> Weights:
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).partition("\n")[0].partition(". ")[0]
        remedy = "save model.state_dict() alone: pickled objects are never read"
        raise FormatError(path, f"more than tensors ({first})", expected="a state_dict", remedy=remedy) from None
    if not isinstance(content, Mapping):
        raise FormatError(
            path, f"a {type(content).__name__}", expected="a state_dict", remedy="save model.state_dict()"
        )
    arrays = []
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            found = f"{key!r} that holds a {type(value).__name__}"
            raise FormatError(path, found, expected="tensors only", remedy="save model.state_dict() alone")
        tensor = value.detach()
        arrays.append((str(key), (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()))
    return Weights(path, "pth", layers=layers_of(arrays, path))


def write_pth(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], *, overwrite: bool = False, progress: _Progress = None
) -> None:
    """Writes a state_dict that ``torch.load(path, weights_only=True)`` reads, atomically."""
    import warnings

    import torch

    with atomic_write(path, overwrite=overwrite) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to them
        torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, file)
    if progress:
        progress(sum(array.nbytes for array in arrays.values()))


def write_npz(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], *, overwrite: bool = False, progress: _Progress = None
) -> None:
    """Writes an uncompressed .npz, atomically, one array at a time; any key is allowed, unlike in np.savez."""
    with atomic_write(path, overwrite=overwrite) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
            if progress:
                progress(array.nbytes)
