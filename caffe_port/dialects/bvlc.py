"""BVLC Caffe 1.0, which the defaults of all flags describe."""

from caffe_port.dialects.base import Dialect, register

BVLC = register(Dialect(name="bvlc", title="BVLC Caffe 1.0"))
