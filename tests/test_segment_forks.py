"""caffe-port segment for nets of SegNet, PSPNet and DeepLab: the forks' procedures written out once more."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_nets import picture, save

import caffe_port
from caffe_port.errors import CaffeError, DefinitionError
from caffe_port.net import Net
from caffe_port.segmentation import voc
from caffe_port.segmentation.ensembles import kind_of
from caffe_port.segmentation.fork_nets import DeepLab, PSPNet, SegNet
from caffe_port.segmentation.imresize import imresize
from caffe_port.tools import segment

INPUT = 'name: "x" input: "data" input_shape {{ dim: {0} dim: 3 dim: {1} dim: {2} }}\n'
CONV = """layer {{ name: "score" type: "Convolution" bottom: "{0}" top: "score"
  convolution_param {{ num_output: {1} kernel_size: 3 pad: 1 weight_filler {{ type: "gaussian" std: 0.02 }} }} }}
"""
SEGNET = (
    INPUT
    + """layer {{ name: "pool" type: "Pooling" bottom: "data" top: "pool" top: "mask"
  pooling_param {{ pool: MAX kernel_size: 2 stride: 2 }} }}
layer {{ name: "up" type: "Upsample" bottom: "pool" bottom: "mask" top: "up" upsample_param {{ scale: 2 }} }}
"""
)
ARGMAX = 'layer { name: "argmax" type: "ArgMax" bottom: "score" top: "argmax" argmax_param { axis: 1 } }'
DROPPED = """layer { name: "drop" type: "Dropout" bottom: "up" top: "up"
  dropout_param { dropout_ratio: 0.5 sample_weights_test: true } }
"""
SOFTMAX = 'layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }'
PSPNET = (
    INPUT
    + """layer {{ name: "bn" type: "BN" bottom: "data" top: "bn"
  bn_param {{ frozen: true slope_filler {{ value: 1 }} }} }}
"""
)
DEEPLAB = (
    INPUT.format(1, 17, 17)
    + CONV.format("data", 21)
    + """layer { name: "pool" type: "Pooling" bottom: "score" top: "pool"
  pooling_param { pool: AVE kernel_size: 3 stride: 4 pad: 1 } }
layer { name: "i" type: "Interp" bottom: "pool" top: "i" interp_param { zoom_factor: 4 } }
"""
)


def filled(text: str, seed: int = 1, **options: str) -> Net:
    caffe_port.set_random_seed(seed)
    return Net(text, **options)


def segnet(classes: int = 11, items: int = 1, end: str = ARGMAX) -> str:
    more = DROPPED if items > 1 else ""
    return SEGNET.format(items, 12, 16) + more + CONV.format("up", classes) + end


def pspnet(classes: int, crop: int = 9) -> str:
    return PSPNET.format(1, crop, crop) + CONV.format("bn", classes)


def bilinear(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, n) at another size: a pixel's centre among the old ones, edges repeated."""
    made = np.zeros((height, width, array.shape[2]))
    old = array.shape[:2]
    for y in range(height):
        for x in range(width):
            v, u = ((at + 0.5) * n / m - 0.5 for at, n, m in ((y, old[0], height), (x, old[1], width)))
            for dy in (0, 1):
                for dx in (0, 1):
                    part = (1 - abs(v - np.floor(v) - dy)) * (1 - abs(u - np.floor(u) - dx))
                    row, column = int(np.floor(v)) + dy, int(np.floor(u)) + dx
                    made[y, x] += part * array[np.clip(row, 0, old[0] - 1), np.clip(column, 0, old[1] - 1)]
    return made


def scores_of(net: Net, data: np.ndarray) -> np.ndarray:
    """(labels, h, w) of (h, w, 3), blue first."""
    given = torch.from_numpy(np.ascontiguousarray(data.transpose(2, 0, 1)[None], np.float32))
    with torch.no_grad():
        return net.forward(blobs=["score"], data=given)["score"][0].double().numpy()


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(0))
    return shares / shares.sum(0)


@pytest.mark.parametrize(("classes", "end"), [(11, ARGMAX), (21, SOFTMAX), (5, "")])
def test_segnet(classes: int, end: str) -> None:
    net, pixels = filled(segnet(classes, end=end)), picture(19, 23)
    assert kind_of(net) == "segnet"
    small = np.floor(bilinear(pixels[:, :, ::-1].astype(float), 12, 16) + 0.5)  # OpenCV: within 1, a byte's rounding
    ours = SegNet(net)
    found = ours(pixels)
    theirs = bilinear(softmax(scores_of(net, small)).transpose(1, 2, 0), 19, 23).transpose(2, 0, 1)
    assert np.abs(found.maps - theirs).max() < 0.03
    assert found.labels == tuple(range(classes)) and (found.pixels == found.maps.argmax(0)).all()
    first = int(classes == 21)
    assert (found.first, ours.classes, len(found.scores)) == (first, classes - first, classes - first)
    assert (found.scores == found.maps[first:].max((1, 2))).all()
    assert set(found.found) == {*np.unique(found.pixels).tolist()} - ({0} if first else set())


def test_segnets_labels_at_its_own_size() -> None:
    """No resizing: the labels are the net's own argmax."""
    net, pixels = filled(segnet()), picture(12, 16)
    given = torch.from_numpy(pixels[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32))
    assert (SegNet(net)(pixels).pixels == net(data=given)["argmax"][0, 0].numpy()).all()


def test_bayesian_segnet_averages_its_items() -> None:
    net, pixels = filled(segnet(items=6, end=SOFTMAX)), picture(12, 16)
    data = np.repeat(pixels[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32), 6, 0)
    caffe_port.set_random_seed(3)
    theirs = net(data=torch.from_numpy(data))["prob"].detach().numpy()
    caffe_port.set_random_seed(3)
    assert np.abs(SegNet(net)(pixels).maps - theirs.mean(0)).max() < 1e-6
    assert theirs.std(0).max() > 1e-3


def by_hand(net: Net, pixels: np.ndarray, crop: int, base: int, scales: tuple[float, ...]) -> np.ndarray:
    """PSPNet's scripts on arrays as MATLAB has them: shares (height, width, labels)."""
    mean, (rows, columns), total = np.array([123.68, 116.779, 103.939]), pixels.shape[:2], 0.0

    def window(sub: np.ndarray) -> np.ndarray:
        scores = scores_of(net, sub[:, :, ::-1])
        mirrored = scores_of(net, sub[:, ::-1, ::-1])[:, :, ::-1]
        return softmax(scores + mirrored).transpose(1, 2, 0)

    for scale in scales:
        long = int(base * scale) + 1
        new = [long, long]
        if rows > columns:
            new[1] = int(long / rows * columns + 0.5)
        else:
            new[0] = int(long / columns * rows + 0.5)
        image = imresize(pixels, new, "bilinear").astype(float)
        if long <= crop:
            padded = np.zeros((crop, crop, 3)) + mean
            padded[: new[0], : new[1]] = image
            shares = window(padded - mean)
        else:
            padded = np.tile([124.0, 117.0, 104.0], (max(new[0], crop), max(new[1], crop), 1))
            padded[: new[0], : new[1]] = image
            stride = ceil(crop * 2 / 3)
            count = np.zeros(padded.shape[:2])
            shares = np.zeros((*padded.shape[:2], window(padded[:crop, :crop]).shape[2]))
            for j in range(ceil((padded.shape[0] - crop) / stride) + 1):
                for i in range(ceil((padded.shape[1] - crop) / stride) + 1):
                    y = min(j * stride + crop, padded.shape[0]) - crop
                    x = min(i * stride + crop, padded.shape[1]) - crop
                    shares[y : y + crop, x : x + crop] += window(padded[y : y + crop, x : x + crop] - mean)
                    count[y : y + crop, x : x + crop] += 1
            shares /= count[:, :, None]
        large = imresize(shares[: new[0], : new[1]], (rows, columns), "bilinear")
        total = total + large / large.sum(2, keepdims=True)
    return total / len(scales)


@pytest.mark.parametrize(
    ("classes", "size", "base", "scales"),
    [
        (21, (14, 19), 20, (1.0,)),
        (150, (30, 11), 16, (0.5, 1.0, 1.5)),
        (19, (12, 9), 6, (1.0,)),
        (4, (8, 40), 30, (1.0,)),
    ],
)
def test_pspnet(classes: int, size: tuple[int, int], base: int, scales: tuple[float, ...]) -> None:
    net, pixels = filled(pspnet(classes)), picture(*size)
    assert kind_of(net) == "pspnet"
    found = PSPNet(net, base=base, scales=scales)(pixels)
    theirs = by_hand(net, pixels, 9, base, scales)
    assert np.abs(found.maps.transpose(1, 2, 0) - theirs).max() < 1e-5
    first = int(classes == 150)
    assert found.labels == tuple(range(first, first + classes))
    assert (found.pixels == np.array(found.labels)[found.maps.argmax(0)]).all()
    assert found.first == int(classes in (21, 150)) and len(found.scores) == classes - (classes == 21)


def test_pspnets_sizes() -> None:
    assert [PSPNet(filled(pspnet(n))).base for n in (19, 21, 150)] == [2048, 512, 512]


@pytest.mark.parametrize("mean", [None, (10.0, 20.0, 30.0)])
def test_deeplab(mean: tuple[float, float, float] | None) -> None:
    net, pixels = filled(DEEPLAB), picture(13, 16)
    assert kind_of(net) == "deeplab"
    data = np.zeros((17, 17, 3))
    data[:13, :16] = pixels[:, :, ::-1] - np.array(mean or (104.008, 116.669, 122.675))
    given = torch.from_numpy(data.transpose(2, 0, 1)[None].astype(np.float32))
    theirs = net(data=given)["i"][0, :, :13, :16].detach().numpy()
    ours = DeepLab(net, mean=mean)
    assert np.abs(ours.scores(pixels) - theirs).max() < 1e-5
    assert (ours(pixels).pixels == theirs.argmax(0)).all()


def call(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        segment.main(argv)
    return ended.value.code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in (("segnet", segnet(5)), ("pspnet", pspnet(5)), ("deeplab", DEEPLAB)):
        Path(f"{name}.prototxt").write_text(text)
        filled(text).save(f"{name}.caffemodel")
    save(Path("a.png"), picture(14, 15))
    return tmp_path


def files(name: str) -> list[str]:
    return ["--prototxt", f"{name}.prototxt", "--weights", f"{name}.caffemodel"]


def test_the_command(here: Path, capsys: pytest.CaptureFixture) -> None:
    """Labels from 0 are told with their names; the mask has the system's labels."""
    assert call("a.png", *files("segnet"), "-o", "one", "--json", "--classes", "sky,road,tree,car,sign") == 0
    told = json.loads(capsys.readouterr().out)
    found = SegNet(filled(segnet(5)))(voc.read_picture("a.png"))
    with Image.open("one/a.png") as mask:
        assert (np.asarray(mask) == found.pixels).all()
    names = ("sky", "road", "tree", "car", "sign")
    assert told["classes"] == {names[label]: float(found.scores[label]) for label in np.unique(found.pixels)}
    options = ("--base", "20", "--scales", "0.5", "1", "--mean", "1", "2", "3")
    assert call("a.png", *files("pspnet"), "-o", "two", *options, "--maps", "--crf", "deeplab") == 0
    assert call("a.png", *files("pspnet"), "-o", "three", *options, "--maps") == 0
    theirs = PSPNet(filled(pspnet(5)), base=20, scales=(0.5, 1), mean=(1, 2, 3))(voc.read_picture("a.png"))
    with np.load("three/a.npz") as maps:
        assert np.abs(maps["maps"] - theirs.maps).max() < 1e-6
    assert call("a.png", *files("deeplab"), "-o", "four", "--mean", "1", "2", "3", "-q") == 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([*files("segnet"), "--mean", "1", "2", "3"], "--mean: expected pspnet or deeplab, found a net for segnet"),
        ([*files("deeplab"), "--base", "9"], "--base: expected pspnet, found a net for deeplab"),
        ([*files("pspnet"), "--scales", "0"], "scales: expected numbers above 0"),
        ([*files("segnet"), "--classes", "a,b"], "--classes: expected 5, as the net scores, found 2 names"),
        ([*files("segnet"), "--with", "pspnet.prototxt", "pspnet.caffemodel"], "--with: expected nets that score"),
        ([*files("pspnet"), "--system", "deeplab", "--fit", "pad"], "--fit: expected plain, found a net for deeplab"),
    ],
)
def test_wrong_arguments(argv: list[str], says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("a.png", "-o", "out", *argv) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1]


def test_wrong_nets() -> None:
    with pytest.raises(DefinitionError, match="expected one input, data, of"):
        SegNet(Net(INPUT.format(1, 8, 8).replace("data", "other") + CONV.format("other", 3)))
    with pytest.raises(DefinitionError, match="found input \\(8, 9\\), 3 means"):
        PSPNet(Net(PSPNET.format(1, 8, 9) + CONV.format("bn", 3)))
    pooled = pspnet(3) + "layer { name: 'p' type: 'Pooling' bottom: 'score' top: 'p' pooling_param { kernel_size: 3 } }"
    with pytest.raises(DefinitionError, match="expected one for each pixel"):
        PSPNet(Net(pooled))(picture(9, 9))
    with pytest.raises(CaffeError, match="which scale 1 makes"):
        PSPNet(Net(pspnet(3)), base=9)(picture(400, 1))
