"""Exported files: trained models and narrow nets in every form; PyTorch's of regions and of objects in their order."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import EMBEDDED, SHARED, Case, cases, needs_shared
from test_export_detection import PICTURES, PROPOSALS, SETTINGS, detector, faster
from test_export_onnx import FOLDED, drawn, prepared
from test_export_source import module_of
from test_rcnn import CASES, python_net
from test_rcnn import settings as restored  # noqa: F401

import caffe_port
from caffe_port.data import rcnn_settings
from caffe_port.errors import CaffeError
from caffe_port.export import onnx, source, torch_program
from caffe_port.export.onnx_check import session
from caffe_port.export.source_code import wrapped
from caffe_port.export.torch_program import keywords
from caffe_port.net import Net
from caffe_port.tools.compare import compare, sample
from caffe_port.tools.replay import Reference

pytest.importorskip("safetensors")

MODELS = sorted(path.parent for path in SHARED.glob("models/*/expected.npz"))
FORMS = ["onnx", "py", "pt2"]


@needs_shared("models")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", MODELS or [Path("none")], ids=lambda path: path.name)
def test_trained_models_give_caffes_numbers(model: Path, form: str, tmp_path: Path) -> None:
    (weights,) = model.glob("weights.*")
    net = Net(model / "net.prototxt", weights, caffe_port.TEST, dialect="bvlc")
    reference = Reference(model / "expected.npz")
    blobs = [key.removeprefix("out/") for key in reference.keys("out")]
    wanted = [blob for blob in blobs if blob not in net.graph.inputs and net.shapes.get(blob) is not None]
    given = {n: torch.from_numpy(reference[f"in/{n}"].astype(np.float32)) for n in net.graph.inputs}
    found = run(net, form, wanted, given, tmp_path)
    for blob in wanted:
        theirs = reference[f"out/{blob}"]
        assert compare(blob, found[blob].reshape(theirs.shape), theirs, reference.bound(f"out/{blob}")).ok, blob


DEPLOYED = ("fcn8s_deploy", "decouplednet_deploy", "decouplednet_fp_bp", "deconvnet_deploy")
NARROW = [case for case in cases("noh_nets", "noh") if case.name in DEPLOYED]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", NARROW, ids=str)
def test_narrow_nets_give_caffes_numbers(case: Case, form: str, tmp_path: Path) -> None:
    """The outputs, or for large ones a sample of them; in the file also what is between."""
    net, reference = prepared(case), case.reference
    keys = {key.partition("/")[2]: key for key in reference.keys("out", "sample")}
    wanted = [blob for blob in keys if blob in (net.graph.outputs if form == "pt2" else net.shapes)]
    wanted = [blob for blob in wanted if blob not in net.graph.inputs]
    assert wanted
    given = {n: torch.from_numpy(reference[f"in/{n}"].astype(np.float32)) for n in net.graph.inputs}
    found = run(net, form, wanted, given, tmp_path)
    for blob in wanted:
        theirs, key = reference[keys[blob]], keys[blob]
        ours = sample(found[blob], theirs.size) if key.startswith("sample/") else found[blob].reshape(theirs.shape)
        assert compare(key, ours, theirs, reference.bound(key), ties=True).ok, blob


def run(net: Net, form: str, wanted: list[str], given: dict[str, torch.Tensor], folder: Path) -> dict[str, np.ndarray]:
    """What an exported net gives for these blobs."""
    with torch.no_grad():
        if form == "onnx":
            onnx(net, folder / "net.onnx", outputs=wanted, verify=False)
            arrays = {blob: x.numpy() for blob, x in given.items()}
            return dict(zip(wanted, session(folder / "net.onnx").run(wanted, arrays), strict=True))
        if form == "pt2":
            torch_program(net, folder / "net.pt2", outputs=wanted, verify=False)
            names = keywords(given)
            tops = torch.export.load(folder / "net.pt2").module()(**{names[blob]: x for blob, x in given.items()})
            return {blob: tops[blob].numpy() for blob in wanted}
        source(net, folder / "net.py", outputs=wanted, verify=False, fold=False)
        module = module_of(folder / "net.py")
        tops = module.load()(*(given[name] for name in module.INPUTS))
        tops = tops if isinstance(tops, tuple) else (tops,)
        return {blob: top.numpy() for blob, top in zip(wanted, tops, strict=True)}


@needs_shared("models/res10_ssd")
def test_a_trained_detector(tmp_path: Path) -> None:
    """Rows equal in number and order to SSD's; a batch of all pictures gives each one's."""
    model = SHARED / "models" / "res10_ssd"
    net = Net(model / "net.prototxt", model / "weights.caffemodel", caffe_port.TEST, dialect="ssd")
    source(net, tmp_path / "net.py", verify=False)
    detect = module_of(tmp_path / "net.py").load()
    given, wanted = [], []
    for i, picture in enumerate(PICTURES):
        with np.load(model / f"expected_{picture}.npz") as arrays:
            given.append(torch.from_numpy(arrays["in/data"]))
            wanted.append(arrays["out/detection_out"] + np.float32([i, 0, 0, 0, 0, 0, 0]))
    with torch.no_grad():
        found = detect(torch.cat(given)).numpy()
    np.testing.assert_allclose(found, np.concatenate(wanted, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("ties", [False, True])
def test_objects_in_their_order(settings: str, ties: bool, tmp_path: Path) -> None:
    """Also inverted boxes (of large offsets), equal scores and items without objects."""
    r = np.random.default_rng(len(settings))
    net = detector(60, 4, settings)
    source(net, tmp_path / "net.py", dynamic_batch=False, verify=False)
    near = r.integers(0, 14, (60, 2))
    boxes = np.hstack((near, near + r.integers(1, 6, (60, 2)))) / 16
    given = {
        "loc": np.round(r.normal(0, 1, net.shapes["loc"]) * 4) / 4,
        "conf": np.round(r.uniform(0, 1, net.shapes["conf"]) * (8 if ties else 1024)) / (8 if ties else 1024),
        "prior": np.concatenate((boxes, np.full_like(boxes, 0.25))).reshape(1, 2, -1),
    }
    given["conf"][1] = 0
    x = {name: torch.from_numpy(array.astype(np.float32)) for name, array in given.items()}
    with torch.no_grad():
        ours = net(x)["y"].numpy()
        found = module_of(tmp_path / "net.py").load()(*x.values()).numpy()
    np.testing.assert_allclose(found, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PROPOSALS)
def test_proposals_are_the_originals(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    rcnn_settings.change(case["cfg"])
    with np.load(EMBEDDED / "rcnn_python" / f"{name}.npz") as theirs:
        inputs = {key.replace("/", "_"): theirs[key].astype(np.float32) for key in theirs.files if key[:3] == "in/"}
        shapes = {blob: array.shape for blob, array in inputs.items()}
        net = python_net(f"{case['module']}.{case['layer']}", shapes, case["tops"], case["param_str"], case["phase"])
        source(net, tmp_path / "net.py", outputs=case["tops"], verify=False)
        module = module_of(tmp_path / "net.py")
        tops = module.load()(*(torch.from_numpy(inputs[blob]) for blob in module.INPUTS))
        for top, found in zip(case["tops"], tops if isinstance(tops, tuple) else (tops,), strict=True):
            np.testing.assert_allclose(found.numpy(), theirs[f"out/{top}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (128, 80)])
def test_a_net_of_regions_at_several_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    net = faster()
    source(net, tmp_path / "net.py", verify=False)
    x = torch.from_numpy(np.random.default_rng(1).normal(0, 60, (1, 3, *size)).astype(np.float32))
    given = {"data": x, "im_info": torch.tensor([[*size, 1.0]])}
    module = module_of(tmp_path / "net.py")
    with torch.no_grad():
        ours, tops = net(given), module.load()(*given.values())
    assert len(ours["class"]) > 3
    for name, found in zip(module.OUTPUTS, tops, strict=True):
        torch.testing.assert_close(found, ours[name], rtol=0, atol=1e-5 * float(ours[name].abs().max()))


def test_a_detector_is_checked(tmp_path: Path) -> None:
    """Boxes at one threshold's edge: what decides is compared, and the objects from there."""
    exported = source(detector(20, 3, SETTINGS[0]), tmp_path / "net.py", dynamic_batch=False)
    assert exported.checked is not None
    assert exported.checked.error <= 1e-5


def test_a_program_names_layers_that_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match=r"layer l .*it works on boxes one by one, which a trace cannot record"):
        torch_program(detector(5, 3, SETTINGS[0]), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_a_programs_batch_has_any_length(tmp_path: Path) -> None:
    net = drawn(FOLDED)
    exported = torch_program(net, tmp_path / "net.pt2")
    assert exported.checked is not None
    assert exported.checked.batches == (2, 3)
    program = torch.export.load(tmp_path / "net.pt2").module()
    for batch in (1, 2, 5):
        x = torch.rand(batch, 4, 5, 6)
        with torch.no_grad():
            torch.testing.assert_close(program(x=x)["e"], net(x=x)["e"], rtol=1e-5, atol=1e-5)


def test_a_program_where_rounding_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows in the exponential of large scores: these are compared, and what the program makes of them."""
    text = FOLDED + "layer { name: 's' type: 'Softmax' bottom: 'e' top: 's' }"
    net = drawn(text.replace("dim: 5 dim: 6", "dim: 25 dim: 26"))
    with torch.no_grad():
        net.c.weight.copy_(torch.randn_like(net.c.weight) * 500)
    checked = torch_program(net, tmp_path / "net.pt2").checked
    assert checked is not None
    assert list(torch.export.load(tmp_path / "net.pt2").module()(x=torch.zeros(1, 4, 25, 26))) == ["s"]
    monkeypatch.setattr(sys.modules["caffe_port.export.torch_program"], "watched_bottoms", lambda nodes: [])
    with pytest.raises(CaffeError, match="output s: expected 1e-05 at most"):
        torch_program(net, tmp_path / "other.pt2")


X = "layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 2 dim: 8 dim: 6 dim: 4 } } }"
FROM_SOURCE = [
    "type: 'ReLU6' relu6_param { negative_slope: 0.5 }",
    "type: 'HardSwish'",
    "type: 'Pooling' pooling_param { pool: AVE global_pooling: true } }"
    " layer { name: 'm' type: 'Axpy' bottom: 'y' bottom: 'x' bottom: 'x' top: 'z'",
    "type: 'Mul' mul_param { mul_shape: 8 mul_shape: 1 mul_shape: 4 }",
    "type: 'Mul' bottom: 'x'",
    "type: 'Squeeze'",
    "type: 'Pad' pad_param { paddings: [0, 0, 1, 0, 2, 3, 0, 1] constant_values: 0.5 }",
    "type: 'ShuffleChannel' shuffle_channel_param { group: 4 }",
    "type: 'Reorg' reorg_param { stride: 2 }",
    "type: 'Reorg' reorg_param { stride: 2 reverse: true }",
    "type: 'UpsampleDarknet' upsample_darknet_param { stride: 3 }",
    "type: 'ResizeNearestNeighbor' resize_nearest_neighbor_param { output_height: 9 scale_width: 1.5 }",
    "type: 'ResizeNearestNeighbor' resize_nearest_neighbor_param { data_format: 'NCHW' output_height: 9 "
    "output_width: 3 align_corners: true }",
    "type: 'ResizeNearestNeighbor' resize_nearest_neighbor_param { data_format: 'NCHW' output_height: 11 "
    "output_width: 3 half_pixel_centers: true }",
    "type: 'ConvolutionDepthwise' convolution_param { num_output: 16 kernel_size: 3 dilation: 2 pad: 2 }",
    "type: 'DepthwiseConv' convolution_param { num_output: 8 kernel_size: 3 group: 8 bias_term: false }",
    "type: 'Convolution' convolution_param { num_output: 4 kernel_size: 3 pad_l: 1 pad_r: 0 pad_t: 2 pad_b: 1 }",
    "type: 'Pooling' pooling_param { kernel_size: 3 stride: 2 pad: 1 pool: AVE_EXC_PAD }",
    "type: 'Pooling' pooling_param { kernel_size: 3 stride: 2 pad_l: 1 pad_r: 0 pad_t: 2 pad_b: 1 pool: MAX }",
    "type: 'Pooling' pooling_param { kernel_size: 3 stride: 2 pad_l: 1 pad_r: 0 pad_t: 2 pad_b: 1 pool: AVE_EXC_PAD }",
    "type: 'Pooling' pooling_param { kernel_size: 3 stride: 2 ceil_mode: false }",
    "type: 'Pooling' pooling_param { kernel_size: 1 stride: 3 pool: AVE round_mode: FLOOR }",
    "type: 'ReLU' relu_param { relu6: true }",
    "type: 'Reshape' reshape_param { pixelshuffler: 2 }",
    "type: 'BatchNorm' batch_norm_param { scale_bias: true }",
    "type: 'BatchNorm' batch_norm_param { add_eps_before_sqrt: false eps: 0.1 }",
    "type: 'Slice' top: 'z' slice_param { axis: 2 slice_point: 1 }",
]


@pytest.mark.parametrize("layer", FROM_SOURCE)
def test_layers_known_from_source_give_the_nets_numbers(layer: str, tmp_path: Path) -> None:
    """Of these no Caffe's numbers are here; at another batch and, where that changes nothing else, another size."""
    net = drawn(f"{X} layer {{ name: 'l' bottom: 'x' top: 'y' {layer} }}")
    source(net, tmp_path / "net.py", verify=False, dynamic_batch=False)
    module = module_of(tmp_path / "net.py").load()
    sized = any(kind in layer for kind in ("mul_shape", "Slice"))
    for shape in ((2, 8, 6, 4), (3, 8, 6, 4), (1, 8, 8, 4 if sized else 10)):
        x = torch.randn(shape)
        with torch.no_grad():
            tops, ours = module(x), net(x)
        for top, name in zip(tops if isinstance(tops, tuple) else (tops,), net.graph.outputs, strict=True):
            torch.testing.assert_close(top, ours[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("x = f(a, b)", ["x = f(a, b)"]),
        ("x = f(aaaaaaaaaaaaaa, bbbbbbbbbbbb)[0]", ["x = f(", "    aaaaaaaaaaaaaa, bbbbbbbbbbbb", ")[0]"]),
        ("x = f(aaaaaaaaaaaaaaaaaa, bbbbbbbbbbbb)", ["x = f(", "    aaaaaaaaaaaaaaaaaa,", "    bbbbbbbbbbbb,", ")"]),
        (
            "x = {'a,(': 1, 'bbbbbbbbbbbbbbbbbbbbb': 2}",
            ["x = {", "    'a,(': 1,", "    'bbbbbbbbbbbbbbbbbbbbb': 2,", "}"],
        ),
        ("aaaaaaaaaaaaaaaaaaaaaaa = bbbbbbbb(ccc)", ["aaaaaaaaaaaaaaaaaaaaaaa = (", "    bbbbbbbb(ccc)", ")"]),
    ],
)
def test_long_lines_are_broken(line: str, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_port.export.source_code.LINE", 32)
    assert list(wrapped(line, 0)) == lines
