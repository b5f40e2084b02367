"""A whole net's parameters as a file that real Caffe loads: what net.cpp's ToProto and ToHDF5 write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_port.formats.caffemodel_writer import layer_definition, write_caffemodel
from caffe_port.formats.weights import LayerWeights
from caffe_port.formats.wire import bytes_field

if TYPE_CHECKING:
    from caffe_port.schema import Definition

__all__ = ["write_net"]

_NET_INPUT = 3


def write_net(
    path: str | os.PathLike,
    definition: Definition,
    blobs: Sequence[Sequence[np.ndarray | None]],
    *,
    diffs: Sequence[Sequence[np.ndarray | None]] | None = None,
    format: str = "caffemodel",
    overwrite: bool = False,
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Writes the parameters of the net ``definition``, atomically.

    The file has the definition's generation: ``layers`` with legacy dims for V0 and V1, which the fork reads,
    ``layer`` with shapes for V2.

    Args:
        blobs: for each layer of ``definition.net.layer`` its blobs, in PyTorch's or Caffe's shape (legacy files take
            ones in front). In HDF5, a blob that is None is shared with another layer and left out, as Caffe does.
        diffs: their gradients, if they are to be kept.
        format: "caffemodel", or "h5" for Caffe's HDF5.
        overwrite, durable, progress: see :func:`caffe_port.formats.write_caffemodel`.

    Raises:
        WeightsError: the format cannot hold a name, a type, a shape or a dtype.
        FileError: the file exists already or cannot be written.
    """
    if format == "h5":
        from caffe_port.formats.hdf5 import write_caffe_hdf5

        layers = _layers(definition, blobs, diffs, 2)
        write_caffe_hdf5(path, layers, overwrite=overwrite, durable=durable, progress=progress)
        return
    net, generation = definition.net, max(definition.generation, 1)
    inputs = [net.layer[i] for i in definition.synthetic] if generation == 1 else []
    write_caffemodel(
        path,
        _layers(definition, blobs, diffs, generation),
        name=net.name,
        generation=generation,
        definition=b"".join(bytes_field(_NET_INPUT, top) for layer in inputs for top in layer.top),
        overwrite=overwrite,
        durable=durable,
        progress=progress,
    )


def _layers(
    definition: Definition,
    blobs: Sequence[Sequence[np.ndarray | None]],
    diffs: Sequence[Sequence[np.ndarray | None]] | None,
    generation: int,
) -> Iterator[LayerWeights]:
    for index, message in enumerate(definition.net.layer):
        if generation == 1 and index in definition.synthetic:
            continue
        if generation == 1:
            head = layer_definition(message.name, message.type, generation=1, bottoms=message.bottom, tops=message.top)
        else:
            bare = type(message)()
            bare.CopyFrom(message)
            bare.ClearField("blobs")
            head = bare.SerializeToString()
        kept = list(diffs[index]) if diffs is not None else []
        yield LayerWeights(message.name, message.type, list(blobs[index]), kept, definition=head)
