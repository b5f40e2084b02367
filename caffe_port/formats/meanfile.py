"""Mean images (.binaryproto): one BlobProto with legacy dims, as tools/compute_image_mean.cpp writes it."""

from __future__ import annotations

import os

import numpy as np

from caffe_port.errors import FormatError, ShapeError
from caffe_port.formats.atomic import atomic_write
from caffe_port.formats.blob import blob_chunks, read_blob
from caffe_port.formats.mapping import map_file
from caffe_port.formats.sniff import protobuf_kind, refuse_others
from caffe_port.formats.wire import Reader

__all__ = ["read_mean", "write_mean"]


def read_mean(path: str | os.PathLike) -> np.ndarray:
    """The mean image in a .binaryproto: float (channels, height, width), in the file's channel order (BGR from Caffe).

    Raises:
        FileError: the file is missing or unreadable.
        FormatError: it is damaged or has another format.
    """
    name = os.fspath(path)
    buffer = map_file(path)
    refuse_others(buffer, name, "a mean image")
    kind = protobuf_kind(buffer, name)
    if kind not in ("blob", ""):
        raise FormatError(name, f"a {kind}", expected="a mean image (.binaryproto)")
    mean, _ = read_blob(Reader(buffer, path=name, what="the mean image"))
    shape = mean.shape[1:] if mean.ndim == 4 and mean.shape[0] == 1 else mean.shape
    if len(shape) != 3:
        raise FormatError(name, f"the shape {mean.shape}", expected="1 x channels x height x width")
    return mean.reshape(shape).copy()  # the file may change while the net is in use


def write_mean(path: str | os.PathLike, mean: np.ndarray, *, overwrite: bool = False) -> None:
    """Writes ``mean``, float (channels, height, width), as a .binaryproto, atomically.

    Raises:
        ShapeError: it has another number of axes.
        FileError: the file exists or cannot be written.
    """
    if mean.ndim != 3:
        raise ShapeError("the mean image", f"the shape {mean.shape}", expected="channels x height x width")
    with atomic_write(path, overwrite=overwrite) as file:
        for chunk in blob_chunks(mean, None, legacy=True):
            file.write(bytes(chunk))
