"""A layer in Python, as pycaffe has it."""

import caffe_port as caffe


class Tenfold(caffe.Layer):
    """Its bottom times ten, or times ``param_str``."""

    def setup(self, bottom, top):
        self.factor = float(self.param_str or 10)

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.factor * bottom[0].data

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = self.factor * top[0].diff
