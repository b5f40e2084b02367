"""WSSL: DeepLab's layers compared with loops over pixels written from their description; training of its slim nets."""

from __future__ import annotations

import sys
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

import caffe_port
from caffe_port import random
from caffe_port.errors import CaffeError
from caffe_port.formats.hdf5_access import open_hdf5
from caffe_port.random import set_random_seed
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.lists import Level, Plan, prepare
from caffe_port.segmentation.shapes import ShapeSet, make_shapes
from caffe_port.solver import Solver
from caffe_port.solver.callbacks import Callback, Iteration
from caffe_port.solver.log import Log

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_port.definitions import wssl
from caffe_port.definitions.definition import Net, Setting
from caffe_port.tools import build, keep_features

F = np.float32


def text(type: str, body: str, scores: tuple[int, ...], labels: tuple[int, ...] = ()) -> str:
    """A net of one layer in noh's form, its inputs called x and t."""
    inputs = {"x": scores} | ({"t": labels} if labels else {})
    lines = [f"input: '{name}' {' '.join(f'input_dim: {n}' for n in shape)}" for name, shape in inputs.items()]
    bottoms = " ".join(f"bottom: '{name}'" for name in inputs)
    return "\n".join([*lines, f"layers {{ type: {type} name: 'l' {bottoms} top: 'y' {body} }}"])


def run(definition: str, *arrays: np.ndarray) -> np.ndarray:
    net = caffe_port.Net(definition, dialect="noh")
    tensors = dict(zip("xt", map(torch.from_numpy, arrays), strict=False))
    return net(**tensors)["y"].detach().numpy()


# ---- the E-step


def adapted(score, labels, rounds, portions, suppress, margin, shuffle):
    """One image's biased scores, pixel by pixel: float32 (channels, height, width)."""
    channels, height, width = score.shape
    pixels = [(i, j) for i in range(height) for j in range(width)]
    y = {(c, p): score[c][p] for c in range(channels) for p in pixels}
    if not labels:
        return score
    if suppress:
        for p in pixels:
            least = min(y[c, p] for c in labels)
            for c in range(channels):
                if c not in labels and y[c, p] > least:
                    y[c, p] = F(least - F(margin))
    best = {p: max(y[c, p] for c in labels) for p in pixels}
    before = sum(float(best[p]) for p in pixels) / len(pixels)
    rest = sorted(c for c in labels if c)
    for _ in range(rounds):
        shuffle(rest)
        for c in [0] * (0 in labels) + rest:
            behind = sorted(F(best[p] - y[c, p]) for p in pixels)
            rise = behind[min(int(F(portions[c > 0]) * F(len(pixels))), len(pixels) - 1)]
            for p in pixels:
                y[c, p] = F(y[c, p] + rise)
                best[p] = max(best[p], y[c, p])
    after = sum(float(best[p]) for p in pixels) / len(pixels)
    return np.array(
        [[[F(y[c, (i, j)] + F(before - after)) for j in range(width)] for i in range(height)] for c in range(channels)],
        F,
    )


ADAPTIVE = (
    "adaptive_bias_channel_param { num_iter: %d bg_portion: %g fg_portion: %g suppress_others: %s margin_others: %g }"
)
ROWS = [  # channels, height, width, labels of each image, num_iter, bg_portion, fg_portion, suppress_others, margin
    (4, 3, 5, [[0, 2, -1, -1], [0, -1, -1, -1]], 1, 0.4, 0.2, True, 1e-5),
    (6, 7, 4, [[0, 1, 3, 5], [-1, 2, 4, -1], [-1, -1, -1, -1]], 5, 0.4, 0.2, True, 1e-5),
    (5, 6, 3, [[3, 0, 4]], 3, 0.25, 0.5, True, 0.5),
    (5, 6, 8, [[0, 3, 4], [1, 2, -1]], 4, 0.4, 0.2, False, 0),
    (3, 2, 2, [[0, 1, 2]], 2, 1, 0, True, 0.1),
    (2, 9, 1, [[1], [0]], 2, 0.3, 1, True, 1e-3),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("seed", [1, 2])
def test_adaptive_biases_are_those_of_a_loop_over_pixels(row, seed):
    channels, height, width, labels, rounds, background, foreground, suppress, margin = row
    score = (np.random.default_rng(seed).normal(size=(len(labels), channels, height, width)) * 5).astype(F)
    label = np.array(labels, F)[:, :, None, None]
    body = ADAPTIVE % (rounds, background, foreground, str(suppress).lower(), margin)
    random.set_random_seed(seed)
    found = run(text("ADAPTIVE_BIAS_CHANNEL", body, score.shape, label.shape), score, label)
    shuffle = random.Stream(seed).shuffle
    for ours, x, shown in zip(found, score, labels, strict=True):
        shown = [c for c in shown if c >= 0]
        expected = adapted(x, shown, rounds, (background, foreground), suppress, margin, shuffle)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)
        if suppress and shown:
            assert {*ours.argmax(0).ravel()} <= {*shown}


@pytest.mark.parametrize("seed", range(4))
def test_every_label_of_the_image_wins_its_portion(seed):
    """The one raised last wins exactly its portion or more, the others nearly theirs."""
    score = np.random.default_rng(seed).normal(size=(1, 9, 21, 20)).astype(F) * 4
    score[:, [3, 5]] -= 12  # which would win nowhere
    label = np.array([0, 3, 5], F).reshape(1, 3, 1, 1)
    definition = text("ADAPTIVE_BIAS_CHANNEL", ADAPTIVE % (20, 0.4, 0.2, "true", 1e-5), score.shape, label.shape)
    random.set_random_seed(seed)
    found = run(definition, score, label)[0]
    share = np.bincount(found.argmax(0).ravel(), minlength=9) / 420
    assert not share[[1, 2, 4, 6, 7, 8]].any()
    assert share[0] > 0.38
    assert min(share[3], share[5]) > 0.18
    assert max(share[3], share[5]) >= 0.2 - 1e-9
    assert found.max(0).mean() == pytest.approx(score[0, [0, 3, 5]].max(0).mean(), abs=1e-5)


def test_fixed_biases():
    score, label = np.random.default_rng(0).normal(size=(2, 4, 3, 5)).astype(F), np.array([[0, 2, -1], [3, 1, 3]], F)
    label = label[:, :, None, None]
    body = "bias_channel_param { bg_bias: 1.5 fg_bias: 4 ignore_label: 3 }"
    expected = score.copy()
    expected[0, 0] += F(1.5)
    expected[0, 2] += F(4)
    expected[1, 1] += F(4)
    assert np.array_equal(run(text("BIAS_CHANNEL", body, score.shape, label.shape), score, label), expected)


def test_labels_of_an_image():
    mask = np.array([[3, 255, 3, 1], [255, 255, 255, 255], [0, 7, 0, 0]], F).reshape(3, 1, 2, 2)
    body = "unique_label_param { max_labels: 4 ignore_label: 255 force_label: 0 }"
    found = run(text("UNIQUE_LABEL", body, mask.shape), mask)
    assert found.shape == (3, 4, 1, 1)
    assert found[..., 0, 0].tolist() == [[0, 1, 3, -1], [0, -1, -1, -1], [0, 7, -1, -1]]
    with pytest.raises(CaffeError, match="at most max_labels, 2"):
        run(text("UNIQUE_LABEL", body.replace("4", "2"), mask.shape), mask)


@pytest.mark.parametrize(
    ("type", "body", "labels", "said"),
    [
        (
            "UNIQUE_LABEL",
            "unique_label_param { max_labels: 1 force_label: 0 }",
            (),
            "more than there are in force_label",
        ),
        ("UNIQUE_LABEL", "unique_label_param { max_labels: 4 }", (), "(num, 1, height, width)"),
        ("BIAS_CHANNEL", "bias_channel_param { fg_bias: -1 }", (2, 1, 1, 1), "0 or more"),
        ("ADAPTIVE_BIAS_CHANNEL", "adaptive_bias_channel_param { num_iter: 0 }", (2, 1, 1, 1), "at least 1"),
        ("ADAPTIVE_BIAS_CHANNEL", "adaptive_bias_channel_param { fg_portion: 2 }", (2, 1, 1, 1), "0 to 1"),
        ("ADAPTIVE_BIAS_CHANNEL", "adaptive_bias_channel_param { margin_others: -1 }", (2, 1, 1, 1), "0 or more"),
        ("ADAPTIVE_BIAS_CHANNEL", "", (3, 1, 1, 1), "of the scores' num"),
        ("BIAS_CHANNEL", "", (2, 1, 3, 1), "labels (num, labels, 1, 1)"),
    ],
)
def test_wrong_definitions(type, body, labels, said):
    with pytest.raises(CaffeError) as caught:
        caffe_port.Net(text(type, body, (2, 3, 4, 5), labels), dialect="noh")
    assert said in str(caught.value)


def test_a_label_beyond_the_channels_is_an_error():
    score = np.zeros((1, 3, 2, 2), F)
    with pytest.raises(CaffeError, match="expected 0 to 2, or -1 for none, found label 3"):
        run(text("BIAS_CHANNEL", "", score.shape, (1, 1, 1, 1)), score, np.full((1, 1, 1, 1), 3, F))


def test_no_gradient_passes_through_the_estimated_labels():
    """The scores' gradient is that of the loss over fixed labels."""
    tail = """
    layers { type: ADAPTIVE_BIAS_CHANNEL name: 'e' bottom: 'x' bottom: 't' top: 'b' }
    layers { type: ARGMAX name: 'a' bottom: 'b' top: 'label' argmax_param { axis: 1 } }
    layers { type: SOFTMAX_LOSS name: 'l' bottom: 'x' bottom: 'label' top: 'loss' }
    """
    head = text("SILENCE", "", (2, 4, 3, 5), (2, 2, 1, 1)).rpartition("\n")[0]
    net = caffe_port.Net(f"force_backward: true\n{head}{tail}", dialect="noh")
    net.blobs["x"].data[...] = np.random.default_rng(0).normal(size=(2, 4, 3, 5)) * 3
    net.blobs["t"].data[...] = np.array([[0, 2], [0, 3]]).reshape(2, 2, 1, 1)
    net.forward()
    net.backward()
    x = torch.from_numpy(net.blobs["x"].data.copy()).requires_grad_()
    label = torch.from_numpy(net.blobs["label"].data[:, 0]).long()
    torch.nn.functional.cross_entropy(x, label).backward()
    np.testing.assert_allclose(net.blobs["x"].diff, x.grad.numpy(), rtol=0, atol=1e-7)
    assert not net.blobs["t"].diff.any()


def test_hole_is_dilation():
    x = np.random.default_rng(0).normal(size=(1, 2, 9, 11)).astype(F)
    tops = []
    for window in ("dilation: 3 dilation: 2", "hole_h: 3 hole_w: 2"):
        random.set_random_seed(5)
        body = f"convolution_param {{ num_output: 3 kernel_size: 3 weight_filler {{ type: 'xavier' }} {window} }}"
        tops.append(run(text("CONVOLUTION", body, x.shape), x))
    assert tops[0].shape == (1, 3, 3, 7)
    assert np.array_equal(*tops)
    for body in ("hole: 2 dilation: 2", "hole_h: 2"):
        with pytest.raises(CaffeError, match="hole"):
            run(text("CONVOLUTION", f"convolution_param {{ num_output: 3 kernel_size: 3 {body} }}", x.shape), x)


# ---- the nets


def slim(name: str, **setting) -> Net:
    net = build.definitions(Setting(**setting), [f"wssl/{name}.prototxt"])[f"wssl/{name}.prototxt"]
    assert isinstance(net, Net)
    return net


@pytest.mark.parametrize(("fov", "scores"), [("small", 41), ("large", 55)])
def test_field_of_view(fov, scores):
    """A pixel reaches the scores within 161 (217) pixels of it: 323 x 323, and 435 x 435."""
    net = caffe_port.Net(str(slim(f"{fov}_fov_deploy", width=Fraction(1, 32), classes=2)))
    for layer in net.params.values():
        layer[0].data[...] = 1 / layer[0].data[0].size
    x = torch.zeros(1, 3, 481, 481)
    x[..., 240, 240] = 1e6
    reached = net(data=x)["seg-score"][0, 0] > 0
    assert reached.shape == (61, 61)
    assert [int(reached.any(axis).sum()) for axis in (0, 1)] == [scores, scores]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("fov", wssl.FOVS)
def test_deployed_net_takes_any_size(fov, norm):
    net = caffe_port.Net(str(slim(f"{fov}_fov_deploy", width=Fraction(1, 32), size=64, norm=norm)))
    for height, width in ((65, 65), (97, 70), (50, 131)):
        score = net(data=torch.zeros(1, 3, height, width))["seg-score"]
        assert tuple(score.shape) == (1, 21, -(-(height - 1) // 8) + 1, -(-(width - 1) // 8) + 1)


def test_input_sizes():
    assert [wssl.crop_size(Setting(size=size)) for size in (0, 48, 128, 129, 321)] == [321, 49, 129, 129, 321]
    for size in (40, 41, 100, 130):
        with pytest.raises(CaffeError, match="a multiple of 8 or one more, at least 48"):
            wssl.crop_size(Setting(size=size))


def test_levels_and_batches_reach_the_lists():
    def sources(net: Net) -> list[str]:
        return [layer.param["source"] for layer in net.layers() if not layer.bottoms]

    assert sources(slim("train_small_fov_semi", level="10")) == [
        *("./wssl_strong_imgset_10/train.txt", "./wssl_weak_imgset_10/train.txt", "./wssl_strong_imgset_10/val.txt")
    ]
    assert sources(slim("train_small_fov_semi"))[1] == "./wssl_weak_imgset_25/train.txt"
    assert sources(slim("train_large_fov_strong"))[0] == "./wssl_strong_imgset/train.txt"
    (cut,) = (layer for layer in slim("train_large_fov_semi", batch=3).layers() if layer.type == "SLICE")
    assert cut.param["slice_point"] == [3]


def test_norm_follows_every_convolution_but_the_last():
    for name, tops in (("train_small_fov_semi", 1), ("small_fov_make_inference", 3), ("small_fov_deploy", 1)):
        layers = list(slim(name, norm=True).layers())
        assert [layer.type for layer in layers].count("BN") == 15
        assert {len(layer.tops) for layer in layers if layer.type == "BN"} == {tops}
        assert not any(layer.type == "DROPOUT" for layer in layers)


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("wssl")
    make_shapes(place / "shapes", ShapeSet(images=14, val=3, classes=3, size=64))
    plan = Plan(levels=(Level("Full"), Level("1")), crops=1, proposals=1, deconvnet=False)
    prepare(Folder(place / "shapes"), place, plan)
    return place


def test_lists_are_of_strong_pictures_and_of_all_others(lists):
    def names(path: str) -> list[list[str]]:
        return [line.split() for line in (lists / path).read_text(encoding="utf-8").splitlines()]

    strong, weak = names("wssl_strong_imgset_1/train.txt"), names("wssl_weak_imgset_1/train.txt")
    assert {mask.split("/")[1] for _, mask in strong} == {"SegmentationClass"}
    assert {line[1].split("/")[1] for line in weak} == {"ImageLabels"}
    every = names("wssl_strong_imgset/train.txt")
    assert sorted(line[0] for line in strong + weak) == sorted(line[0] for line in every)
    assert len(every) == 14
    assert len(names("wssl_strong_imgset_1/val.txt")) == 3


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_iteration(self, solver: Solver, iteration: Iteration) -> None:
        self.seen.append(iteration.loss)


@pytest.mark.parametrize("name", ["small_fov_semi", "large_fov_semi", "large_fov_strong"])
def test_training_lowers_the_loss(name, lists, tmp_path):
    """A test with complete masks follows; all with the written definitions, but slim."""
    setting = Setting(Fraction(1, 16), 64, 2, str(lists), classes=3, level="1", norm=True)
    net = build.definitions(setting, [f"wssl/train_{name}.prototxt"])[f"wssl/train_{name}.prototxt"]
    (tmp_path / "net.prototxt").write_text(str(net), encoding="utf-8")
    solver = Solver(
        f'net: "{tmp_path}/net.prototxt" base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005\n'
        "random_seed: 3 max_iter: 30 test_iter: 1 test_interval: 100",
        log=Log(StringIO()),
    )
    losses = Losses()
    solver.callbacks.append(losses)
    solver.step(24)
    assert np.mean(losses.seen[-6:]) < 0.75 * np.mean(losses.seen[:3])
    if name.endswith("semi"):
        solver.net.forward()
        label = solver.net.blobs["label"].data
        assert label.shape == (4, 1, 9, 9)
        shown = [{*row[row >= 0]} for row in solver.net.blobs["weak-labels"].data[..., 0, 0]]
        assert all({*image.ravel()} <= of for image, of in zip(label[2:], shown, strict=True))
    accuracy, loss = (score.value for score in solver.test(0))
    assert 0 < accuracy <= 1
    assert np.isfinite(loss)


def test_fixed_convolutions_are_run_once(lists, tmp_path, monkeypatch):
    """What is kept are the numbers of the net that runs them, and the nets that read it learn."""
    monkeypatch.chdir(tmp_path)
    setting = Setting(Fraction(1, 16), 64, 2, str(lists), classes=3, level="1")
    names = ["keep_wssl_strong", "keep_wssl_weak", "train_large_fov_semi", "train_large_fov_strong"]
    paths = [f"wssl/{name}.prototxt" for name in names]
    for path, net in build.definitions(replace(setting, kept="."), paths).items():
        Path(Path(path).name).write_text(str(net), encoding="utf-8")
    whole = build.definitions(setting, paths[3:])[paths[3]]
    set_random_seed(1)
    net = caffe_port.Net(str(whole), phase="TRAIN")
    net.save("whole.caffemodel")
    for kind in ("strong", "weak"):
        words = [f"keep_wssl_{kind}.prototxt", "whole.caffemodel", "-o", f"kept-wssl_{kind}_1", "--items", "8", "-q"]
        with pytest.raises(SystemExit) as ended:
            keep_features.main(words)
        assert not ended.value.code
    set_random_seed(1)
    net = caffe_port.Net(str(whole), "whole.caffemodel", phase="TRAIN")
    names_of = [node.name for node, _ in net.nodes]
    used = [*range(names_of.index("fc6")), names_of.index("seg-label-8")]
    with torch.no_grad():
        found = net.run_nodes({}, used, ["pool5", "seg-label-8"])
    with open_hdf5("kept-wssl_strong_1/000000.h5") as file:
        for name in ("pool5", "seg-label-8"):
            np.testing.assert_array_equal(file[name][:2], found[name].numpy())  # the first batch
    for name in names[2:]:
        text = f'net: "{name}.prototxt" base_lr: 0.003 lr_policy: "fixed" momentum: 0.9 random_seed: 3 max_iter: 99'
        solver = Solver(text, log=Log(StringIO()))
        losses = Losses()
        solver.callbacks.append(losses)
        solver.step(40)
        assert np.mean(losses.seen[-6:]) < 0.9 * np.mean(losses.seen[:3])
    assert not any(layer.startswith("conv") for layer in solver.net.params)


def test_a_resumed_training_is_the_whole_one(lists, tmp_path):
    """The E-step's random orders continue."""
    setting = Setting(Fraction(1, 32), 64, 2, str(lists), classes=3, level="1")
    path = "wssl/train_small_fov_semi.prototxt"
    (tmp_path / "net.prototxt").write_text(str(build.definitions(setting, [path])[path]), encoding="utf-8")

    def fresh() -> Solver:
        text = f'train_net: "{tmp_path}/net.prototxt" snapshot_prefix: "{tmp_path}/s" base_lr: 0.1 lr_policy: "fixed"'
        return Solver(f"{text}\nrandom_seed: 3 max_iter: 9", log=Log(StringIO()))

    whole, resumed = fresh(), fresh()
    whole.step(2)
    state = whole.snapshot()
    whole.step(3)
    resumed.restore(state)
    resumed.step(3)
    for ours, theirs in zip(resumed.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
