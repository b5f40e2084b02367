"""The face that pycaffe's users know."""

from caffe_port.pycaffe.net import Blob, Net
from caffe_port.schema.messages import TEST, TRAIN

__all__ = ["TEST", "TRAIN", "Blob", "Net"]
