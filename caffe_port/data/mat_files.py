"""Blobs as MATLAB files of version 5: a variable ``data`` whose axes are the blob's in reverse order."""

from __future__ import annotations

import numpy as np

from caffe_port.data.batches import Array
from caffe_port.errors import FormatError
from caffe_port.formats.atomic import atomic_path

__all__ = ["read_mat", "write_mat"]


def read_mat(path: str) -> Array:
    """The blob in a file, float32 with four axes.

    Raises:
        FormatError: it is no MATLAB file, or its ``data`` is no array of single numbers with up to four axes.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        data = loadmat(path, variable_names=["data"]).get("data")
    except (ValueError, TypeError, KeyError, EOFError, OverflowError, NotImplementedError, MatReadError) as error:
        raise FormatError(path, f"no MATLAB file of version 5 ({error})", expected="one with a variable data") from None
    if data is None:
        raise FormatError(path, "no variable data", expected="one, of single numbers")
    if data.dtype != np.float32 or data.ndim > 4:
        raise FormatError(path, f"data of {data.dtype} with {data.ndim} axes", expected="single numbers, up to 4 axes")
    return np.ascontiguousarray(data.reshape(*data.shape, *(1,) * (4 - data.ndim), order="F").T)


def write_mat(path: str, blob: Array) -> None:
    """Writes a blob of up to four axes; what is missing follows as 1. Replaces a file once the new one is whole.

    Raises:
        FileError: it cannot be written.
    """
    from scipy.io import savemat

    four = blob.reshape(*blob.shape, *(1,) * (4 - blob.ndim))
    with atomic_path(path, overwrite=True) as temporary, open(temporary, "xb") as file:  # noqa: PTH123
        savemat(file, {"data": np.asfortranarray(four.T)}, format="5")
