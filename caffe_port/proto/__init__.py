"""pycaffe's name of :mod:`caffe_port.pycaffe.proto`, which this is."""

import sys

from caffe_port.pycaffe import proto

sys.modules[__name__] = proto
