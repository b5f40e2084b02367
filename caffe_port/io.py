"""pycaffe's name of :mod:`caffe_port.pycaffe.io`, which this is."""

import sys

from caffe_port.pycaffe import io

sys.modules[__name__] = io
