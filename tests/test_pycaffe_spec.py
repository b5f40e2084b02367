"""Nets written in Python, the coordinates of their blobs, their drawings, and caffe_pb2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

import caffe_port
from caffe_port import NetSpec
from caffe_port import layers as L
from caffe_port import params as P
from caffe_port.dialects import BVLC
from caffe_port.errors import CaffeError, DefinitionError
from caffe_port.pycaffe import coord_map, draw
from caffe_port.pycaffe.proto import caffe_pb2
from caffe_port.spec import RECORDS
from caffe_port.spec.base import Spec

# -- NetSpec -----------------------------------------------------------------------------------------------------------


def example() -> NetSpec:
    n = NetSpec()
    n.data, n.label = L.DummyData(shape=[{"dim": [2, 3, 9, 7]}, {"dim": 2}], ntop=2)
    n.conv = L.Convolution(
        n.data,
        kernel_size=[3, 2],
        num_output=4,
        weight_filler={"type": "xavier"},
        param=[{"lr_mult": 1}, {"lr_mult": 2, "decay_mult": 0}],
    )
    n.relu = L.ReLU(n.conv, in_place=True)
    n["pool"] = L.Pooling(n.relu, pool=P.Pooling.AVE, global_pooling=True)
    n.score = L.InnerProduct(n.pool, num_output=3, include={"phase": caffe_port.TEST}, name="ip")
    n.loss = L.SoftmaxWithLoss(n.score, n.label, loss_param={"ignore_label": 2}, loss_weight=0.5)
    n.nothing = L.Silence(n.label, ntop=0)
    return n


TEXT = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } shape { dim: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 }
  param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 kernel_size: 2 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "score" include { phase: TEST }
  inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" loss_weight: 0.5
  loss_param { ignore_label: 2 } }
layer { name: "nothing" type: "Silence" bottom: "label" }
"""


def test_a_net_in_python_is_its_prototxt() -> None:
    assert example().to_proto() == text_format.Parse(TEXT, caffe_pb2.NetParameter())


def test_a_net_in_python_runs(tmp_path: Path) -> None:
    proto = example().to_proto()
    (tmp_path / "net.prototxt").write_text(str(proto))
    for source in (proto, tmp_path / "net.prototxt"):
        assert caffe_port.Net(source, caffe_port.TEST).forward()["loss"].shape == ()


def test_generated_names() -> None:
    data, label = L.DummyData(ntop=2)
    a = L.ReLU(L.Convolution(data, num_output=1), in_place=True)
    both = caffe_port.to_proto(L.Concat(a, L.Convolution(label, num_output=2)), L.Silence(a, ntop=0), data)
    assert [layer.name for layer in both.layer] == [
        *("DummyData1", "Convolution1", "ReLU1", "Convolution2", "Concat1", "Silence1")
    ]
    assert list(both.layer[0].top) == ["DummyData1", "DummyData2"]
    assert list(both.layer[4].bottom) == ["Convolution1", "Convolution2"]
    assert a.to_proto() == a.fn.to_proto()


def test_layers_of_the_fork_and_unknown_layers() -> None:
    data = L.Input(shape={"dim": [1, 2, 4, 4]})
    pooled, switches = L.Pooling(data, kernel_size=2, stride=2, ntop=2)
    up = L.Unpooling(pooled, switches, unpool=P.Unpooling.MAX, kernel_size=2, stride=2, unpool_size=4)
    proto = L.BN(up, bn_mode=P.BN.INFERENCE).to_proto()
    assert proto.layer[2].unpooling_param.unpool_size == 4
    assert caffe_port.Net(proto, dialect="noh").outputs == ["BN1"]
    assert L.Interp(data).to_proto().layer[1].type == "Interp"
    assert L.Python(data, module="m", layer="C", param_str="1").to_proto().layer[1].python_param.layer == "C"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernal_size": 3}, r"L\.Convolution: no field 'kernal_size'; near: kernel_size"),
        ({"weight_filler": {"typ": "xavier"}}, r"L\.Convolution\.weight_filler: no field 'typ'; near: type"),
        ({"num_output": "many"}, "a value that num_output can hold"),
        ({"param": [{"lr_mult": "x"}]}, "a value that lr_mult can hold"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        L.Convolution(L.Input(), **fields).to_proto()


def test_wrong_inputs_and_names() -> None:
    with pytest.raises(TypeError, match=r"^Concat input 1 is not a Top \(type is <class 'tuple'>\)$"):
        L.Concat(L.Input(), L.DummyData(ntop=2))
    with pytest.raises(AttributeError, match="no top 'conv9'"):
        _ = example().conv9
    with pytest.raises(AttributeError):
        _ = L.no_such_name


def test_writing_a_net_loads_no_torch() -> None:
    use = (
        "import sys, caffe_port as c; c.io.Transformer, c.NetSpec, c.draw, c.coord_map, c.proto.caffe_pb2.NetParameter"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{use}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout.strip() == "False"


# -- coordinates -------------------------------------------------------------------------------------------------------


def spatial(kernel: Any = 3, stride: Any = 1, pad: Any = 0, up: int = 2, **more: Any) -> NetSpec:
    n = NetSpec()
    n.data = L.Input()
    n.conv = L.Convolution(n.data, kernel_size=kernel, stride=stride, pad=pad, **more)
    n.relu = L.ReLU(n.conv)
    n.pool = L.Pooling(n.relu, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.deconv = L.Deconvolution(n.pool, convolution_param={"kernel_size": 2 * up, "stride": up})
    return n


DEPTHWISE = {"num_output": 2, "kernel_size": 3, "stride": 2, "group": 2}
MAPPED = {
    "Convolution": {"num_output": 2, "kernel_size": 5, "stride": 3, "pad": 1, "dilation": 2},
    "Deconvolution": {"convolution_param": {"num_output": 2, "kernel_size": 4, "stride": 2, "pad": 1}},
    "Im2col": {"convolution_param": {"kernel_size": 3, "stride": 2}},
    "Pooling": {"kernel_size": 3, "stride": 2, "pad": 1},
    "ConvolutionDepthwise": {"convolution_param": DEPTHWISE},
    "DepthwiseConv": {"convolution_param": DEPTHWISE},
    "DepthwiseConvolution": {"convolution_param": DEPTHWISE},
}


def test_maps_are_those_of_the_records() -> None:
    """pycaffe's maps of layers in Python and the records' maps of layers in a definition."""
    own = {t for t in RECORDS if (found := RECORDS.find(t, BVLC)) and found.coord_map is not Spec.coord_map}
    assert own == {*MAPPED, "Crop"}
    for type_name, settings in MAPPED.items():
        n = NetSpec()
        n.data = L.Input(shape={"dim": [1, 2, 20, 21]})
        n.top = getattr(L, type_name)(n.data, **settings)
        record = RECORDS.find(type_name, BVLC)
        assert record is not None
        layer = record(n.to_proto().layer[1], BVLC, type_name)
        layer.setup((1, 2, 20, 21))
        _, scale, shift = coord_map.coord_map(n.top.fn)
        assert [(float(a), float(b)) for a, b in layer.coord_map() or ()] == [(float(scale[0]), float(shift[0]))] * 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pad": 4},
        {"stride": 2},
        {"up": 4},
        {"kernel": 5, "dilation": 3},
        {"kernel": [3, 5], "pad": [0, 7], "stride": [1, 2]},
    ],
)
def test_where_an_output_lies_on_the_input(settings: dict[str, Any]) -> None:
    """Points of the data, followed through the layers by hand, are found again by the map back."""
    given = {"kernel": 3, "stride": 1, "pad": 0, "up": 2, "dilation": 1, **settings}
    kernel, stride, pad, up, dilation = (np.atleast_1d(given[k]) for k in ("kernel", "stride", "pad", "up", "dilation"))
    n = spatial(**settings)
    axis, scale, shift = coord_map.coord_map_from_to(n.deconv, n.data)
    assert axis == 1
    for x in (0.0, 1.0, 10.0):
        conv = (x + pad - dilation * (kernel - 1) / 2) / stride
        pool = (conv - 0.5) / 2
        deconv = pool * up + (2 * up - 1) / 2
        np.testing.assert_allclose(scale * deconv + shift, np.broadcast_to(x, deconv.shape), atol=1e-12)


def test_a_crop_that_fits() -> None:
    n = spatial(pad=5)
    n.skip = L.Convolution(n.data, kernel_size=1)
    layer = coord_map.crop(n.deconv, n.skip).to_proto().layer[-1]
    assert (layer.type, layer.crop_param.axis, list(layer.crop_param.offset)) == ("Crop", 2, [5])
    cropped = L.Crop(n.deconv, n.data, axis=2, offset=3)
    assert coord_map.coord_map_from_to(cropped, n.data)[2] == -2 + 0 * 5
    assert coord_map.compose(coord_map.inverse((1, 2, 3)), (1, 2, 3)) == (1, 1, 0)


@pytest.mark.parametrize(
    ("top", "error", "message"),
    [
        (spatial(up=4), AssertionError, "expected 1, found scale"),
        (spatial(kernel=9), AssertionError, "expected 0 or more, found offset"),
        (spatial(kernel=4, pad=3), AssertionError, "expected whole numbers"),
    ],
)
def test_no_crop_fits(top: NetSpec, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as found:
        coord_map.crop(top.deconv, top.data)
    assert isinstance(found.value, CaffeError)


def test_no_map() -> None:
    n = spatial()
    n.ip = L.InnerProduct(n.deconv)
    with pytest.raises(RuntimeError, match="without a common origin"):
        coord_map.coord_map_from_to(n.ip, n.data)
    with pytest.raises(coord_map.AxisMismatchException):
        coord_map.compose((1, 1, 0), (2, 1, 0))
    with pytest.raises(AssertionError, match=r"found kernel_h"):
        coord_map.coord_map(L.Pooling(n.data, kernel_h=2).fn)


# -- drawings ----------------------------------------------------------------------------------------------------------


def test_a_drawing() -> None:
    text = draw.draw_net(example().to_proto(), "TB", "raw", display_lrm=True).decode()
    assert text.startswith('digraph "Net" {\nrankdir=TB;\n')
    assert '"conv_Convolution" [label="conv (Convolution) kernel size: 3 stride: 1 pad: 0 lr mult: 1.0, 2.0"' in text
    assert '"relu_ReLU" [label="relu (ReLU)", shape="record", fillcolor="#90EE90"' in text
    assert '"pool (Pooling AVE) kernel size: 0 stride: 1 pad: 0"' in text
    assert '"conv_Convolution" -> "conv_blob" [label="4"];' in text
    assert '"label_blob" -> "loss_SoftmaxWithLoss"' in text
    aside = draw.draw_net(example().to_proto(), "LR", "raw").decode()
    assert r'"conv\n(Convolution)\nkernel size: 3\nstride: 1\npad: 0"' in aside


def test_a_drawing_of_one_phase_and_of_older_definitions() -> None:
    train = draw.draw_net(example().to_proto(), "LR", "raw", phase=caffe_port.TRAIN).decode()
    assert "ip_InnerProduct" not in train
    assert "ip_InnerProduct" in draw.draw_net(example().to_proto(), "LR", "raw", phase=caffe_port.TEST).decode()
    older = 'input: "x" input_shape { dim: 1 } layers { name: "p" type: POWER bottom: "x" top: "p" }'
    assert (
        '"x_blob" -> "p_Power"'
        in draw.draw_net(text_format.Parse(older, caffe_pb2.NetParameter()), "LR", "raw").decode()
    )
    both = 'layer { name: "p" include { phase: TEST } exclude { phase: TRAIN } }'
    with pytest.raises(DefinitionError, match="include and exclude"):
        draw.draw_net(text_format.Parse(both, caffe_pb2.NetParameter()), "LR", "raw", phase=0)


def test_drawing_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw.draw_net_to_file(example().to_proto(), tmp_path / "n.raw")
    assert (tmp_path / "n.raw").read_text().startswith("digraph")
    program = tmp_path / "dot"
    program.write_text(
        '#!/bin/sh\nif [ "$1" = "-Tpng" ]; then echo drawn; cat > seen; else echo "no format" >&2; exit 1; fi\n'
    )
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    draw.draw_net_to_file(example().to_proto(), "n.png", "TB")
    assert (tmp_path / "n.png").read_text() == "drawn\n"
    assert "rankdir=TB" in (tmp_path / "seen").read_text()
    with pytest.raises(CaffeError, match="dot: no format"):
        draw.draw_net_to_file(example().to_proto(), "n.xyz")
    assert not (tmp_path / "n.xyz").exists()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CaffeError, match=r"expected Graphviz.*\.raw"):
        draw.draw_net(example().to_proto(), "LR")


# -- caffe_pb2 ---------------------------------------------------------------------------------------------------------


def test_caffe_pb2_has_what_protoc_makes() -> None:
    pb = caffe_port.proto.caffe_pb2
    assert (pb.TRAIN, pb.TEST) == (0, 1)
    assert pb.Phase.Name(1) == "TEST"
    assert pb.Phase.Value("TRAIN") == 0
    assert pb.PoolingParameter.AVE == 1
    assert pb.V1LayerParameter.LayerType.Name(4) == "CONVOLUTION"
    assert pb.V1LayerParameter.CONVOLUTION == 4
    assert pb.DESCRIPTOR.message_types_by_name["BlobProto"] is pb.BlobProto.DESCRIPTOR
    assert {"NetParameter", "Datum", "SolverState", "Phase"} <= set(dir(pb))
    net = pb.NetParameter()
    text_format.Merge('name: "n" layers { type: POOLING }', net)
    assert net.layers[0].type == pb.V1LayerParameter.POOLING
