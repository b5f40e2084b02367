"""Records of the R-CNN forks' layers, and of the Python modules that are layers in this port.

Source: the files that caffe_port/layers/rcnn.py and rcnn_python.py name.
"""

from __future__ import annotations

from collections.abc import Callable

from caffe_port.spec.base import C, Shape, Spec, record
from caffe_port.spec.elementwise import Dropout
from caffe_port.spec.losses import Loss, SoftmaxWithLoss

__all__ = [
    "AnchorTarget",
    "BoxAnnotatorOHEM",
    "PSROIPooling",
    "Proposal",
    "ProposalTarget",
    "ProposalTarget4",
    "ROIPooling",
    "RoIData",
    "ScaledDropout",
    "SmoothL1Loss",
    "SmoothL1LossOHEM",
    "SoftmaxWithLossOHEM",
]

_RCNN = ("rcnn",)


class OverRois(Spec):
    """A map (N, C, H, W) and rois (R, 5) of (item, x1, y1, x2, y2) in pixels of the picture."""

    bottoms = (2, 2)
    labels = (1,)
    in_place = False

    def check(self, x: Shape, rois: Shape) -> None:
        """Raises for bottoms of other shapes."""
        if len(x) != 4 or len(rois) < 2 or rois[1] != 5 or any(n != 1 for n in rois[2:]):
            raise self.shape_error(f"bottoms of shapes {x} and {rois}", expected="(N, C, H, W) and (R, 5)")


@record("ROIPooling", "roi_pooling_param", _RCNN)
class ROIPooling(OverRois):
    """``pooled_h`` x ``pooled_w`` bins."""

    reads = ("scale=spatial_scale",)

    def setup(self, x: Shape, rois: Shape) -> None:
        self.bins = self.p.pooled_h, self.p.pooled_w
        if min(self.bins) < 1:
            raise self.error(f"pooled_h and pooled_w {self.bins}", expected="more than 0")

    def reshape(self, x: Shape, rois: Shape) -> list[Shape]:
        self.check(x, rois)
        return [(rois[0], x[1], *self.bins)]


@record("PSROIPooling", "psroi_pooling_param", _RCNN)
class PSROIPooling(OverRois):
    """Every bin of ``group_size`` x ``group_size`` has separate channels."""

    reads = ("scale=spatial_scale", "classes=output_dim", "side=group_size")

    def setup(self, x: Shape, rois: Shape) -> None:
        if min(self.classes, self.side) < 1:
            raise self.error(f"output_dim {self.classes}, group_size {self.side}", expected="more than 0")

    def reshape(self, x: Shape, rois: Shape) -> list[Shape]:
        self.check(x, rois)
        if x[1] != self.classes * self.side**2:
            raise self.shape_error(
                f"{x[1]} channels", expected=f"{self.classes * self.side**2}: output_dim * group_size^2"
            )
        return [(rois[0], self.classes, self.side, self.side)]


class _Smooth(Loss):
    """Predictions and targets, and weights of their size. Its weight is 0 where the definition gives none."""

    loss = False
    tops = (1, 2)

    def by_item(self, x: Shape, *others: Shape) -> list[Shape]:
        """The tops' shapes."""
        for other in others:
            if other[:1] != x[:1] or _padded(other) != _padded(x):
                raise self.shape_error(f"bottoms of shapes {x} and {other}", expected="equal shapes")
        n, _, h, w = _padded(x)
        return [(), (n, 1, h, w)][: self.n_tops]


def _padded(x: Shape) -> Shape:
    return (*x, *(1,) * (4 - len(x)))


@record("SmoothL1Loss", "smooth_l1_loss_param", _RCNN)
class SmoothL1Loss(_Smooth):
    """Fast R-CNN's with two or four bottoms; R-FCN's with three, a second top or a ``loss_param``."""

    bottoms = (2, 4)
    labels = (2, 3)

    def setup(self, *shapes: Shape) -> None:
        self.normalization = "BATCH_SIZE"
        given = self.fields.loss_param
        if self.n_bottoms == 3 or self.n_tops == 2 or given.has("normalization") or given.has("normalize"):
            self.read_loss_param("VALID")
            if self.n_bottoms == 4 or self.p.has("sigma"):
                raise self.error(
                    "sigma or four bottoms (Fast R-CNN's) with three bottoms, two tops or loss_param (R-FCN's)",
                    expected="one form",
                )
        self.sigma = self.p.sigma
        if self.sigma <= 0:
            raise self.error(f"sigma {self.sigma}", expected="more than 0")

    def reshape(self, *shapes: Shape) -> list[Shape]:
        return self.by_item(*shapes)


@record("SmoothL1LossOHEM", None, _RCNN)
class SmoothL1LossOHEM(_Smooth):
    """A second top for each item's loss."""

    bottoms = (2, 3)
    labels = (2,)

    def setup(self, *shapes: Shape) -> None:
        self.read_loss_param("VALID")
        self.sigma = 1.0

    def reshape(self, *shapes: Shape) -> list[Shape]:
        return self.by_item(*shapes)


@record("SoftmaxWithLossOHEM", "softmax_param", _RCNN)
class SoftmaxWithLossOHEM(SoftmaxWithLoss):
    """A second top for the probabilities, a third for each pixel's loss."""

    tops = (1, 3)

    def reshape(self, x: Shape, label: Shape) -> list[Shape]:
        super().reshape(x, label)
        return [(), x, label][: self.n_tops]


@record("BoxAnnotatorOHEM", "box_annotator_ohem_param", _RCNN)
class BoxAnnotatorOHEM(Spec):
    """Rois (R, 5, h, w), their losses and labels (R, 1, h, w), the weights of their boxes (R, K, h, w)."""

    bottoms = (4, 4)
    tops = (2, 2)
    labels = (0, 1, 2, 3)
    reads = ("most=roi_per_img", "ignored=ignore_label")

    def setup(self, *shapes: Shape) -> None:
        if self.most < 1:
            raise self.error(f"roi_per_img {self.most}", expected="1 or more")

    def reshape(self, *shapes: Shape) -> list[Shape]:
        rois, loss, label, weight = map(_padded, shapes)
        n, channels, h, w = rois
        if channels != 5 or loss != (n, 1, h, w) or label != loss or (weight[0], *weight[2:]) != (n, h, w):
            raise self.shape_error(
                f"bottoms of shapes {shapes}", expected="(R, 5, h, w), twice (R, 1, h, w), and (R, K, h, w)"
            )
        return [loss, weight]


@record("Dropout", "dropout_param", _RCNN)
class ScaledDropout(Dropout):
    """Scaled in TRAIN or in TEST."""

    reads = ("ratio=dropout_ratio", "scales_train=scale_train")


class _Module(Spec):
    """A Python layer of py-faster-rcnn. Shapes are those at set-up; each pass may give others."""

    def reads_module(self) -> None:
        """Marks the fields that name the module as read."""
        self.p.skip("module", "layer", "param_str", "share_in_parallel")


def _module(name: str, dialects: tuple[str, ...] = _RCNN) -> Callable[[C], C]:
    return record(f"Python {name}", "python_param", dialects)


@_module("rpn.proposal_layer.ProposalLayer")
class Proposal(_Module):
    """Scores (1, 2 A, h, w), box deltas (1, 4 A, h, w), image size and scale (1, 3)."""

    bottoms = (3, 3)
    tops = (1, 2)
    labels = (0, 1, 2)

    def reshape(self, *shapes: Shape) -> list[Shape]:
        return [(1, 5), (1, 1, 1, 1)][: self.n_tops]


@_module("rpn.anchor_target_layer.AnchorTargetLayer")
class AnchorTarget(_Module):
    """Scores, boxes (G, 5), image size and scale, and the picture, which is not used."""

    bottoms = (3, 4)
    tops = (4, 4)
    labels = (0, 1, 2, 3)
    anchors_per_cell = 9

    def reshape(self, scores: Shape, *others: Shape) -> list[Shape]:
        self.four_axes(scores)
        a, (h, w) = self.anchors_per_cell, scores[2:]
        return [(1, 1, a * h, w), *[(1, 4 * a, h, w)] * 3]


@_module("rpn.proposal_target_layer.ProposalTargetLayer")
class ProposalTarget(_Module):
    """Rois (R, 5) and boxes (G, 5)."""

    bottoms = (2, 2)
    tops = (5, 5)
    labels = (0, 1)
    classes = 1

    def reshape(self, rois: Shape, boxes: Shape) -> list[Shape]:
        return [(1, 5), (1, 1), *[(1, 4 * self.classes)] * 3]


@_module("rpn.proposal_target_layer.ProposalTargetLayer", ("rfcn",))
class ProposalTarget4(ProposalTarget):
    """With four axes everywhere."""

    def reshape(self, rois: Shape, boxes: Shape) -> list[Shape]:
        return [(*shape, 1, 1) for shape in super().reshape(rois, boxes)]


@_module("roi_data_layer.layer.RoIDataLayer")
class RoIData(_Module):
    """Pictures; and their size with their boxes, or rois with their labels and targets."""

    bottoms = (0, 0)
    tops = (2, 6)
    classes = 1
    first: tuple[Shape, ...] = ()
    """The shapes before the first batch, by the settings."""

    def reshape(self) -> list[Shape]:
        return list(self.first)
