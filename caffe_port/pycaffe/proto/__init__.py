"""pycaffe's package of messages: ``from caffe.proto import caffe_pb2``."""

from caffe_port.pycaffe.proto import caffe_pb2

__all__ = ["caffe_pb2"]
