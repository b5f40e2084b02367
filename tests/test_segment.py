"""Inference: the released procedure, and what is computed once gives the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import SHARED, needs_shared
from segment_nets import TINY, picture, slim, tiny

from caffe_port.errors import CaffeError
from caffe_port.graph import dependents
from caffe_port.net import Net
from caffe_port.segmentation import voc
from caffe_port.segmentation.imresize import imresize
from caffe_port.segmentation.inference import PassByPass, Segmenter, enlarge, prepare
from caffe_port.segmentation.two_stage import TwoStage

REFERENCE = SHARED / "reference" / "noh_inference"
PHOTOGRAPHS = ["2007_000042", "2007_003503", "2007_007203", "2007_009938", "2008_003141"]


# -- beside the original -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference_net() -> Net:
    return Net(REFERENCE / "net.prototxt", REFERENCE / "weights.caffemodel")


@needs_shared("reference/noh_inference/net.prototxt")
@needs_shared("data/voc_samples/2007_000042.jpg")
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_forks_numbers(name: str, reference_net: Net) -> None:
    """The fork's own inference on a photograph. Its scores are off by their rounding, its maps by that of the seg-score
    (1e-6 of values around 20, which the softmax sees), its labels where two maps are as close as that."""
    photograph = voc.read_picture(SHARED / "data" / "voc_samples" / f"{name}.jpg")
    segmenter = Segmenter(reference_net)
    data = prepare(photograph, 320)
    maps, found = segmenter.maps(data), segmenter(photograph)
    with np.load(REFERENCE / f"{name}.npz") as reference:
        assert (data[0, :, ::8, ::8] == reference["input"]).all()
        assert maps.labels == found.labels == tuple(reference["active"])
        assert np.abs(maps.scores - reference["scores"]).max() < 5e-6
        assert np.abs(maps.maps[:, ::4, ::4].transpose(1, 2, 0) - reference["maps"]).max() < 5e-5
    second, first = np.sort(found.maps, axis=0)[-2:]
    differ = found.pixels != voc.read_labels(REFERENCE / f"{name}.png")
    assert (first - second)[differ].max(initial=0) < 2e-5
    assert differ.mean() < 5e-4


@needs_shared("reference/noh_inference/net.prototxt")
@needs_shared("data/voc_samples/2007_000042.jpg")
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_in_one_batch_and_pass_by_pass(name: str, reference_net: Net) -> None:
    photograph = voc.read_picture(SHARED / "data" / "voc_samples" / f"{name}.jpg")
    ours, released = Segmenter(reference_net)(photograph), PassByPass(reference_net)(photograph)
    assert ours.labels == released.labels
    assert (ours.pixels == released.pixels).all()
    assert np.abs(ours.maps - released.maps).max() < 1e-6


# -- the procedure -----------------------------------------------------------------------------------------------------


def released(net: Net, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The released procedure once more, on arrays and channels as MATLAB has them: labels and scores."""
    size, classes = net.shapes["data"][2], net.shapes["cls-score-masked"][1]
    side = max(pixels.shape[:2])
    square = np.zeros((side, side, 3))
    square[: pixels.shape[0], : pixels.shape[1]] = pixels
    data = imresize(square, (size, size), "bilinear")[:, :, ::-1] - np.array([104.00698793, 116.66876762, 122.67891434])

    def run(masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        blobs = {
            "data": torch.from_numpy(data.transpose(2, 0, 1)[None].astype(np.float32)),
            "cls-score-masked": torch.from_numpy(masked.reshape(1, classes, 1, 1).astype(np.float32)),
        }
        with torch.no_grad():
            tops = net(**blobs)
        e = np.exp(tops["seg-score"][0].numpy() - tops["seg-score"][0].numpy().max(0))
        return tops["cls-score-avg-sigmoid"].numpy().ravel(), e / e.sum(0)

    scores, _ = run(np.zeros(classes))
    maps = np.zeros((1 + classes, size, size))
    maps[0] = run(scores * (scores > 0.5))[1][0]
    for i in np.flatnonzero(scores > 0.5):
        alone = np.zeros(classes)
        alone[i] = scores[i]
        maps[1 + i] = run(alone)[1][1]
    maps[[0, *(np.flatnonzero(scores > 0.5) + 1)]] += maps.sum(0) <= 0
    maps = (maps / maps.sum(0)).astype(np.float32)
    whole = imresize(maps.transpose(2, 1, 0), (side, side))[: pixels.shape[1], : pixels.shape[0]]
    return whole.argmax(2).T, scores


@pytest.mark.parametrize("found", [[], [7], [0, 19], [3, 8, 14], list(range(20))], ids=len)
def test_found_classes(found: list[int]) -> None:
    """DecoupledNet, slim, with none to all of its classes in the picture."""
    net, pixels = slim(found), picture(60, 83)
    ours, by_pass = Segmenter(net)(pixels), PassByPass(net)(pixels)
    assert ours.labels == by_pass.labels == (0, *(c + 1 for c in found))
    assert (ours.pixels == by_pass.pixels).all()
    assert (ours.maps == by_pass.maps).all()
    labels, scores = released(net, pixels)
    assert np.abs(ours.scores - scores).max() < 1e-6
    assert (ours.pixels == labels).mean() > 0.999  # sums in another order decide near ties
    if len(found) > 1:
        assert len(np.unique(labels)) > 1


def expected(net: Net, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of the tiny net by its formula."""
    w = {name: p.numpy() for name, p in net.state_dict().items()}
    data = prepare(pixels, 8)[0]
    scores = 1 / (1 + np.exp(-w["score.weight"][:, :, 0, 0] @ data.mean((1, 2)) - w["score.bias"]))
    found = np.flatnonzero(scores > 0.5)
    base = np.einsum("oc,chw->ohw", w["seg.weight"][:, :3, 0, 0], data) + w["seg.bias"][:, None, None]

    def share(classes: np.ndarray) -> np.ndarray:
        masked = np.where(np.isin(np.arange(4), classes), scores, 0)
        e = np.exp(base + (w["seg.weight"][:, 3:, 0, 0] @ masked)[:, None, None])
        return e / e.sum(0)

    maps = np.stack([share(found)[0], *(share(np.array([i]))[1] for i in found)])
    return np.array([0, *(found + 1)])[enlarge(maps / maps.sum(0), *pixels.shape[:2]).argmax(0)], scores


@pytest.mark.parametrize("size", [(8, 8), (5, 13), (20, 9), (1, 1), (3, 40)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_the_tiny_net_by_its_formula(seed: int, size: tuple[int, int]) -> None:
    net, pixels = tiny(seed), picture(*size, seed)
    found = Segmenter(net)(pixels)
    labels, scores = expected(net, pixels)
    assert found.pixels.dtype == np.uint8
    assert found.maps.shape == (len(found.labels), *size)
    assert np.abs(found.scores - scores).max() < 1e-6
    assert (found.pixels == labels).all()


def test_threshold() -> None:
    net, pixels = tiny(), picture(9, 9)
    scores = Segmenter(net)(pixels).scores
    between = float(np.sort(scores)[1:3].mean())
    assert Segmenter(net, threshold=between)(pixels).labels == (0, *np.flatnonzero(scores > between) + 1)


def test_pixels_without_a_map_are_shared_equally() -> None:
    """Two classes that are foreground together and background alone: all three maps are zero, and the first wins."""
    net, pixels = tiny(), picture(9, 6)
    state = net.state_dict()
    for name in ("score.weight", "seg.weight", "seg.bias"):
        state[name].zero_()
    state["score.bias"][:] = torch.tensor([3.0, -3, 3, -3])
    state["seg.weight"][1, [3, 5]] = 400 / torch.tensor(3.0).sigmoid()
    state["seg.bias"][1] = -600
    for segmenter in (Segmenter(net), PassByPass(net)):
        maps = segmenter.maps(prepare(pixels, 8))
        assert maps.labels == (0, 1, 3)
        assert (maps.maps == np.float32(1 / 3)).all()
        assert not segmenter(pixels).pixels.any()


def test_input_is_blue_first_and_padded_on_the_right_and_below() -> None:
    pixels = np.full((4, 8, 3), (10, 20, 30), np.uint8)
    data = prepare(pixels, 8)
    assert data.dtype == np.float32
    assert data[0, :, 0, 0] == pytest.approx([30 - 104.00698793, 20 - 116.66876762, 10 - 122.67891434])
    assert data[0, :, 7, 7] == pytest.approx([-104.00698793, -116.66876762, -122.67891434])


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (0, 8, 3), (1, 8, 8, 3)], ids=str)
def test_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(CaffeError, match="expected \\(height, width, 3\\)"):
        Segmenter(tiny())(np.zeros(shape, np.uint8))


WRONG_NETS = [
    ('input: "data"', 'input: "image"', 'bottom: "data"', 'bottom: "image"'),
    ("input_dim: 8  input_dim: 8", "input_dim: 8  input_dim: 9", "unpool_size: 8", "unpool_h: 8  unpool_w: 9"),
    ("num_output: 2", "num_output: 3"),
    ('"seg-score"', '"segmentation"'),
    ('"cls-score-avg-sigmoid"', '"scores"'),
]


@pytest.mark.parametrize("changes", WRONG_NETS, ids=lambda c: c[1])
def test_another_net(changes: tuple[str, ...]) -> None:
    text = TINY
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(CaffeError, match=r"expected a deploy net from data .* is one"):
        Segmenter(Net(text.replace("kernel_size: 8 }", "global_pooling: true }")))


# -- two stages --------------------------------------------------------------------------------------------------------


def test_what_depends_on_an_input() -> None:
    net = slim([0])
    later = [net.nodes[i][0].name for i in dependents(net.graph, ["cls-score-masked"])]
    assert later[:4] == ["avg-unpool", "cls-score-voc-bp", "relu7-mask", "fc7-bp"]
    assert "pool5-bn" not in later
    assert later[-1] == "seg-score-voc"
    assert dependents(net.graph, ["data"]) == [i for i, (node, _) in enumerate(net.nodes) if node.type != "Input"]
    assert dependents(net.graph, []) == []


def test_a_row_of_the_second_stage_is_a_pass_of_the_net() -> None:
    net, rng = slim([2, 3]), np.random.RandomState(0)
    staged = TwoStage(net, ["cls-score-masked"])
    data = torch.from_numpy(prepare(picture(50, 70), 320))
    masked = torch.from_numpy(rng.rand(3, 20, 1, 1).astype(np.float32))
    begun = staged.first(data=data)
    assert sorted(begun.tops) == ["cls-score-avg-sigmoid", "cls-score-sigmoid"]
    tops = staged.second(begun, **{"cls-score-masked": masked})
    assert tops["seg-score"].shape == (3, 2, 320, 320)
    for i in range(3):
        with torch.no_grad():
            whole = net(**{"data": data, "cls-score-masked": masked[i : i + 1]})
        assert (tops["seg-score"][i] == whole["seg-score"][0]).all()
        assert all((begun.tops[name] == whole[name]).all() for name in begun.tops)


def test_rows_of_both_stages_go_together() -> None:
    net, rng = tiny(), np.random.RandomState(0)
    staged = TwoStage(net, ["cls-score-masked"])
    data, masked = (torch.from_numpy(rng.randn(2, *s).astype(np.float32)) for s in ((3, 8, 8), (4, 1, 1)))
    tops = staged.second(staged.first(data=data), **{"cls-score-masked": masked})
    with torch.no_grad():
        whole = net(**{"data": data, "cls-score-masked": masked})
    assert (tops["seg-score"] == whole["seg-score"]).all()
    begun = staged.first(data=data)
    with pytest.raises(CaffeError, match="found 3 rows"):
        staged.second(begun, **{"cls-score-masked": torch.zeros(3, 4, 1, 1)})


def test_wrong_inputs_of_a_stage() -> None:
    net = tiny()
    with pytest.raises(CaffeError, match="net tiny: expected data, cls-score-masked, found no input label"):
        TwoStage(net, ["label"])
    staged = TwoStage(net, ["cls-score-masked"])
    with pytest.raises(CaffeError, match="net tiny: expected data, found inputs none"):
        staged.first()
    begun = staged.first(data=torch.zeros(1, 3, 8, 8))
    with pytest.raises(CaffeError, match="net tiny: expected cls-score-masked, found inputs data"):
        staged.second(begun, data=torch.zeros(1, 3, 8, 8))
    with pytest.raises(CaffeError, match="expected 7 channels"):
        staged.second(begun, **{"cls-score-masked": torch.zeros(1, 5, 1, 1)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nets_of_other_precisions(dtype: torch.dtype) -> None:
    wanted, found = Segmenter(tiny())(pixels := picture(20, 31, 3)), Segmenter(tiny().to(dtype))(pixels)
    assert found.maps.dtype == np.float32
    np.testing.assert_allclose(found.scores, wanted.scores, atol=0.02)
