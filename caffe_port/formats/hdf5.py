"""HDF5 files of both kinds: Caffe's snapshots, and a state_dict as named data sets.

Caffe's (net.cpp, ToHDF5 and CopyTrainedLayersFromHDF5) holds ``data/LAYER/I`` for the I-th blob of each layer, and
``diff/LAYER/I`` for gradients. A parameter shared between layers is stored only under its owner. Layer types and the
layers' order are not stored: HDF5 lists them by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from caffe_port.errors import FormatError, WeightsError
from caffe_port.formats.atomic import atomic_path
from caffe_port.formats.hdf5_access import dataset_array, datasets, find, members, open_hdf5, text_of
from caffe_port.formats.weights import LayerWeights, Weights, layers_of
from caffe_port.formats.wire import Buffer

if TYPE_CHECKING:
    import h5py

__all__ = ["read_hdf5", "unfit_name", "write_caffe_hdf5", "write_state_hdf5"]


def read_hdf5(buffer: Buffer, path: str) -> Weights:
    """The weights of an HDF5 file: Caffe's if it has a group ``data``, else a state_dict's.

    Args:
        buffer: the memory map of the file, which the arrays view.

    Raises:
        FormatError: it is damaged, holds a solver's state, or no numbers at all.
    """
    import h5py

    with open_hdf5(path) as file:
        if "history" in file and "iter" in file:
            learned = text_of(file, "learned_net") if "learned_net" in file else "a .caffemodel.h5"
            remedy = f"its weights are in {learned}: give that file"
            raise FormatError(path, "a solverstate", expected="a net's weights", remedy=remedy)
        data = find(file, "data")
        if isinstance(data, h5py.Group):
            return Weights(path, "hdf5", layers=_caffe_layers(data, find(file, "diff"), buffer))
        arrays = [(key, dataset_array(dataset, buffer)) for key, dataset in datasets(file)]
        if not arrays:
            raise FormatError(path, "an HDF5 file without arrays", expected="a net's weights")
        return Weights(path, "h5", layers=layers_of(arrays, path))


_MOST_BLOBS = 1000
"""Of a layer. An index becomes a position in a list, whose length this limits for untrusted files."""


def _caffe_layers(data: h5py.Group, diff: h5py.Group | h5py.Dataset | None, buffer: Buffer) -> list[LayerWeights]:
    import h5py

    layers: dict[str, LayerWeights] = {}
    for name, group in members(data):
        if isinstance(group, h5py.Group) and not len(group):  # a layer without blobs
            layers[name] = LayerWeights(name)

    def collect(group: h5py.Group, into: str) -> None:
        for key, dataset in datasets(group):
            name, _, index = key.rpartition("/")
            number = int(index) if index.isdecimal() and len(index) < 9 else -1
            if not name or str(number) != index or not 0 <= number < _MOST_BLOBS:
                where = f"{group.file.filename}: {group.name}/{key}"
                expected = f"LAYER/0, LAYER/1 ... and at most {_MOST_BLOBS} of them"
                raise FormatError(where, "an array of that name", expected=expected)
            blobs = getattr(layers.setdefault(name, LayerWeights(name)), into)
            blobs += [None] * (number + 1 - len(blobs))
            blobs[number] = dataset_array(dataset, buffer)

    collect(data, "blobs")
    if isinstance(diff, h5py.Group):
        collect(diff, "diffs")
    for layer in layers.values():
        count = max(len(layer.blobs), len(layer.diffs))
        layer.blobs += [None] * (count - len(layer.blobs))
        layer.diffs += [None] * (count - len(layer.diffs)) if layer.diffs else []
    return list(layers.values())


def unfit_name(name: str, taken: Container[str]) -> str:
    """The problem with a layer's name in Caffe's HDF5, given the names ``taken``; "" if there is none."""
    if name and "/" not in name and "\0" not in name and name != "." and name not in taken:
        return ""
    return f"a layer named {name!r}" + (" a second time" if name and name in taken else "")


def write_caffe_hdf5(
    path: str | os.PathLike,
    layers: Iterable[LayerWeights],
    *,
    overwrite: bool = False,
    durable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Writes a .caffemodel.h5 as Caffe's ToHDF5 does, atomically. Blobs that are None (shared) are omitted.

    Raises:
        WeightsError: a layer's name is empty or has a slash, which Caffe cannot write to HDF5 nor read back;
            or two layers have one name.
    """
    import h5py

    opened = atomic_path(path, overwrite=overwrite, durable=durable)
    with opened as temporary, h5py.File(temporary, "x") as file:
        data = file.create_group("data")
        for layer in layers:
            unfit = unfit_name(layer.name, data)
            if unfit and not layer.blobs:
                continue
            if unfit:
                raise WeightsError(
                    os.fspath(path),
                    unfit,
                    expected="names that HDF5 can hold: not empty, no slash, each once",
                    remedy="write a .caffemodel instead",
                )
            _write_blobs(data.create_group(layer.name), layer.blobs, progress)
            if layer.diffs:
                _write_blobs(file.require_group("diff").create_group(layer.name), layer.diffs, progress)


def _write_blobs(
    group: h5py.Group, blobs: Iterable[np.ndarray | None], progress: Callable[[int], object] | None
) -> None:
    for index, blob in enumerate(blobs):
        if blob is not None:
            _write_array(group, str(index), blob, progress)


def _write_array(group: h5py.Group, key: str, array: np.ndarray, progress: Callable[[int], object] | None) -> None:
    group.create_dataset(key, data=array)
    if progress:
        progress(array.nbytes)


def write_state_hdf5(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    *,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Writes a state_dict, one data set for each key, atomically. Slashes in keys create groups, as usual in HDF5.

    Raises:
        WeightsError: two keys cannot both be paths in one HDF5 file, or one is not a valid path.
    """
    import h5py

    with atomic_path(path, overwrite=overwrite) as temporary, h5py.File(temporary, "x") as file:
        for key, array in arrays.items():
            try:
                _write_array(file, key, array, progress)
                same = file[key].name == f"/{key}"
            except (ValueError, KeyError, TypeError):
                same = False
            if not same:
                where = os.fspath(path)
                raise WeightsError(
                    where, f"the key {key!r}", expected="a path of HDF5", remedy="write .safetensors instead"
                )
