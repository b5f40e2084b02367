"""The layers, a module for each family; importing this registers them all."""

from caffe_port.layers import (  # noqa: F401
    accuracy,
    convolution,
    elementwise,
    inner_product,
    loss,
    neuron,
    normalization,
    pooling,
    shape,
)
from caffe_port.layers.base import REGISTRY, Layer, create, layer

__all__ = ["REGISTRY", "Layer", "create", "layer"]
