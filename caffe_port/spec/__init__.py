"""Facts about layers as data: parameters, blobs, windows, shapes, coordinate maps; a record for each type and dialect.

Needs no torch. Importing it registers the records of all modules named here; a fork's records are one more module.
"""

from caffe_port.spec import (  # noqa: F401
    additions,
    deeplab1,
    deeplab2,
    elementwise,
    losses,
    products,
    pspnet,
    rcnn,
    segnet,
    shaping,
    sources,
    ssd,
    windows,
)
from caffe_port.spec.base import RECORDS, Blob, Shape, Spec, define, record, records_of
from caffe_port.spec.infer import Inferred, infer, macs, shapes
from caffe_port.spec.unknown import UNKNOWN, is_known

__all__ = [
    "RECORDS",
    "UNKNOWN",
    "Blob",
    "Inferred",
    "Shape",
    "Spec",
    "define",
    "infer",
    "is_known",
    "macs",
    "record",
    "records_of",
    "shapes",
]
