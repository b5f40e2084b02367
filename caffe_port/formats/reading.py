"""Opening any weight file."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from caffe_port.errors import FileError
from caffe_port.formats.caffemodel import read_caffemodel
from caffe_port.formats.sniff import kind_of, refuse_others
from caffe_port.formats.weights import Weights

__all__ = ["map_file", "open_weights"]


def map_file(path: str | os.PathLike):
    """The bytes of a file as a private, writable memory map: writing to it changes no file. Empty files give ``b""``.

    Raises:
        FileError: it is missing, a folder, or may not be read.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        folder = Path(path).parent
        near = sorted(p.name for p in folder.glob("*.caffemodel*"))[:3] if folder.is_dir() else []
        remedy = f"the folder holds {', '.join(near)}" if near else "check the path"
        raise FileError(str(path), "no such file", remedy=remedy) from None
    except OSError as error:
        raise FileError(str(path), f"cannot be read: {error.strerror}") from None


def open_weights(path: str | os.PathLike) -> Weights:
    """The weights of a .caffemodel (V0, V1, V2), .caffemodel.h5, .safetensors, .pth, .npz or .h5 file.

    What the file is, its bytes decide, not its name. Arrays are writable views of a private memory map where the format
    allows it, so opening costs no more than reading the headers.

    Raises:
        FileError: the file is missing or unreadable.
        FormatError: it is damaged, or something else; the message says what and what to do.
    """
    name = os.fspath(path)
    buffer = map_file(path)
    kind = kind_of(buffer)
    refuse_others(buffer, name, "weights")
    if kind == "protobuf":
        return read_caffemodel(buffer, name)
    raise NotImplementedError(kind)
