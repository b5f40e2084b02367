"""DeepLab v1's fork, from source: what differs from its namesakes against formulas written out here, detection, fields,
weights, wrong input."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_runs import passes

import caffe_port
from caffe_port.dialects import DEEPLAB1, NOH
from caffe_port.errors import CaffeError
from caffe_port.formats import open_weights
from caffe_port.net import Net
from caffe_port.schema import schema_of
from caffe_port.segmentation.ensembles import kind_of
from caffe_port.tools.summary import summarize

INPUT = 'input: "{0}" input_dim: {1[0]} input_dim: {1[1]} input_dim: {1[2]} input_dim: {1[3]}\n'


def text(kind: str, body: str, *shapes: tuple[int, ...], tops: int = 1) -> str:
    inputs = "".join(INPUT.format(f"i{k}", shape) for k, shape in enumerate(shapes))
    ends = [*(f'bottom: "i{k}"' for k in range(len(shapes))), *(f'top: "t{k}"' for k in range(tops))]
    return f'{inputs}layers {{ name: "l" type: {kind} {" ".join(ends)} {body} }}'


X = (2, 3, 5, 7)


@pytest.mark.parametrize(
    "definition",
    [
        text("INTERP", "interp_param { zoom_factor: 2 }", X),
        text("PADDING", "padding_param { pad_beg: 1 }", X),
        text("SOFTMAX_LOSS", "softmaxloss_param { ignore_label: 9 }", X, (2, 1, 5, 7)),
        text("CONVOLUTION", "strict_dim: false convolution_param { num_output: 2 kernel_size: 1 }", X),
    ],
)
def test_a_net_tells_its_caffe(definition: str) -> None:
    assert Net(definition).dialect is DEEPLAB1


def test_what_it_shares_or_lacks() -> None:
    """Its deploy nets are DeepLab's for ``segment``; the 2015 fork's own types are not known to it."""
    net = Net(text("INTERP", "interp_param { zoom_factor: 2 }", (1, 3, 5, 7)))
    assert kind_of(net) == "deeplab" and net.dialect.legacy_shapes
    unpooling = text("UNPOOLING", "unpooling_param { unpool: TILE kernel_size: 2 stride: 2 unpool_size: 9 }", X)
    deconvolution = text("DECONVOLUTION", "convolution_param { num_output: 2 kernel_size: 2 }", X)
    for definition in (unpooling, deconvolution):
        Net(definition, dialect="noh")
        with pytest.raises(CaffeError, match=r"Unpooling|Deconvolution"):
            Net(definition, dialect="deeplab1")


def test_numbers_of_fields() -> None:
    """The fork's numbers, which the 2015 fork and BVLC give to other things."""
    messages = schema_of(DEEPLAB1)
    fields = messages.V1LayerParameter.DESCRIPTOR.fields_by_name
    numbers = {"seg_accuracy_param": 42, "interp_param": 43, "softmaxloss_param": 44, "dense_crf_param": 48}
    assert {name: fields[name].number for name in numbers} == numbers
    convolution = messages.ConvolutionParameter.DESCRIPTOR.fields_by_name
    assert [convolution[name].number for name in ("hole", "hole_h", "hole_w")] == [17, 18, 19]
    kinds = messages.V1LayerParameter.LayerType
    assert [kinds.Value(name) for name in ("IMAGE_SEG_DATA", "INTERP", "DENSE_CRF")] == [39, 41, 45]
    assert schema_of(NOH).V1LayerParameter.LayerType.Value("IMAGE_SEG_DATA") == 46


@pytest.mark.parametrize(("before", "behind"), [(1, 2), (0, 0), (-1, -2), (0, 3), (-2, 0)])
def test_padding(before: int, behind: int) -> None:
    x = np.random.default_rng(1).normal(size=X).astype(np.float32)
    y = Net(text("PADDING", f"padding_param {{ pad_beg: {before} pad_end: {behind} }}", X))(i0=torch.from_numpy(x))[
        "t0"
    ]
    assert y.shape == (2, 3, 5 + before + behind, 7 + before + behind)
    for h in range(y.shape[2]):
        for w in range(y.shape[3]):
            inside = 0 <= h - before < 5 and 0 <= w - before < 7
            expected = x[:, :, h - before, w - before] if inside else np.zeros((2, 3))
            assert np.array_equal(y[:, :, h, w].numpy(), expected)


@pytest.mark.parametrize("weights", [None, [0.5, 2, 1, 0]])
def test_the_loss_divides_by_weights(weights: list[float] | None, tmp_path: Path) -> None:
    """The sum over pixels that are not ignored of weight times -log p, divided by the sum of their weights."""
    rng = np.random.default_rng(3)
    x, label = rng.normal(size=(2, 4, 3, 5)), rng.integers(0, 4, (2, 1, 3, 5))
    label[0, 0, 0, :2] = 255
    body = "ignore_label: 255 ignore_label: 2"
    if weights is not None:
        (tmp_path / "weights.txt").write_text("\n".join(map(str, weights)) + "\n")
        body += f' weight_source: "{tmp_path / "weights.txt"}"'
    net = Net(text("SOFTMAX_LOSS", f"softmaxloss_param {{ {body} }}", x.shape, label.shape))
    given = torch.from_numpy(x.astype(np.float32)).requires_grad_()
    loss = net(i0=given, i1=torch.from_numpy(label.astype(np.float32)))["t0"]
    loss.backward()
    total, sum_of, diff = 0.0, 0.0, np.zeros(x.shape)
    for n in range(2):
        for h in range(3):
            for w in range(5):
                own = label[n, 0, h, w]
                if own in (255, 2):
                    continue
                p = np.exp(x[n, :, h, w]) / np.exp(x[n, :, h, w]).sum()
                weight = 1.0 if weights is None else weights[own]
                total -= weight * np.log(p[own])
                sum_of += weight
                diff[n, :, h, w] = weight * (p - (np.arange(4) == own))
    assert abs(loss.item() - total / sum_of) < 1e-5
    assert np.abs(given.grad.numpy() - diff / sum_of).max() < 1e-6  # type: ignore[union-attr]


def test_hole_is_dilation() -> None:
    x = torch.randn(X)
    body = "convolution_param {{ num_output: 2 kernel_size: 3 pad: 2 {} weight_filler {{ type: 'xavier' }} }}"
    net = Net(text("CONVOLUTION", body.format("hole: 2"), X), dialect="deeplab1")
    weight, bias = net.state_dict()["l.weight"], net.state_dict()["l.bias"]
    expected = torch.nn.functional.conv2d(x, weight, bias, padding=2, dilation=2)
    assert torch.allclose(net(i0=x)["t0"], expected, atol=1e-6)


def test_masks_are_blended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``new_height`` and ``new_width`` resize labels bilinearly, which the 2015 fork no longer does."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    picture, mask = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8), rng.integers(0, 2, (8, 8)).astype(np.uint8) * 200
    cv2.imwrite("p.png", picture)
    cv2.imwrite("m.png", mask)
    Path("list.txt").write_text("p.png m.png\n")
    definition = (
        'layers { name: "d" type: IMAGE_SEG_DATA top: "a" top: "b" top: "c" image_data_param { source: "list.txt"'
        " batch_size: 1 label_type: PIXEL new_height: 5 new_width: 6 } }"
    )
    (ours,) = passes(Net(definition, dialect="deeplab1"), 1)
    assert np.array_equal(ours["b"][0, 0], cv2.resize(mask, (6, 5)).astype(np.float32))
    (theirs,) = passes(Net(definition, dialect="noh"), 1)
    assert set(np.unique(theirs["b"])) <= {0, 200} and not np.array_equal(ours["b"], theirs["b"])


@pytest.mark.parametrize("strict", ["true", "false"])
def test_weights_of_another_shape(strict: str, tmp_path: Path) -> None:
    """``strict_dim: false`` takes as many numbers in any shape, as an inner product's for a convolution."""
    flat = INPUT.format("i0", (1, 3, 2, 2)) + (
        'layers { name: "l" type: INNER_PRODUCT bottom: "i0" top: "t0"'
        " inner_product_param { num_output: 2 weight_filler { type: 'xavier' } } }"
    )
    source = Net(flat, dialect="deeplab1")
    source.save(tmp_path / "flat.caffemodel")
    body = f"strict_dim: {strict} convolution_param {{ num_output: 2 kernel_size: 2 }}"
    net = caffe_port.Net(text("CONVOLUTION", body, (1, 3, 4, 4)), dialect="deeplab1")
    if strict == "true":
        with pytest.raises(CaffeError, match="shape"):
            net.copy_from(str(tmp_path / "flat.caffemodel"))
        return
    net.copy_from(str(tmp_path / "flat.caffemodel"))
    assert np.array_equal(net.params["l"][0].data.ravel(), source.state_dict()["l.weight"].numpy().ravel())


@pytest.mark.parametrize(
    ("dialect", "definition", "kind"),
    [
        ("deeplab1", text("INTERP", "interp_param { zoom_factor: 2 }", X), "Interp"),
        ("deeplab1", text("PADDING", "padding_param { pad_beg: 1 }", X), "Padding"),
        ("deeplab1", text("SEG_ACCURACY", "seg_accuracy_param { ignore_label: 3 }", X, (2, 1, 5, 7)), "SegAccuracy"),
        (
            "noh",
            text("ELTWISE_ACCURACY", "eltwise_accuracy_param { ignore_label: 3 }", X, (2, 1, 5, 7)),
            "EltwiseAccuracy",
        ),
        ("noh", text("BN", "bn_param { bn_mode: LEARN }", X), "BN"),
        (
            "noh",
            text("UNPOOLING", "unpooling_param { unpool: TILE kernel_size: 2 stride: 2 unpool_size: 9 }", X),
            "Unpooling",
        ),
    ],
)
def test_files_of_weights_tell_their_caffe(dialect: str, definition: str, kind: str, tmp_path: Path) -> None:
    """The 2015 fork gives the same numbers of types, and of their fields, to other things."""
    net = Net(definition, dialect=dialect)
    net.save(tmp_path / "x.caffemodel")
    found = summarize(tmp_path / "x.caffemodel")
    assert found.dialect == dialect and not found.unknown
    assert kind in [layer.type for layer in open_weights(tmp_path / "x.caffemodel", writable=False).layers]


@pytest.mark.parametrize(
    ("definition", "says"),
    [
        (text("INTERP", "interp_param { zoom_factor: 2 shrink_factor: 2 }", X), "found 2 sizes"),
        (text("INTERP", "interp_param { }", X), "found 0 sizes"),
        (text("PADDING", "padding_param { pad_beg: -1 pad_end: 1 }", X), "found pad_beg -1, pad_end 1"),
        (text("PADDING", "padding_param { pad_beg: -3 pad_end: -2 }", X), "expected 1 or more of each"),
        (text("SOFTMAX_LOSS", 'softmaxloss_param { weight_source: "none" }', X, (2, 1, 5, 7)), "none"),
        (text("SEG_ACCURACY", "seg_accuracy_param { reset: true }", X, (2, 1, 5, 7)), "reset"),
    ],
)
def test_wrong_definitions(definition: str, says: str) -> None:
    with pytest.raises(CaffeError) as error:
        Net(definition)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [("1 2\n", "2 weights"), ("1\n2\n-1\n", "the least -1"), ("1 x 2", "could not convert"), ("", "weights.txt")],
)
def test_wrong_weights(words: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "weights.txt").write_text(words)
    body = f'softmaxloss_param {{ weight_source: "{tmp_path / "weights.txt"}" }}'
    with pytest.raises(CaffeError, match=says):
        Net(text("SOFTMAX_LOSS", body, X, (2, 1, 5, 7)))
