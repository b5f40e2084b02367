"""State_dicts in zip archives: PyTorch's .pth and NumPy's .npz. No pickle is ever read."""

from __future__ import annotations

import ast
import os
import zipfile
from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from caffe_port.errors import FormatError
from caffe_port.formats.archive import Archive, open_archive
from caffe_port.formats.atomic import atomic_write
from caffe_port.formats.pth import read_pth
from caffe_port.formats.weights import Weights, is_shape, layers_of
from caffe_port.formats.wire import Buffer

__all__ = ["read_zip", "write_npz", "write_pth"]

_Progress = Callable[[int], object] | None


def read_zip(buffer: Buffer, path: str) -> Weights:
    """The state_dict in a .pth or .npz file.

    Args:
        buffer: the memory map of the file, which a .pth's arrays view.

    Raises:
        FormatError: the archive is damaged, has other contents, or objects other than arrays.
        WeightsError: a key is not of the form LAYER.BLOB.
    """
    with open_archive(buffer, path) as archive:
        names = archive.names()
        if any(name.endswith("/data.pkl") for name in names):
            return Weights(path, "pth", layers=layers_of(read_pth(archive), path))
        if names and all(name.endswith(".npy") for name in names):
            arrays = [(name.removesuffix(".npy"), _npy(archive, name)) for name in names]
            return Weights(path, "npz", layers=layers_of(arrays, path))
    first = ", ".join(names[:3]) or "nothing"
    raise FormatError(
        path, f"a zip archive that holds {first}", expected="a net's weights", remedy="unpack it with unzip"
    )


_LONGEST_HEADER = 10_000


def _npy(archive: Archive, name: str) -> np.ndarray:
    """The array in a .npy member. Source: NumPy Enhancement Proposal 1, "A Simple File Format for NumPy Arrays"."""
    where = f"{archive.path}: {name}"
    content = archive.read(name)
    head = content[:12].tobytes()
    wide = head[6:7] in (b"\x02", b"\x03")
    start = 12 if wide else 10
    size = int.from_bytes(head[8:start], "little")
    if not head.startswith(b"\x93NUMPY") or head[6:7] not in (b"\x01", b"\x02", b"\x03") or size > _LONGEST_HEADER:
        raise FormatError(where, "not a .npy", expected="plain arrays")
    try:
        said = ast.literal_eval(content[start : start + size].tobytes().decode("utf-8").strip())
        kind, order, shape = said["descr"], said["fortran_order"], said["shape"]
        dtype = np.dtype(kind) if isinstance(kind, str) else None
    except (ValueError, TypeError, SyntaxError, KeyError, RecursionError, MemoryError, IndexError) as error:
        raise FormatError(where, f"a header that cannot be read ({error})", expected="plain arrays") from None
    if dtype is None or dtype.kind not in "fiubc" or not isinstance(order, bool):
        raise FormatError(where, f"an array of {kind}", expected="plain arrays of numbers")
    if (
        not isinstance(shape, tuple)
        or not is_shape(shape)
        or prod(shape) * dtype.itemsize != content.size - start - size
    ):
        raise FormatError(where, f"{content.size - start - size} bytes", expected=f"{dtype} numbers of shape {shape}")
    flat = content[start + size :].view(dtype)
    return flat.reshape(shape[::-1]).T if order else flat.reshape(shape)


def write_pth(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], *, overwrite: bool = False, progress: _Progress = None
) -> None:
    """Writes a state_dict that ``torch.load(path, weights_only=True)`` reads, atomically."""
    import warnings

    import torch

    with atomic_write(path, overwrite=overwrite) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # they are not written to
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
