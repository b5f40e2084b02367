"""A whole net's parameters as a file that real Caffe loads: as net.cpp's ToProto and ToHDF5 write it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_port.formats.caffemodel_writer import layer_definition, write_caffemodel
from caffe_port.formats.weights import LayerWeights
from caffe_port.formats.wire import bytes_field
from caffe_port.schema.layer_types import v2_type
from caffe_port.schema.messages import TEST, TRAIN, message_class
from caffe_port.schema.upgrade import PARAM_SPECS
from caffe_port.spec import RECORDS
from caffe_port.spec.pspnet import MovingBN

if TYPE_CHECKING:
    from caffe_port.schema import Definition

__all__ = ["as_v1", "write_net"]

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
        blobs: for each layer of ``definition.net.layer`` its blobs, in PyTorch's or Caffe's shape (legacy files add
            leading ones). In HDF5, a blob that is None is shared with another layer and omitted, as Caffe does.
        diffs: their gradients, if these are written too.
        format: "caffemodel", or "h5" for Caffe's HDF5.
        overwrite, durable, progress: see :func:`caffe_port.formats.write_caffemodel`.

    Raises:
        WeightsError: the format cannot hold a name, a type, a shape or a dtype.
        FileError: the file exists or cannot be written.
    """
    if format == "h5":
        from caffe_port.formats.hdf5 import write_caffe_hdf5

        layers = _layers(definition, blobs, diffs, 2)
        write_caffe_hdf5(path, layers, overwrite=overwrite, durable=durable, progress=progress)
        return
    net, generation = definition.net, max(definition.generation, 1)
    named = definition.synthetic if generation == 1 or not definition.dialect.inputs_are_layers else ()
    inputs = [net.layer[i] for i in named]
    write_caffemodel(
        path,
        _layers(definition, blobs, diffs, generation, named),
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
    left_out: Collection[int] = (),
) -> Iterator[LayerWeights]:
    for index, message in enumerate(definition.net.layer):
        if index in left_out:
            continue
        bare = type(message)()
        bare.CopyFrom(message)
        bare.ClearField("blobs")
        _as_set_up(bare, definition, len(blobs[index]))
        head = (as_v1(bare) if generation == 1 else bare).SerializeToString()
        kept = list(diffs[index]) if diffs is not None else []
        yield LayerWeights(message.name, message.type, list(blobs[index]), kept, definition=head)


def _as_set_up(message: Any, definition: Definition, blobs: int) -> None:
    """Sets the fields of a layer's message that Caffe sets when it sets the layer up (and hence in its files).

    Every layer gets the phase (net.cpp, Init), a loss its weight of 1 (loss_layer.cpp), and what is not learned rates
    of 0: BatchNorm's statistics where the definition gives none (batch_norm_layer.cpp), those of PSPNet's BN, with
    ``frozen`` all its blobs (its bn_layer.cpp).
    """
    if not message.HasField("phase"):
        message.phase = TEST if definition.phase == "TEST" else TRAIN
    record = RECORDS.find(message.type, definition.dialect)
    if record is not None and record.loss and not message.loss_weight and message.top:
        message.loss_weight.append(1)
    if message.type == "BatchNorm":
        while len(message.param) < blobs:
            message.param.add(lr_mult=0)
    if record is MovingBN:
        while len(message.param) < blobs:
            message.param.add()
        for param in message.param[0 if message.bn_param.frozen else 2 : 4]:
            param.lr_mult = param.decay_mult = 0


_V2_ONLY = {"type", "param", "phase", "blobs"}


def as_v1(layer: Any) -> Any:
    """A V2 layer's message as V1LayerParameter, the inverse of upgrade_proto.cpp.

    Raises:
        WeightsError: V1 has no such type.
    """
    v1 = message_class(layer.DESCRIPTOR.file.pool, "V1LayerParameter")()
    kinds = v1.DESCRIPTOR.enum_types_by_name["LayerType"].values
    number = next((kind.number for kind in kinds if v2_type(kind.name) == layer.type), None)
    if number is None:
        layer_definition(layer.name, layer.type, generation=1)  # raises the error
    v1.type = number or 0
    for field, value in layer.ListFields():
        mine = v1.DESCRIPTOR.fields_by_name.get(field.name)
        if mine is None or field.name in _V2_ONLY:
            continue
        if hasattr(value, "append"):
            getattr(v1, field.name).MergeFrom(value)
        elif field.message_type:
            getattr(v1, field.name).CopyFrom(value)
        else:
            setattr(v1, field.name, value)
    for old, new in PARAM_SPECS.items():
        if any(param.HasField(new) for param in layer.param):
            getattr(v1, old).extend(getattr(param, new) for param in layer.param)
    return v1
