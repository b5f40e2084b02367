"""Sizes that no blob can have, or that no machine has room for: one line with the bytes, before memory is taken."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

import caffe_port
from caffe_port.errors import CaffeError
from caffe_port.formats import open_weights
from caffe_port.layers import memory
from caffe_port.net import Net
from caffe_port.schema import SCHEMA


def net(dims: str, layer: str = "") -> str:
    shape = " ".join(f"dim: {n}" for n in dims.split())
    text = f'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {shape} }} }} }}'
    return text + (f'layer {{ name: "t" bottom: "x" top: "t" {layer} }}' if layer else "")


def dummy(param: str) -> str:
    return f'layer {{ name: "x" type: "DummyData" top: "x" dummy_data_param {{ {param} }} }}'


PLANE = "1 3 4 4"
REFUSED = {
    "weights of a convolution": (
        net(PLANE, 'type: "Convolution" convolution_param { num_output: 2147483647 kernel_size: 1 }'),
        "weight of shape .* or 25,769,803,764 bytes",
    ),
    "weights of an inner product": (
        net(PLANE, 'type: "InnerProduct" inner_product_param { num_output: 2147483647 }'),
        "or 412,316,860,224 bytes",
    ),
    "an input of 10^12": (net("1000000 1000000"), "top x of shape .* or 4,000,000,000,000 bytes"),
    "an input past 2^63": (net("4611686018427387904 4"), "top x of shape"),
    "an input of -1": (net("-1 3"), r"top x of shape \(-1, 3\)"),
    "400 axes": (net("1 " * 400), "top x of 400 axes"),
    "dummy data of 10^12": (dummy("shape { dim: 1000000 dim: 1000000 }"), "bytes"),
    "dummy data of -3": (dummy("shape { dim: -3 }"), r"\(-3,\)"),
    "dummy data of (2^32)^4": (
        dummy("num: 4294967295 channels: 4294967295 height: 4294967295 width: 4294967295"),
        "bytes",
    ),
    "an LSTM of 2^32 - 1": (
        net("2 3 4")
        + net("2 3").replace('"x"', '"k"')
        + 'layer { name: "l" type: "LSTM" bottom: "x" bottom: "k" top: "l" '
        + "recurrent_param { num_output: 4294967295 } }",
        "W_xc of shape",
    ),
    "a tile of 10^9": (net("1 3", 'type: "Tile" tile_param { tiles: 1000000000 }'), "or 12,000,000,000 bytes"),
    "a pad of 2 * 10^9": (
        net(PLANE, 'type: "Convolution" convolution_param { num_output: 1 kernel_size: 1 pad: 2000000000 }'),
        "top t of shape",
    ),
    "a stride of 10^6": (
        net(PLANE, 'type: "Deconvolution" convolution_param { num_output: 1 kernel_size: 3 stride: 1000000 }'),
        "top t of shape",
    ),
    "an embedding of 10^18": (
        net("5", 'type: "Embed" embed_param { num_output: 1000000000 input_dim: 1000000000 }'),
        "weight of shape",
    ),
    "columns of 10^10": (net(PLANE, 'type: "Im2col" convolution_param { kernel_size: 100000 pad: 100000 }'), "bytes"),
    "an empty axis beside one past 2^31": (net("0 9223372036854775807"), "top x of shape"),
    "no rows to convolve": (
        net("2 3 0 6", 'type: "Convolution" convolution_param { num_output: 1 kernel_size: 1 pad: 1 }'),
        "a bottom of shape",
    ),
    "no numbers to normalise": (net("0 3 2 2", 'type: "MVN"'), "a bottom of shape"),
    "a stride of 2^32 - 1": (
        net(PLANE, 'type: "Pooling" pooling_param { kernel_size: 2 stride: 4294967295 }'),
        "stride .4294967295|windows over a bottom",
    ),
    "windows far behind the bottom": (
        net(PLANE, 'type: "Pooling" pooling_param { kernel_size: 3 stride: 2147483647 }'),
        "windows over a bottom of shape",
    ),
    "a window of 2^32 - 1": (
        net(PLANE, 'type: "LRN" lrn_param { local_size: 4294967295 norm_region: WITHIN_CHANNEL }'),
        "local_size 4294967295",
    ),
    "eps -1": (net(PLANE, 'type: "BatchNorm" batch_norm_param { eps: -1 }'), "eps -1"),
    "a filler of nan": (
        net("1 3", 'type: "InnerProduct" inner_product_param { num_output: 2 bias_filler { value: nan } }'),
        "constant filler: expected a number, found value: nan",
    ),
    "a gaussian of nan": (
        net("1 3", 'type: "Scale" scale_param { filler { type: "gaussian" mean: nan } }'),
        "gaussian filler: expected a number, found mean: nan",
    ),
    "dummy data of nan": (dummy("shape { dim: 3 } data_filler { value: nan }"), "found value: nan"),
}


@pytest.mark.parametrize(("text", "says"), REFUSED.values(), ids=REFUSED)
def test_refused_when_built(text: str, says: str) -> None:
    with pytest.raises(CaffeError, match=says) as e:
        Net(text)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 1000


def test_an_input_given_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaffeError, match="top t of shape"):
        Net(net("1 1 4 4", 'type: "Tile" tile_param { tiles: 1000 axis: 0 }')).reshape_for({"x": (3000, 1, 1000, 1000)})
    monkeypatch.setattr(memory, "_machine", lambda: 4000)
    with pytest.raises(CaffeError, match=r"less than is free of .* weight of shape .* takes 12,000 bytes"):
        Net(net("1 1000", 'type: "InnerProduct" inner_product_param { num_output: 3 }'))
    Net(net("1 100", 'type: "InnerProduct" inner_product_param { num_output: 3 }'))


@pytest.mark.parametrize("param", ["base: 1e30 shift: 1e30", "shift: 1000"])
def test_exp_overflows_as_caffe_does(param: str) -> None:
    """pow and exp in C give infinity."""
    y = Net(net("1 3", f'type: "Exp" exp_param {{ {param} }}'))(x=torch.ones(1, 3))["t"]
    assert torch.isinf(y).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tiles_lie_one_after_the_other(axis: int) -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    y = Net(net("2 3 4", f'type: "Tile" tile_param {{ tiles: 3 axis: {axis} }}'))(x=x)["t"]
    np.testing.assert_array_equal(y.numpy(), np.concatenate([x.numpy()] * 3, axis))


def timed(limit: float):
    class Timed:
        def __enter__(self) -> None:
            self.start = time.process_time()

        def __exit__(self, *_: object) -> None:
            assert time.process_time() - self.start < limit

    return Timed()


def test_a_window_of_two_million_channels() -> None:
    for region in ("ACROSS_CHANNELS", "WITHIN_CHANNEL"):
        made = Net(net(PLANE, f'type: "LRN" lrn_param {{ local_size: 2000001 norm_region: {region} }}'))
        with timed(5):
            assert torch.isfinite(made(x=torch.ones(1, 3, 4, 4))["t"]).all()


@pytest.mark.parametrize("last", ["", 'layer { name: "s" type: "Scale" bottom: "x" top: "s" }'])
def test_a_blob_that_thousands_of_layers_read(last: str) -> None:
    many = "".join(f'layer {{ name: "r{i}" type: "ReLU" bottom: "x" top: "y{i}" }}' for i in range(3000))
    made = caffe_port.Net(net("1 3") + many + last, caffe_port.TEST)
    made.blobs["x"].data[...] = [[-1, 0, 2]]
    with timed(4):
        made.forward()
    np.testing.assert_array_equal(made.blobs["y2999"].data, [[0, 0, 2]])


def test_data_and_diff_that_alternate(tmp_path) -> None:
    numbers = 300_000
    blob = b"".join(b"\x2d" + np.float32(i).tobytes() + b"\x35" + np.float32(-i).tobytes() for i in range(numbers))
    message = SCHEMA.BlobProto.FromString(blob)
    assert len(message.data) == len(message.diff) == numbers
    message.shape.dim.append(numbers)
    shape = message.shape.SerializeToString()
    inner = blob + b"\x3a" + bytes([len(shape)]) + shape

    def varint(n: int) -> bytes:
        return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])

    layer = b"\x0a\x02ip" + b"\x3a" + varint(len(inner)) + inner
    (tmp_path / "w.caffemodel").write_bytes(b"\xa2\x06" + varint(len(layer)) + layer)
    with timed(2):
        (found,) = open_weights(tmp_path / "w.caffemodel").layers
    np.testing.assert_array_equal(found.blobs[0], np.arange(numbers, dtype=np.float32))
    np.testing.assert_array_equal(found.diffs[0], -np.arange(numbers, dtype=np.float32))
