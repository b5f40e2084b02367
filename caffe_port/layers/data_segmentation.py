"""The fork's data layers: pictures with masks, whole or cropped to boxes.

Source: image_seg_data_layer.cpp, window_seg_data_layer.cpp, window_inst_seg_data_layer.cpp,
window_seg_binary_layer.cpp, window_cls_data_layer.cpp, select_seg_binary_layer.cpp (all noh).
"""

from __future__ import annotations

from typing import ClassVar

from caffe_port.data import Batches, segments
from caffe_port.data.pictures import LabelMaps
from caffe_port.layers.base import layer
from caffe_port.layers.prefetching import Prefetching


class _Segmentation(Prefetching):
    mean_file = False

    kind: ClassVar[type[segments.Segments]]
    boxes: ClassVar[bool] = True
    masks: ClassVar[int] = 1
    """Words of a line after the picture's name, unless label_type is NONE."""

    def open(self) -> Batches:
        self.p.skip("has_label", "max_labels", "other_object_label")  # the fork reads only the last, in one layer
        path, label_type = self.find(self.p.source, "list"), self.p.enum("label_type")
        items = segments.segments(
            path, labels=0 if label_type == "NONE" else self.masks, box=self.boxes, numbers=self.numbers()
        )
        reader = self.reader()
        settings = segments.Settings(
            path,
            items,
            self.cursor(len(items)),
            reader,
            LabelMaps(reader, self.name),
            self.transformer,
            self.batch_size(),
            label_type,
            self.p.ignore_label,
            **self.more(),
        )
        return self.kind(settings)

    def numbers(self) -> int:
        """Number of values after the box on a line."""
        return 0

    def more(self) -> dict[str, int]:
        """Further settings."""
        return {}

    def label_dim(self) -> int:
        """Number of classes."""
        dim: int = self.fields.window_cls_data_param.label_dim
        if dim < 1:
            raise self.error(f"label_dim {dim}", expected="1 or more (in window_cls_data_param)")
        return dim


@layer("ImageSegData")
class ImageSegData(_Segmentation):
    """Pictures, the labels of their pixels, and their sizes."""

    kind = segments.Pictures
    boxes = False


@layer("WindowSegData")
class WindowSegData(_Segmentation):
    """Crops of pictures, the labels of their pixels, and the pictures' sizes."""

    kind = segments.Windows


@layer("WindowSegBinary")
class WindowSegBinary(_Segmentation):
    """As WindowSegData, and every class is 1."""

    kind = segments.BinaryWindows


@layer("WindowInstSegData")
class WindowInstSegData(_Segmentation):
    """As WindowSegData, each box around one instance; pixels of others become ``other_object_label``."""

    kind = segments.InstanceWindows
    masks = 2

    def numbers(self) -> int:
        return 1

    def more(self) -> dict[str, int]:
        return {"other": self.p.other_object_label}


@layer("WindowClsData")
class WindowClsData(_Segmentation):
    """Crops of pictures, the set of classes in each, and the pictures' sizes."""

    kind = segments.ClassWindows

    def more(self) -> dict[str, int]:
        return {"classes": self.label_dim()}


@layer("SelectSegBinary")
class SelectSegBinary(_Segmentation):
    """From crops with a vector of classes: pixel labels, 1 where their class is in it, and the vector."""

    kind = segments.SelectedWindows

    def numbers(self) -> int:
        return self.label_dim()

    def more(self) -> dict[str, int]:
        return {"classes": self.label_dim(), "base": self.fields.select_seg_binary_param.cls_label_base}
