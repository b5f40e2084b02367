"""pycaffe's name of :mod:`caffe_port.pycaffe.classifier`, which this is."""

import sys

from caffe_port.pycaffe import classifier

sys.modules[__name__] = classifier
