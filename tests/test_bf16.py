"""``precision="bf16"``: its numbers beside double precision, what stays in single precision, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from compiled_nets import NETS, conv, inputs, layer, pool, relu
from test_compiled import drawn, same_on_threads
from torch import nn

import caffe_port
from caffe_port import native
from caffe_port.errors import CaffeError
from caffe_port.execution import compiled, precision
from caffe_port.net import Net

kernels = native.library("steps")
needs_half = pytest.mark.skipif(kernels is None or not kernels.has_half(), reason="needs a processor with avx512_bf16")

ROUNDING = 2.0**-8
"""The largest error of a number in bfloat16, relative."""
PRODUCTS = [
    "direct", "kernels", "many inputs", "groups", "slopes", "deconvolution", "dense", "large dense", "many rows",
    "few windows", "branches", "residuals", "vectors",
]  # fmt: skip
PIXEL = inputs((2, 24, 1, 1)) + layer("Deconvolution", "a", "x0", "convolution_param { num_output: 40 kernel_size: 7 }")


def halved(text: str, net: Net) -> Net:
    found = Net(text, precision="bf16")
    found.load_state_dict(net.state_dict())
    return found


@needs_half
@pytest.mark.parametrize("name", [*PRODUCTS, "a deconvolution of single pixels"])
def test_numbers(name: str) -> None:
    text = NETS.get(name, PIXEL + relu("a"))
    net, exact, given = drawn(text)
    with torch.no_grad():
        found = halved(text, net)(given)
        expected = exact({k: v.double() for k, v in given.items()})
    for top, y in expected.items():
        off = (found[top] - y).abs().max() / y.abs().max()
        assert found[top].dtype == torch.float32
        assert 1e-6 < off < 4 * ROUNDING, top  # it was rounded, and no more than that


@needs_half
def test_one_convolution_is_the_product_of_rounded_numbers() -> None:
    text = inputs((2, 33, 9, 8)) + conv("a", "x0", "num_output: 45 kernel_size: 3 stride: 2 pad: 1 dilation: 2")
    net, exact, given = drawn(text)
    with torch.no_grad():
        found = halved(text, net)(given)["a"]
        exact.a.weight.copy_(net.a.weight.bfloat16())
        expected = exact(x0=given["x0"].bfloat16().double())["a"]
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@needs_half
def test_threads_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    net, _, given = drawn(NETS["branches"])
    same_on_threads(halved(NETS["branches"], net), given, monkeypatch)


@needs_half
def test_switches_are_whole_and_labels_agree() -> None:
    text = inputs((3, 8, 24, 24)) + conv("a", "x0", "num_output: 16 kernel_size: 3 pad: 1") + relu("a")
    text += layer("Pooling", "p", "a", "pooling_param { kernel_size: 2 stride: 2 }", "p mask")
    text += layer(
        "Unpooling", "u", "p mask", "unpooling_param { unpool: MAX kernel_size: 2 stride: 2 unpool_size: 24 }"
    )
    text += conv("b", "u", "num_output: 5 kernel_size: 3 pad: 1") + layer(
        "ArgMax", "l", "b", "argmax_param { axis: 1 }"
    )
    torch.manual_seed(1)
    net = Net(text, dialect="mixed")
    x = torch.randn(3, 8, 24, 24)
    half = Net(text, dialect="mixed", precision="bf16")
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.2)
        half.load_state_dict(net.state_dict())
        whole, found = net(x0=x, blobs=["mask"]), half(x0=x, blobs=["mask"])
    assert torch.equal(found["mask"], found["mask"].round())
    assert found["mask"].max() == whole["mask"].max()
    assert ((found["l"] != whole["l"]).float().mean()) < 0.02
    assert ((found["mask"] != whole["mask"]).float().mean()) < 0.02


@needs_half
def test_what_does_not_run_in_bfloat16_is_refused() -> None:
    text = NETS["dense"]
    net, _, given = drawn(text)
    half = halved(text, net)
    with pytest.raises(
        CaffeError, match=r"expected net\(\.\.\.\) on tensors, without gradients, in TEST, found a pass"
    ):
        half(given)
    py = caffe_port.Net(text, precision="bf16")
    with pytest.raises(CaffeError, match="keeps every blob"):
        py.forward()
    array = py.params["a"][0].data
    with torch.no_grad(), pytest.raises(CaffeError, match="arrays held over parameters"):
        py(given)
    del array
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with torch.no_grad(), pytest.raises(CaffeError, match="hooks for all modules"):
            half(given)
    finally:
        handle.remove()
    with torch.no_grad():
        half(given)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(CaffeError, match="expected 'fp32' or 'bf16', found 'half'"):
        Net(NETS["dense"], precision="half")


class _Without:
    """Kernels compiled for a processor without bfloat16."""

    def __getattr__(self, name: str) -> object:
        return (lambda: 0) if name == "has_half" else getattr(native.library("steps"), name)


@pytest.mark.parametrize(("found", "told"), [(None, "no compiled kernels"), (_Without(), "without avx512_bf16")])
def test_a_machine_that_cannot_says_so(found: object, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if found is not None and kernels is None:
        pytest.skip("needs a C compiler")
    for module in (precision, compiled):
        monkeypatch.setattr(module, "library", lambda name: found)
    net = Net(NETS["dense"], precision="bf16")
    with torch.no_grad(), pytest.raises(CaffeError, match=told):
        net(torch.randn(3, 4, 5, 2))


def test_other_devices_multiply_layer_by_layer() -> None:
    """What runs on a GPU, here called directly: products in bfloat16, sums and switches in float32."""
    text = (
        inputs((2, 6, 8, 8))
        + conv("a", "x0", "num_output: 7 kernel_size: 3")
        + relu("a")
        + pool("p", "a", "kernel_size: 2")
    )
    net, exact, given = drawn(text)
    blobs, wanted = dict(given), exact({k: v.double() for k, v in given.items()})["p"]
    with torch.no_grad():
        for node, module in net.nodes[1:]:
            tops = precision.call_in_bf16(module, node, [blobs[b] for b in node.bottoms])
            blobs.update(zip(node.tops, tops if isinstance(tops, tuple) else (tops,), strict=True))
    assert blobs["p"].dtype == torch.bfloat16
    assert 1e-4 < (blobs["p"] - wanted).abs().max() / wanted.abs().max() < 4 * ROUNDING


@needs_half
def test_the_command(tmp_path: Path) -> None:
    from PIL import Image

    from caffe_port.tools import segment

    text = inputs((1, 3, 32, 32)).replace("x0", "data") + conv("c", "data", "num_output: 21 kernel_size: 3 pad: 1")
    (tmp_path / "net.prototxt").write_text(text)
    net = Net(text)
    with torch.no_grad():
        net.c.weight.normal_(0, 0.1)
    net.save(tmp_path / "net.caffemodel")
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / "x.png")
    found = {}
    for how in ("fp32", "bf16"):
        out = tmp_path / how
        given = ["--prototxt", tmp_path / "net.prototxt", "--weights", tmp_path / "net.caffemodel", "--precision", how]
        with pytest.raises(SystemExit, match="0"):
            segment.main([str(a) for a in (tmp_path / "x.png", *given, "-o", out, "--maps", "-q")])
        found[how] = np.load(out / "x.npz")["maps"]
    off = np.abs(found["fp32"] - found["bf16"])
    assert 0 < off.mean() < 0.005
