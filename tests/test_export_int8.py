"""Exported files in 8 bits: what they compute, what is said of them, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from caffe_port.errors import CaffeError
from caffe_port.net import Net

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from caffe_port.export import onnx, onnx_int8
from caffe_port.export.onnx_check import session
from caffe_port.export.onnx_int8 import _found_again
from caffe_port.export.onnx_picture import Preprocessing

NET = """
layer { name: 'data' type: 'Input' top: 'data' input_param { shape { dim: 1 dim: %d dim: 16 dim: 12 } } }
layer { name: 'c' type: 'Convolution' bottom: 'data' top: 'c' convolution_param { num_output: 8 kernel_size: 3 } }
layer { name: 'r' type: 'ReLU' bottom: 'c' top: 'c' }
layer { name: 'n' type: 'LRN' bottom: 'c' top: 'n' }
layer { name: 'p' type: 'Pooling' bottom: 'n' top: 'p' pooling_param { kernel_size: 3 stride: 2 } }
layer { name: 'f' type: 'InnerProduct' bottom: 'p' top: 'f' inner_product_param { num_output: 5 } }
layer { name: 's' type: 'Softmax' bottom: 'f' top: 's' }
"""


def drawn(text: str) -> Net:
    torch.manual_seed(2)
    net = Net(text)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    return net


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, r = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(9):
        colour = r.integers(0, 256, (1, 1, 3)) + r.integers(-40, 40, (20 + i, 15, 3))
        Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("channels", [3, 1])
def test_most_labels_stay(channels: int, pictures: list[Path], tmp_path: Path) -> None:
    import onnx as package

    preprocessing = Preprocessing(mean=(110,), rgb=True) if channels == 3 else None
    net = drawn(NET % channels)
    exported = onnx(net, tmp_path / "a.onnx", dtype="int8", calibrate=pictures, preprocessing=preprocessing)
    said = exported.agreement
    assert said is not None
    assert exported.checked is not None
    assert (said.calibrated, said.compared, said.apart) == (5, 4, True)
    assert said.labels["s"] >= 0.75
    assert str(said).startswith("8 bits, calibrated on 5 pictures; on 4 others s: ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    model = package.load(tmp_path / "a.onnx")
    package.checker.check_model(model, full_check=True)
    facts = {p.key: p.value for p in model.metadata_props}
    assert facts["caffe_port.int8"] == str(said)
    assert facts["caffe_port.checked"].startswith("in float32")
    made_by = {output: node for node in model.graph.node for output in node.output}
    eights = {n.name for n in model.graph.node if any(made_by.get(i, n).op_type == "DequantizeLinear" for i in n.input)}
    assert {"c:Conv", "f:Gemm"} <= eights
    assert "n:Conv" not in eights  # sums of squares
    onnx(net, tmp_path / "b.onnx", preprocessing=preprocessing or Preprocessing())
    picture = np.asarray(Image.open(pictures[3]).convert("RGB" if channels == 3 else "L"))
    feed = {"data": picture.reshape(1, *picture.shape[:2], channels)}
    (eight,), (full,) = (session(tmp_path / name).run(["s"], feed) for name in ("a.onnx", "b.onnx"))
    assert 0 < np.abs(eight - full).max() < 0.05


def test_few_pictures_do_both_and_of_many_some(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for most in (3, 5):
        monkeypatch.setattr(onnx_int8, "_MOST_PICTURES", most)
        exported = onnx(drawn(NET % 3), tmp_path / f"{most}.onnx", dtype="int8", calibrate=pictures, verify=False)
        agreement = exported.agreement
        assert agreement is not None
        said.append((agreement.calibrated, agreement.compared, agreement.apart))
    assert said == [(3, 3, False), (3, 2, True)]


def test_objects_are_matched() -> None:
    """By label and by half of what both cover; scores up to a half do not count."""
    before = np.float32(
        [[0, 1, 0.9, 0, 0, 4, 4], [0, 2, 0.8, 0, 0, 4, 4], [0, 1, 0.7, 5, 5, 9, 9], [0, 1, 0.4, 0, 0, 9, 9]]
    )
    after = np.float32([[0, 1, 0.6, 0, 0, 4, 3], [0, 1, 0.6, 7, 7, 9, 9]])
    assert _found_again(before, after) == [1, 0, 0]
    assert _found_again(before[:1], after[:0]) == [0]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (NET % 3, {"dtype": "int8"}, "found no pictures for int8; --dtype int8 --calibrate FOLDER"),
        (NET % 3, {"calibrate": "here"}, "found pictures for fp32"),
        (NET % 3, {"dtype": "int8", "calibrate": ["nowhere.png"]}, "nowhere.png.*no such file"),
        (NET % 3, {"dtype": "int8", "calibrate": []}, "found no pictures"),
        (NET % 4, {"dtype": "int8", "calibrate": "here"}, "expected one, a picture of 1 or 3 channels"),
        (
            "layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } }"
            "layer { name: 'a' type: 'AbsVal' bottom: 'x' top: 'a' }",
            {"dtype": "int8", "calibrate": "here"},
            "no layer that computes in 8 bits",
        ),
    ],
)
def test_what_is_refused_leaves_nothing(
    text: str, options: dict, says: str, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = options | ({"calibrate": pictures} if options.get("calibrate") == "here" else {})
    with pytest.raises(CaffeError, match=says):
        onnx(drawn(text), "net.onnx", **options)
    assert not list(tmp_path.iterdir())
