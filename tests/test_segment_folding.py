"""Folding batch normalization: the script's arithmetic; the folded net does what the batch's statistics did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_nets import DEPLOY, picture, save
from slim import narrow

from caffe_port.errors import CaffeError
from caffe_port.formats import open_weights
from caffe_port.net import Net
from caffe_port.segmentation.bn_folding import absorb, fold, measure
from caffe_port.segmentation.voc import write_labels
from caffe_port.tools import fold as tool

SMALL = """
name: "small"
input: "x"  input_dim: 2  input_dim: 3  input_dim: 5  input_dim: 7
layers { name: "one"  type: BN  bottom: "x"  top: "y"  top: "one-mean"  top: "one-var" }
layers { name: "relu"  type: RELU  bottom: "y"  top: "y" }
layers { name: "conv"  type: CONVOLUTION  bottom: "y"  top: "z"
         convolution_param { num_output: 4  kernel_size: 3 } }
layers { name: "two"  type: BN  bottom: "z"  top: "z"  top: "two-mean"  top: "two-var" }
"""
INFERENCE = SMALL.replace('top: "one-mean"  top: "one-var"', "bn_param { bn_mode: INFERENCE }").replace(
    'top: "two-mean"  top: "two-var"', "bn_param { bn_mode: INFERENCE }"
)


def small(seed: int = 0) -> Net:
    net, rng = Net(SMALL), np.random.RandomState(seed)
    for p in net.state_dict().values():
        p.copy_(torch.from_numpy(rng.randn(*p.shape)))
    return net


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    rng = np.random.RandomState(1)
    return [{"x": torch.from_numpy((3 * rng.randn(2, 3, 5, 7) + i).astype(np.float32))} for i in range(count)]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("passes", [1, 4])
def test_the_scripts_arithmetic(passes: int, unbiased: bool) -> None:
    net, given = small(), batches(passes)
    before = {name: p.numpy().astype(float) for name, p in small().state_dict().items()}
    x = np.stack([batch["x"].numpy().astype(float) for batch in given])
    mean = x.mean((1, 3, 4)).mean(0)
    variance = x.var((1, 3, 4), ddof=int(unbiased)).mean(0)
    moments = measure(net, given)
    assert [(m.layer.name, m.passes, m.count) for m in moments] == [("one", passes, 70), ("two", passes, 30)]
    fold(moments, unbiased=unbiased)
    after = {name: p.numpy() for name, p in net.state_dict().items()}
    scale = before["one.scale"].ravel() / np.sqrt(variance + 1e-9)
    np.testing.assert_allclose(after["one.scale"].ravel(), scale, rtol=1e-5)
    np.testing.assert_allclose(after["one.shift"].ravel(), before["one.shift"].ravel() - scale * mean, rtol=1e-5)
    assert (after["conv.weight"] == before["conv.weight"].astype(np.float32)).all()


def test_one_batch_folded_is_that_batch_normalised() -> None:
    net, (batch,) = small(), batches(1)
    with torch.no_grad():
        learnt = net(**batch)["z"]
        fold(measure(net, [batch]))
        folded = Net(INFERENCE)
        folded.load_state_dict(net.state_dict())
        assert folded(**batch)["z"].numpy() == pytest.approx(learnt.numpy(), abs=1e-5)


PLAIN = """
name: "plain"
input: "x"  input_dim: 2  input_dim: 3  input_dim: 5  input_dim: 7
layers { name: "conv"  type: CONVOLUTION  bottom: "x"  top: "z"  convolution_param { num_output: 4  kernel_size: 3 } }
layers { name: "turn"  type: DECONVOLUTION  bottom: "z"  top: "y"
         convolution_param { num_output: 5  kernel_size: 2  stride: 2 } }
"""
NORMED = PLAIN.replace(
    'layers { name: "turn"',
    """layers { name: "two"  type: BN  bottom: "z"  top: "z" STATISTICS }
layers { name: "relu"  type: RELU  bottom: "z"  top: "z" }
layers { name: "turn\"""",
).replace("STATISTICS", 'top: "two-mean"  top: "two-var"')


def test_absorbed_the_convolution_does_it_all() -> None:
    (batch,) = batches(1)
    net = Net(NORMED)
    for p in net.state_dict().values():
        p.copy_(torch.from_numpy(np.random.RandomState(p.numel()).randn(*p.shape)))
    moments = measure(net, batches(3))
    fold(moments)
    folded, plain = (
        Net(NORMED.replace('top: "two-mean"  top: "two-var"', "bn_param { bn_mode: INFERENCE }")),
        Net(PLAIN),
    )
    folded.load_state_dict(net.state_dict())
    absorb(net, moments)
    assert (net.state_dict()["two.scale"] == 1).all()
    assert (net.state_dict()["two.shift"] == 0).all()
    plain.load_state_dict({name: p for name, p in net.state_dict().items() if not name.startswith("two")})
    plain.nodes[-1][1].register_forward_pre_hook(lambda _, given: tuple(g.relu() for g in given))
    with torch.no_grad():
        assert plain(**batch)["y"].numpy() == pytest.approx(folded(**batch)["y"].numpy(), abs=2e-5)


def test_bn_after_no_convolution_is_not_absorbed() -> None:
    net = small()
    moments = measure(net, batches(1))
    fold(moments)
    with pytest.raises(CaffeError, match="layer one: expected BN in place on the top of a Convolution"):
        absorb(net, moments)


WRONG_NETS = [
    (SMALL.replace('top: "two-mean"  top: "two-var"', ""), "layer two: expected two more, its mean and its variance"),
    (SMALL.replace('top: "two-var"', ""), "layer two: expected two more"),
    (SMALL + 'layers { name: "s"  type: SILENCE  bottom: "one-mean" }', "layer one: expected two more"),
    (INFERENCE, "expected a net to be folded, found no BN layer with bn_mode: LEARN"),
]


@pytest.mark.parametrize(("text", "says"), WRONG_NETS, ids=[w[1] for w in WRONG_NETS])
def test_wrong_net(text: str, says: str) -> None:
    with pytest.raises(CaffeError) as error:
        measure(Net(text), batches(1))
    assert says in str(error.value)


def test_no_batches() -> None:
    with pytest.raises(CaffeError, match="no batches"):
        measure(small(), [])


# -- the command -------------------------------------------------------------------------------------------------------

MEASURING = "decouplednet/002_train_seg_Full_anno_make_inference.prototxt"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a slim DecoupledNet as trained, and pictures, masks and a list of crops for its data layer."""
    monkeypatch.chdir(tmp_path)
    Path("measuring.prototxt").write_text(str(narrow(MEASURING, "1/64", batch=2)))
    Path("deploy.prototxt").write_text(str(narrow(DEPLOY, "1/64")))
    Path("VOC2012").mkdir()
    for i in range(3):
        save(Path(f"VOC2012/{i}.png"), picture(40, 50, i))
        write_labels(f"VOC2012/{i}_mask.png", picture(40, 50, i)[:, :, 0] // 13)
    for path, order in (("seg_imgset_Full/train.txt", (0, 1, 2)), ("others.txt", (2, 2))):
        Path(path).parent.mkdir(exist_ok=True)
        labels = " ".join(["1"] * 20)
        Path(path).write_text("".join(f"/{i}.png /{i}_mask.png 5 5 40 35 {labels}\n" for i in order))
    net, rng = Net("deploy.prototxt"), np.random.RandomState(0)
    for name, p in net.state_dict().items():
        size = (2 / p[0].numel()) ** 0.5 if name.endswith("weight") else 0.05
        p.copy_(torch.from_numpy(name.endswith("scale") + size * rng.standard_normal(tuple(p.shape))))
    net.save("trained.caffemodel")
    return tmp_path


NET = ["measuring.prototxt", "trained.caffemodel", "--passes", "2"]


def call(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        tool.main(argv)
    return ended.value.code


def blobs(path: str) -> dict[str, np.ndarray]:
    return open_weights(path).state_dict()


def test_the_nets_own_data(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert call(*NET, "--seed", "3") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "18 BN layers folded over 2 passes (variance biased, as released)"
    assert said[1] == "wrote trained_inference.caffemodel"
    before, after = blobs("trained.caffemodel"), blobs("trained_inference.caffemodel")
    changed = {name.rpartition(".")[0] for name in before if (before[name] != after[name]).any()}
    assert len(changed) == 18
    assert {"pool5-bn", "pool5-bp-bn", "bnfc7-seg", "debn1_2"} < changed
    account = Net("deploy.prototxt", "trained_inference.caffemodel").accounts[0]
    assert not account.missing
    assert not account.unexpected


def test_a_seed_repeats_itself_and_other_data_gives_others(here: Path) -> None:
    for name, options in [
        ("a", ["--seed", "3"]),
        ("b", ["--seed", "3"]),
        ("c", ["--seed", "3", "--source", "others.txt"]),
        ("d", ["--seed", "3", "--batch", "3"]),
        ("e", ["--seed", "3", "--unbiased"]),
    ]:
        assert call(*NET, *options, "-o", f"{name}.caffemodel", "-q") == 0
    scales = {name: blobs(f"{name}.caffemodel")["bnfc6-seg.scale"] for name in "abcde"}
    assert (scales["a"] == scales["b"]).all()
    assert all((scales["a"] != scales[name]).any() for name in "cde")
    m = 2 * 4 * 4
    assert scales["e"] == pytest.approx(scales["a"] * np.sqrt((m - 1) / m), rel=1e-5)


def test_root_folder(here: Path) -> None:
    Path("VOC2012").rename("elsewhere")
    assert call(*NET, "--root-folder", "elsewhere", "-o", "x.h5") == 0
    assert len(blobs("x.h5")) == len(blobs("trained.caffemodel"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([*NET, "--passes", "0"], "--passes: '0', expected a whole number above 0"),
        ([*NET, "--batch", "-1"], "--batch: '-1', expected a whole number above 0"),
        ([*NET, "-o", "trained.caffemodel"], "trained.caffemodel: exists already"),
        ([*NET, "-o", "trained.caffemodel", "-f"], "trained.caffemodel: is the file of the trained weights"),
        ([*NET, "--source", "none.txt"], "none.txt: no such file"),
        (
            ["deploy.prototxt", *NET[1:]],
            "deploy.prototxt: expected a net with a data layer, found inputs data",
        ),
        (
            ["deploy.prototxt", *NET[1:], "--batch", "2"],
            "deploy.prototxt: expected one, for --source, --root-folder and --batch",
        ),
        (
            [NET[0], "half.caffemodel"],
            "half.caffemodel: expected all 108 blobs of measuring.prototxt, found no debn1_2.scale, debn1_2.shift",
        ),
        ([NET[0], "none.caffemodel"], "none.caffemodel: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(argv: list[str], says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    text = Path("deploy.prototxt").read_text()
    Net(text.replace('name: "debn1_2"', 'name: "another"')).save("half.caffemodel")
    assert call(*argv) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.startswith("caffe-port fold: error: ")
    assert said.count("\n") == 1
    assert not Path("trained_inference.caffemodel").exists()
