"""Systems other than DecoupledNet: DeconvNet over windows, fully convolutional nets, ensemble, CRF, their command."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from segment_nets import picture, scattered, slim, tiny

from caffe_port.definitions.definition import Setting as Sizes
from caffe_port.net import Net
from caffe_port.segmentation import voc
from caffe_port.segmentation.crf import SETTINGS, Kernel, Setting, dense_crf
from caffe_port.segmentation.deconvnet import ProposalSegmenter
from caffe_port.segmentation.ensembles import Product, Refined, Scoring, kind_of
from caffe_port.segmentation.fcn import FullyConvolutional
from caffe_port.segmentation.imresize import imresize
from caffe_port.segmentation.inference import Segmenter, prepare
from caffe_port.segmentation.proposals import edge_boxes
from caffe_port.tools import build

DECONVNET = "deconvnet/DeconvNet_inference_deploy.prototxt"
FCN = "fcn8s/fcn-8s-pascal-deploy.prototxt"


def narrow_text(path: str, size: int = 64) -> str:
    return str(build.definitions(Sizes(width=Fraction(1, 32), size=size), [path])[path])


@pytest.fixture(scope="module")
def deconvnet() -> Net:
    return scattered(Net(narrow_text(DECONVNET)))


@pytest.fixture(scope="module")
def fcn() -> Net:
    return scattered(Net(narrow_text(FCN)), seed=1)


def scores_of(size: int, layers: str = "", last: str = "data", channels: int = 4, seed: int = 0) -> Net:
    """A net whose scores, above and below 0, are a 3 x 3 convolution of its input or of the blob ``last``."""
    text = f"""
        input: "data"  input_dim: [1, 3, {size}, {size}]  {layers}
        layers {{ name: "score"  type: CONVOLUTION  bottom: "{last}"  top: "score"
                  convolution_param {{ num_output: {channels}  kernel_size: 3  pad: 1 }} }}"""
    net, rng = Net(text), np.random.RandomState(seed)
    for parameter in net.state_dict().values():
        parameter.copy_(torch.from_numpy(rng.randn(*parameter.shape) / 20))
    return net


POOLED = """layers {{ name: "pool"  type: POOLING  bottom: "data"  top: "pool"
                      pooling_param {{ pool: AVE  kernel_size: {kernel}  stride: {stride} }} }}"""


def convolved(net: Net, data: np.ndarray) -> np.ndarray:
    """What :func:`scores_of` scores, tap by tap."""
    weight, bias = (p.double().numpy() for p in net.state_dict().values())
    height, width = data.shape[1:]
    padded = np.pad(data.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    taps = [
        np.einsum("oc,chw->ohw", weight[:, :, y, x], padded[:, y : y + height, x : x + width])
        for y in range(3)
        for x in range(3)
    ]
    return sum(taps) + bias[:, None, None]


# -- DeconvNet ---------------------------------------------------------------------------------------------------------

WINDOWS = np.array(
    [[2, 1, 13, 9], [-5, -3, 30, 30], [4, 4, 8, 8], [10, -6, 29, 7], [0, 0, 15, 5], [-9, 12, -2, 19], [1, 1, 14, 14]]
)
"""In a picture of 17 x 14 pixels: inside, all around, too small, beyond two sides, wide, outside, one too many."""


def released(image: np.ndarray, net: Net, smallest: int, most: int) -> np.ndarray:
    """The release's loop, in its words, on scores padded by the picture's other side; the best of every pixel."""
    height, width = image.shape[:2]
    down, right = width, height
    padded = np.pad(image, ((down, down), (right, right), (0, 0)))
    best = np.zeros((4, *padded.shape[:2]))
    done = 0
    for x1, y1, x2, y2 in WINDOWS + np.array([right, down, right, down]):
        if min(x2 - x1, y2 - y1) + 1 < smallest:
            continue
        crop = imresize(padded[y1 : y2 + 1, x1 : x2 + 1].astype(float), (8, 8), "bilinear")
        crop = np.stack([crop[:, :, 2 - c] - voc.MEAN[c] for c in range(3)])
        scores = np.stack([imresize(s, (y2 - y1 + 1, x2 - x1 + 1), "bilinear") for s in convolved(net, crop)])
        for y in range(y1, y2 + 1):
            for x in range(x1, x2 + 1):
                for c in range(4):
                    best[c, y, x] = max(best[c, y, x], scores[c, y - y1, x - x1])
        done += 1
        if done >= most:
            break
    return best[:, down - 1 : down + height, right - 1 : right + width]


@pytest.mark.parametrize("aligned", [False, True])
def test_the_best_of_all_windows(aligned: bool) -> None:
    """Pixel by pixel; what the release cuts out begins a pixel before the picture."""
    net, image = scores_of(8), picture(14, 17)
    system = ProposalSegmenter(net, windows=lambda _: WINDOWS, proposals=5, smallest=6, aligned=aligned, batch=2)
    wanted = released(image, net, smallest=6, most=5)
    wanted = wanted[:, 1:, 1:] if aligned else wanted[:, :-1, :-1]
    assert (wanted == 0).any()
    np.testing.assert_allclose(system.scores(image), wanted, atol=1e-5)
    found = system(image)
    assert (found.pixels == system.scores(image).argmax(0)).all()
    assert found.labels == (0, 1, 2, 3)
    np.testing.assert_allclose(found.maps, np.exp(wanted) / np.exp(wanted).sum(0), atol=1e-5)
    assert found.scores == pytest.approx(found.maps[1:].max((1, 2)))
    assert found.found == tuple(sorted({*found.pixels.flat} - {0}))


@pytest.mark.parametrize("batch", [2, 7, 50])
def test_windows_in_batches_and_one_by_one(batch: int, deconvnet: Net) -> None:
    image = picture(70, 90)
    one, many = (ProposalSegmenter(deconvnet, batch=n, proposals=9) for n in (1, batch))
    assert len(many.windows(image)) == 9
    np.testing.assert_array_equal(many.scores(image), one.scores(image))


def test_nothing_shown_is_background() -> None:
    """Outside all windows scores are 0, and the first of equal ones wins."""
    system = ProposalSegmenter(scores_of(8), windows=lambda _: WINDOWS[:1], smallest=1)
    found = system(picture(14, 17))
    assert not found.pixels[:, 15:].any()
    assert found.maps[:, :, 15:] == pytest.approx(np.full((4, 14, 2), 0.25))


@pytest.mark.parametrize(("scale", "smallest"), [(1, 112 * 400 / 500), (2, 112)])
def test_windows_are_the_picture_and_large_proposals(scale: int, smallest: float, deconvnet: Net) -> None:
    image = picture(300 * scale, 400 * scale)
    whole, *others = ProposalSegmenter(deconvnet, proposals=20).windows(image)
    assert whole.tolist() == [0, 0, 400 * scale - 1, 300 * scale - 1]
    boxes = edge_boxes(image, 2000)[0].astype(float)
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    large = [
        [np.floor(b[0] - 0.1 * w), np.floor(b[1] - 0.1 * h), np.ceil(b[2] + 0.1 * w), np.ceil(b[3] + 0.1 * h)]
        for b, (w, h) in zip(boxes, sides, strict=True)
    ]
    large = [b for b in large if min(b[2] - b[0], b[3] - b[1]) + 1 >= smallest]
    np.testing.assert_allclose(others, large[:19], atol=1)  # 1.2 is not representable
    assert len(large) > 19
    assert min(np.diff(np.reshape(others, (-1, 2, 2)), axis=1).min(2).flat) + 1 >= smallest


def test_a_single_window_is_the_picture(deconvnet: Net) -> None:
    image = picture(20, 30)
    assert ProposalSegmenter(deconvnet, proposals=1).windows(image).tolist() == [[0, 0, 29, 19]]
    assert ProposalSegmenter(deconvnet, smallest=500).windows(image).tolist() == [[0, 0, 29, 19]]


# -- plain nets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(7, 9), (12, 12), (20, 9), (15, 31)])
def test_pictures_are_padded_with_the_mean_and_larger_ones_make_the_net_larger(height: int, width: int) -> None:
    net, image = scores_of(12), picture(height, width)
    data = image[:, :, ::-1].transpose(2, 0, 1) - np.array(voc.MEAN)[:, None, None]
    data = np.pad(data, ((0, 0), (0, max(12 - height, 0)), (0, max(12 - width, 0))))
    np.testing.assert_allclose(
        FullyConvolutional(net).scores(image), convolved(net, data)[:, :height, :width], atol=1e-4
    )


@pytest.mark.parametrize("shape", [(50, 40), (64, 64), (70, 90)])
def test_fcn(shape: tuple[int, int], fcn: Net) -> None:
    image = picture(*shape)
    data = np.zeros((1, 3, max(shape[0], 64), max(shape[1], 64)), np.float32)
    data[0, :, : shape[0], : shape[1]] = (image[:, :, ::-1] - np.array(voc.MEAN)).transpose(2, 0, 1)
    system = FullyConvolutional(fcn)
    with torch.no_grad():
        wanted = fcn(data=torch.from_numpy(data))["upscore"].numpy()[0, :, : shape[0], : shape[1]]
    np.testing.assert_array_equal(system.scores(image), wanted)
    assert (system(image).pixels == wanted.argmax(0)).all()


@pytest.mark.parametrize(("height", "width"), [(10, 17), (30, 18), (17, 17)])
def test_scores_on_corners_are_interpolated_between(height: int, width: int) -> None:
    """17 pixels have 3 scores, on pixels 0, 8 and 16; a larger picture has more, as far apart."""
    pool = POOLED.format(kernel=1, stride=8)
    net, image = scores_of(17, pool, "pool"), picture(height, width)
    sides = [17 + 8 * max(0, -(-(n - 17) // 8)) for n in (height, width)]
    data = np.zeros((3, *sides))
    data[:, :height, :width] = image[:, :, ::-1].transpose(2, 0, 1) - np.array(voc.MEAN)[:, None, None]
    coarse = convolved(net, data[:, ::8, ::8])
    for axis, n in ((1, height), (2, width)):
        places = np.arange(coarse.shape[axis]) * 8
        between = [
            np.interp(np.arange(n), places, row) for row in np.moveaxis(coarse, axis, 2).reshape(-1, len(places))
        ]
        shape = [m for i, m in enumerate(coarse.shape) if i != axis]
        coarse = np.moveaxis(np.reshape(between, (*shape, n)), 2, axis)
    assert FullyConvolutional(net).fit == "pad"
    np.testing.assert_allclose(FullyConvolutional(net).scores(image), coarse, atol=1e-4)


@pytest.mark.parametrize("fov", ["small", "large"])
def test_wssl(fov: str) -> None:
    """Every eighth pixel has the score that the net gives it."""
    net, image = scattered(Net(narrow_text(f"wssl/{fov}_fov_deploy.prototxt", size=56))), picture(48, 61)
    system = FullyConvolutional(net)
    data = np.zeros((1, 3, 57, 65), np.float32)
    data[0, :, :48, :61] = (image[:, :, ::-1] - np.array(voc.MEAN)).transpose(2, 0, 1)
    with torch.no_grad():
        wanted = net(data=torch.from_numpy(data))["seg-score"].numpy()[0, :, :6, :8]
    np.testing.assert_allclose(system.scores(image)[:, ::8, ::8], wanted, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(("height", "width"), [(10, 23), (40, 20)])
def test_pictures_are_resized_where_scores_lie_between_pixels(height: int, width: int) -> None:
    net, image = scores_of(16, POOLED.format(kernel=8, stride=8), "pool"), picture(height, width)
    side = max(height, width)
    means = prepare(image, 16)[0].reshape(3, 2, 8, 2, 8).mean((2, 4))
    at_16 = [imresize(one, (16, 16), "bilinear") for one in convolved(net, means)]
    wanted = np.stack([imresize(one, (side, side), "bilinear") for one in at_16])[:, :height, :width]
    assert FullyConvolutional(net).fit == "resize"
    np.testing.assert_allclose(FullyConvolutional(net).scores(image), wanted, atol=1e-4)


# -- the ensemble and the CRF ------------------------------------------------------------------------------------------


class Given(Scoring):
    """Scores that were drawn."""

    def __init__(self, seed: int, size: tuple[int, int] = (12, 15)) -> None:
        self.classes = 3
        self.drawn = np.random.RandomState(seed).randn(4, *size).astype(np.float32) * 5

    def scores(self, picture: np.ndarray) -> np.ndarray:
        return self.drawn


def test_the_ensemble_multiplies_scores_above_0() -> None:
    one, other = Given(1), Given(2)
    both = Product(one, other)
    found = both(picture(12, 15))
    for y, x in np.ndindex(12, 15):
        products = [max(a, 0) * max(b, 0) for a, b in zip(one.drawn[:, y, x], other.drawn[:, y, x], strict=True)]
        assert both.scores(picture(12, 15))[:, y, x] == pytest.approx(products)
        assert found.pixels[y, x] == products.index(max(products))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_crf_sees_the_logarithms(name: str) -> None:
    system, image, setting = Given(1), picture(12, 15), SETTINGS[name]
    found = Refined(system, setting)(image)
    options = {"iterations": setting.iterations, "normalization": setting.normalization}
    wanted = dense_crf(system.drawn, image, setting.kernels, **options)
    np.testing.assert_allclose(found.maps, wanted, atol=1e-4)
    assert (found.pixels == found.maps.argmax(0)).all()
    assert (found.pixels != system(image).pixels).any()
    assert found.scores == pytest.approx(system(image).scores)


def test_settings() -> None:
    smooth = Kernel(3, 3)
    assert SETTINGS == {
        "deconvnet": Setting((smooth, Kernel(5, 20, 3)), 10, "none"),
        "deeplab": Setting((smooth, Kernel(4, 49, 5)), 10, "after"),
    }


def test_a_share_of_0_stays_so() -> None:
    """As in the original, whose single precision has no share for a score 104 below the best."""
    system = Given(0)
    system.drawn[:] = np.array([300, 299, 100, 0], np.float32)[:, None, None]
    found = Refined(system)(picture(12, 15))
    assert not found.maps[2:].any()
    np.testing.assert_allclose(found.maps.sum(0), 1, atol=1e-5)


def test_the_crf_over_decouplednet() -> None:
    system, image = Segmenter(tiny()), picture(12, 17, 1)
    before, after = system(image), Refined(system)(image)
    assert len(before.labels) > 1
    assert after.labels == before.labels
    np.testing.assert_array_equal(after.maps, dense_crf(np.log(np.maximum(before.maps, 1e-5)), image))
    assert (after.pixels == np.array(before.labels)[after.maps.argmax(0)]).all()


def test_kinds(deconvnet: Net, fcn: Net) -> None:
    assert [kind_of(net) for net in (tiny(), slim([1]), deconvnet, fcn)] == [
        "decouplednet",
        "decouplednet",
        "deconvnet",
        "plain",
    ]
