"""Weight files in and out: .caffemodel, .caffemodel.h5, .safetensors, .pth, .npz, .h5; mean files and solver states.

Arrays are views of memory-mapped files wherever the format allows it. torch, h5py and protobuf are imported
only when a file of that kind is read.
"""

from caffe_port.formats.caffemodel_writer import write_caffemodel
from caffe_port.formats.naming import blob_names
from caffe_port.formats.netfile import write_net
from caffe_port.formats.reading import open_weights
from caffe_port.formats.statedict import save_state_dict
from caffe_port.formats.weights import LayerWeights, Weights

__all__ = [
    "LayerWeights",
    "Weights",
    "blob_names",
    "open_weights",
    "save_state_dict",
    "write_caffemodel",
    "write_net",
]
