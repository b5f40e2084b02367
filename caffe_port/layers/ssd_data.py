"""SSD's layers that read data: pictures with boxes from a database, the frames of a video, and Caffe's own.

Source: data_layer.cpp, image_data_layer.cpp, annotated_data_layer.cpp, video_data_layer.cpp, base_data_layer.cpp,
internal_thread.cpp, data_transformer.cpp of weiliu89/caffe, branch ssd.
"""

from __future__ import annotations

from caffe_port.console import info
from caffe_port.data import Batches
from caffe_port.data.annotated import AnnotatedBatches
from caffe_port.data.databases import open_records
from caffe_port.data.pictures import AS_IT_IS, COLOR, GRAY
from caffe_port.data.ssd_sampling import Sampler
from caffe_port.data.ssd_transform import SSDTransformer
from caffe_port.data.video import VideoFrames
from caffe_port.layers.base import layer
from caffe_port.layers.data import Data, ImageData
from caffe_port.layers.prefetching import Prefetching
from caffe_port.layers.ssd_files import read_label_map
from caffe_port.random import c_rand
from caffe_port.spec import ssd


class _Transforming(Prefetching):
    """Takes all of SSD's ``transform_param``."""

    transformer: SSDTransformer
    alters_boxes = False
    """Whether it distorts and expands."""

    def read_transformations(self) -> SSDTransformer:
        base, t = super().read_transformations(), self.fields.transform_param
        p = t.message
        if p.HasField("resize_param") and min(p.resize_param.height, p.resize_param.width) < 1:
            found = f"a resize_param of height {p.resize_param.height} and width {p.resize_param.width}"
            raise self.error(found, expected="both above 0")
        if p.HasField("expand_param") and not p.expand_param.max_expand_ratio > 1:
            raise self.error(f"max_expand_ratio {p.expand_param.max_expand_ratio:g}", expected="above 1")
        made = SSDTransformer(base, p)
        if base.train and all(made.sides) and not base.draws:
            raise self.error(
                "crop_h and crop_w in TRAIN, whose place nothing seeds",
                expected="mirror or crop_size beside them, as the original needs (data_transformer.cpp, InitRand)",
            )
        if p.force_color and p.force_gray:
            raise self.error("force_color and force_gray", expected="one of them")
        unread = [name for name in ("distort_param", "expand_param", "emit_constraint") if p.HasField(name)]
        if unread and not self.alters_boxes:
            info(f"{self.where}: layer {self.name}: without effect: {', '.join(unread)}, which are AnnotatedData's")
        return made

    def seed_thread(self, word: int) -> None:
        self.transformer.draws_from.seed(word)


@layer("Data")
class SSDData(_Transforming, Data, ssd.Data):
    """Records of an LMDB or LevelDB database: Data with SSD's ``transform_param``."""

    dialects = ssd.SSD


@layer("ImageData")
class SSDImageData(_Transforming, ImageData, ssd.ImageData):
    """Pictures and their labels from a list of lines ``FILE LABEL``: ImageData with SSD's ``transform_param``."""

    dialects = ssd.SSD


class _OfDataParam(_Transforming):
    """``batch_size`` is in the ``data_param``."""

    def batch_size(self) -> int:
        size: int = self.fields.data_param.batch_size
        if size < 1:
            raise self.error(f"batch_size {size}", expected="1 or more")
        return size


@layer("AnnotatedData")
class AnnotatedData(_OfDataParam):
    """Records of a database of AnnotatedDatum: pictures, and the boxes of all objects in them, (1, 1, count, 8).

    In both phases pictures are distorted, expanded and cropped to sampled boxes; TEST differs in the place of a
    ``crop_size`` alone.
    """

    alters_boxes = True

    def setup(self) -> None:
        if self.dialect.database_thread_draws:
            self.draw()
        super().setup()

    def open(self) -> Batches:
        p, data, t = self.p, self.fields.data_param, self.transformer
        data.skip("prefetch", "rand_skip", "force_encoded_color")  # which the original never reads
        batch = self.batch_size()
        small = t.p.HasField("resize_param") and t.p.resize_param.resize_mode == t.p.resize_param.FIT_SMALL_SIZE
        if small and batch != 1:
            raise self.error(f"batch_size {batch} with FIT_SMALL_SIZE", expected="1: pictures differ in size")
        where = f"{self.where}: layer {self.name}"
        samplers = [Sampler(s.message, f"{where}: batch_sampler {i}") for i, s in enumerate(p.batch_sampler)]
        for i, sampler in enumerate(samplers):
            if sampler.never_passes:
                info(f"layer {self.name}: batch_sampler {i} never accepts a box: {sampler.never_passes}")
        if p.label_map_file:
            read_label_map(self.find(p.label_map_file, "label map"))
        if t.p.HasField("distort_param"):
            t.rand = c_rand()
        path = self.find(data.source, "database", folder=True)
        return AnnotatedBatches(
            path,
            open_records(path, data.enum("backend")),
            t,
            samplers,
            batch,
            typed=p.has("anno_type"),
            labelled=self.n_tops > 1,
            flag=COLOR if t.p.force_color else GRAY if t.p.force_gray else AS_IT_IS,
            share=self.share(),
        )


@layer("VideoData")
class VideoData(_OfDataParam):
    """Frames of a video file or a numbered sequence of pictures, ``batch_size`` a pass, and a label 0 for each.

    Ends with an error after the last frame. A webcam is refused, and so is skip_frames, with which the original stops.
    """

    def open(self) -> Batches:
        p = self.p
        if p.enum("video_type") != "VIDEO":
            raise self.error("video_type WEBCAM", expected="VIDEO: a file")
        if p.skip_frames:
            raise self.error(f"skip_frames {p.skip_frames}", expected="0: the original stops in its first batch")
        p.skip("device_id")
        self.fields.data_param.message  # noqa: B018  nothing but its batch_size counts
        folder, _, name = p.video_file.rpartition("/")
        if "%" in name:  # a sequence; its folder is there
            root = self.find(folder or ".", "folder of pictures", folder=True)
            path = f"{root}/{name}"
        else:
            path = self.find(p.video_file, "video")
        return VideoFrames(path, self.transformer, self.batch_size())
