"""The names of layer types in the generations of Caffe."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from caffe_port.dialects import DIALECTS, NOH, Dialect
from caffe_port.spec import RECORDS

__all__ = [
    "DEEPLAB_V1",
    "FILLERS",
    "FORK_V1",
    "POLICIES",
    "REGISTERED_TYPES",
    "SOLVERS",
    "V0_TO_V1",
    "V1_TO_V2",
    "V2_TO_V1",
    "known_names",
    "known_type",
    "v2_type",
]

V0_TO_V1: dict[str, str] = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}
"""Generation 0's strings (upgrade_proto.cpp, UpgradeV0LayerType)."""

FORK_V1: Mapping[str, str] = NOH.v1_types
"""The 2015 fork's types."""

DEEPLAB_V1: dict[str, str] = {
    "ADAPTIVE_BIAS_CHANNEL": "AdaptiveBiasChannel",
    "BIAS_CHANNEL": "BiasChannel",
    "DENSE_CRF": "DenseCRF",
    "UNIQUE_LABEL": "UniqueLabel",
}
"""DeepLab's types in this port."""

V1_TO_V2: dict[str, str] = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "THRESHOLD": "Threshold",
    "WINDOW_DATA": "WindowData",
    **FORK_V1,
    **DEEPLAB_V1,
}
"""Enum names of generation 1 to the strings of generation 2 (upgrade_proto.cpp, UpgradeV1LayerType)."""

V2_TO_V1: dict[str, str] = {v2: v1 for v1, v2 in V1_TO_V2.items() if v2}


def v2_type(v1: str) -> str:
    """The V2 type of a V1 enum name; a name of another fork becomes camel case, ``INTERP`` to ``Interp``."""
    return V1_TO_V2.get(v1, "".join(word.capitalize() for word in v1.split("_")))


REGISTERED_TYPES: set[str] = set()
"""Types with classes registered in this process; plugins' types are known only from here."""


def known_type(name: str, dialect: Dialect | None = None) -> bool:
    """Whether a layer type of the V2 form is known, to a dialect or to any.

    Without plugins, types are BVLC's, have an older name or are newer than the fork, or belong to one dialect only.
    """
    if RECORDS.find(name, dialect) if dialect else name in RECORDS:
        return True
    what = f"type {name}"
    marked = [d.name for d in DIALECTS.values() if what in d.marks]
    if not (marked or name == "Input" or name in V2_TO_V1 or any(what in d.lacks for d in DIALECTS.values())):
        return name in REGISTERED_TYPES
    if dialect is None:
        return True
    return what not in dialect.lacks and (not marked or bool(set(marked) & set(dialect.lineage)))


FILLERS = ("bilinear", "constant", "gaussian", "msra", "positive_unitball", "uniform", "xavier")
POLICIES = ("exp", "fixed", "inv", "multistep", "plateau", "poly", "sigmoid", "step")
SOLVERS = ("AdaDelta", "AdaGrad", "Adam", "Nesterov", "RMSProp", "SGD")


def known_names(dialect: Dialect | None = None) -> dict[str, Callable[[str], bool]]:
    """By ``Message.field`` a test of whether a string there is a known name; the names of the
    modules that compute, without importing them."""
    return {
        "LayerParameter.type": lambda name: known_type(name, dialect),
        "V0LayerParameter.type": lambda name: name in (*V0_TO_V1, "padding"),
        "FillerParameter.type": lambda name: name in FILLERS,
        "SolverParameter.lr_policy": lambda name: name in POLICIES,
        "SolverParameter.type": lambda name: name in SOLVERS,
    }
