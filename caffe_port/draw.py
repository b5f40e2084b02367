"""pycaffe's name of :mod:`caffe_port.pycaffe.draw`, which this is."""

import sys

from caffe_port.pycaffe import draw

sys.modules[__name__] = draw
