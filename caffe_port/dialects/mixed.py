"""Nets whose layers come from several Caffes at once, such as TransferNet (Scale and Unpooling)."""

from dataclasses import replace

from caffe_port.dialects.base import register
from caffe_port.dialects.bvlc import BVLC
from caffe_port.dialects.noh import NOH

MIXED = register(
    replace(
        BVLC,
        name="mixed",
        title="BVLC Caffe 1.0 with the layers of the 2015 fork",
        lineage=(*BVLC.lineage, *NOH.lineage),
        bn_overwrites_diffs=True,
        fallback=True,
    )
)
