"""The converters' check against a net: training nets without their data, unknown types, layers of plugins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import caffe_port
from caffe_port.formats import LayerWeights, open_weights, save_state_dict, write_caffemodel
from caffe_port.tools import caffe2torch, torch2caffe

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(main, *argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    return ended.value.code


TRAIN_VAL = """
name: "made"
layer { name: "data" type: "Data" top: "data" top: "label" transform_param { crop_size: 12 }
        data_param { source: "examples/train_lmdb" batch_size: 64 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "odd" type: "Odd" bottom: "conv" top: "odd" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


def trained(*shapes: tuple[str, str, list]) -> list[LayerWeights]:
    return [LayerWeights(name, kind, [np.ones(s, np.float32) for s in blobs]) for name, kind, blobs in shapes]


def test_checking_against_a_trainings_net_needs_neither_its_data_nor_torch(here: Path) -> None:
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    fc = ("fc", "InnerProduct", [(5, 200), (5,)])
    layers = trained(("conv", "Convolution", [(2, 3, 3, 3), (2,)]), ("odd", "Odd", [(4,)]), fc)
    write_caffemodel("right.caffemodel", layers, generation=2)
    program = "import sys; sys.modules['torch'] = None; from caffe_port.tools.caffe2torch import main; main()"
    command = [sys.executable, "-c", program, "right.caffemodel", "--prototxt", "train_val.prototxt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "0"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "right.caffemodel: checked 4 blobs, 1,061 numbers",
        "  compared in part, the rest depends on the data (1): conv.weight (2, ?, 3, 3)",
        "  of unknown types (1): odd",
    ]


WRONG_TRAINED = [  # a layer that does not fit the net above, and what is said
    (("conv", "Convolution", [(2, 3, 5, 5), (2,)]), "wrong.caffemodel: conv[0] (weight): expected (2, ?, 3, 3) as"),
    (("conv", "Convolution", [(3, 3, 3, 3), (3,)]), "wrong.caffemodel: conv[0] (weight): expected (2, ?, 3, 3) as"),
    (
        ("fc", "InnerProduct", [(5, 201), (5,)]),
        "fc[0] (weight): expected (5, 200) as the net has (train_val.prototxt:7)",
    ),
    (("fc", "InnerProduct", [(5, 200)]), "layer fc: expected 2 (weight, bias) as the net has (train_val.prototxt:7)"),
]


@pytest.mark.parametrize(("layer", "says"), WRONG_TRAINED, ids=[w[1][-40:] for w in WRONG_TRAINED])
def test_what_does_not_fit_a_trainings_net(layer: tuple, says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    Path("train_val.prototxt").write_text(TRAIN_VAL)
    write_caffemodel("wrong.caffemodel", trained(layer), generation=2)
    assert call(caffe2torch.main, "wrong.caffemodel", "--prototxt", "train_val.prototxt") == 2
    said = capsys.readouterr().err
    assert says in said
    assert all(name in said for name in ("wrong.caffemodel: ", "(train_val.prototxt:", "Without --prototxt "))
    assert not Path("wrong.safetensors").exists()


def test_a_proto_is_read_where_no_net_is(here: Path, capsys: pytest.CaptureFixture) -> None:
    write_caffemodel("w.caffemodel", trained(("fc", "InnerProduct", [(5, 200)])))
    Path("net.prototxt").write_text(TRAIN_VAL)
    assert call(caffe2torch.main, "w.caffemodel", "--proto", "net.prototxt") == 2
    assert "error: net.prototxt:2:1: expected " in capsys.readouterr().err
    assert not Path("w.safetensors").exists()


PLUGIN = """
from caffe_port.layers import Layer, layer

@layer("{type}", param="power_param")
class {type}(Layer):
    def setup(self, x):
        self.blob("slope", (x[1], 2))
        self.blob("angle", (x[1],))

    def forward(self, x):
        return x * self.angle[:, None, None] + self.slope.sum()
"""


def test_blobs_of_a_plugins_layer_reach_the_file(here: Path, capsys: pytest.CaptureFixture) -> None:
    """In the order in which setup makes them, though the file has them in another."""
    Path("plugin.py").write_text(PLUGIN.format(type="Sloped"))
    Path("net.prototxt").write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 5 dim: 7 } } }\n'
        'layer { name: "s" type: "Sloped" bottom: "data" top: "s" }\n'
    )
    state = {"s.angle": np.arange(3, dtype=np.float32), "s.slope": np.arange(6, dtype=np.float32).reshape(3, 2)}
    save_state_dict("w.safetensors", state)
    argv = ["w.safetensors", "--prototxt", "net.prototxt", "-o", "w.caffemodel"]
    assert call(torch2caffe.main, *argv) == 2
    assert "s: expected blob0, blob1 ..., or weight and bias, found blobs angle, slope of a Sloped, a type whose" in (
        capsys.readouterr().err
    )
    assert not Path("w.caffemodel").exists()
    assert call(torch2caffe.main, *argv, "--plugin", "plugin.py") == 0
    (layer,) = (layer for layer in open_weights("w.caffemodel").layers if layer.blobs)
    assert [blob.tolist() for blob in layer.blobs] == [state["s.slope"].tolist(), state["s.angle"].tolist()]
    assert caffe_port.Net("net.prototxt", "w.caffemodel").params["s"][1].data.tolist() == [0, 1, 2]
