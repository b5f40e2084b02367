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
]

LEFT_OUT: dict[str, str] = {}
"""Types without a row, and why."""
