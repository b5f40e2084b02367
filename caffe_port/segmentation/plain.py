"""An earlier name of :mod:`caffe_port.segmentation.fcn`."""

from caffe_port.segmentation.fcn import FullyConvolutional as Plain

__all__ = ["Plain"]
