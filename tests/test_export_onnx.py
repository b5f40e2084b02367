"""ONNX: exported nets in onnxruntime give the numbers that real Caffe gave; what cannot be exported is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from reference import Case, cases
from slim import with_inputs

import caffe_port
from caffe_port.errors import CaffeError
from caffe_port.net import Net
from caffe_port.tools.compare import compare

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from caffe_port.export import onnx, onnx_layers
from caffe_port.export.inputs import drawn_inputs
from caffe_port.export.onnx_check import session
from caffe_port.export.onnx_graph import OPERATORS
from caffe_port.export.onnx_picture import Preprocessing
from caffe_port.export.parts import Scaled

SUITES = [("bvlc_layers", "bvlc"), ("bvlc_corners", "bvlc"), ("noh_layers", "noh"), ("noh_corners", "noh")]
SUITES += [(f"{fork}{more}", fork) for fork in ("segnet", "deeplab2", "ssd", "rcnn") for more in ("", "_nets")]
SUITES += [("ssd_more", "ssd")]
NOT_DEPLOYED = {
    *("Accuracy", "BinaryAccuracy", "ContrastiveLoss", "DetectionEvaluate", "EltwiseAccuracy", "EuclideanLoss"),
    *("HingeLoss", "InfogainLoss", "MultiBoxLoss", "MultinomialLogisticLoss", "RedAccuracy", "RedSoftmaxWithLoss"),
    *("SegAccuracy", "SigmoidCrossEntropyLoss", "SmoothL1Loss", "SoftmaxWithLoss"),
    *("SmoothL1LossOHEM", "SoftmaxWithLossOHEM", "BoxAnnotatorOHEM"),
    *("AdaptiveBiasChannel", "BiasChannel", "UniqueLabel", "DenseCRF", "DomainTransform", "DomainTransformForwardOnly"),
    *("HDF5Output", "Python", "DummyData"),
}
"""Losses, scores and the E-steps of training; filters that have no operators."""
ANOTHER_WAY = {
    "bvlc_corners/conv_0_axes": "found 0 spatial axes",
    "bvlc_corners/conv_4_axes": "found 4 spatial axes",
    "bvlc_corners/deconv_4_axes": "found 4 spatial axes",
    "ssd/detout_eta": "found eta 0.7 with nms_threshold 0.8",
}
"""Cases that are refused by name."""


def deployed(case: Case) -> bool:
    """Whether every layer is one for deployment and does in TEST what the reference did in its phase."""
    try:
        net = Net(case.prototxt, phase=case.phase, dialect=case.dialect)
    except CaffeError:
        return False
    training = {"Dropout", "DropoutChannel", "BatchNorm", "Pooling"} if case.phase == "TRAIN" else set()
    types = {node.type for node, _ in net.nodes}
    by_phase = any(
        node.type in training
        and (node.type != "BatchNorm" or not layer.uses_blobs())
        and (node.type != "Pooling" or layer.method == "STOCHASTIC")
        for node, layer in net.nodes
    )
    return not (types & NOT_DEPLOYED or by_phase or case.forwards != 1 or case.random_seed is not None)


CASES = [case for suite, dialect in SUITES for case in cases(suite, dialect)]


def prepared(case: Case) -> Net:
    """The case's net with its parameters, in TEST."""
    net = Net(case.prototxt, phase="TEST", dialect=case.dialect)
    layers = {node.name: layer for node, layer in net.nodes}
    for key in case.reference.keys("param"):
        name, _, i = key.removeprefix("param/").rpartition("/")
        blob = layers[name].caffe_blobs[int(i)]
        with torch.no_grad():
            blob.copy_(torch.from_numpy(case.reference.fitted(key, tuple(blob.shape)).astype(np.float32)))
    return net


@pytest.mark.parametrize("case", CASES, ids=str)
def test_onnxruntime_gives_real_caffes_numbers(case: Case, tmp_path: Path) -> None:
    if not deployed(case):
        pytest.skip("not for deployment")
    net = prepared(case)
    path = tmp_path / "net.onnx"
    if str(case) in ANOTHER_WAY:
        with pytest.raises(CaffeError, match=ANOTHER_WAY[str(case)]):
            onnx(net, path, verify=False)
        assert not list(tmp_path.iterdir())
        return
    blobs = [key.removeprefix("out/") for key in case.reference.keys("out")]
    made = [name for name in blobs if name not in net.graph.inputs and net.shapes.get(name) is not None]
    exported = onnx(net, path, verify=False, outputs=made, fold=False)
    run = session(path)
    given = {v.name: case.reference[f"in/{v.name}"].astype(np.float32) for v in run.get_inputs()}
    found = dict(zip(exported.outputs, run.run(exported.outputs, given), strict=True))
    wrong = []
    for name in made:
        theirs = case.reference[f"out/{name}"]
        compared = compare(name, found[name].reshape(theirs.shape), theirs, case.reference.bound(f"out/{name}"))
        wrong += [] if compared.ok else [str(compared)]
    assert not wrong


READ_BY_OPENCV = [case for case in CASES if re.search("pool_ave|lrn|mvn|bn_learn|bn_vector|unpool|upsample", case.name)]


@pytest.mark.parametrize("case", READ_BY_OPENCV, ids=str)
def test_opencv_gives_real_caffes_numbers(case: Case, tmp_path: Path) -> None:
    """Of layers that it reads wrongly from other forms of the same sums."""
    if not deployed(case):
        pytest.skip("not for deployment")
    net = prepared(case)
    onnx(net, tmp_path / "net.onnx", verify=False, dynamic_batch=False)
    opencv = cv2.dnn.readNetFromONNX(str(tmp_path / "net.onnx"))
    for name in net.graph.inputs:
        opencv.setInput(case.reference[f"in/{name}"].astype(np.float32).reshape(net.shapes[name]), name)
    for name, found in zip(net.graph.outputs, opencv.forward(net.graph.outputs), strict=True):
        theirs = case.reference[f"out/{name}"]
        assert compare(name, found.reshape(theirs.shape), theirs, case.reference.bound(f"out/{name}")).ok


NETS = [
    "decouplednet/fp_bp_network.prototxt",
    "decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt",
    "deconvnet/DeconvNet_inference_deploy.prototxt",
    "fcn8s/fcn-8s-pascal-deploy.prototxt",
    "classification/cls_voc_deploy.prototxt",
    "wssl/large_fov_deploy.prototxt",
]


def narrow(path: str) -> Net:
    """A published net with a 32nd of its features."""
    torch.manual_seed(0)
    net = Net(with_inputs(path, "1/32", 0, "TEST"))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    return net


@pytest.mark.parametrize("path", NETS)
@pytest.mark.parametrize("fold", [True, False])
def test_published_nets_slim(path: str, fold: bool, tmp_path: Path) -> None:
    """The command's check: onnxruntime compared with the net, at two batch sizes."""
    net = narrow(path)
    exported = onnx(net, tmp_path / "net.onnx", fold=fold)
    assert exported.checked is not None
    assert exported.checked.error <= 1e-5
    assert not (fold and any(node.type == "BN" for node, _ in net.nodes) and not exported.folded)


@pytest.mark.parametrize("path", NETS)
def test_opencv_reads_the_files(path: str, tmp_path: Path) -> None:
    """Unpooling too, also of overlapping windows."""
    net = narrow(path)
    onnx(net, tmp_path / "net.onnx", verify=False)
    given = drawn_inputs(net, None)
    with torch.no_grad():
        ours = net(given)
    opencv = cv2.dnn.readNetFromONNX(str(tmp_path / "net.onnx"))
    for name, x in given.items():
        opencv.setInput(x.numpy(), name)
    for name, found in zip(net.graph.outputs, opencv.forward(net.graph.outputs), strict=True):
        expected = ours[name].numpy()
        assert np.ptp(expected) > 0
        assert compare(name, found.reshape(expected.shape), expected, 1e-5, ties=True).ok


FOLDED = """
layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 2 dim: 4 dim: 5 dim: 6 } } }
layer { name: 'c' type: 'Convolution' bottom: 'x' top: 'c' convolution_param { num_output: 6 kernel_size: 3 group: 2 } }
layer { name: 'b' type: 'BatchNorm' bottom: 'c' top: 'c' }
layer { name: 's' type: 'Scale' bottom: 'c' top: 'c' scale_param { bias_term: true } }
layer { name: 'r' type: 'ReLU' bottom: 'c' top: 'c' }
layer { name: 'd' type: 'Deconvolution' bottom: 'c' top: 'd'
  convolution_param { num_output: 4 kernel_size: 2 group: 2 } }
layer { name: 'e' type: 'Scale' bottom: 'd' top: 'e' }
layer { name: 'o' type: 'Dropout' bottom: 'e' top: 'e' }
"""


def drawn(text: str, **options: Any) -> Net:
    torch.manual_seed(1)
    net = Net(text, **options)
    with torch.no_grad():
        for blob in (*net.parameters(), *net.buffers()):
            blob.copy_(torch.rand_like(blob) + 0.5)
    return net


def test_normalizations_go_into_weights_and_names_are_kept(tmp_path: Path) -> None:
    import onnx as package

    exported = onnx(drawn(FOLDED), tmp_path / "net.onnx")
    model = package.load(tmp_path / "net.onnx")
    package.checker.check_model(model, full_check=True)
    assert exported.folded == {"b": "c", "s": "c", "e": "d"}
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "ConvTranspose"]
    assert [node.name for node in model.graph.node] == ["c:Conv", "r:Relu", "d:ConvTranspose"]
    assert {i.name for i in model.graph.initializer} == {"c.weight", "c.bias", "d.weight", "d.bias"}
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["x", "e"]
    assert {p.key for p in model.metadata_props} >= {"caffe.dialect", "caffe_port.folded", "caffe_port.checked"}
    kept = onnx(drawn(FOLDED), tmp_path / "plain.onnx", fold=False)
    names = {i.name for i in package.load(tmp_path / "plain.onnx").graph.initializer}
    assert not kept.folded
    assert {"c.weight", "s.weight", "s.bias", "d.weight", "e.weight"} <= names


@pytest.mark.parametrize("piece", [1, 50, 10**6])
@pytest.mark.parametrize(("shape", "groups", "rows"), [((6, 4, 3, 3), 1, 1), ((6, 4, 3), 1, 6), ((6, 4, 5), 2, 3)])
def test_scaled_weights_in_pieces(
    shape: tuple[int, ...], groups: int, rows: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffe_port.export.parts._PIECE", piece)
    r = np.random.default_rng(0)
    weight, channels = r.normal(size=shape).astype(np.float32), shape[0] if rows == 1 else shape[1]
    factor = r.normal(size=(groups, channels))
    scaled = Scaled(weight, factor, rows)
    expected = weight.reshape(groups, rows, channels, -1).astype(np.float64) * factor[:, None, :, None]
    np.testing.assert_array_equal(np.asarray(scaled), expected.reshape(shape).astype(np.float32))
    assert (scaled.shape, scaled.nbytes, scaled.dtype) == (weight.shape, weight.nbytes, weight.dtype)


SQUARES = """
layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 2 dim: 6 dim: 7 dim: 5 } } }
layer { name: 'l' type: 'LRN' bottom: 'x' top: 'l' lrn_param { local_size: 3 alpha: 1 beta: %s k: 2 } }
layer { name: 'w' type: 'LRN' bottom: 'x' top: 'w'
  lrn_param { local_size: 3 alpha: 1 beta: %s norm_region: WITHIN_CHANNEL } }
layer { name: 'm' type: 'MVN' bottom: 'x' top: 'm' }
"""


@pytest.mark.parametrize("beta", ["0.5", "0.75", "1", "0.6"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_squares_beyond_half_precision(beta: str, dtype: str, tmp_path: Path) -> None:
    """Inputs like pixels: float16 ends at the square of 255, so that sums of squares are float32."""
    torch.manual_seed(4)
    net = Net(SQUARES % (beta, beta))
    onnx(net, tmp_path / "net.onnx", dtype=dtype)
    x = torch.randn(3, 6, 7, 5) * 300
    with torch.no_grad():
        ours = net(x=x)
    for name, found in zip("lwm", session(tmp_path / "net.onnx").run(list("lwm"), {"x": x.numpy()}), strict=True):
        top = ours[name].numpy()
        np.testing.assert_allclose(found, top, rtol=0, atol=(1e-5 if dtype == "fp32" else 5e-3) * np.abs(top).max())


def test_neighbours_among_many_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an average pooling, at any size."""
    monkeypatch.setattr(onnx_layers, "_MOST_CHANNELS", 5)
    net = Net(SQUARES % ("0.75", "0.75"))
    onnx(net, tmp_path / "net.onnx", outputs=["l"], dynamic_size=True)
    x = torch.randn(2, 6, 3, 8) * 300
    with torch.no_grad():
        ours = net(x=x)["l"].numpy()
    (found,) = session(tmp_path / "net.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-5 * np.abs(ours).max())


def test_the_batch_is_dynamic_and_sizes_on_request(tmp_path: Path) -> None:
    net = drawn(FOLDED)
    onnx(net, tmp_path / "net.onnx", dynamic_size=True)
    x = torch.rand(5, 4, 9, 7)
    with torch.no_grad():
        ours = net(x=x)["e"].numpy()
    (theirs,) = session(tmp_path / "net.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5)
    onnx(net, tmp_path / "fixed.onnx", dynamic_batch=False)
    assert session(tmp_path / "fixed.onnx").get_inputs()[0].shape == [2, 4, 5, 6]


def test_half_precision(tmp_path: Path) -> None:
    exported = onnx(drawn(FOLDED), tmp_path / "net.onnx", dtype="fp16")
    assert exported.checked is not None
    assert 0 < exported.checked.error < 5e-3
    assert session(tmp_path / "net.onnx").get_inputs()[0].type == "tensor(float)"
    assert (tmp_path / "net.onnx").stat().st_size < 6000


@pytest.mark.parametrize(("dtype", "atol"), [("fp32", 1e-4), ("fp16", 0.1)])
def test_a_picture_goes_in(dtype: str, atol: float, tmp_path: Path) -> None:
    net = drawn("""
        layer { name: 'data' type: 'Input' top: 'data' input_param { shape { dim: 1 dim: 3 dim: 8 dim: 6 } } }
        layer { name: 'p' type: 'Power' bottom: 'data' top: 'p' power_param { scale: 2 } }""")
    preprocessing = Preprocessing(mean=(104, 117, 123), scale=0.5, rgb=True)
    onnx(net, tmp_path / "net.onnx", preprocessing=preprocessing, dtype=dtype)
    picture = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), np.uint8)
    (found,) = session(tmp_path / "net.onnx").run(None, {"data": picture})
    expected = (picture[..., ::-1].astype(np.float32) - np.float32([104, 117, 123])).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=atol)


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (
            "layer { name: 'y' type: 'Input' top: 'y' input_param { shape { dim: 2 dim: 3 } } }"
            "layer { name: 'z' type: 'Input' top: 'z' input_param { shape { dim: 2 } } }"
            "layer { name: 'l' type: 'SoftmaxWithLoss' bottom: 'y' bottom: 'z' top: 'l' }",
            {},
            r"1 layers that ONNX export does not support: l \(SoftmaxWithLoss, <text>:1\); cut the net before them",
        ),
        (FOLDED, {"outputs": ["cc"]}, "outputs: no blob 'cc' in the net; near: c"),
        (FOLDED, {"dtype": "fp8"}, "expected fp32, fp16 or int8"),
        (FOLDED, {"reference": "r.npz", "preprocessing": Preprocessing()}, "found a file that takes pictures"),
        (FOLDED, {"preprocessing": Preprocessing(size=(7, 6))}, "expected the net's, 5x6, found 7x6; write the size"),
        (FOLDED, {"opset": 9}, "expected 18 or above"),
        (
            FOLDED + "layer { name: 'f' type: 'Flatten' bottom: 'e' top: 'f' flatten_param { axis: 2 } }",
            {"dynamic_size": True},
            r"layer f \(Flatten\): expected a fixed size, found another shape, which depends on height and width",
        ),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(text: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match=says):
        onnx(drawn(text), tmp_path / "net.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_wrong_numbers_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = OPERATORS["ReLU"][""]
    monkeypatch.setitem(OPERATORS["ReLU"], "", lambda g, layer, x: g.node("Abs", [right(g, layer, x)], x.shape))
    onnx(drawn(FOLDED), tmp_path / "right.onnx")
    monkeypatch.setitem(OPERATORS["ReLU"], "", lambda g, layer, x: g.node("Neg", [x], x.shape))
    with pytest.raises(CaffeError, match="output e: expected 1e-05 at most; nothing was written"):
        onnx(drawn(FOLDED), tmp_path / "wrong.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["right.onnx"]


def test_large_scores_before_a_softmax(tmp_path: Path) -> None:
    """Their rounding grows in the exponential: the scores are compared, and what the file makes of them."""
    net = drawn(FOLDED + "layer { name: 's' type: 'Softmax' bottom: 'e' top: 's' }")
    with torch.no_grad():
        net.c.weight.copy_(torch.randn_like(net.c.weight) * 50)
    checked = onnx(net, tmp_path / "net.onnx").checked
    assert checked is not None
    assert checked.worst in ("e", "s")
    assert [v.name for v in session(tmp_path / "net.onnx").get_outputs()] == ["s"]
    with torch.no_grad():
        assert net(x=torch.randn(2, 4, 5, 6) * 60, blobs=["e"])["e"].abs().max() > 1000


def test_a_file_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS["ReLU"], "", lambda g, layer, x: g.node("Reshape", [x, g.constant([7])], x.shape))
    with pytest.raises(CaffeError, match=r"export: onnxruntime does not run the file: .*d:ConvTranspose"):
        onnx(drawn(FOLDED), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_reference_is_compared(tmp_path: Path) -> None:
    import onnx as package

    net = drawn(FOLDED)
    x = np.random.default_rng(3).normal(size=(2, 4, 5, 6)).astype(np.float32)
    with torch.no_grad():
        top = net(x=torch.from_numpy(x))["e"].numpy()
    np.savez(tmp_path / "r.npz", **{"in/x": x, "out/e": top})
    assert "and of r.npz" in str(onnx(net, tmp_path / "a.onnx", reference=tmp_path / "r.npz").checked)
    facts = {p.key: p.value for p in package.load(tmp_path / "a.onnx").metadata_props}
    assert "caffe_port's net and with another Caffe's numbers in r.npz" in facts["caffe_port.checked"]
    y = np.concatenate((x, -x))
    with torch.no_grad():
        both = net(x=torch.from_numpy(y))["e"].numpy()
    np.savez(tmp_path / "t.npz", **{"in/x": y, "out/e": both})
    onnx(net, tmp_path / "c.onnx", reference=tmp_path / "t.npz")  # of another batch size
    with pytest.raises(CaffeError, match=r"t\.npz: expected \(2, 4, 5, 6\), found in/x of shape \(4, 4, 5, 6\)"):
        onnx(net, tmp_path / "d.onnx", reference=tmp_path / "t.npz", dynamic_batch=False)
    np.savez(tmp_path / "s.npz", **{"in/x": x, "out/e": top + 0.1})
    with pytest.raises(CaffeError, match="from those of"):
        onnx(net, tmp_path / "b.onnx", reference=tmp_path / "s.npz")
    assert not (tmp_path / "b.onnx").exists()


def test_arrays_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caffe_port.export import onnx_write

    monkeypatch.setattr(onnx_write, "LARGEST", 1000)
    monkeypatch.setattr(onnx_write, "_ALIGNED", 64)
    onnx(drawn(FOLDED), tmp_path / "net.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    session(tmp_path / "net.onnx")


def test_a_plugins_layer_writes_itself(tmp_path: Path) -> None:
    from caffe_port.layers import REGISTRY, Layer, layer

    try:

        @layer("Twice")
        class Twice(Layer):
            """x + x."""

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + x

            def onnx(self, graph: Any, x: Any) -> Any:
                return graph.node("Add", [x, x], x.shape)

        text = FOLDED + "layer { name: 't' type: 'Twice' bottom: 'e' top: 't' }"
        assert onnx(drawn(text), tmp_path / "net.onnx").checked
    finally:
        REGISTRY.pop("Twice", None)


def test_what_depends_on_no_input_is_computed(tmp_path: Path) -> None:
    net = drawn("""
        layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 2 dim: 3 } } }
        layer { name: 'w' type: 'Parameter' top: 'w' parameter_param { shape { dim: 1 dim: 3 } } }
        layer { name: 'a' type: 'Power' bottom: 'w' top: 'a' power_param { power: 2 } }
        layer { name: 't' type: 'Tile' bottom: 'a' top: 't' tile_param { axis: 0 tiles: 2 } }
        layer { name: 'y' type: 'Eltwise' bottom: 'x' bottom: 't' top: 'y' }""")
    exported = onnx(net, tmp_path / "net.onnx")
    assert exported.computed == ["w", "a", "t"]
    assert exported.nodes == 1


def test_torch_program(tmp_path: Path) -> None:
    from caffe_port.export.torch_program import torch_program

    net = drawn(FOLDED)
    torch_program(net, tmp_path / "net.pt2")
    x = torch.rand(3, 4, 5, 6)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "net.pt2").module()(x=x)["e"]
        torch.testing.assert_close(found, net(x=x)["e"], rtol=1e-5, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


def test_version_is_in_the_file(tmp_path: Path) -> None:
    import onnx as package

    onnx(drawn(FOLDED), tmp_path / "net.onnx")
    model = package.load(tmp_path / "net.onnx")
    assert (model.producer_name, model.producer_version) == ("caffe_port", caffe_port.__version__)
