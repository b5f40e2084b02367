"""Layers of one weight file added to another: the parts of a net that a training did not hold."""

from __future__ import annotations

import os
from collections.abc import Iterable

from caffe_port.errors import WeightsError
from caffe_port.formats.caffemodel_writer import write_caffemodel
from caffe_port.formats.reading import open_weights
from caffe_port.formats.weights import LayerWeights

__all__ = ["add_layers"]


def add_layers(path: str | os.PathLike, layers: Iterable[LayerWeights]) -> list[str]:
    """Writes ``path``, a caffemodel, again with those of the layers that it lacks, before its own; returns their names.

    Args:
        layers: of a file of any kind, but not of ``path``.

    Raises:
        WeightsError: layers are to be added, and ``path`` is not a caffemodel.
    """
    own = open_weights(path)
    known = {layer.name for layer in own.layers if layer.blobs}
    added = [LayerWeights(it.name, it.type, it.blobs) for it in layers if it.blobs and it.name not in known]
    names = [layer.name for layer in added]
    if added and own.kind != "caffemodel":
        raise WeightsError(str(path), f"not a caffemodel, so without {names[0]}", remedy="-o NAME.caffemodel")
    if added:
        kept = [layer for layer in own.layers if layer.name not in names]
        write_caffemodel(
            path, [*added, *kept], name=own.name, generation=own.generation, definition=own.definition, overwrite=True
        )
    return names
