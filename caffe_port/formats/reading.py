"""Reading weight files of any format."""

from __future__ import annotations

import os

from caffe_port.formats.caffemodel import read_caffemodel
from caffe_port.formats.mapping import map_file
from caffe_port.formats.safetensors import read_safetensors
from caffe_port.formats.sniff import kind_of, refuse_others
from caffe_port.formats.weights import Weights
from caffe_port.formats.zipped import read_zip

__all__ = ["open_weights"]


def open_weights(path: str | os.PathLike, *, writable: bool = True) -> Weights:
    """The weights of a .caffemodel (V0, V1, V2), .caffemodel.h5, .safetensors, .pth, .npz or .h5 file.

    The format is detected from the bytes, not from the name. Arrays are views of a memory map where the format allows
    it, so that opening reads only the headers.

    Args:
        writable: arrays may be changed, which never changes the file. False is for copying values with little memory.

    Raises:
        FileError: the file is missing or unreadable.
        FormatError: it is damaged or has another format; the message gives it and a remedy.
        WeightsError: a state_dict whose keys are not of the form LAYER.BLOB.
    """
    name = os.fspath(path)
    buffer = map_file(path, writable=writable)
    kind = kind_of(buffer)
    if kind == "protobuf":
        refuse_others(buffer, name, "a net's weights")
        return read_caffemodel(buffer, name)
    if kind == "safetensors":
        return read_safetensors(buffer, name)
    if kind == "hdf5":
        from caffe_port.formats.hdf5 import read_hdf5

        return read_hdf5(buffer, name)
    return read_zip(buffer, name)
