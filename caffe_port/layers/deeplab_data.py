"""DeepLab v2's layers that read and write files: pictures with labels, and MATLAB files.

Source: image_seg_data_layer.cpp, data_transformer.cpp (TransformImgAndSeg), mat_read_layer.cpp, mat_write_layer.cpp,
util/matio_io.cpp (cdmh/deeplab-public-ver2).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caffe_port.data import Batches, State
from caffe_port.data.files import lines
from caffe_port.data.mat_files import read_mat, write_mat
from caffe_port.data.scaled_segments import ScaledSegments, ScaledTransformer, listed
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.capabilities import WritesFiles
from caffe_port.layers.prefetching import Prefetching, Reading
from caffe_port.spec import deeplab2


@layer("ImageSegData")
class ImageSegData2(Prefetching, deeplab2.ImageSegData2):
    """Pictures, their labels and their real sizes: (N, C, H, W), (N, 1, H, W), (N, 1, 1, 2).

    ``label_type`` IMAGE (default) fills the labels with the list's number, NONE with ``ignore_label``, PIXEL reads a
    picture of labels, which ``new_height`` and ``new_width`` resize bilinearly, as the original does.
    """

    mean_file = False
    transformer: ScaledTransformer

    def read_transformations(self) -> ScaledTransformer:
        base = super().read_transformations()
        t = self.fields.transform_param
        sized = t.has("crop_height"), t.has("crop_width")
        if any(sized) and (not all(sized) or t.has("crop_size")):
            raise self.error("crop_height or crop_width", expected="both of them, or crop_size alone")
        crop = (t.crop_height, t.crop_width) if all(sized) else (base.crop, base.crop)
        made = ScaledTransformer(base, crop, t.scale_factors)
        if made.needs_stream and not base.draws:
            raise self.error(
                "random crops or scale_factors that the original does not seed",
                expected="mirror, or crop_size in TRAIN (data_transformer.cpp, InitRand)",
            )
        return made

    def open(self) -> Batches:
        p = self.p
        path, kind = self.find(p.source, "list"), p.enum("label_type")
        items = listed(path, kind)
        return ScaledSegments(
            path,
            items,
            self.cursor(len(items)),
            self.reader(),
            self.transformer,
            self.batch_size(),
            kind,
            p.ignore_label,
        )


class _Named(Layer):
    def names(self, path: str) -> list[str]:
        """The first words of a file's lines without the last ``strip`` characters."""
        strip = self.p.strip
        if strip < 0:
            raise self.error(f"strip {strip}", expected="0 or more")
        found = [line.split()[0] for _, line in lines(path)]
        short = next((name for name in found if len(name) <= strip), None)
        if short is not None:
            raise self.error(f"{short!r} in {path}", expected=f"more than the {strip} characters to strip")
        return [name[: len(name) - strip] for name in found]


@layer("MatRead")
class MatRead(Reading, _Named):
    """Items from MATLAB files PREFIX NAME_blob_I.mat, one file for each item and top, ``batch_size`` items a pass."""

    def setup(self) -> None:
        p = self.p
        if not p.source:
            raise self.error("no source", expected="a list of names, which the original requires")
        self.list = self.names(self.find(p.source, "list"))
        self.at = 0
        size = self.batch_size()
        self.shapes = [(size, *self.item(0, i).shape[1:]) for i in range(self.n_tops)]

    def reshape(self) -> list[Shape]:
        return self.shapes

    def item(self, number: int, top: int) -> np.ndarray:
        name = f"{self.p.prefix}{self.list[number]}_blob_{top}.mat"
        return read_mat(self.find(name, "MATLAB file"))

    def forward(self) -> tuple[Tensor, ...]:
        tops = [np.empty(shape, np.float32) for shape in self.shapes]
        for n in range(self.shapes[0][0]):
            self.at %= len(self.list)
            for i, top in enumerate(tops):
                item = self.item(self.at, i)
                if item.shape != (1, *top.shape[1:]):
                    raise self.shape_error(
                        f"{self.list[self.at]} of shape {item.shape}", expected=f"{(1, *top.shape[1:])}"
                    )
                top[n] = item[0]
            self.at += 1
        return self.tensors(tuple(tops))

    def get_position(self) -> State:
        return {"at": np.array([self.at])}

    def set_position(self, state: State) -> None:
        self.at = int(state["at"][0])


@layer("MatWrite")
class MatWrite(deeplab2.MatWrite, _Named, WritesFiles):
    """Writes its bottoms to MATLAB files PREFIX NAME_blob_I.mat in every ``period``-th pass.

    NAME is ``iter_K`` for pass K, or, with a ``source``, the K-th name of that list. Without ``allow_writes`` the
    layer raises when built.
    """

    keeps_state = True
    untraceable = "it writes files"

    def setup(self, *shapes: Shape) -> None:
        p = self.p
        self.check_writes(p.prefix)
        if p.period < 1:
            raise self.error(f"period {p.period}", expected="1 or more")
        self.prefix = p.prefix
        self.list = self.names(p.source) if p.source else None
        if not p.source:
            p.skip("strip")
        self.passes = 0

    def forward(self, *bottoms: Tensor) -> tuple[()]:
        if self.passes % self.p.period == 0:
            if self.list is not None and self.passes >= len(self.list):
                raise self.error(
                    f"pass {self.passes}", expected=f"no more than the {len(self.list)} names of the source"
                )
            name = self.list[self.passes] if self.list is not None else f"iter_{self.passes}"
            for i, bottom in enumerate(bottoms):
                write_mat(f"{self.prefix}{name}_blob_{i}.mat", bottom.detach().cpu().to(torch.float32).numpy())
        self.passes += 1
        return ()
