"""The data behind the page of view: graph, statistics, receptive fields, the comparison; what the command refuses.

Expected numbers are NumPy's; a receptive field is found again by changing one row or column of the input at a time.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_port.pycaffe import Net
from caffe_port.schema import read_net
from caffe_port.tools.commands import main
from caffe_port.view import numbers
from caffe_port.view.receptive import fields

HEIGHT, WIDTH = 23, 19
INPUT = f'input: "data" input_dim: 2 input_dim: 3 input_dim: {HEIGHT} input_dim: {WIDTH}\n'
NET = f"""name: "small" {INPUT}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param {{ num_output: 4 kernel_size: 3 weight_filler {{ type: "gaussian" std: 1 }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param {{ kernel_size: 2 stride: 2 }} }}
layer {{ name: "side" type: "Power" bottom: "conv" top: "side" power_param {{ scale: 2 }} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param {{ num_output: 5
  weight_filler {{ type: "gaussian" std: 1 }} }} }}
"""
NASTY = "</script><img src=x onerror=alert(1)><!--&"


class Page(HTMLParser):
    """The data of a page, and what in it could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside, self.found, self.tags, self.addresses = False, "", [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = dict(attrs).get("id") == "net"
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_data(self, text: str) -> None:
        self.found += text if self.inside else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["view", *arguments])
    return int(end.value.code or 0)


def looked(*arguments: str) -> dict[str, Any]:
    """The data of the page that the command writes."""
    assert call(*arguments, "-o", "net.html", "-f") == 0
    return json.loads(Page(Path("net.html").read_text(encoding="utf-8")).found)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    return tmp_path


@pytest.fixture
def net(here: Path) -> Net:
    """The net, its weights as net.caffemodel and what it computes as reference.npz."""
    net = Net("net.prototxt", phase="TEST")
    net.save("net.caffemodel")
    net.blobs["data"].data[...] = np.random.default_rng(1).standard_normal((2, 3, HEIGHT, WIDTH))
    net.forward()
    arrays = {f"out/{name}": net.blobs[name].data for name in ("conv", "pool", "side", "fc")}
    np.savez("reference.npz", **{"in/data": net.blobs["data"].data}, **arrays)
    return net


# -- the graph


def test_an_edge_starts_at_the_last_writer_of_the_bottom(here: Path) -> None:
    data = looked("net.prototxt")
    names = [layer["name"] for layer in data["layers"]]
    assert names == ["input", "conv", "relu", "pool", "side", "fc"]  # no Split, though two layers read conv
    edges = {layer["name"]: [names[b["from"]] for b in layer["bottoms"]] for layer in data["layers"]}
    assert edges == {
        **{"input": [], "conv": ["input"], "relu": ["conv"]},
        **{"pool": ["relu"], "side": ["relu"], "fc": ["pool"]},
    }
    conv = data["layers"][1]
    assert conv["tops"] == [{"blob": "conv", "shape": [2, 4, HEIGHT - 2, WIDTH - 2]}]
    assert [(p["name"], p["shape"]) for p in conv["params"]] == [("weight", [4, 3, 3, 3]), ("bias", [4])]
    assert (conv["parameters"], conv["macs"]) == (4 * 27 + 4, 2 * 4 * 27 * (HEIGHT - 2) * (WIDTH - 2))
    assert "num_output: 4" in conv["text"]
    assert "bottom" not in conv["text"]
    assert conv["where"].startswith("net.prototxt:")


def test_types_without_a_record_are_noted(here: Path) -> None:
    Path("net.prototxt").write_text(
        NET.replace('type: "Power"', 'type: "Python"').replace("power_param { scale: 2 }", "")
    )
    data = looked("net.prototxt")
    side = data["layers"][4]
    assert set(side["tops"][0]["shape"]) == {"?"}
    assert side["parameters"] is None
    assert any("Python" in note for note in data["notes"])


def test_names_with_markup_stay_text_and_nothing_is_loaded(here: Path) -> None:
    Path("net.prototxt").write_text(NET.replace('name: "side"', f'name: "{NASTY}"').replace('"small"', f'"{NASTY}"'))
    data = looked("net.prototxt")
    page = Page(text := Path("net.html").read_text(encoding="utf-8"))
    assert data["title"] == data["layers"][4]["name"] == NASTY
    assert NASTY not in text
    assert "img" not in page.tags
    assert not page.addresses
    assert "default-src 'none'" in text
    assert not re.search(r"sourceMappingURL|@import|fetch\(|XMLHttpRequest|WebSocket", text)


# -- numbers


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.random.default_rng(0).standard_normal(10_001).astype(np.float32), "plain"),
        (np.array([0.0, 0.0, 2.0]), "zeros"),
        (np.full(7, 3.5, np.float32), "one value"),
        (np.array([1.0, np.nan, np.inf, -np.inf, 3.0]), "not finite"),
        (np.array([np.nan]), "nothing finite"),
        (np.zeros(0), "empty"),
        (np.arange(12).reshape(3, 4), "integers"),
        (np.array([-6e4, 6e4], np.float16), "half precision"),
    ],
)
def test_statistics(values: np.ndarray, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_CHUNK", 1000)
    found = numbers.statistics(values)
    kept = values[np.isfinite(values)].astype(np.float64)
    assert (found["count"], found["not_finite"]) == (values.size, values.size - kept.size)
    assert found["zeros"] == (kept == 0).sum()
    assert sum(found["counts"]) == kept.size
    if kept.size:
        wanted = [kept.mean(), kept.std(), kept.min(), kept.max()]
        assert [found[key] for key in ("mean", "std", "min", "max")] == pytest.approx(wanted, rel=1e-6, abs=1e-7)
    if why == "plain":
        assert found["counts"] == np.histogram(kept, numbers.BINS, (kept.min(), kept.max()))[0].tolist()


def test_channels_are_scaled_each_by_itself() -> None:
    ramp = np.arange(6.0).reshape(1, 1, 2, 3)
    found = numbers.channels(np.concatenate([ramp, 100 * ramp + 7, ramp], 1), 2)
    assert (found["height"], found["width"], found["channels"]) == (2, 3, 3)
    assert found["ranges"] == [[0, 5], [7, 507]]
    assert np.array_equal(pixels(found["url"]), np.tile([[0, 51, 102], [153, 204, 255]], 2))


def test_a_vector_has_its_largest_values() -> None:
    found = numbers.channels(np.array([[1.0, 9.0, np.nan, 4.0], [99.0, 0, 0, 0]]), 8)
    assert found["largest"][:3] == [[1, 9.0], [3, 4.0], [0, 1.0]]


def pixels(url: str) -> np.ndarray:
    import base64
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_weights_are_measured_and_missing_ones_noted(net: Net) -> None:
    layers = looked("net.prototxt", "net.caffemodel")["layers"]
    weight = net.params["conv"][0].data
    assert layers[1]["params"][0]["stats"]["std"] == pytest.approx(weight.std(dtype=np.float64))
    assert layers[1]["params"][0]["stats"]["max"] == weight.max()
    Path("net.prototxt").write_text(NET.replace('name: "fc"', 'name: "score"'))
    data = looked("net.prototxt", "net.caffemodel")
    assert data["notes"] == ["net.caffemodel has nothing for score", "net.caffemodel also has fc"]
    assert all("stats" not in param for param in data["layers"][5]["params"])


# -- a picture


def test_a_picture_runs_through_the_net(net: Net, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2

    picture = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    cv2.imwrite("picture.png", picture)
    data = looked("net.prototxt", "net.caffemodel", "--picture", "picture.png", "--mean", "10,20,30", "--scale", "0.5")
    values = (picture.transpose(2, 0, 1) - np.array([10.0, 20, 30]).reshape(3, 1, 1)) * 0.5
    net.blobs["data"].data[...] = values
    net.forward(end="conv")
    before = net.blobs["conv"].data.copy()
    net.forward()
    stats = {layer["name"]: layer["tops"][0]["stats"] for layer in data["layers"]}
    assert stats["input"]["mean"] == pytest.approx(values.mean())
    assert stats["conv"]["min"] == pytest.approx(before.min(), rel=1e-5)
    assert before.min() < 0 == stats["relu"]["min"]  # of an in-place blob each version
    assert stats["fc"]["max"] == pytest.approx(net.blobs["fc"].data.max(), rel=1e-5)
    assert data["run"]["size"] == [HEIGHT, WIDTH]
    pool = data["layers"][3]
    assert (pool["tops"][0]["height"], pool["tops"][0]["width"]) == (len(pool["field"][0]), len(pool["field"][1]))
    assert pool["field"][0][:2] == [[0, 3], [2, 5]]
    assert pool["field"][0][-1][1] < HEIGHT
    data = looked("net.prototxt", "net.caffemodel", "--picture", "picture.png", "--rgb-net")
    assert data["layers"][0]["tops"][0]["ranges"][0] == [picture[..., 2].min(), picture[..., 2].max()]


CONV = "convolution_param { num_output: 2 weight_filler { type: 'uniform' min: 0.01 max: 0.05 } %s }"
FIELDS = [
    ("Convolution", CONV % "kernel_size: 3", "bvlc"),
    ("Convolution", CONV % "kernel_h: 3 kernel_w: 5 stride_h: 2 stride_w: 3 pad_h: 2 pad_w: 1", "bvlc"),
    ("Convolution", CONV % "kernel_size: 3 dilation: 2 pad: 2", "bvlc"),
    ("Convolution", CONV % "kernel_size: 1 pad: 2", "bvlc"),
    ("Deconvolution", CONV % "kernel_size: 4 stride: 3 pad: 1", "bvlc"),
    ("Deconvolution", CONV % "kernel_size: 2 stride: 3", "bvlc"),
    ("Deconvolution", CONV % "kernel_size: 3 stride: 2 dilation: 2", "bvlc"),
    ("Pooling", "pooling_param { pool: MAX kernel_size: 3 stride: 2 }", "bvlc"),
    ("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }", "bvlc"),
    ("Pooling", "pooling_param { pool: AVE global_pooling: true }", "bvlc"),
    ("Im2col", "convolution_param { kernel_size: 3 stride: 2 }", "bvlc"),
    ("LRN", "lrn_param { local_size: 3 alpha: 1 }", "bvlc"),
    ("Softmax", "", "bvlc"),
    (
        "InnerProduct",
        "inner_product_param { num_output: 2 weight_filler { type: 'uniform' min: 0.01 max: 0.05 } }",
        "bvlc",
    ),
    ("Unpooling", "unpooling_param { unpool: AVE kernel_size: 2 stride: 2 unpool_h: 46 unpool_w: 38 }", "noh"),
]


@pytest.mark.parametrize(("kind", "param", "dialect"), FIELDS)
@pytest.mark.parametrize("before", ["", "Pooling", "Convolution"])
def test_receptive_fields(kind: str, param: str, dialect: str, before: str) -> None:
    """Of one layer, and of one behind another."""
    pool = "pooling_param { kernel_size: 2 stride: 2 }"
    first = {
        "": 'layer { name: "a" type: "Power" bottom: "data" top: "a" }',
        "Pooling": f'layer {{ name: "a" type: "Pooling" bottom: "data" top: "a" {pool} }}',
        "Convolution": conv("a", "a", "kernel_size: 3 pad: 1"),
    }[before]
    if kind == "Unpooling" and before == "Pooling":
        param = param.replace("46", "24").replace("38", "20")
    text = f'{INPUT} {first} layer {{ name: "b" type: "{kind}" bottom: "a" top: "b" {param} }}'
    check(text, dialect)


def conv(name: str, top: str, windows: str, kind: str = "Convolution") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "data" top: "{top}" {CONV % windows} }}'


BRANCHES = [
    conv("a", "up", "kernel_size: 2 stride: 2", "Deconvolution")
    + conv("b", "narrow", "kernel_size: 3")
    + 'layer { name: "c" type: "Crop" bottom: "up" bottom: "narrow" top: "c" crop_param { offset: 2 offset: 3 } }',
    conv("a", "wide", "kernel_size: 3 pad_h: 1 pad_w: 2")
    + conv("b", "b", "kernel_size: 5 pad: 2")
    + 'layer { name: "c" type: "Crop" bottom: "wide" bottom: "b" top: "c" crop_param { axis: 3 offset: 1 } }'
    + 'layer { name: "e" type: "Eltwise" bottom: "c" bottom: "b" top: "e" }',
    conv("a", "a", "kernel_h: 3 kernel_w: 1 pad_h: 1 pad_w: 0")
    + conv("b", "b", "kernel_h: 1 kernel_w: 5 pad_h: 0 pad_w: 2")
    + 'layer { name: "e" type: "Concat" bottom: "a" bottom: "b" top: "e" }',
    conv("a", "a", "kernel_size: 3 pad: 1")
    + 'layer { name: "g" type: "Pooling" bottom: "a" top: "g" pooling_param { global_pooling: true pool: AVE } }'
    + 'layer { name: "f" type: "Flatten" bottom: "g" top: "f" }'
    + 'layer { name: "s" type: "Scale" bottom: "a" bottom: "f" top: "s" scale_param { axis: 0 } }',
]


@pytest.mark.parametrize("layers", BRANCHES, ids=["crop", "crop of one axis", "concat", "scale by the whole"])
def test_receptive_fields_of_branches(layers: str) -> None:
    check(INPUT + layers, "bvlc")


def check(text: str, dialect: str) -> None:
    net = Net(read_net(text, phase="TEST", dialect=dialect))
    shapes = [[tuple(net.shapes[name]) for name in (*node.bottoms, *node.tops)] for node, _ in net.nodes]
    field = fields(net.nodes, shapes, "data")[-1]
    assert field is not None
    top = net.nodes[-1][0].tops[0]
    x = np.random.default_rng(4).uniform(1, 2, (2, 3, HEIGHT, WIDTH)).astype(np.float32)

    def ran(values: np.ndarray) -> np.ndarray:
        net.blobs["data"].data[...] = values
        net.forward()
        y = net.blobs[top].data.copy()
        return y if y.ndim == 4 else y.reshape(*y.shape, 1, 1)

    rest = ran(x)
    for axis, (low, high) in enumerate(field):
        reached: list[list[int]] = [[] for _ in low]
        for line in range(x.shape[2 + axis]):
            moved = x.copy()
            np.moveaxis(moved, 2 + axis, 0)[line] *= np.array([7.0, 3.0, 5.0], np.float32)[:, None]
            others = tuple(a for a in range(4) if a != 2 + axis)
            for t in np.flatnonzero((ran(moved) != rest).any(others)):
                reached[t].append(line)
        for t, lines in enumerate(reached):
            assert (lines == []) == (low[t] > high[t])
            if lines:
                assert (low[t], high[t]) == (lines[0], lines[-1])


# -- a reference


def test_layers_carry_their_errors(net: Net, capsys: pytest.CaptureFixture[str]) -> None:
    data = looked("net.prototxt", "net.caffemodel", "--reference", "reference.npz")
    assert data["first"] is None
    assert all(layer["rows"][layer["worst"]]["verdict"] == "ok" for layer in data["layers"][1:])
    with np.load("reference.npz") as stored:
        arrays = dict(stored)
    arrays["out/conv"][0, 1, 2, 3:9] += 0.01 * np.abs(arrays["out/conv"]).max()
    arrays["out/fc"] *= 1.1
    np.savez("reference.npz", **arrays)
    data = looked("net.prototxt", "net.caffemodel", "--reference", "reference.npz")
    judged = {layer["name"]: layer["rows"][layer["worst"]] for layer in data["layers"] if "rows" in layer}
    assert [name for name, row in judged.items() if row["verdict"] == "over"] == ["conv", "relu", "fc"]
    assert data["layers"][data["first"]]["name"] == "conv"  # the first of those that wrote the blob
    assert judged["fc"]["error"] == pytest.approx(0.1 / 1.1, rel=1e-3)
    assert data["verdict"] in capsys.readouterr().out


# -- refusals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["net.prototxt", "--picture", "ok.png"], "no weights"),
        (["net.prototxt", "net.caffemodel", "--picture", "p.png"], "p.png: no such file"),
        (["net.prototxt", "net.caffemodel", "--picture", "net.prototxt"], "OpenCV cannot read"),
        (["net.prototxt", "net.caffemodel", "--picture", "ok.png", "--mean", "1,2"], "--mean"),
        (["net.prototxt", "net.caffemodel", "--picture", "ok.png", "--mean", "x"], "--mean"),
        (["net.prototxt", "--reference", "bare.npz"], "no parameters"),
        (["two.prototxt", "net.caffemodel", "--picture", "ok.png"], "inputs data (2, 3, 23, 19), more (1, 3, 4, 4)"),
        (["flat.prototxt", "flat.caffemodel", "--picture", "ok.png"], "inputs d (1, 3)"),
        (["none.prototxt"], "none.prototxt"),
        (["net.prototxt", "-o", "missing/net.html"], "no folder"),
    ],
)
def test_invalid_input_is_one_line(
    net: Net, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    cv2.imwrite("ok.png", np.zeros((4, 4, 3), np.uint8))
    np.savez("bare.npz", **{"in/data": net.blobs["data"].data, "out/fc": net.blobs["fc"].data})
    Path("two.prototxt").write_text(NET.replace(INPUT, f'{INPUT} input: "more" input_dim: [1, 3, 4, 4]'))
    scale = 'layer { name: "conv" type: "InnerProduct" bottom: "d" top: "c" inner_product_param { num_output: 2 } }'
    source = 'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: [1, 3] } } }'
    Path("flat.prototxt").write_text(source + scale)
    Net("flat.prototxt", phase="TEST").save("flat.caffemodel")
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not Path("net.html").exists()
