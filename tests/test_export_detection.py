"""ONNX of detection nets: onnxruntime gives the objects of the real programs, in their order; ties; other sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import EMBEDDED, SHARED, needs_shared
from test_rcnn import CASES, python_net
from test_rcnn import settings as restored  # noqa: F401

import caffe_port
from caffe_port.data import rcnn_settings
from caffe_port.errors import CaffeError
from caffe_port.net import Net

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from caffe_port.export import onnx
from caffe_port.export.onnx_check import session
from caffe_port.export.onnx_graph import OPERATORS

PROPOSALS = [name for name in CASES if name.startswith("proposal")]


@pytest.mark.parametrize("dynamic_size", [False, True])
@pytest.mark.parametrize("name", PROPOSALS)
def test_proposals_are_the_originals(name: str, dynamic_size: bool, tmp_path: Path) -> None:
    case = CASES[name]
    rcnn_settings.change(case["cfg"])
    with np.load(EMBEDDED / "rcnn_python" / f"{name}.npz") as theirs:
        inputs = {key.replace("/", "_"): theirs[key].astype(np.float32) for key in theirs.files if key[:3] == "in/"}
        shapes = {blob: array.shape for blob, array in inputs.items()}
        net = python_net(f"{case['module']}.{case['layer']}", shapes, case["tops"], case["param_str"], case["phase"])
        onnx(net, tmp_path / "net.onnx", dynamic_size=dynamic_size)
        for top, found in zip(case["tops"], session(tmp_path / "net.onnx").run(case["tops"], inputs), strict=True):
            np.testing.assert_allclose(found, theirs[f"out/{top}"], rtol=1e-5, atol=1e-5)


PICTURES = ["2007_007203_child", "2010_002763_whole", "astronaut"]


@needs_shared("models/res10_ssd")
def test_a_trained_detector(tmp_path: Path) -> None:
    """Rows equal in number and order to SSD's; a batch of all pictures gives each one's."""
    model = SHARED / "models" / "res10_ssd"
    net = Net(model / "net.prototxt", model / "weights.caffemodel", caffe_port.TEST, dialect="ssd")
    onnx(net, tmp_path / "net.onnx")
    run = session(tmp_path / "net.onnx")
    assert run.get_outputs()[0].shape == [1, 1, None, 7]
    given, wanted = [], []
    for i, picture in enumerate(PICTURES):
        with np.load(model / f"expected_{picture}.npz") as arrays:
            given.append(arrays["in/data"])
            wanted.append(arrays["out/detection_out"])
        np.testing.assert_allclose(run.run(None, {"data": given[i]})[0], wanted[i], rtol=1e-5, atol=1e-5)
        wanted[i] = wanted[i] + np.float32([i, 0, 0, 0, 0, 0, 0])
    (together,) = run.run(None, {"data": np.concatenate(given)})
    np.testing.assert_allclose(together, np.concatenate(wanted, 2), rtol=1e-5, atol=1e-5)


def detector(priors: int, classes: int, settings: str, items: int = 3) -> Net:
    """A DetectionOutput over inputs."""
    each = 1 if "share_location: false" not in settings else classes
    shapes = {"loc": (items, priors * each * 4), "conf": (items, priors * classes), "prior": (1, 2, priors * 4)}
    inputs = "".join(
        f"layer {{ name: '{n}' type: 'Input' top: '{n}' input_param {{ shape {{ {' '.join(f'dim: {d}' for d in s)} }} "
        "} }"
        for n, s in shapes.items()
    )
    return Net(
        f"{inputs} layer {{ name: 'l' type: 'DetectionOutput' bottom: 'loc' bottom: 'conf' bottom: 'prior' top: 'y' "
        f"detection_output_param {{ num_classes: {classes} {settings} }} }}"
    )


SETTINGS = [
    "nms_param { nms_threshold: 0.45 top_k: 40 } keep_top_k: 20 confidence_threshold: 0.01 code_type: CENTER_SIZE",
    "nms_param { nms_threshold: 0.3 } keep_top_k: 7 share_location: false background_label_id: 2 code_type: CORNER",
    "nms_param { nms_threshold: 0.5 eta: 0.5 } share_location: false background_label_id: -1 code_type: CORNER_SIZE",
    "nms_param { nms_threshold: 0 top_k: 500 } confidence_threshold: 0.6 variance_encoded_in_target: true",
    "nms_param { nms_threshold: 1 top_k: 9 } keep_top_k: 500 confidence_threshold: 0.999",
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_objects_in_their_order(settings: str, ties: bool, dtype: str, tmp_path: Path) -> None:
    """Also inverted boxes (of large offsets), equal scores and items without objects."""
    r = np.random.default_rng(len(settings))
    priors, classes, items = 120, 4, 3
    net = detector(priors, classes, settings, items)
    onnx(net, tmp_path / "net.onnx", dynamic_batch=False, dtype=dtype)
    near = r.integers(0, 14, (priors, 2))
    boxes = np.hstack((near, near + r.integers(1, 6, (priors, 2)))) / 16
    given: dict[str, Any] = {
        "loc": np.round(r.normal(0, 1, net.shapes["loc"]) * 4) / 4,
        "conf": r.uniform(0, 1, net.shapes["conf"]),
        "prior": np.concatenate((boxes, np.full_like(boxes, 0.25))).reshape(1, 2, -1),
    }
    given["conf"] = np.round(given["conf"] * (8 if ties else 1024)) / (8 if ties else 1024)
    given["conf"][1] = 0
    given = {name: array.astype(np.float32) for name, array in given.items()}
    (found,) = session(tmp_path / "net.onnx").run(None, given)
    with torch.no_grad():
        ours = net({name: torch.from_numpy(array) for name, array in given.items()})["y"].numpy()
    np.testing.assert_allclose(found, ours, rtol=1e-5, atol=1e-5)
    given["conf"][:] = 0 if "confidence" in settings else given["conf"]
    assert session(tmp_path / "net.onnx").run(None, given)[0].shape[2] >= items


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("nms_param { nms_threshold: 0.7 eta: 0.9 }", "found eta 0.9 with nms_threshold 0.7, for which ONNX has no"),
        ("nms_param { nms_threshold: 1.5 }", "expected 1 at most, found nms_threshold 1.5"),
        ("keep_top_k: 0", "keeps nothing"),
        ("nms_param { top_k: 0 }", "keeps nothing"),
    ],
)
def test_settings_without_an_operator(settings: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match=f"layer l .DetectionOutput.*{says}.*--outputs BLOB"):
        onnx(detector(5, 3, settings), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


FASTER = """
layer { name: 'data' type: 'Input' top: 'data' input_param { shape { dim: 1 dim: 3 dim: 64 dim: 96 } } }
layer { name: 'im_info' type: 'Input' top: 'im_info' input_param { shape { dim: 1 dim: 3 } } }
layer { name: 'conv' type: 'Convolution' bottom: 'data' top: 'conv'
  convolution_param { num_output: 98 kernel_size: 4 stride: 16 } }
layer { name: 'relu' type: 'ReLU' bottom: 'conv' top: 'conv' }
layer { name: 'score' type: 'Convolution' bottom: 'conv' top: 'score'
  convolution_param { num_output: 18 kernel_size: 1 } }
layer { name: 'two' type: 'Reshape' bottom: 'score' top: 'two'
  reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } } }
layer { name: 'prob' type: 'Softmax' bottom: 'two' top: 'prob' }
layer { name: 'back' type: 'Reshape' bottom: 'prob' top: 'back'
  reshape_param { shape { dim: 0 dim: 18 dim: -1 dim: 0 } } }
layer { name: 'box' type: 'Convolution' bottom: 'conv' top: 'box'
  convolution_param { num_output: 36 kernel_size: 1 } }
layer { name: 'proposal' type: 'Python' bottom: 'back' bottom: 'box' bottom: 'im_info' top: 'rois'
  python_param { module: 'rpn.proposal_layer' layer: 'ProposalLayer' param_str: "'feat_stride': 16" } }
layer { name: 'pool' type: 'ROIPooling' bottom: 'conv' bottom: 'rois' top: 'pool'
  roi_pooling_param { pooled_w: 3 pooled_h: 3 spatial_scale: 0.0625 } }
layer { name: 'class' type: 'InnerProduct' bottom: 'pool' top: 'class' inner_product_param { num_output: 5 } }
layer { name: 'votes' type: 'PSROIPooling' bottom: 'conv' bottom: 'rois' top: 'votes'
  psroi_pooling_param { spatial_scale: 0.0625 output_dim: 2 group_size: 7 } }
layer { name: 'vote' type: 'Pooling' bottom: 'votes' top: 'vote' pooling_param { pool: AVE kernel_size: 7 } }
"""


def faster() -> Net:
    torch.manual_seed(3)
    net = Net(FASTER)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.002 if "conv" in name else 0.05))
    return net


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_net_of_regions_at_several_sizes(dtype: str, tmp_path: Path) -> None:
    net = faster()
    exported = onnx(net, tmp_path / "net.onnx", dynamic_size=True, dtype=dtype)
    assert exported.checked is not None
    assert exported.checked.batches == (1,)
    run, bound = session(tmp_path / "net.onnx"), 1e-5 if dtype == "fp32" else 5e-3
    assert [v.shape[0] for v in run.get_outputs()] == [None, None]
    for size in ((64, 96), (128, 80)) if dtype == "fp32" else ():
        x = torch.from_numpy(np.random.default_rng(1).normal(0, 60, (1, 3, *size)).astype(np.float32))
        given = {"data": x, "im_info": torch.tensor([[*size, 1.0]])}
        with torch.no_grad():
            ours = net(given)
        assert len(ours["class"]) > 3
        for name, found in zip(exported.outputs, run.run(None, {k: v.numpy() for k, v in given.items()}), strict=True):
            top = ours[name].numpy()
            np.testing.assert_allclose(found, top, rtol=0, atol=bound * np.abs(top).max())


def test_a_check_distinguishes_rounding_from_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels where two scores are nearly equal follow rounding: the scores are compared. A wrong label is found."""
    net = Net(
        "layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 4 dim: 3 dim: 16 dim: 16 } } }"
        "layer { name: 'c' type: 'Convolution' bottom: 'x' top: 'c' "
        "convolution_param { num_output: 3 kernel_size: 5 } }"
        "layer { name: 'a' type: 'ArgMax' bottom: 'c' top: 'a' argmax_param { axis: 1 } }"
    )
    with torch.no_grad():
        net.c.weight.copy_(torch.randn_like(net.c.weight))
        net.c.weight[1] = net.c.weight[0] + 1e-7 * torch.randn_like(net.c.weight[0])
    assert str(onnx(net, tmp_path / "net.onnx").checked).startswith("onnxruntime gives the numbers")
    size = (tmp_path / "net.onnx").stat().st_size
    assert [v.name for v in session(tmp_path / "net.onnx").get_outputs()] == ["a"]
    onnx(net, tmp_path / "unchecked.onnx", verify=False)
    assert abs((tmp_path / "unchecked.onnx").stat().st_size - size) < 150  # a line of metadata
    right = OPERATORS["ArgMax"][""]
    monkeypatch.setitem(OPERATORS["ArgMax"], "", lambda g, layer, x: right(g, layer, g.node("Neg", [x], x.shape)))
    with pytest.raises(CaffeError, match="output a: expected 1e-05 at most"):
        onnx(net, tmp_path / "wrong.onnx")


def test_types_of_half_precision_nets(tmp_path: Path) -> None:
    """Regions and pictures stay float32: coordinates in float16 are off by half a pixel from 512 on."""
    import onnx as package

    onnx(faster(), tmp_path / "net.onnx", dtype="fp16")
    inferred = package.shape_inference.infer_shapes(package.load(tmp_path / "net.onnx"), strict_mode=True)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    assert kinds["rois.half"] == package.TensorProto.FLOAT
    assert kinds["conv.half"] == package.TensorProto.FLOAT16
    assert caffe_port.__version__ == package.load(tmp_path / "net.onnx").producer_version
