"""Which layer types no exporter takes, for the commands that do not load the exporters (which need torch).

A test compares these with the exporters' own tables.
"""

from __future__ import annotations

__all__ = ["NOT_EXPORTED"]

_NOWHERE = """
    Accuracy AdaptiveBiasChannel AnnotatedData BiasChannel BinaryAccuracy BoxAnnotatorOHEM ContrastiveLoss Data
    DenseCRF DenseImageData DetectionEvaluate DomainTransform DomainTransformForwardOnly DummyData
    EltwiseAccuracy EuclideanLoss HDF5Data HDF5Output HingeLoss ImageData ImageSegData InfogainLoss MatRead
    MatWrite MemoryData MultiBoxLoss MultinomialLogisticLoss Padding Python RedAccuracy RedSoftmaxWithLoss SegAccuracy
    SelectSegBinary SigmoidCrossEntropyLoss SmoothL1Loss SmoothL1LossOHEM SoftmaxWithLoss SoftmaxWithLossOHEM
    UniqueLabel VideoData WindowClsData WindowData WindowInstSegData WindowSegBinary WindowSegData
    YoloDetectionOutput Yolov3DetectionOutput
"""
_PYTHON = (
    "Python roi_data_layer.layer.RoIDataLayer",
    "Python rpn.anchor_target_layer.AnchorTargetLayer",
    "Python rpn.proposal_target_layer.ProposalTargetLayer",
)
_NOT_IN_ONNX = """
    Axpy ConvolutionDepthwise DepthwiseConv DepthwiseConvolution HardSwish Mul Pad ReLU6 Reorg
    ResizeNearestNeighbor ShuffleChannel Squeeze UpsampleDarknet
"""

NOT_EXPORTED: dict[str, frozenset[str]] = {
    "onnx": frozenset([*_NOWHERE.split(), *_PYTHON, *_NOT_IN_ONNX.split()]),
    "py": frozenset([*_NOWHERE.split(), *_PYTHON]),
}
"""By the format of ``caffe-port export``: types with a record that it refuses."""
