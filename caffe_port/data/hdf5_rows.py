"""Rows of HDF5 files, as HDF5Data makes batches of them.

Source: hdf5_data_layer.cpp, util/hdf5.cpp (both programs).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_port.data.batches import Array, State, check_order, too_large
from caffe_port.data.files import Places, lines
from caffe_port.data.shard import ALL, Share
from caffe_port.errors import CaffeError, FormatError, ShapeError
from caffe_port.formats.hdf5_access import dataset_array, find, open_hdf5
from caffe_port.random import CRand

if TYPE_CHECKING:
    import h5py

__all__ = ["Rows"]


class Rows:
    """The rows of several files, one after the other and again from the first.

    Args:
        source: the text file that lists them. names: the data sets to read, the same number of rows in each.
        rand: shuffles the files, and the rows of each; None leaves them in order.
        share: the part of the rows that batches are made of.
        four_axes: whether shapes are filled up with ones to four axes.

    Raises:
        FileError: a file is not there. FormatError: the list is empty, or a file is damaged or lacks a data set.
        ShapeError: the data sets have different numbers of rows, or other shapes than in the first file.
    """

    def __init__(
        self,
        source: str,
        places: Places,
        names: Sequence[str],
        rand: CRand | None,
        *,
        four_axes: bool,
        share: Share = ALL,
    ) -> None:
        self._share, self._offset = share, 0
        self._names, self._rand, self._four_axes = names, rand, four_axes
        listed = [(n, word) for n, line in lines(source) for word in line.split()]
        self._files = [places.find(word, "HDF5 file", f"{source}:{n}") for n, word in listed]
        self._order = list(range(len(self._files)))
        self._shuffle(self._order)
        self._file = self._row = 0
        self._rows: list[int] = []
        self._load()
        self.shapes = [array.shape[1:] for array in self._arrays]

    def make(self, count: int) -> tuple[Array, ...]:
        """The next ``count`` rows of each data set, float32."""
        shapes = [(count, *shape) for shape in self.shapes]
        try:
            batch = tuple(np.empty(shape, np.float32) for shape in shapes)
        except MemoryError:
            raise too_large(shapes) from None
        done = 0
        while done < count:
            while not self._share.keeps(self._offset):
                self._advance(1)
            wanted = count - done if self._share.count == 1 else 1
            rows = self._rows[self._row : self._row + wanted]
            for out, array in zip(batch, self._arrays, strict=True):
                out[done : done + len(rows)] = array[rows]
            done += len(rows)
            self._advance(len(rows))
        return batch

    def _advance(self, rows: int) -> None:
        self._offset += rows
        self._row += rows
        if self._row == len(self._rows):
            self._next_file()

    def get_state(self) -> State:
        """The position of the next row."""
        state = {
            "at": np.array([self._file, self._row, self._offset]),
            "files": np.array(self._order, np.int32),
            "rows": np.array(self._rows, np.int32),
        }
        return state | ({"rand": self._rand.get_state()} if self._rand else {})

    def set_state(self, state: State) -> None:
        """Go to a position. Raises CaffeError if the files have changed since."""
        if len(state["files"]) != len(self._files) or ("rand" in state) != (self._rand is not None):
            raise CaffeError(
                "the data's position",
                f"one in {len(state['files'])} HDF5 files",
                expected=f"one in {len(self._files)}",
                remedy="the list or its shuffle field has changed since it was saved",
            )
        file, row, offset = state["at"].tolist()
        check_order(file, state["files"], len(self._files))
        self._file, self._order = file, state["files"].tolist()
        self._load()
        if len(state["rows"]) != len(self._rows):
            path = self._files[self._order[self._file]]
            raise CaffeError(
                "the data's position", f"one in {len(state['rows'])} rows", expected=f"{path}'s {len(self._rows)}"
            )
        check_order(row, state["rows"], len(self._rows))
        self._row, self._offset, self._rows = row, offset, state["rows"].tolist()
        if self._rand:
            self._rand.set_state(state["rand"])

    def _next_file(self) -> None:
        if len(self._files) > 1:
            self._file += 1
            if self._file == len(self._files):
                self._file = 0
                self._shuffle(self._order)
            self._load()
        self._row = 0
        self._shuffle(self._rows)  # a second time where a file was loaded, as in Caffe

    def _shuffle(self, items: list[int]) -> None:
        if self._rand:
            self._rand.shuffle(items)

    def _load(self) -> None:
        path = self._files[self._order[self._file]]
        with open_hdf5(path) as file:
            self._arrays = [self._dataset(file, name) for name in self._names]
        counts = {len(array) for array in self._arrays}
        if len(counts) > 1 or not all(counts):
            found = ", ".join(f"{len(a)} of {n!r}" for n, a in zip(self._names, self._arrays, strict=True))
            raise ShapeError(path, f"rows: {found}", expected="the same number of each, not 0")
        shapes = [array.shape[1:] for array in self._arrays]
        if shapes != getattr(self, "shapes", shapes):
            raise ShapeError(path, f"rows of shapes {shapes}", expected=f"{self.shapes}, as the first file has them")
        self._rows = list(range(counts.pop()))
        self._row = 0
        self._shuffle(self._rows)

    def _dataset(self, file: h5py.File, name: str) -> Array:
        import h5py

        dataset = find(file, name)
        array = dataset_array(dataset) if isinstance(dataset, h5py.Dataset) else None
        if array is None or not array.ndim:
            kind = "a data set of numbers with one axis or more"
            raise FormatError(
                file.filename, f"no such {name!r}", expected=kind, remedy="data sets are named as the tops are"
            )
        with np.errstate(over="ignore"):  # what is too large for 32 bits is infinite, as HDF5 has it
            array = array.astype(np.float32)
        return array.reshape(*array.shape, *(1,) * (4 - array.ndim)) if self._four_axes else array
