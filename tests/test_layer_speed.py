"""Optimisations of layers give the same numbers, and benchmarks/layers.py has every layer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import caffe_port
from caffe_port.dialects import MIXED
from caffe_port.layers import REGISTRY, Layer, create
from caffe_port.layers.comparisons import above, differs, equals
from caffe_port.layers.loss import serial_sum, softmax
from caffe_port.layers.normalization import _ByPixel
from caffe_port.schema import parse_text
from caffe_port.schema.messages import LayerParameter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import detection_rows, fork_rows
from benchmarks.layer_rows import LEFT_OUT, ROWS


def layer(text: str, *shapes: tuple[int, ...]) -> Layer:
    bottoms = " ".join(f"bottom: 'x{i}'" for i in range(len(shapes)))
    made = create(parse_text(f"name: 'l' {bottoms} {text}", LayerParameter, "text"), MIXED, "text")
    made.setup(*shapes)
    return made


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 127, 128, 129, 8193, 100_003])
def test_a_serial_sum_is_rounded_after_every_addition(count: int, kind: type) -> None:
    numbers = np.random.default_rng(count).normal(1, 3, count).astype(kind)
    assert serial_sum(torch.from_numpy(numbers)).item() == np.add.accumulate(numbers)[-1]


def test_a_serial_sum_of_zeros_has_no_sign() -> None:
    assert str(serial_sum(torch.zeros(3)).item()) == "0.0"


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int32])
def test_masks(kind: torch.dtype) -> None:
    x = torch.tensor([-2, 0, 1, 2, 1], dtype=kind)
    assert above(x, 1).tolist() == [0, 0, 0, 1, 0]
    assert above(x, x.flip(0)).tolist() == [0, 0, 0, 1, 1]
    assert equals(x, 1).tolist() == [0, 0, 1, 0, 1]
    assert differs(x, 1).tolist() == [1, 1, 0, 1, 0]
    assert {above(x, 1).dtype, equals(x, 1).dtype, differs(x, 1).dtype} == {kind}


@pytest.mark.parametrize("behind", [(), (1,), (1, 1), (2, 1), (1, 3)], ids=str)
def test_softmax(behind: tuple[int, ...]) -> None:
    x = torch.randn(5, 7, *behind)
    torch.testing.assert_close(softmax(x, 1), x.exp() / x.exp().sum(1, keepdim=True))


@pytest.mark.parametrize("tops", ["top: 'y'", "top: 'y' top: 'switches'"])
@pytest.mark.parametrize(
    "windows",
    [
        "kernel_size: 2 stride: 2",
        "kernel_size: 3 stride: 2",
        "kernel_size: 3 stride: 1 pad: 1",
        "kernel_h: 2 kernel_w: 3 stride: 3 round_mode: FLOOR",
        "kernel_size: 3 stride: 2 pad: 2",
    ],
)
@pytest.mark.parametrize("method", ["MAX", "AVE"])
def test_pooling_is_the_same_with_and_without_gradients(method: str, windows: str, tops: str) -> None:
    """Small integers, so that windows have many ties."""
    x = torch.randint(-3, 3, (2, 19, 9, 11)).float()
    pool = layer(f"type: 'Pooling' {tops} pooling_param {{ pool: {method} {windows} }}", tuple(x.shape))
    with torch.no_grad():
        quick = pool(x)
    slow = pool(x.clone().requires_grad_())
    for a, b in zip(quick, slow, strict=True) if isinstance(quick, tuple) else [(quick, slow)]:
        assert torch.equal(a, b)
        assert a.is_contiguous()


LAST = torch.channels_last


@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("mean", [0.5, 100.0])
@pytest.mark.parametrize("shape", [(4, 64, 80, 70), (2, 5, 3, 7), (1, 512, 2, 3)], ids=str)
def test_normalization_with_channels_last(shape: tuple[int, ...], mean: float, relu: bool) -> None:
    """Not further from float64 than twice torch's way, which is for contiguous ones; of several blocks, too."""
    torch.manual_seed(1)
    parts = [(torch.randn(shape) + mean).contiguous(memory_format=LAST), torch.randn(shape[1]), torch.randn(shape[1])]

    def slow(kind: torch.dtype) -> list[torch.Tensor]:
        leaves = [p.detach().to(kind).contiguous().requires_grad_() for p in parts]
        y = torch.batch_norm(*leaves, None, None, True, 1, 1e-9, False)
        y = y.relu() if relu else y
        return [y, *torch.autograd.grad(y, leaves, diff.to(kind))]

    diff = torch.zeros(shape)
    near = slow(torch.float64)[0].abs() < 1e-4 * relu  # on which side of ReLU's corner is a matter of rounding
    diff = (torch.randn(shape) + 0.3).masked_fill_(near, 0)
    y = _ByPixel.apply(*(p.requires_grad_() for p in parts), 1e-9, relu)
    assert y.is_contiguous(memory_format=LAST)
    ours = [y, *torch.autograd.grad(y, parts, diff)]
    rounded = 1e-6 + 1e-7 * mean  # a mean of 100, as a float32, is itself off by 4e-6
    for a, b, exact in zip(ours, slow(torch.float32), slow(torch.float64), strict=True):
        assert (a - exact).abs().max() < 2 * (b - exact).abs().max() + rounded * exact.abs().max()


@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
def test_gradients_of_normalization_with_channels_last(relu: bool) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=LAST).requires_grad_()
    scale, shift = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in "ab")
    run = lambda *parts: _ByPixel.apply(*parts, 1e-9, relu)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, scale, shift))
    assert torch.autograd.gradgradcheck(run, (x, scale, shift))


def test_unpooling_with_channels_last() -> None:
    x = torch.randn(2, 19, 8, 6)
    y, where = F.max_pool2d(x, 2, return_indices=True)
    unpool = layer("type: 'Unpooling' top: 'y' unpooling_param { kernel_size: 2 stride: 2 unpool_h: 8 unpool_w: 6 }",
                   tuple(y.shape), tuple(y.shape))  # fmt: skip
    found = []
    for form in (torch.contiguous_format, LAST):
        bottom, switches = (t.contiguous(memory_format=form) for t in (y, where.float()))
        top = unpool(bottom.requires_grad_(), switches)
        assert top.is_contiguous(memory_format=form)
        found.append((top, *torch.autograd.grad(top, bottom, x)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_training_pass_gives_the_gradients_of_the_slow_way() -> None:
    """A small encoder and decoder, whose first convolution is frozen."""
    conv = "convolution_param { num_output: 16 kernel_size: 3 pad: 1 weight_filler { type: 'xavier' } }"
    bn = "bn_param { scale_filler { type: 'uniform' min: 0.5 max: 2 } shift_filler { type: 'uniform' max: 1 } }"
    net = caffe_port.Net(
        f"""layer {{ name: 'x' type: 'Input' top: 'x' top: 'y' input_param {{ shape {{ dim: 3 dim: 3 dim: 20 dim: 22 }}
          shape {{ dim: 3 dim: 1 dim: 20 dim: 22 }} }} }}
        layer {{ name: 'a' type: 'Convolution' bottom: 'x' top: 'a' param {{ lr_mult: 0 }} param {{ lr_mult: 0 }}
          {conv} }}
        layer {{ name: 'p' type: 'Pooling' bottom: 'a' top: 'p' top: 'w' pooling_param {{ kernel_size: 2 stride: 2 }} }}
        layer {{ name: 'b' type: 'Convolution' bottom: 'p' top: 'b' {conv} }}
        layer {{ name: 'n' type: 'BN' bottom: 'b' top: 'b' {bn} }}
        layer {{ name: 'r' type: 'ReLU' bottom: 'b' top: 'b' }}
        layer {{ name: 'u' type: 'Unpooling' bottom: 'b' bottom: 'w' top: 'u'
          unpooling_param {{ kernel_size: 2 stride: 2 unpool_h: 20 unpool_w: 22 }} }}
        layer {{ name: 'd' type: 'Deconvolution' bottom: 'u' top: 'd' {conv} }}
        layer {{ name: 'm' type: 'BN' bottom: 'd' top: 'd' {bn} }}
        layer {{ name: 's' type: 'ReLU' bottom: 'd' top: 'd' }}
        layer {{ name: 'l' type: 'SoftmaxWithLoss' bottom: 'd' bottom: 'y' top: 'l' }}""",
        phase="TRAIN",
        dialect="noh",
    )
    inputs = {"x": torch.randn(3, 3, 20, 22), "y": torch.randint(0, 16, (3, 1, 20, 22)).float()}
    learned = [p for p in net.parameters() if p.requires_grad]
    slow = torch.autograd.grad(net(**inputs)["l"].sum(), learned)
    net.losses(**inputs)[0].backward()
    for p, g in zip(learned, slow, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-5 * max(1.0, float(g.abs().max())))
        assert p.grad is not None and p.grad.stride() == p.stride()


@pytest.mark.parametrize("beta", [0.75, 0.5])
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 9])
def test_lrn_is_torchs(channels: int, beta: float) -> None:
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64, requires_grad=True)
    lrn = layer(f"type: 'LRN' top: 'y' lrn_param {{ local_size: 7 alpha: 2 beta: {beta} k: 3 }}", tuple(x.shape))
    ours, theirs = lrn(x), F.local_response_norm(x, 7, 2, beta, 3)
    torch.testing.assert_close(ours, theirs)
    diff = torch.randn_like(x)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, diff)[0] for y in (ours, theirs)))


def test_training_continues_from_states_of_inference_mode() -> None:
    net = caffe_port.Net("""
        layer { name: 'x' type: 'Input' top: 'x' top: 'c' input_param { shape { dim: 3 dim: 2 dim: 4 }
          shape { dim: 3 dim: 2 } } }
        layer { name: 'l' type: 'LSTM' bottom: 'x' bottom: 'c' top: 'y' recurrent_param { num_output: 3
          weight_filler { type: 'uniform' min: -1 max: 1 } } }""")
    inputs = {"x": torch.randn(3, 2, 4), "c": torch.ones(3, 2)}
    with torch.inference_mode():
        first = net(**inputs)["y"]
    second = net(**inputs)["y"]
    second.sum().backward()
    assert not torch.equal(first, second)
    assert all(p.grad is not None for p in net.parameters())


def test_the_benchmark_has_a_row_for_every_layer_or_a_reason() -> None:
    ours = {t for t, of in REGISTRY.items() for cls in of.values() if cls.__module__.startswith("caffe_port.")}
    data = {name for name in ours if name.endswith("Data") or name in ("WindowSegBinary", "SelectSegBinary")}
    rows, left_out = [*ROWS, *fork_rows.ROWS, *detection_rows.ROWS], LEFT_OUT | fork_rows.LEFT_OUT
    assert ours - data - {row.type for row in rows} == left_out.keys() - {
        "Data layers",
        "DummyData",
    }
