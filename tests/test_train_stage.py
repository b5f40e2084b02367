"""The commands that train the classification net and the segmentation net, and what they start from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import caffe_port
from caffe_port.errors import WeightsError
from caffe_port.formats import LayerWeights, open_weights, write_caffemodel
from caffe_port.schema import read_net
from caffe_port.tools.train_classifier import convolved

ROOT = Path(__file__).resolve().parents[1]
TINY = """
input: "x"  input_dim: 1  input_dim: 2  input_dim: 9  input_dim: 9
layers {{ name: "fc6"  type: CONVOLUTION  bottom: "x"  top: "y"
          convolution_param {{ num_output: 4  {kernel} }} }}
layers {{ name: "relu"  type: RELU  bottom: "y"  top: "y" }}
"""
QUICK = [
    "random_seed=1",
    "base_lr=0.00001",
    "iter_size=1",
    "max_iter=4",
    "snapshot=2",
    "display=2",
    "test_interval=100",
    "test_initialization=false",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lists, and narrow nets in ``nets`` (published form) and ``normed``."""
    folder = tmp_path_factory.mktemp("stage")
    size = ["--width", "1/32", "--input-size", "64", "--batch", "2", "--classes", "3", "--data-root", "lists"]
    for words in (
        ["-m", "caffe_port.tools.make_shapes", "-o", "mine", "--images", "9", "--val", "2", "--classes", "3", "-q"],
        ["-m", "caffe_port.tools.prepare", "mine", "-o", "lists", "--levels", "Full", "5", "--crops", "2", "-q"],
        [str(ROOT / "prototxt" / "build.py"), "-o", "nets", *size, "classification", "decouplednet"],
        [str(ROOT / "prototxt" / "build.py"), "-o", "normed", "--norm", *size, "classification"],
    ):
        assert python(*words, cwd=folder).returncode == 0
    return folder


def python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "0"}
    return subprocess.run(
        [sys.executable, *words], check=False, capture_output=True, text=True, cwd=cwd, env=environment, timeout=240
    )


def stage(name: str, *words: str, cwd: Path, prefix: str) -> subprocess.CompletedProcess[str]:
    settings = [word for one in (*QUICK, f"snapshot_prefix={prefix}") for word in ("--set", one)]
    return python("-m", f"caffe_port.tools.{name}", *words, *settings, cwd=cwd)


# -- inner products as convolutions


@pytest.mark.parametrize(
    ("kernel", "sides"),
    [("kernel_size: 3", (3, 3)), ("kernel_h: 2 kernel_w: 5", (2, 5)), ("kernel_size: 1", (1, 1))],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_an_inner_product_is_a_convolution(kernel: str, sides: tuple[int, int], legacy: bool) -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((4, 2 * sides[0] * sides[1])), rng.standard_normal(4)
    x = rng.standard_normal((3, 2, *sides))
    stored = weight.reshape(1, 1, *weight.shape) if legacy else weight
    given = [LayerWeights("fc6", "InnerProduct", [stored, bias]), LayerWeights("fc8", "InnerProduct", [weight, bias])]
    made = convolved(read_net(TINY.format(kernel=kernel)), given)
    expected = x.reshape(3, -1) @ weight.T + bias
    found = F.conv2d(torch.from_numpy(x), torch.from_numpy(made[0].blobs[0].copy()), torch.from_numpy(bias)).flatten(1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert made[1] is given[1], "no convolution of the net"


def test_a_convolution_stays_what_it_is() -> None:
    given = [LayerWeights("fc6", "Convolution", [np.zeros((4, 2, 3, 3)), np.zeros(4)])]
    assert convolved(read_net(TINY.format(kernel="kernel_size: 3")), given)[0] is given[0]


def test_rows_that_fill_no_windows() -> None:
    given = [LayerWeights("fc6", "InnerProduct", [np.zeros((4, 10)), np.zeros(4)])]
    with pytest.raises(WeightsError, match=r"fc6\[0\]: expected rows of 3 x 3 windows, found shape \(4, 10\)"):
        convolved(read_net(TINY.format(kernel="kernel_size: 3")), given)


# -- the commands


def test_from_vgg16_to_the_segmentation_net(data: Path) -> None:
    """Weights as VGG-16 was released: fc6 and fc7 inner products; nothing of the frozen net is changed by training."""
    solver = "nets/classification/train_cls_voc_solver.prototxt"
    net = caffe_port.Net(data / "nets" / "classification" / "cls_voc_deploy.prototxt")
    rng, layers = np.random.default_rng(1), []
    for name, (weight, bias) in net.params.items():
        numbers = rng.standard_normal(weight.shape).astype(np.float32) * np.sqrt(2 / weight.data[0].size)
        if name == "cls-score-voc":
            name, numbers = "fc8", numbers.reshape(len(numbers), -1)
        flat = name.startswith("fc")
        layers.append(
            LayerWeights(
                name,
                "InnerProduct" if flat else "Convolution",
                [(numbers.reshape(len(numbers), -1) if flat else numbers).astype(np.float32), bias.data],
            )
        )
    write_caffemodel(data / "vgg16.caffemodel", layers, generation=1)
    done = stage(
        "train_classifier", solver, "--weights", "vgg16.caffemodel", "-o", "classifier.caffemodel", cwd=data, prefix="c"
    )
    assert done.returncode == 0, done.stderr
    assert "wrote classifier.caffemodel: the classification net" in done.stdout
    start = open_weights(data / "classifier_start.caffemodel").state_dict()
    assert (start["fc6.weight"].ravel() == layers[-3].blobs[0].ravel()).all()
    trained = open_weights(data / "classifier.caffemodel").state_dict()
    assert 0 < np.abs(trained["fc6.weight"] - start["fc6.weight"]).max() < 0.1

    words = ["5", "--nets", "nets/decouplednet", "--classifier", "classifier.caffemodel", "-o", "trained.caffemodel"]
    shown = python("-m", "caffe_port", "train-segmentation", "--help", cwd=data).stdout.splitlines()[-1].split()
    assert shown == ["caffe-port", "train-segmentation", *words]
    done = stage("train_segmentation", *words, cwd=data, prefix="s")
    assert done.returncode == 0, done.stderr
    whole = open_weights(data / "trained.caffemodel").state_dict()
    for name in ("conv1_1", "fc6", "cls-score-voc"):
        assert (whole[f"{name}.weight"] == trained[f"{name}.weight"]).all()
    assert (whole["fc6-bp.weight"] == trained["fc6.weight"]).all()
    assert np.abs(whole["deconv1_1.weight"]).max() > 0

    again = stage("train_segmentation", *words, cwd=data, prefix="s")
    assert again.returncode == 2
    assert "trained.caffemodel: exists already" in again.stderr
    (data / "classifier_start.caffemodel").unlink()
    begun = [word if word != "trained.caffemodel" else "other.caffemodel" for word in words]
    begun = stage("train_segmentation", *begun, "--init", "trained.caffemodel", cwd=data, prefix="i")
    assert begun.returncode == 0, begun.stderr
    start = open_weights(data / "other_start.caffemodel").state_dict()
    assert start.keys() == whole.keys()
    assert all((start[name] == array).all() for name, array in whole.items())
    resumed = stage("train_segmentation", *words, "--resume", cwd=data, prefix="s")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming from s_iter_4.solverstate" in resumed.stderr
    after = open_weights(data / "trained.caffemodel").state_dict()
    assert all((after[name] == array).all() for name, array in whole.items())


def test_a_net_with_bn_becomes_the_one_without(data: Path) -> None:
    nets = "normed/classification"
    done = stage(
        "train_classifier", f"{nets}/train_cls_voc_solver.prototxt", "-o", "n.caffemodel", cwd=data, prefix="n"
    )
    assert done.returncode == 0, done.stderr
    words = ["-m", "caffe_port.tools.fold", f"{nets}/train_cls_voc_make_inference.prototxt", "n.caffemodel"]
    done = python(*words, "-o", "plain.caffemodel", "--absorb", "--passes", "2", "--seed", "1", cwd=data)
    assert done.returncode == 0, done.stderr
    net = caffe_port.Net(data / nets / "cls_voc_deploy.prototxt", data / "plain.caffemodel")
    assert not net.accounts[0].missing
    assert all(name.startswith("bn") for name in net.accounts[0].unexpected)


WRONG = [
    ("train_segmentation", ["7", "--nets", "nets/decouplednet"], "level 7: expected one of 10, 25, 5, Full, found 0"),
    ("train_segmentation", ["5", "--nets", "nets/decouplednet"], "--classifier: expected the classification net's"),
    ("train_segmentation", ["5", "--nets", "nowhere"], "nowhere: no such folder"),
    (
        "train_segmentation",
        ["5", "--weights", "nets/classification/cls_voc_deploy.prototxt"],
        "--weights: given; pass the classification net's with --classifier",
    ),
    ("train_classifier", ["nowhere.prototxt"], "nowhere.prototxt: no such file"),
    ("train_classifier", ["-o", "mine/none/x.caffemodel"], "there is no folder"),
]


@pytest.mark.parametrize(("name", "words", "said"), WRONG, ids=[row[2][:30] for row in WRONG])
def test_wrong_input(data: Path, name: str, words: list[str], said: str) -> None:
    if "-o" not in words:
        words = [*words, "-o", "wrong.caffemodel"]
    done = stage(name, *words, cwd=data, prefix="w")
    assert done.returncode == 2
    assert said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(data.glob("wrong*"))
