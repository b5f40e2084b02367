"""fp_bp: the forward-backward net computes the gradient that autograd does; wrong input is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import cases
from slim import narrow

import caffe_port
from caffe_port.formats import LayerWeights, open_weights, write_caffemodel
from caffe_port.tools import fp_bp

ROOT = Path(__file__).resolve().parents[1]
FP_BP = "decouplednet/fp_bp_network.prototxt"
DEPLOY = "decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt"
CLASSIFICATION = "classification/cls_voc_deploy.prototxt"
WIDTH = "1/32"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both nets, narrow, and random weights of the classification net."""
    monkeypatch.chdir(tmp_path)
    Path("fp_bp.prototxt").write_text(str(narrow(FP_BP, WIDTH)))
    Path("classification.prototxt").write_text(str(narrow(CLASSIFICATION, WIDTH)))
    net = caffe_port.Net("classification.prototxt")
    rng = np.random.default_rng(0)
    layers = []
    for name, (weight, bias) in net.params.items():
        for blob, scale in ((weight, np.sqrt(2 / weight.data[0].size)), (bias, 0.1)):
            blob.data[...] = scale * rng.standard_normal(blob.shape)
        layers.append(LayerWeights(name, "Convolution", [weight.data, bias.data]))
    write_caffemodel("classification.caffemodel", layers, generation=1)
    return tmp_path


def call(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        fp_bp.main(argv)
    return ended.value.code


def test_pool5_bp_is_the_gradient_that_autograd_finds(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("classification.caffemodel", "--prototxt", "fp_bp.prototxt") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in said[1:4]] == [
        ["cls-score-voc-bp", "cls-score-voc", "transposed", "128"],
        ["fc7-bp", "fc7", "unchanged", "128"],
        ["fc6-bp", "fc6", "unchanged", "128"],
    ]
    net = caffe_port.Net("fp_bp.prototxt", weights="classification_fp_bp.caffemodel")
    assert not net.accounts[0].missing
    assert not net.accounts[0].unexpected
    net.blobs["data"].data[...] = np.random.RandomState(1).randint(-110, 140, net.blobs["data"].shape)
    net.forward()

    def convolved(x: torch.Tensor, layer: str) -> torch.Tensor:
        weight, bias = (torch.from_numpy(p.data.copy()) for p in net.params[layer])
        return F.conv2d(x, weight, bias.flatten())

    pool5 = torch.from_numpy(net.blobs["pool5"].data.copy()).requires_grad_()
    score = convolved(F.relu(convolved(F.relu(convolved(pool5, "fc6")), "fc7")), "cls-score-voc")
    spread = torch.from_numpy(net.blobs["cls-score-unpooled"].data.copy())
    (gradient,) = torch.autograd.grad((score * spread).sum(), pool5)
    ours = net.blobs["pool5-bp"].data
    assert np.abs(ours - gradient.numpy()).max() < 1e-5 * np.abs(ours).max()
    assert np.abs(ours).max() > 0


def test_each_class_alone_gives_the_gradient_of_its_largest_score(here: Path) -> None:
    """In the net for inference: by pool5, times the number put in at cls-score-masked."""
    assert call("classification.caffemodel", "--prototxt", "fp_bp.prototxt", "-q") == 0
    net = caffe_port.Net(str(narrow(DEPLOY, WIDTH)), weights="classification_fp_bp.caffemodel")
    weights = np.random.RandomState(2).uniform(0.5, 1.5, 20).astype(np.float32)
    picture = np.random.RandomState(1).randint(-110, 140, (1, 3, 320, 320))
    net.blobs["data"].reshape(20, 3, 320, 320)
    net.blobs["data"].data[...] = picture
    net.blobs["cls-score-masked"].reshape(20, 20, 1, 1)
    net.blobs["cls-score-masked"].data[..., 0, 0] = np.diag(weights)
    net.forward()
    ours, switches = net.blobs["pool5-bp"].data, net.blobs["score-pool-mask"].data[0, :, 0, 0]

    pool5 = torch.from_numpy(net.blobs["pool5"].data[:1].copy()).requires_grad_()
    score = pool5
    for layer in ("fc6", "fc7", "cls-score-voc"):
        weight, bias = (torch.from_numpy(p.data.copy()) for p in net.params[layer])
        score = F.conv2d(score if layer == "fc6" else F.relu(score), weight, bias.flatten())
    largest = score.flatten(2).amax(2)[0]
    assert score.flatten(2).argmax(2)[0].tolist() == switches.tolist()
    for label in range(20):
        (gradient,) = torch.autograd.grad(largest[label], pool5, retain_graph=True)
        wanted = weights[label] * gradient[0].numpy()
        assert np.abs(ours[label] - wanted).max() < 1e-5 * np.abs(wanted).max()
        assert np.abs(wanted).max() > 0


@pytest.mark.parametrize("case", [c for c in cases("noh_nets", "noh") if c.name == "decouplednet_fp_bp"], ids=str)
def test_the_references_parameters(case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From real Caffe's classification layers come blobs of the shapes that real Caffe's fp_bp net has."""
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(str(narrow(FP_BP, WIDTH)))
    reference = case.reference
    keys = [key.removeprefix("param/") for key in reference.keys("param")]
    forward = [key[:-2] for key in keys if key.endswith("/0") and "-bp" not in key]
    layers = [LayerWeights(n, "Convolution", [reference[f"param/{n}/0"], reference[f"param/{n}/1"]]) for n in forward]
    write_caffemodel("in.caffemodel", layers, generation=1)
    assert call("in.caffemodel", "--prototxt", "net.prototxt", "-o", "out.caffemodel", "-q") == 0
    written = open_weights("out.caffemodel")
    assert written.generation == 1
    blobs = {f"{layer.name}/{i}": np.asarray(a) for layer in written.layers for i, a in enumerate(layer.blobs)}
    assert {key: a.shape for key, a in blobs.items()} == {key: reference[f"param/{key}"].shape for key in keys}
    assert all((a == reference[f"param/{key}"]).all() for key, a in blobs.items() if "-bp" not in key)
    for name in ("fc6", "fc7"):
        assert (blobs[f"{name}-bp/0"] == reference[f"param/{name}/0"]).all()
    assert (blobs["cls-score-voc-bp/0"] == reference["param/cls-score-voc/0"].transpose(1, 0, 2, 3)).all()
    assert not any(blobs[f"{name}-bp/1"].any() for name in ("fc6", "fc7", "cls-score-voc"))


def test_script_without_torch(here: Path) -> None:
    argv = ["classification.caffemodel", "--prototxt", "fp_bp.prototxt", "-o", "out"]
    script = ROOT / "converters" / "fp_bp.py"
    subprocess.run([sys.executable, script, *argv], check=True, capture_output=True)
    program = (
        f"import sys; sys.modules['torch'] = None; sys.argv[1:] = {[*argv, '-f']}; exec(open({str(script)!r}).read())"
    )
    program = program.replace("exec(", f"__file__ = {str(script)!r}; exec(")
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def change(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


NET = "fp_bp.prototxt"
WRONG_NETS = [  # what is changed in the net, what is said
    ('name: "fc6-bp"', 'name: "fc6-back"', "no layer 'fc6-back'"),
    ("-bp", "-back", "no layer X-bp beside a layer X"),
    ('name: "conv3_1"', 'name: "conv3-1"', "no layer 'conv3-1'; near: conv3_1"),
    (
        "num_output: 16  kernel_size: 7",
        "num_output: 17  kernel_size: 7",
        "expected (128, 16, 7, 7) for the backward pass of fc6",
    ),
    ("num_output: 16  kernel_size: 7", "num_output: 16  kernel_size: 5", "not the backward pass of fc6"),
    ("num_output: 128  kernel_size: 7", "num_output: 128  kernel_size: 5", "fc6[0]: expected (128, 16, 5, 5)"),
    ("num_output: 20 ", "num_output: 21 ", "cls-score-voc[0]: expected (21, 128, 1, 1)"),
    ('type: DECONVOLUTION  bottom: "fc6-bp"', 'type: CONVOLUTION  bottom: "fc6-bp"', "a Convolution that is not"),
    ('type: RELU  bottom: "conv1_1"', 'type: BN  bottom: "conv1_1"', "a BN with parameters"),
    ('bottom: "pool1"', 'bottom: "pol1"', "'pol1'"),
    ('type: RELU  bottom: "conv1_1"', 'type: RILU  bottom: "conv1_1"', "fp_bp.prototxt:1"),
]


@pytest.mark.parametrize(("old", "new", "says"), WRONG_NETS, ids=[f"{w[1]} {w[2]}" for w in WRONG_NETS])
def test_wrong_net(old: str, new: str, says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    change(NET, old, new)
    assert call("classification.caffemodel", "--prototxt", NET, "-o", "out") == 2
    refused(capsys, says)


def refused(capsys: pytest.CaptureFixture, says: str) -> None:
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.startswith("caffe-port fp-bp: error: ")
    assert said.err.count("\n") == 1
    assert sorted(p.name for p in Path().iterdir() if p.name.startswith((".", "out"))) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file"),
        (b"<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\x08\x05\x12\x01a\x1a\x00\x20\x01", "a solverstate"),
        (None, "in.caffemodel"),
    ],
    ids=["empty", "web page", "pointer", "solverstate", "truncated"],
)
def test_wrong_file(content: bytes | None, says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    whole = Path("classification.caffemodel").read_bytes()
    Path("in.caffemodel").write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert call("in.caffemodel", "--prototxt", NET, "-o", "out") == 2
    refused(capsys, says)


def test_wrong_arguments(here: Path, capsys: pytest.CaptureFixture) -> None:
    weights = "classification.caffemodel"
    for argv, says in [
        (("none.caffemodel", "--prototxt", NET, "-o", "out"), "none.caffemodel: no such file"),
        ((weights, "--prototxt", "none.prototxt", "-o", "out"), "none.prototxt: no such file"),
        ((weights, "--prototxt", NET, "-o", NET), "fp_bp.prototxt: exists already; pass -f"),
        ((weights, "--prototxt", NET, "-o", "none/out"), "there is no folder none"),
        ((weights, "-o", "out"), "conv1_1[0]: expected (64, 3, 3, 3) as the net has, found shape (2, 3, 3, 3)"),
    ]:
        assert call(*argv) == 2
        refused(capsys, says)


def test_number_of_blobs(here: Path, capsys: pytest.CaptureFixture) -> None:
    layers = open_weights("classification.caffemodel").layers
    del layers[0].blobs[1]
    write_caffemodel("in.caffemodel", layers, generation=1)
    assert call("in.caffemodel", "--prototxt", NET, "-o", "out") == 2
    refused(capsys, "in.caffemodel: conv1_1: expected 2 as the net has, found 1 blobs")
