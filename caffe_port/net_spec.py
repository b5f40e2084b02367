"""pycaffe's name of :mod:`caffe_port.schema.net_spec`, which this is."""

import sys

from caffe_port.schema import net_spec

sys.modules[__name__] = net_spec
