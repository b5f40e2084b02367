"""How many bottoms and tops each layer takes, as the programs' headers declare it.

Source: ExactNumBottomBlobs, MinBottomBlobs, MaxBottomBlobs and the same of tops in include/caffe of BVLC/caffe
9b891540, HyeonwooNoh/caffe, weiliu89/caffe (branch ssd) and hszhao/PSPNet, read by a script. Where a header computes
a number, both its results are the bounds; tops that the program adds itself (AutoTopBlobs) may be omitted. The last
two have BVLC's numbers for all layers that are not listed.
"""

from __future__ import annotations

import pytest

from caffe_port.dialects import DIALECTS
from caffe_port.spec import RECORDS

DECLARED = {
    "bvlc": """
        AbsVal 1 1; Accuracy 2 1-2; ArgMax 1 1; BNLL 1 1; BatchNorm 1 1; BatchReindex 2 1; Bias 1-2 1; Clip 1 1;
        Concat 1- 1; ContrastiveLoss 3 1; Convolution 1- 1-; Crop 2 1; Data 0 1-2; Deconvolution 1- 1-; Dropout 1 1;
        DummyData 0 1-; ELU 1 1; Eltwise 2- 1; Embed 1 1; EuclideanLoss 2 1; Exp 1 1; Filter 2- 1-; Flatten 1 1;
        HDF5Data 0 1-; HDF5Output 2 0; HingeLoss 2 1; Im2col 1 1; ImageData 0 2; InfogainLoss 2-3 1-2; InnerProduct
        1 1; Input 0 1-; LRN 1 1; LSTM 2- 1-; LSTMUnit 3 2; Log 1 1; MVN 1 1; MemoryData 0 2;
        MultinomialLogisticLoss 2 1; PReLU 1 1; Parameter 0 1; Pooling 1 1-2; Power 1 1; Python 0- 0-; RNN 2- 1-;
        ReLU 1 1; Reduction 1 1; Reshape 1 1; SPP 1 1; Scale 1-2 1; Sigmoid 1 1; SigmoidCrossEntropyLoss 2 1;
        Silence 1- 0; Slice 1 1-; Softmax 1 1; SoftmaxWithLoss 2 1-2; Split 1 1-; Swish 1 1; TanH 1 1; Threshold 1
        1; Tile 1 1; WindowData 0 2
    """,
    "noh": """
        AbsVal 1 1; Accuracy 2 1; ArgMax 1 1; BN 1 1-3; BNLL 1 1; BinaryAccuracy 2 1; Concat 2- 1; ContrastiveLoss 3
        1; Convolution 1- 1-; Crop 2 1; Data 0 1-2; Deconvolution 1- 1-; Dropout 1 1; DropoutChannel 1 1; DummyData
        0 1-; Eltwise 2- 1; EltwiseAccuracy 2 1; EuclideanLoss 2 1; Exp 1 1; Flatten 1 1; HDF5Data 0 1-; HDF5Output
        2 0; HingeLoss 2 1; Im2col 1 1; ImageData 0 2; ImageSegData 0 1-3; InfogainLoss 2-3 1; InnerProduct 1 1; LRN
        1 1; MVN 1 1; MemoryData 0 2; MultinomialLogisticLoss 2 1; Pooling 1 1-2; Power 1 1; ReLU 1 1-2; RedAccuracy
        2 1; RedSoftmaxWithLoss 2-3 1-2; SelectSegBinary 0 1-3; Sigmoid 1 1; SigmoidCrossEntropyLoss 2 1; Silence 1-
        0; Slice 1 2-; Softmax 1 1; SoftmaxWithLoss 2-3 1-2; Split 1 1-; TanH 1 1; Threshold 1 1; Unpooling 1-2 1;
        WindowClsData 0 1-3; WindowData 0 2; WindowInstSegData 0 1-3; WindowSegBinary 0 1-3; WindowSegData 0 1-3
    """,
    "ssd": """
        AnnotatedData 0 1-; DetectionEvaluate 0- 1; DetectionOutput 3-4 1; InfogainLoss 2-3 1; MultiBoxLoss 4 1;
        Normalize 1 1; Permute 1 1; PriorBox 0- 1; SmoothL1Loss 2 1; VideoData 0 1-
    """,
    "pspnet": """
        Accuracy 2 1-; AdaptiveBiasChannel 2 1; BN 1 1; BiasChannel 2 1; DenseCRF 2- 1; DomainTransform 0- 1;
        DomainTransformForwardOnly 0- 1; ImageSegData 0 3; InfogainLoss 2-3 1; Interp 1 1; MatRead 0 1; MatWrite 0-
        0; SegAccuracy 2 1; SpatialProduct 2 1; UniqueLabel 1 1
    """,
}
"""Type, bottoms, tops: a number, or the fewest and the most, if there is a limit."""

OTHERWISE = {
    **dict.fromkeys(("bvlc ReLU", "noh Accuracy", "noh InfogainLoss"), "setup refuses the second top"),
    **dict.fromkeys(("ssd InfogainLoss", "pspnet InfogainLoss"), "setup refuses the second top"),
    **dict.fromkeys(("noh Concat", "noh Slice"), "one is allowed, as in BVLC"),
    **dict.fromkeys(("noh SoftmaxWithLoss", "noh RedSoftmaxWithLoss"), "no code of the fork reads a third bottom"),
    **dict.fromkeys(("ssd AnnotatedData", "ssd VideoData", "pspnet Accuracy"), "the code fills two tops"),
    **dict.fromkeys(("ssd DetectionEvaluate", "ssd PriorBox"), "the code checks for two bottoms"),
    **dict.fromkeys(
        ("pspnet DomainTransform", "pspnet DomainTransformForwardOnly"), "the code checks for three bottoms"
    ),
    "pspnet DenseCRF": "its Reshape reads a third bottom even where there are two",
    "pspnet MatRead": "DeepLab's, with a file for each top",
    "pspnet MatWrite": "one that writes nothing is an error",
}
"""Records with other numbers, and why."""


def bounds(text: str) -> tuple[int, int | None]:
    fewest, dash, most = text.partition("-")
    return int(fewest), (int(most) if most else None) if dash else int(fewest)


ROWS = [(program, *row.split()) for program, rows in DECLARED.items() for row in rows.split(";")]


@pytest.mark.parametrize(("program", "type_name", "bottoms", "tops"), ROWS, ids=[f"{row[0]} {row[1]}" for row in ROWS])
def test_a_record_has_the_declared_numbers(program: str, type_name: str, bottoms: str, tops: str) -> None:
    record = RECORDS.find(type_name, DIALECTS[program])
    assert record is not None
    is_same = (record.bottoms, record.tops) == (bounds(bottoms), bounds(tops))
    assert is_same != (f"{program} {type_name}" in OTHERWISE)
