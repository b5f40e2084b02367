"""What older files call a layer's type, and its name today.

The same facts are in caffe.proto and the schema room's upgrade. They are repeated here so that listing a weight file needs
no protobuf; a test holds the two equal.
"""

from __future__ import annotations

__all__ = ["V0_TYPES", "V1_NUMBERS", "V1_TYPES"]

V1_TYPES: dict[int, str] = dict(
    enumerate(
        (
            *("", "Accuracy", "BNLL", "Concat", "Convolution", "Data", "Dropout", "EuclideanLoss", "Flatten", "HDF5Data"),
            *("HDF5Output", "Im2col", "ImageData", "InfogainLoss", "InnerProduct", "LRN", "MultinomialLogisticLoss"),
            *("Pooling", "ReLU", "Sigmoid", "Softmax", "SoftmaxWithLoss", "Split", "TanH", "WindowData", "Eltwise"),
            *("Power", "SigmoidCrossEntropyLoss", "HingeLoss", "MemoryData", "ArgMax", "Threshold", "DummyData", "Slice"),
            *("MVN", "AbsVal", "Silence", "ContrastiveLoss", "Exp", "Deconvolution"),
            # The fork's own:
            *("Crop", "EltwiseAccuracy", "Unpooling", "BN", "RedSoftmaxWithLoss", "RedAccuracy", "ImageSegData"),
            *("WindowSegData", "WindowInstSegData", "BinaryAccuracy", "WindowClsData", "WindowSegBinary"),
            *("SelectSegBinary", "DropoutChannel"),
        )
    )
)
"""V1LayerParameter.LayerType's number -> V2 name; 40 and above are the fork's."""

V1_NUMBERS: dict[str, int] = {name: number for number, name in V1_TYPES.items() if name}

V0_TYPES: dict[str, str] = {"conv": "Convolution", "innerproduct": "InnerProduct"}
"""V0LayerParameter.type -> V2 name, of the types that have blobs."""
