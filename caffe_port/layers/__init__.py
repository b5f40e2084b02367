"""The layers, a module for each family; importing this registers them all.

pycaffe has a module of this name with other contents: ``from caffe_port import layers as L`` also gives the functions
of :mod:`caffe_port.schema.net_spec`, such as ``L.Convolution(bottom, num_output=8)``.
"""

from typing import Any

from caffe_port.layers import (  # noqa: F401
    accuracy,
    additions,
    affine,
    batch_indexing,
    convolution,
    data,
    data_arrays,
    data_segmentation,
    deeplab,
    deeplab1,
    deeplab_data,
    deeplab_wssl,
    dense_crf,
    distance_loss,
    elementwise,
    inner_product,
    logistic_loss,
    loss,
    neuron,
    normalization,
    parameter_and_dummy_data,
    pooling,
    pspnet,
    python,
    rcnn,
    rcnn_python,
    recurrent,
    reduction,
    segnet,
    shape,
    ssd_data,
    ssd_evaluate,
    ssd_features,
    ssd_loss,
    ssd_output,
    yolo,
)
from caffe_port.layers.base import REGISTRY, Layer, create, layer, layer_class, layer_types
from caffe_port.schema import net_spec

__all__ = ["REGISTRY", "Layer", "create", "layer", "layer_class", "layer_types"]


def __getattr__(name: str) -> Any:
    """A capitalised name is a layer type: pycaffe's function for it."""
    if not name[0].isupper():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(net_spec.layers, name)
