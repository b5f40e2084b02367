"""Layers of further forks at one size each, as ``layer_rows`` has those of BVLC and the 2015 fork."""

from __future__ import annotations

from torch.nn import functional as F

from benchmarks.layer_rows import MAP, Row, normal, switches

__all__ = ["LEFT_OUT", "ROWS"]

ROWS: list[Row] = [
    Row(
        "Upsample",
        MAP * 2,
        lambda x, s: F.max_unpool2d(x, s.long(), 2),
        "upsample_param { scale: 2 }",
        (normal, switches),
        dialect="segnet",
    ),
    Row(
        "Interp",
        MAP,
        lambda x: F.interpolate(x, scale_factor=None, size=(55, 55), mode="bilinear", align_corners=True),
        "interp_param { zoom_factor: 2 }",
        dialect="deeplab2",
    ),
    Row(
        "SpatialProduct",
        ((4, 64, 28, 28), (4, 1, 28, 28)),
        lambda x, s: x * s,
        dialect="deeplab2",
    ),
]

LEFT_OUT: dict[str, str] = {
    "DenseCRF": "the lattice of segmentation's CRF, which docs/segmenting.md times",
    "DetectionEvaluate": "it counts, on the CPU",
    "DomainTransform": "a recursion along every row and column: torch has nothing to compare it with",
    "DomainTransformForwardOnly": "as DomainTransform",
    "MatRead": "it reads files",
    "MatWrite": "it writes files",
    "SegAccuracy": "a count of pixels by class",
}
"""Types without a row, and why."""
