"""pycaffe's name of :mod:`caffe_port.pycaffe.detector`, which this is."""

import sys

from caffe_port.pycaffe import detector

sys.modules[__name__] = detector
