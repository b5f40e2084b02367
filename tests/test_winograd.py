"""Winograd's convolution beside direct convolution in double precision, and where a net takes it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port import native
from caffe_port.layers import winograd as module
from caffe_port.layers.winograd import convolve, kernel_pays, pays, prepared
from caffe_port.net import Net

compiled = pytest.mark.skipif(native.library("winograd") is None, reason="needs a C compiler")


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "torch":
        monkeypatch.setattr(module, "library", lambda name: None)
    elif native.library("winograd") is None:
        pytest.skip("needs a C compiler")
    return request.param


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFFE_PORT_WINOGRAD", "all")


def largest_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


# batch, in, out, height, width, pad
SIZES = [
    (1, 128, 160, 16, 16, (1, 1)),
    (3, 130, 128, 17, 23, (1, 1)),
    (2, 144, 128, 19, 14, (0, 0)),
    (1, 128, 128, 13, 30, (2, 2)),
    (1, 140, 130, 21, 18, (0, 2)),
    (1, 130, 150, 21, 18, (0, 2)),
    (1, 256, 128, 5, 7, (1, 1)),
]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_direct_convolution(size: tuple, relu: bool, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n, channels, outputs, h, w, pad = size
    torch.manual_seed(0)
    x = torch.randn(n, channels, h, w).relu()
    weight, bias = torch.randn(outputs, channels, 3, 3) * (2 / (9 * channels)) ** 0.5, torch.randn(outputs)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=pad)
    expected = expected.relu() if relu else expected
    monkeypatch.setattr(module, "_LARGEST", 4 << 20)  # several pieces
    monkeypatch.setattr(module, "SCRATCH_BYTES", 1 << 20)
    for form in (torch.contiguous_format, torch.channels_last):
        found = prepared(weight, bias, pad, 1, relu=relu)(x.contiguous(memory_format=form))
        assert found.shape == expected.shape
        assert largest_error(found, expected) < 3e-6


@compiled
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("size", "pad", "dilation"),
    [
        ((3, 64, 48, 17, 23), (1, 1), 1),
        ((1, 208, 16, 5, 6), (0, 1), 1),
        ((2, 32, 112, 19, 14), (3, 2), 1),
        ((1, 80, 16, 21, 18), (2, 2), 2),
        ((2, 16, 80, 15, 22), (1, 4), 3),
        ((1, 3, 37, 9, 7), (1, 0), 1),
        ((2, 1, 1, 3, 3), (0, 0), 1),
    ],
    ids=str,
)
def test_gradients(size, pad, dilation, transposed, threads, forced) -> None:
    n, inputs, outputs, h, w = size
    torch.manual_seed(0)
    x = torch.randn(n, inputs, h, w).relu()
    weight = torch.randn(*((inputs, outputs) if transposed else (outputs, inputs)), 3, 3) * (2 / (9 * inputs)) ** 0.5
    given = [x, weight, torch.randn(outputs)]
    exact = [t.double().requires_grad_() for t in given]
    direct = F.conv_transpose2d if transposed else F.conv2d
    expected = direct(*exact, padding=pad, dilation=dilation)
    seed = torch.randn(expected.shape)
    wanted = torch.autograd.grad(expected, exact, seed.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = []
        for form in (torch.contiguous_format, torch.channels_last):
            own = [t.clone().requires_grad_() for t in given]
            windows = [(3, 1, p, dilation) for p in pad]
            y = convolve(own[0].contiguous(memory_format=form), *own[1:], windows, transposed, 1)
            assert y is not None
            assert y.is_contiguous(memory_format=form)
            results.append([y, *torch.autograd.grad(y, own, seed)])
    finally:
        torch.set_num_threads(before)
    for found, true in zip(results[0], [expected.detach(), *wanted], strict=True):
        assert largest_error(found.detach(), true) < 3e-6
    assert all(map(torch.equal, *results))


@compiled
def test_threads_change_no_number(forced) -> None:
    torch.manual_seed(0)
    x, weight, before = torch.randn(3, 96, 33, 30), torch.randn(80, 96, 3, 3).requires_grad_(), torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        y = convolve(x, weight, None, [(3, 1, 1, 1)] * 2, False, 1)
        assert y is not None
        results.append((y.detach(), *torch.autograd.grad(y, weight, y.detach())))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


@compiled
def test_gradients_of_higher_order(forced) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 16, 9, 8, requires_grad=True), torch.randn(32, 16, 3, 3, requires_grad=True)

    def penalty(y: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), weight)[0]

    y = convolve(x, weight, None, [(3, 1, 1, 1)] * 2, False, 1)
    assert y is not None
    assert largest_error(penalty(y), penalty(F.conv2d(x, weight, padding=1)).double()) < 1e-5


def test_the_points_halve_the_error_of_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(module, "library", lambda name: None)
    x, weight = torch.randn(1, 128, 32, 32).relu(), torch.randn(128, 128, 3, 3) * (2 / (9 * 128)) ** 0.5
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    ours = largest_error(prepared(weight, torch.zeros(128), (1, 1), 1, relu=False)(x), expected)
    monkeypatch.setattr(module, "_POINTS", (0.0, 1.0, -1.0, 2.0, -2.0))
    module._matrices.cache_clear()
    usual = largest_error(prepared(weight, torch.zeros(128), (1, 1), 1, relu=False)(x), expected)
    module._matrices.cache_clear()
    assert 2 * ours < usual


ONE = ((1, 1), (1, 1), (1, 1), 1)


@pytest.mark.parametrize(
    ("weight", "x", "how", "kernel", "torch_only"),
    [
        ((128, 128, 3, 3), (1, 128, 16, 16), ONE, True, True),
        ((128, 32, 3, 3), (1, 32, 16, 16), ONE, True, False),
        ((32, 16, 3, 3), (1, 16, 16, 16), ONE, False, False),
        ((130, 128, 3, 3), (1, 128, 16, 16), ONE, True, True),
        ((128, 128, 3, 3), (1, 128, 9, 9), ONE, False, False),
        ((128, 128, 3, 3), (2, 128, 9, 9), ONE, True, True),
        ((128, 128, 3, 3), (1, 128, 16, 16), ((2, 1), (1, 1), (1, 1), 1), False, False),
        ((128, 128, 3, 3), (1, 128, 16, 16), ((1, 1), (1, 1), (2, 2), 1), True, False),
        ((128, 128, 3, 3), (1, 128, 16, 16), ((1, 1), (1, 1), (2, 1), 1), False, False),
        ((128, 128, 3, 3), (1, 256, 16, 16), ((1, 1), (1, 1), (1, 1), 2), False, False),
        ((128, 128, 1, 3), (1, 128, 16, 16), ONE, False, False),
    ],
)
def test_which_convolutions(weight, x, how, kernel, torch_only, monkeypatch: pytest.MonkeyPatch) -> None:
    given = torch.empty(x), torch.empty(weight), *how
    monkeypatch.setattr(module, "library", lambda name: object())
    assert kernel_pays(*given) is kernel
    assert pays(*given) is (kernel or torch_only)
    monkeypatch.setattr(module, "library", lambda name: None)
    assert not kernel_pays(*given)
    assert pays(*given) is torch_only
    monkeypatch.setenv("CAFFE_PORT_WINOGRAD", "0")
    assert not pays(*given)


TEXT = """
layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 1 dim: 128 dim: 18 dim: 21 } } }
layer { name: 'c' type: 'Convolution' bottom: 'x' top: 'c' convolution_param { num_output: 144 kernel_size: 3 pad: 1 } }
layer { name: 's' type: 'Scale' bottom: 'c' top: 'c' scale_param { bias_term: true } }
layer { name: 'r' type: 'ReLU' bottom: 'c' top: 'c' }
layer { name: 'd' type: 'Deconvolution' bottom: 'c' top: 'd' convolution_param { num_output: 128 kernel_size: 3 } }
"""


def test_a_net_takes_it_and_follows_its_weights(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv("CAFFE_PORT_STEPS", "0")
    net, calls = Net(TEXT), []
    monkeypatch.setattr(module, "prepared", lambda *a, **k: calls.append(1) or prepared(*a, **k))
    x = torch.randn(1, 128, 18, 21)
    for _ in range(2):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.05)
            fast = net(x=x)["d"]
        exact = Net(TEXT).double()
        exact.load_state_dict({k: v.double() for k, v in net.state_dict().items()})
        assert largest_error(fast, exact(x=x.double())["d"].detach()) < 5e-6
    assert len(calls) == 4  # the convolution and the deconvolution, anew after their weights changed
