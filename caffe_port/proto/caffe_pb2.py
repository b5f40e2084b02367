"""pycaffe's name of :mod:`caffe_port.pycaffe.proto.caffe_pb2`, which this is."""

import sys

from caffe_port.pycaffe.proto import caffe_pb2

sys.modules[__name__] = caffe_pb2
