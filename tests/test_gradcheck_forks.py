"""Gradients of the forks' layers against differences of their own forward passes, as test_gradcheck has them."""

from __future__ import annotations

import pytest
import test_gradcheck
import torch
from test_gradcheck import EXEMPT, XY, Row, X, distinct, holds, labels, normal
from torch import Tensor

from caffe_port.layers import REGISTRY


def rois(shape: tuple[int, ...]) -> Tensor:
    """Of two items, inside a map of 6 x 7 pixels."""
    corners = ((0, 1, 1, 5, 4), (1, 0, 2, 6, 5), (0, 2, 0, 3, 5))
    return torch.tensor([corners[i % 3] for i in range(shape[0])]).double()


MAP = ((2, 8, 6, 7), (3, 5))
ROWS = [
    Row(
        "ROIPooling",
        MAP,
        "roi_pooling_param { pooled_h: 3 pooled_w: 2 }",
        (distinct, rois),
        kink="equal numbers in a bin",
        dialect="rcnn",
    ),
    Row(
        "PSROIPooling",
        MAP,
        "psroi_pooling_param { spatial_scale: 0.9 output_dim: 2 group_size: 2 }",
        (normal, rois),
        dialect="rcnn",
    ),
    Row("SmoothL1Loss", XY * 2, "smooth_l1_loss_param { sigma: 2 }", kink="differences of 1/4", dialect="rcnn"),
    Row("SmoothL1Loss", XY, kink="differences of 1", tops=2, dialect="rcnn"),
    Row("SmoothL1LossOHEM", (*XY, XY[0]), kink="differences of 1", tops=2, dialect="rcnn"),
    Row(
        "SoftmaxWithLossOHEM",
        ((2, 5, 3), (2, 1, 3)),
        "loss_param { ignore_label: 3 normalization: PRE_FIXED pre_fixed_normalizer: 7 }",
        (normal, labels(5)),
        tops=3,
        dialect="rcnn",
    ),
    Row("Dropout", X, "dropout_param { dropout_ratio: 0.4 scale_train: false }", dialect="rcnn"),
    Row("Dropout", X, "dropout_param { dropout_ratio: 0.4 scale_train: false }", phase="TRAIN", dialect="rcnn"),
]

NONE = {
    "BoxAnnotatorOHEM": "it chooses examples",
}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_gradient(row: Row) -> None:
    assert holds(row)


def test_every_layer_has_a_row_or_a_reason() -> None:
    """Layers without bottoms or tops have nothing to differentiate, but for the one whose top is a parameter; nor have
    those that no gradient reaches, such as py-faster-rcnn's modules."""
    ours = [(name, cls) for name, of in REGISTRY.items() for cls in of.values()]
    ours = [(name, cls) for name, cls in ours if cls.__module__.startswith("caffe_port.")]
    differentiable = {name for name, cls in ours if (0, 0) not in (cls.bottoms, cls.tops)} | {"Parameter"}
    rows = {row.type for row in [*test_gradcheck.ROWS, *ROWS]}
    modules = {name for name in differentiable if name.startswith("Python ")}
    assert not differentiable - rows - EXEMPT.keys() - NONE.keys() - modules
