"""Layers that read batches of pictures: Data, ImageData, WindowData.

Source: data_layer.cpp, image_data_layer.cpp, window_data_layer.cpp (both programs).
"""

from __future__ import annotations

import numpy as np

from caffe_port.console import info
from caffe_port.data import Batches
from caffe_port.data.boxes import BoxBatches, Sampling, box_file
from caffe_port.data.databases import DatumBatches, open_records
from caffe_port.data.pictures import AS_IT_IS, COLOR, GRAY, PictureBatches, Reader, labelled
from caffe_port.layers.base import layer
from caffe_port.layers.prefetching import Prefetching
from caffe_port.random import Stream


@layer("Data")
class Data(Prefetching):
    """Records of an LMDB or LevelDB database, in order: data, and labels if there is a second top."""

    def setup(self) -> None:
        if self.dialect.database_thread_draws:
            self.draw()
        super().setup()

    def open(self) -> Batches:
        self.p.skip("prefetch", "force_encoded_color", "rand_skip")
        if self.p.shuffle:
            info(f"{self.where}: layer {self.name}: records come in the database's order, shuffle is ignored")
        limit = self.p.rand_skip if self.dialect.data_skips_at_random else 0
        path, batch = self.find(self.p.source, "database", folder=True), self.batch_size()
        records = open_records(path, self.p.enum("backend"))
        skip = self.draw() % limit if limit else 0
        return DatumBatches(path, records, self.transformer, batch, color=self.color(), skip=skip, share=self.share())

    def color(self) -> int:
        """How encoded records are decoded."""
        t = self.fields.transform_param
        if t.force_color and t.force_gray:
            raise self.error("force_color and force_gray", expected="one of them")
        if t.force_color or t.force_gray:
            return COLOR if t.force_color else GRAY
        return COLOR if self.dialect.decodes_in_color else AS_IT_IS


@layer("ImageData")
class ImageData(Prefetching):
    """Pictures and their labels from a list of lines ``FILE LABEL``."""

    def open(self) -> Batches:
        self.p.skip("has_label", "max_labels", "label_type", "ignore_label", "other_object_label")  # for masks
        path = self.find(self.p.source, "list")
        items = labelled(path)
        return PictureBatches(path, items, self.cursor(len(items)), self.reader(), self.transformer, self.batch_size())


@layer("WindowData")
class WindowData(Prefetching):
    """Boxes of objects and of background, drawn from a file of proposals as R-CNN did, and their classes."""

    def open(self) -> Batches:
        p, crop = self.p, self.transformer.crop
        self.fields.transform_param.skip("scale")  # Caffe uses window_data_param's
        if not crop or crop <= 2 * p.context_pad:
            raise self.error(f"crop_size {crop}", expected=f"more than twice the context_pad, {p.context_pad}")
        stream = Stream(self.draw())
        path, batch = self.find(p.source, "window file"), self.batch_size()
        sampling = Sampling(
            batch,
            objects=int(np.float32(batch) * np.float32(p.fg_fraction)),
            pad=p.context_pad,
            square=p.crop_mode == "square",
            scale=p.scale,
            cache=p.cache_images,
        )
        boxes = box_file(path, p.fg_threshold, p.bg_threshold)
        return BoxBatches(path, boxes, sampling, Reader(self.places, p.root_folder), self.transformer, stream)
