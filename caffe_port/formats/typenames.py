"""Layer types in older files, and their current names.

The same facts are in caffe.proto and :mod:`caffe_port.schema.upgrade`. They are repeated here so that listing a weight
file needs no protobuf; a test compares the two.
"""

from __future__ import annotations

__all__ = ["DEEPLAB1_BLOCKS", "DEEPLAB1_TYPES", "V0_TYPES", "V1_NUMBERS", "V1_TYPES"]

_BVLC = """
    Accuracy BNLL Concat Convolution Data Dropout EuclideanLoss Flatten HDF5Data HDF5Output Im2col ImageData
    InfogainLoss InnerProduct LRN MultinomialLogisticLoss Pooling ReLU Sigmoid Softmax SoftmaxWithLoss Split TanH
    WindowData Eltwise Power SigmoidCrossEntropyLoss HingeLoss MemoryData ArgMax Threshold DummyData Slice MVN AbsVal
    Silence ContrastiveLoss Exp Deconvolution
"""
_FORK = """
    Crop EltwiseAccuracy Unpooling BN RedSoftmaxWithLoss RedAccuracy ImageSegData WindowSegData WindowInstSegData
    BinaryAccuracy WindowClsData WindowSegBinary SelectSegBinary DropoutChannel
"""

V1_TYPES: dict[int, str] = dict(enumerate((_BVLC + _FORK).split(), start=1))
V1_TYPES |= {1047: "BiasChannel", 1048: "UniqueLabel", 1050: "AdaptiveBiasChannel"}
"""V1LayerParameter.LayerType's number -> V2 name; 40 and above are the fork's, 1000 and above DeepLab's."""

_DEEPLAB1 = {39: "ImageSegData", 40: "SegAccuracy", 41: "Interp", 42: "Padding", 43: "MatWrite", 44: "MatRead"}
DEEPLAB1_TYPES = (
    V1_TYPES | _DEEPLAB1 | {45: "DenseCRF", 47: "BiasChannel", 48: "UniqueLabel", 50: "AdaptiveBiasChannel"}
)
"""The same of DeepLab v1's fork, which gives other types these numbers."""
DEEPLAB1_BLOCKS = {39: 15, 40: 42, 41: 43, 42: 45, 43: 46, 44: 47, 45: 48}
"""The field with the parameters of such a type. With these numbers a layer has that field in this fork only, but for an
EltwiseAccuracy of the 2015 fork, 41 and 43, which has two bottoms."""

V1_NUMBERS: dict[str, int] = {name: number for number, name in V1_TYPES.items()}

V0_TYPES: dict[str, str] = {
    "accuracy": "Accuracy",
    "bnll": "BNLL",
    "concat": "Concat",
    "conv": "Convolution",
    "data": "Data",
    "dropout": "Dropout",
    "euclidean_loss": "EuclideanLoss",
    "flatten": "Flatten",
    "hdf5_data": "HDF5Data",
    "hdf5_output": "HDF5Output",
    "im2col": "Im2col",
    "images": "ImageData",
    "infogain_loss": "InfogainLoss",
    "innerproduct": "InnerProduct",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MultinomialLogisticLoss",
    "pool": "Pooling",
    "relu": "ReLU",
    "sigmoid": "Sigmoid",
    "softmax": "Softmax",
    "softmax_loss": "SoftmaxWithLoss",
    "split": "Split",
    "tanh": "TanH",
    "window_data": "WindowData",
}
"""V0LayerParameter.type -> V2 name."""
