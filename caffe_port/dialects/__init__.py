"""The supported Caffes, a module for each; importing this registers them all. Needs no torch."""

from caffe_port.dialects.base import DIALECTS, Dialect, dialect, names, register
from caffe_port.dialects.bvlc import BVLC
from caffe_port.dialects.deeplab1 import DEEPLAB1
from caffe_port.dialects.deeplab2 import DEEPLAB2
from caffe_port.dialects.mixed import MIXED
from caffe_port.dialects.noh import NOH
from caffe_port.dialects.pspnet import PSPNET
from caffe_port.dialects.rcnn import RCNN, RFCN
from caffe_port.dialects.segnet import SEGNET
from caffe_port.dialects.ssd import SSD

__all__ = [
    "BVLC",
    "DEEPLAB1",
    "DEEPLAB2",
    "DIALECTS",
    "MIXED",
    "NOH",
    "PSPNET",
    "RCNN",
    "RFCN",
    "SEGNET",
    "SSD",
    "Dialect",
    "dialect",
    "names",
    "register",
]
