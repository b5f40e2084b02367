"""Winograd's convolution beside direct convolution in double precision, and where a net takes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.execution import winograd as module
from caffe_port.execution.winograd import pays, winograd
from caffe_port.net import Net


def largest_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


# batch, in, out, height, width, pad
SIZES = [
    (1, 128, 160, 16, 16, (1, 1)),
    (3, 130, 128, 17, 23, (1, 1)),
    (2, 128, 128, 19, 14, (0, 0)),
    (1, 128, 128, 13, 30, (2, 2)),
    (1, 140, 130, 21, 18, (0, 2)),
    (1, 256, 128, 5, 7, (1, 1)),
]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_direct_convolution(size: tuple, relu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    n, channels, outputs, h, w, pad = size
    torch.manual_seed(0)
    x = torch.randn(n, channels, h, w).relu()
    weight, bias = torch.randn(outputs, channels, 3, 3) * (2 / (9 * channels)) ** 0.5, torch.randn(outputs)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=pad)
    expected = expected.relu() if relu else expected
    monkeypatch.setattr(module, "_LARGEST", 4 << 20)  # several pieces
    for form in (torch.contiguous_format, torch.channels_last):
        found = winograd(weight, bias, pad, relu=relu)(x.contiguous(memory_format=form))
        assert found.shape == expected.shape
        assert largest_error(found, expected) < 3e-6


def test_the_points_halve_the_error_of_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 128, 32, 32).relu(), torch.randn(128, 128, 3, 3) * (2 / (9 * 128)) ** 0.5
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    ours = largest_error(winograd(weight, torch.zeros(128), (1, 1), relu=False)(x), expected)
    monkeypatch.setattr(module, "_POINTS", (0.0, 1.0, -1.0, 2.0, -2.0))
    module._matrices.cache_clear()
    usual = largest_error(winograd(weight, torch.zeros(128), (1, 1), relu=False)(x), expected)
    module._matrices.cache_clear()
    assert 2 * ours < usual


@pytest.mark.parametrize(
    ("weight", "x", "how", "expected"),
    [
        ((128, 128, 3, 3), (1, 128, 16, 16), ((1, 1), (1, 1), 1), True),
        ((128, 127, 3, 3), (1, 127, 16, 16), ((1, 1), (1, 1), 1), False),
        ((128, 128, 3, 3), (1, 128, 9, 9), ((1, 1), (1, 1), 1), False),
        ((128, 128, 3, 3), (2, 128, 9, 9), ((1, 1), (1, 1), 1), True),
        ((128, 128, 3, 3), (1, 128, 16, 16), ((2, 1), (1, 1), 1), False),
        ((128, 128, 3, 3), (1, 128, 16, 16), ((1, 1), (2, 2), 1), False),
        ((128, 128, 3, 3), (1, 256, 16, 16), ((1, 1), (1, 1), 2), False),
        ((128, 128, 1, 3), (1, 128, 16, 16), ((1, 1), (1, 1), 1), False),
    ],
)
def test_which_convolutions(weight, x, how, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pays(torch.empty(weight), torch.empty(x), *how) is expected
    monkeypatch.setenv("CAFFE_PORT_WINOGRAD", "0")
    assert not pays(torch.empty(weight), torch.empty(x), *how)


TEXT = """
layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 1 dim: 128 dim: 18 dim: 21 } } }
layer { name: 'c' type: 'Convolution' bottom: 'x' top: 'c' convolution_param { num_output: 130 kernel_size: 3 pad: 1 } }
layer { name: 's' type: 'Scale' bottom: 'c' top: 'c' scale_param { bias_term: true } }
layer { name: 'r' type: 'ReLU' bottom: 'c' top: 'c' }
layer { name: 'd' type: 'Deconvolution' bottom: 'c' top: 'd' convolution_param { num_output: 128 kernel_size: 3 } }
"""


def test_a_net_takes_it_and_follows_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, calls = Net(TEXT), []
    monkeypatch.setattr("caffe_port.execution.packing.winograd", lambda *a, **k: calls.append(1) or winograd(*a, **k))
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
