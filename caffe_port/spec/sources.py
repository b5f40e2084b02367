"""Layers without bottoms, and those that write: the shapes of their tops as far as definitions determine them.

Source: input_layer.cpp, parameter_layer.hpp, dummy_data_layer.cpp, memory_data_layer.cpp, hdf5_data_layer.cpp,
hdf5_output_layer.cpp, data_layer.cpp, image_data_layer.cpp, window_data_layer.cpp (both programs); the fork's own as
caffe_port/layers/data_segmentation.py names them.
"""

from __future__ import annotations

from typing import ClassVar

from caffe_port.spec.base import BVLC, NOH, Blob, Shape, Spec, record
from caffe_port.spec.unknown import UNKNOWN, unknown_shape

__all__ = ["DummyData", "HDF5Output", "Input", "MemoryData", "Parameter"]


class Source(Spec):
    """No bottoms."""

    bottoms = (0, 0)
    tops: ClassVar[tuple[int, int | None]] = (1, None)

    def each(self, what: str, given: list) -> list:
        """``given`` for every top: one value for all, or one for each."""
        self.refuse(
            len(given) not in (1, self.n_tops),
            f"{len(given)} {what} for {self.n_tops} tops",
            expected="one, or one for each top",
        )
        return given * self.n_tops if len(given) == 1 else given


@record("Input", "input_param")
class Input(Source):
    def setup(self) -> None:
        self.shapes = self.each("shapes", [tuple(s.dim) for s in self.p.shape] or [(0,)])

    def reshape(self) -> list[Shape]:
        return self.shapes


@record("Parameter", "parameter_param", BVLC)
class Parameter(Source):
    tops = (1, 1)
    blob_specs = (Blob("weight"),)

    def setup(self) -> None:
        self.make_blobs(tuple(self.p.shape.dim))

    def reshape(self) -> list[Shape]:
        return [self.blob_shapes["weight"]]


@record("DummyData", "dummy_data_param")
class DummyData(Source):
    def setup(self) -> None:
        self.shapes = self.each("shape", [tuple(s.dim) for s in self.p.shape] or self.older_form())

    def older_form(self) -> list[Shape]:
        """The shapes as ``num``, ``channels``, ``height`` and ``width``."""
        sides = [self.each(name, getattr(self.p, name)) for name in ("num", "channels", "height", "width")]
        return list(zip(*sides, strict=True))

    def reshape(self) -> list[Shape]:
        return self.shapes


@record("MemoryData", "memory_data_param")
class MemoryData(Source):
    tops = (2, 2)
    reads = ("batch=batch_size",)

    def setup(self) -> None:
        p = self.p
        self.item = (p.channels, p.height, p.width)
        self.refuse(
            min(self.batch, *self.item) < 1,
            f"batch_size {self.batch}, channels {p.channels}, height {p.height}, width {p.width}",
            expected="all above 0",
        )

    def reshape(self) -> list[Shape]:
        return [(self.batch, *self.item), (self.batch,)]


class FromFiles(Source):
    """Data whose shapes come from files, or partly from the definition."""

    def batch_shape(self, channels: int, sides: tuple[int, int] = (UNKNOWN, UNKNOWN)) -> Shape:
        """(batch, channels, height, width), with the crop's size if there is one."""
        crop = self.fields.transform_param.crop_size
        return (self.p.batch_size, channels, *((crop, crop) if crop else sides))

    def reshape(self) -> list[Shape]:
        return [(self.p.batch_size, *unknown_shape(3))] * self.n_tops


@record("HDF5Data", "hdf5_data_param")
class HDF5Data(FromFiles):
    """Rows of data sets."""


@record("Data", "data_param")
class Data(FromFiles):
    tops = (1, 2)
    ignores: ClassVar[tuple[str, ...]] = ("threads", "parser_threads", "cache", "precache")

    def reshape(self) -> list[Shape]:
        return [self.pictures(), (self.p.batch_size,), (self.p.batch_size, 1, 1, 2)][: self.n_tops]

    def pictures(self) -> Shape:
        """Of the first top."""
        return self.batch_shape(UNKNOWN)


@record("WindowData", "window_data_param")
class WindowData(Data):
    ignores = ()
    tops = (2, 2)

    def pictures(self) -> Shape:
        return self.batch_shape(3)


@record("ImageData", "image_data_param")
class ImageData(Data):
    ignores = ()
    tops = (2, 2)

    def pictures(self) -> Shape:
        p = self.p
        return self.batch_shape(3 if p.is_color else 1, (p.new_height or UNKNOWN, p.new_width or UNKNOWN))


class Masks(ImageData):
    """Pictures or boxes of them, the labels of their pixels, and a third top."""

    tops = (1, 3)

    def reshape(self) -> list[Shape]:
        data = self.pictures()
        return [data, (data[0], 1, *data[2:]), (data[0], 1, 1, 2)][: self.n_tops]

    @property
    def classes(self) -> int:
        """``label_dim``."""
        return self.fields.window_cls_data_param.label_dim


for _type in ("ImageSegData", "WindowSegData", "WindowSegBinary", "WindowInstSegData"):
    record(_type, "image_data_param", NOH)(type(_type, (Masks,), {}))


@record("WindowClsData", "image_data_param", NOH)
class WindowClsData(Masks):
    def reshape(self) -> list[Shape]:
        tops = [*super().reshape()]
        tops[1:2] = [(self.p.batch_size, self.classes, 1, 1)] * len(tops[1:2])
        return tops


@record("SelectSegBinary", "image_data_param", NOH)
class SelectSegBinary(Masks):
    def reshape(self) -> list[Shape]:
        return [*super().reshape()[:2], (self.p.batch_size, self.classes, 1, 1)][: self.n_tops]


@record("HDF5Output", "hdf5_output_param")
class HDF5Output(Spec):
    bottoms = (2, 2)
    tops = (0, 0)

    def reshape(self, data: Shape, label: Shape) -> list[Shape]:
        self.refuse_shape(
            max(len(data), len(label)) > 4 or data[0] != label[0],
            f"bottoms of shapes {data} and {label}",
            expected="up to four axes, and items of equal number",
        )
        return []


@record("Python", "python_param", BVLC)
class Python(Spec):
    bottoms = (0, None)
    tops = (0, None)
    inferable = False
