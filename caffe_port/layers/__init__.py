"""The layers, a module for each family; importing this registers them all."""

from caffe_port.layers import (  # noqa: F401
    accuracy,
    affine,
    batch,
    convolution,
    data,
    data_arrays,
    data_segmentation,
    distance_loss,
    elementwise,
    inner_product,
    logistic_loss,
    loss,
    neuron,
    normalization,
    pooling,
    recurrent,
    reduction,
    shape,
    source,
)
from caffe_port.layers.base import REGISTRY, Layer, create, layer

__all__ = ["REGISTRY", "Layer", "create", "layer"]
