"""pycaffe's name of :mod:`caffe_port.pycaffe.coord_map`, which this is."""

import sys

from caffe_port.pycaffe import coord_map

sys.modules[__name__] = coord_map
