"""caffe.io: pictures, messages and the Transformer, against the formulas written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import caffe_port
from caffe_port.errors import CaffeError, FileError, FormatError, ShapeError
from caffe_port.pycaffe import io
from caffe_port.pycaffe.proto import caffe_pb2

R = np.random.RandomState(0)
RGB = R.randint(0, 256, (9, 7, 3)).astype(np.uint8)

# -- pictures ----------------------------------------------------------------------------------------------------------


def picture(kind: str) -> Image.Image:
    """A picture of that kind; those in colours have few, so that a palette holds them."""
    few = Image.fromarray(RGB // 128 * 255)
    return {
        "RGB": Image.fromarray(RGB),
        "L": Image.fromarray(RGB[:, :, 0]),
        "RGBA": Image.fromarray(np.dstack([RGB, RGB[:, :, :1]])),
        "LA": Image.merge("LA", [Image.fromarray(RGB[:, :, i]) for i in (0, 1)]),
        "P": few.convert("P", palette=Image.Palette.ADAPTIVE, colors=8),
        "grey P": Image.fromarray(RGB[:, :, 0]).convert("P"),
        "1": Image.fromarray(RGB[:, :, 0]).convert("1", dither=Image.Dither.NONE),
        "I;16": Image.fromarray(RGB[:, :, 0].astype(np.uint16) * 257),
    }[kind]


RED = RGB[:, :, :1] / 255
LUMINANCE = np.array([0.2125, 0.7154, 0.0721])


@pytest.mark.parametrize(
    ("kind", "color", "grey"),
    [
        ("RGB", RGB / 255, RGB / 255 @ LUMINANCE),
        ("L", RED, RED),
        ("RGBA", RGB / 255, RGB / 255 @ LUMINANCE),
        ("LA", RED, RED),
        ("P", RGB // 128, RGB // 128 @ LUMINANCE),
        ("grey P", RED, RED),
        ("1", RGB[:, :, :1] // 128, RGB[:, :, :1] // 128),
        ("I;16", RED, RED),
    ],
)
def test_pictures_are_read_as_shares_of_one(tmp_path: Path, kind: str, color: np.ndarray, grey: np.ndarray) -> None:
    picture(kind).save(tmp_path / "p.png")
    for wanted, read in ((color, io.load_image(tmp_path / "p.png")), (grey, io.load_image(tmp_path / "p.png", False))):
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, np.broadcast_to(wanted.reshape(9, 7, -1), read.shape), atol=1e-6)
    assert read.shape == (9, 7, 1)


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_text("no")
    with pytest.raises(FormatError, match=r"p\.png: expected a picture .*, found a file, which cannot be read"):
        io.load_image(tmp_path / "p.png")
    with pytest.raises(FileError, match="no such file"):
        io.load_image(str(tmp_path / "q.png"))


def bilinear(im: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Between pixel centres, 0 beyond the border after stretching to 0..1, pixel by pixel."""
    low, high = im.min(), im.max()
    standard = np.pad((im - low) / (high - low), ((1, 1), (1, 1), (0, 0)))
    out = np.empty((*size, im.shape[2]))
    for y, x in np.ndindex(*size):
        v, u = ((i + 0.5) * im.shape[a] / size[a] + 0.5 for a, i in enumerate((y, x)))
        j, i = int(v), int(u)
        b, a = v - j, u - i
        upper = (1 - a) * standard[j, i] + a * standard[j, i + 1]
        lower = (1 - a) * standard[j + 1, i] + a * standard[j + 1, i + 1]
        out[y, x] = (1 - b) * upper + b * lower
    return out * (high - low) + low


@pytest.mark.parametrize("size", [(13, 5), (4, 20), (9, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_scikit_images(size: tuple[int, int], channels: int) -> None:
    im = (R.rand(9, 7, channels) * 300 - 100).astype(np.float32)
    np.testing.assert_allclose(io.resize_image(im, size), bilinear(im, size), rtol=1e-5, atol=2e-4)


def test_resizing_other_pictures() -> None:
    assert (io.resize_image(np.full((3, 4, 3), 7.0), (5, 6)) == 7).all()
    im = R.rand(3, 5, 2).astype(np.float32)
    stretched = io.resize_image(im, (5, 9))
    np.testing.assert_allclose(stretched[::2, ::2], im, rtol=1e-5)
    np.testing.assert_allclose(stretched[1, ::2], (im[0] + im[1]) / 2, rtol=1e-5)
    nearest = io.resize_image(np.arange(4.0).reshape(2, 2, 1), np.array([4, 4]), interp_order=0)
    assert nearest[:, :, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    with pytest.raises(ShapeError, match="height, width, channels"):
        io.resize_image(im[:, :, 0], (5, 6))


@pytest.mark.parametrize("crop", [(4, 3), (5, 6), (8, 6)])
def test_ten_crops(crop: tuple[int, int]) -> None:
    images = R.rand(2, 8, 6, 3).astype(np.float32)
    h, w = crop
    y, x = int(4 - h / 2), int(3 - w / 2)
    for k, im in enumerate(images):
        ten = io.oversample(images, np.array(crop))[10 * k :][:10]
        five = [im[:h, :w], im[:h, -w:], im[-h:, :w], im[-h:, -w:], im[y : y + h, x : x + w]]
        assert np.array_equal(ten[:5], five)
        assert np.array_equal(ten[5:], np.array(five)[:, :, ::-1])
    assert io.oversample(list(images), crop).dtype == np.float32


# -- the transformer ---------------------------------------------------------------------------------------------------


@pytest.fixture
def transformer() -> Any:
    t = io.Transformer({"data": (10, 3, 9, 7)})
    t.set_transpose("data", (2, 0, 1))
    return t


def test_the_order_of_steps(transformer: Any) -> None:
    mean = np.array([104.0, 117.0, 123.0])
    transformer.set_channel_swap("data", (2, 1, 0))
    transformer.set_raw_scale("data", 255)
    transformer.set_mean("data", mean)
    transformer.set_input_scale("data", 0.5)
    given = (RGB / 255).astype(np.float32)
    kept = given.copy()
    ready = transformer.preprocess("data", given)
    assert ready.dtype == np.float32
    np.testing.assert_allclose(ready, (RGB.transpose(2, 0, 1)[::-1] - mean[:, None, None]) * 0.5, atol=1e-4)
    np.testing.assert_allclose(transformer.deprocess("data", ready[np.newaxis]), given, atol=1e-5)
    assert np.array_equal(given, kept)


def test_a_mean_in_double_precision_is_subtracted_in_it(transformer: Any) -> None:
    mean = R.rand(3, 9, 7) * 100
    transformer.set_mean("data", mean)
    image = R.rand(9, 7, 3).astype(np.float32) * 255
    expected = (image.transpose(2, 0, 1).astype(np.float64) - mean).astype(np.float32)
    assert np.array_equal(transformer.preprocess("data", image), expected)


def test_pictures_and_means_of_another_size_are_resized(transformer: Any) -> None:
    image = R.rand(18, 14, 3).astype(np.float32)
    mean = R.rand(3, 5, 5) * 9 + 100
    transformer.set_mean("data", mean)
    resized = bilinear(mean.transpose(1, 2, 0), (9, 7)).transpose(2, 0, 1)
    np.testing.assert_allclose(transformer.mean["data"], resized, rtol=1e-5)
    expected = bilinear(image, (9, 7)).transpose(2, 0, 1) - resized
    np.testing.assert_allclose(transformer.preprocess("data", image), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("transpose", (0, 1), "expected 3 axes"),
        ("channel_swap", (1, 0), "expected 3 channels"),
        ("mean", np.zeros(4), "expected 3"),
        ("mean", np.zeros((1, 3, 9, 7)), "channels, height, width"),
    ],
)
def test_wrong_settings(transformer: Any, setting: str, value: Any, message: str) -> None:
    with pytest.raises(CaffeError, match=message) as error:
        getattr(transformer, f"set_{setting}")("data", value)
    assert isinstance(error.value, ValueError)
    with pytest.raises(CaffeError, match="no input 'dat'; near: data"):
        getattr(transformer, f"set_{setting}")("dat", value)


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (4, 2), (3,), ()])
def test_arrays_as_blobs_and_back(shape: tuple[int, ...]) -> None:
    array, diff = R.rand(*shape), np.asarray(R.rand(*shape))
    blob = io.array_to_blobproto(np.asarray(array), diff)
    np.testing.assert_allclose(io.blobproto_to_array(blob), array, rtol=1e-6)
    np.testing.assert_allclose(io.blobproto_to_array(blob, return_diff=True), diff, rtol=1e-6)
    data = io.arraylist_to_blobprotovector_str([np.asarray(array), diff])
    np.testing.assert_allclose(io.blobprotovector_str_to_arraylist(data)[1], diff, rtol=1e-6)


def test_blobs_of_the_older_form_and_of_doubles() -> None:
    legacy = caffe_pb2.BlobProto(data=range(6), num=1, channels=2, height=1, width=3)
    assert io.blobproto_to_array(legacy).tolist() == [[[[0, 1, 2]], [[3, 4, 5]]]]
    double = caffe_pb2.BlobProto(double_data=[0.1], shape=caffe_pb2.BlobShape(dim=[1]))
    assert io.blobproto_to_array(double).tolist() == [0.1]
    with pytest.raises(ValueError, match="6 numbers"):
        io.blobproto_to_array(caffe_pb2.BlobProto(data=range(6)))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("label", [None, 0, 3])
def test_arrays_as_datums_and_back(dtype: type, label: int | None) -> None:
    array = (R.rand(3, 2, 4) * 200).astype(dtype)
    datum = io.array_to_datum(array, label)
    assert datum.HasField("label") == (label is not None)
    back = io.datum_to_array(caffe_pb2.Datum.FromString(datum.SerializeToString()))
    assert np.array_equal(back, array)
    assert back.dtype == (np.uint8 if dtype == np.uint8 else np.float64)
    back[...] = 0
    with pytest.raises(CaffeError, match="height, width"):
        io.array_to_datum(array[0])
    with pytest.raises(CaffeError, match="decode its data"):
        io.datum_to_array(caffe_pb2.Datum(channels=3, height=2, width=2, data=b"jpeg", encoded=True))


# -- classifier and detector -------------------------------------------------------------------------------------------

MEANS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 3 dim: 3 dim: 4 dim: 4 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc"
  inner_product_param { num_output: 3 bias_term: false } }
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A net that gives the mean of each channel, and its weights."""
    (tmp_path / "net.prototxt").write_text(MEANS)
    net = caffe_port.Net(MEANS)
    net.params["fc"][0].data[...] = np.eye(3)
    net.save(tmp_path / "w.caffemodel")
    return str(tmp_path / "net.prototxt"), str(tmp_path / "w.caffemodel")


def test_classifying(files: tuple[str, str]) -> None:
    images = [R.rand(8, 6, 3).astype(np.float32) for _ in range(4)]
    swap, mean = (2, 1, 0), np.array([10.0, 20.0, 30.0])
    classifier = caffe_port.Classifier(*files, image_dims=(8, 6), mean=mean, raw_scale=255, channel_swap=swap)
    centre = classifier.predict(images, oversample=False)
    expected = [255 * im[2:6, 1:5].mean((0, 1))[::-1] - mean for im in images]
    np.testing.assert_allclose(centre, expected, rtol=1e-4, atol=1e-3)
    crops = [[im[y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 2)] + [im[2:6, 1:5]] for im in images]
    expected = [255 * np.mean(five, (0, 1, 2))[::-1] - mean for five in crops]
    np.testing.assert_allclose(classifier.predict(images), expected, rtol=1e-4, atol=1e-3)
    whole = caffe_port.Classifier(*files).predict([images[0][:4, :4]], oversample=False)
    np.testing.assert_allclose(whole[0], images[0][:4, :4].mean((0, 1)), rtol=1e-5)


def test_detecting(files: tuple[str, str], tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "p.png")
    windows = np.array([[0, 0, 4, 4], [3, 2, 7, 6]])
    detector = caffe_port.Detector(*files, raw_scale=255)
    found = detector.detect_windows([(tmp_path / "p.png", windows), (tmp_path / "p.png", windows[:1])])
    assert [one["window"].tolist() for one in found] == [[0, 0, 4, 4], [3, 2, 7, 6], [0, 0, 4, 4]]
    for one in found:
        y, x, bottom, right = one["window"]
        np.testing.assert_allclose(one["prediction"], RGB[y:bottom, x:right].mean((0, 1)), rtol=1e-4)
    with pytest.raises(CaffeError, match="no selective search"):
        detector.detect_selective_search([tmp_path / "p.png"])


def test_context_around_a_window(files: tuple[str, str]) -> None:
    """A window of 4 x 4 with one pixel of context on each side: 9 x 9, doubled scale; at the corner, mean is put in."""
    mean = np.array([100.0, 120.0, 140.0])
    detector = caffe_port.Detector(*files, mean=mean, raw_scale=2, channel_swap=(2, 1, 0), context_pad=1)
    image = R.rand(30, 30, 3).astype(np.float32)
    crop = detector.crop(image, [10, 12, 13, 15])
    np.testing.assert_allclose(crop, bilinear(image[8:16, 10:18], (4, 4)), rtol=1e-3, atol=1e-3)
    corner = detector.crop(image, [0, 0, 3, 3])
    assert corner.shape == (4, 4, 3)
    np.testing.assert_allclose(corner[0, 0], mean[::-1] / 2)
    np.testing.assert_allclose(corner[1:, 1:], bilinear(image[0:6, 0:6], (3, 3)), rtol=1e-3, atol=1e-3)
    with pytest.raises(ShapeError, match="inside a picture"):
        detector.crop(image, [50, 50, 52, 52])
