"""Layers that take or write arrays: MemoryData, HDF5Data, HDF5Output.

Source: memory_data_layer.cpp, hdf5_data_layer.cpp, hdf5_output_layer.cpp (both programs).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from caffe_port.console import info
from caffe_port.data import State
from caffe_port.data.hdf5_rows import Rows
from caffe_port.formats.atomic import atomic_path, check_output
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.capabilities import WritesFiles
from caffe_port.layers.prefetching import Reading
from caffe_port.random import c_rand, default_stream
from caffe_port.spec import sources


@layer("HDF5Data")
class HDF5Data(Reading):
    """Rows of the data sets with the tops' names, from the HDF5 files that a text file lists.

    The shuffle is Caffe's: by the C library's rand(), which has the same initial seed in every process.
    """

    def setup(self) -> None:
        if not self.dialect.legacy_shapes and self.fields.has("transform_param"):
            raise self.error("a transform_param", expected="none: the layer does not transform")
        self.count = self.batch_size()
        rand = c_rand() if self.p.shuffle else None
        source = self.find(self.p.source, "list of HDF5 files")
        self.rows = Rows(
            source, self.places, self.fields.top, rand, four_axes=self.dialect.legacy_shapes, share=self.share()
        )

    def reshape(self) -> list[Shape]:
        return [(self.count, *shape) for shape in self.rows.shapes]

    def forward(self) -> tuple[Tensor, ...]:
        return self.tensors(self.rows.make(self.count))

    def get_position(self) -> State:
        return self.rows.get_state()

    def set_position(self, state: State) -> None:
        self.rows.set_state(state)


@layer("MemoryData")
class MemoryData(sources.MemoryData, Reading):
    """Batches of arrays that the user sets."""

    def setup(self) -> None:
        super().setup()
        t = self.fields.transform_param
        self.transforms = self.fields.has("transform_param")
        t.skip("scale", "mirror", "crop_size", "mean_file", "mean_value", "force_color", "force_gray")
        if t.mirror or (self.phase == "TRAIN" and t.crop_size):
            default_stream().words(1)  # the seed of transformations, unused for arrays
        self.arrays: tuple[np.ndarray, np.ndarray] | None = None
        self.at = 0

    def set_input_arrays(self, data: Any, labels: Any) -> None:
        """Take batches from these arrays from now on, cyclically from their first item. They are not copied.

        Args:
            data: float32 (items, channels, height, width). labels: float32, one for each item, in any shape.

        Raises:
            LayerError: another shape or type, or not a multiple of the batch size.
        """
        data, labels, batch = np.asarray(data), np.asarray(labels), self.batch
        if data.dtype != np.float32 or labels.dtype != np.float32:
            raise self.error(f"arrays of {data.dtype} and {labels.dtype}", expected="float32")
        if data.shape[1:] != self.item or not len(data) or len(data) % batch or labels.size != len(data):
            raise self.error(
                f"data of shape {data.shape} and {labels.size} labels",
                expected=f"(n, {', '.join(map(str, self.item))}) and n labels, n a multiple of the batch size {batch}",
            )
        if self.transforms:
            info(f"layer {self.name}: arrays are not transformed, as in Caffe")
        self.arrays, self.at = (data, labels.reshape(-1)), 0

    def get_position(self) -> State:
        return {"at": np.array([self.at])}

    def set_position(self, state: State) -> None:
        self.at = int(state["at"][0])

    def forward(self) -> tuple[Tensor, ...]:
        if self.arrays is None:
            raise self.error("no arrays", remedy="call net.set_input_arrays(data, labels)")
        here = slice(self.at, self.at + self.batch)
        self.at = here.stop % len(self.arrays[0])
        return self.tensors(tuple(a[here].copy() for a in self.arrays))


@layer("HDF5Output")
class HDF5Output(sources.HDF5Output, Layer, WritesFiles):
    """Writes its bottoms to an HDF5 file as the data sets ``data`` and ``label``, with four axes, in the first pass.

    Caffe's file holds one pass only, so a second pass raises. Without ``allow_writes`` the layer raises when built.
    """

    keeps_state = True
    untraceable = "it writes a file"

    def setup(self, data: Shape, label: Shape) -> None:
        self.path = self.p.file_name
        self.check_writes(self.path)
        self.written = False
        check_output(self.path, overwrite=True)

    def forward(self, data: Tensor, label: Tensor) -> tuple[()]:
        import h5py

        if self.written:
            raise self.error(f"a second pass for {self.path}", expected="one: a second pass would overwrite the first")
        with atomic_path(self.path, overwrite=True) as temporary, h5py.File(temporary, "x") as file:
            for name, bottom in (("data", data), ("label", label)):
                file[name] = bottom.detach().cpu().numpy().reshape(*bottom.shape, *(1,) * (4 - bottom.dim()))
        self.written = True
        return ()
