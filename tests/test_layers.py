"""What layers keep, draw, refuse and take in both precisions; their numbers are in test_layers_reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reference import EMBEDDED, Case, cases

import caffe_port
from caffe_port.errors import CaffeError
from caffe_port.formats.meanfile import write_mean
from caffe_port.random import Stream, set_random_seed
from caffe_port.tools.replay import replay


def inputs(**shapes: tuple[int, ...]) -> str:
    """Input layers of these shapes."""
    return "".join(
        f"layer {{ name: '{name}' type: 'Input' top: '{name}' input_param {{ shape {{"
        + "".join(f" dim: {n}" for n in shape)
        + " } } }\n"
        for name, shape in shapes.items()
    )


def one(kind: str, body: str = "", bottoms: str = "x", tops: str = "y", name: str = "l") -> str:
    """A layer."""
    ends = [f"bottom: '{b}'" for b in bottoms.split()] + [f"top: '{t}'" for t in tops.split()]
    return f"layer {{ name: '{name}' type: '{kind}' {' '.join(ends)} {body} }}\n"


@pytest.mark.parametrize("case", cases("bvlc_layers", "bvlc") + cases("noh_layers", "noh"), ids=str)
def test_double_precision(case: Case) -> None:
    net = caffe_port.Net(case.prototxt, phase=case.phase, dialect=case.dialect).double()
    wrong = [str(c) for c in replay(net, case.reference, forwards=case.forwards) if not c.ok]
    assert not wrong
    assert {blob.data.dtype for blob in net.blobs.values()} == {np.dtype("float64")}


DRAWN = (
    inputs(x=(4, 2, 3), cont=(4, 2))
    + """
layer { name: 'lstm' type: 'LSTM' bottom: 'x' bottom: 'cont' top: 'a' recurrent_param { num_output: 3
  weight_filler { type: 'uniform' min: -1 max: 1 } bias_filler { type: 'gaussian' } } }
layer { name: 'rnn' type: 'RNN' bottom: 'a' bottom: 'cont' top: 'b' recurrent_param { num_output: 3
  weight_filler { type: 'gaussian' } bias_filler { type: 'uniform' } } }
layer { name: 'first' type: 'InnerProduct' bottom: 'b' top: 'c' param { name: 'w' } inner_product_param {
  num_output: 3 axis: 2 weight_filler { type: 'gaussian' } bias_filler { type: 'uniform' } } }
layer { name: 'second' type: 'InnerProduct' bottom: 'c' top: 'd' param { name: 'w' } inner_product_param {
  num_output: 3 axis: 2 weight_filler { type: 'gaussian' } bias_filler { type: 'uniform' } } }
layer { name: 'noise' type: 'DummyData' top: 'e' top: 'f' dummy_data_param { shape { dim: 2 dim: 3 }
  data_filler { type: 'uniform' } data_filler { type: 'constant' value: 2 } } }
layer { name: 'last' type: 'InnerProduct' bottom: 'e' top: 'g' inner_product_param { num_output: 2
  weight_filler { type: 'xavier' } bias_filler { type: 'uniform' } } }
"""
)


def test_draws_of_recurrent_shared_and_dummy_layers_are_real_caffes() -> None:
    """Caffe draws a recurrent layer's weights once a step, and a shared weight once a layer."""
    theirs = np.load(EMBEDDED / "bvlc_corners" / "draws.npz")
    set_random_seed(7)
    net = caffe_port.Net(DRAWN)
    for name, blobs in net.params.items():
        for i, blob in enumerate(blobs):
            assert np.array_equal(blob.data, theirs[f"param/{name}/{i}"]), (name, i)
    assert np.array_equal(net.blobs["f"].data, theirs["before/f"])
    for i in range(2):
        net.forward()
        assert np.array_equal(net.blobs["e"].data, theirs[f"e/{i}"])
    net.blobs["f"].data[...] = 5
    net.forward()
    assert np.array_equal(net.blobs["f"].data, theirs["f/after"])


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        ("shape { dim: 2 dim: 3 }", [(2, 3), (2, 3)]),
        ("shape { dim: 2 } shape { }", [(2,), ()]),
        ("num: 2 channels: 3 height: 1 height: 4 width: 5", [(2, 3, 1, 5), (2, 3, 4, 5)]),
    ],
)
def test_dummy_datas_shapes(body: str, shapes: list[tuple[int, ...]]) -> None:
    net = caffe_port.Net(one("DummyData", f"dummy_data_param {{ {body} }}", "", "a b"))
    net.forward()
    assert [net.blobs[b].shape for b in "ab"] == shapes
    assert not any(net.blobs[b].data.any() for b in "ab")


POOL = "pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }"


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution", "Im2col"])
def test_dilation_of_one_tap_is_left_out(kind: str) -> None:
    """It means nothing, and oneDNN reads outside of its memory in some such shapes."""
    body = "convolution_param { num_output: 4 kernel_h: 3 kernel_w: 1 dilation: 3 }"
    layer = caffe_port.Net(inputs(x=(2, 4, 9, 5)) + one(kind, body)).l
    assert layer.dilation == (3, 1)


def test_stochastic_pooling() -> None:
    """Against the loops of pooling_layer.cu, on the same draws."""
    x = torch.rand(2, 3, 6, 7)
    net = caffe_port.Net(inputs(x=tuple(x.shape)) + one("Pooling", POOL), phase="TRAIN")
    set_random_seed(3)
    picked = net(x=x)["y"].numpy()
    weighted = caffe_port.Net(inputs(x=tuple(x.shape)) + one("Pooling", POOL))(x=x)["y"].numpy()
    drawn = Stream(3).uniform(0, 1, picked.size).reshape(picked.shape)
    assert picked.shape == (2, 3, 3, 3)
    for n, c, i, j in np.ndindex(picked.shape):
        window = x[n, c, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].numpy().ravel()
        sums = window.cumsum()
        assert picked[n, c, i, j] == window[np.argmax(sums >= drawn[n, c, i, j] * sums[-1])]
        assert np.isclose(weighted[n, c, i, j], (window**2).sum() / sums[-1])


def test_parameter_diffs_are_replaced_where_others_add_up() -> None:
    text = "force_backward: true\n" + inputs(x=(2, 3))
    text += one("Parameter", "parameter_param { shape { dim: 2 dim: 3 } }", "", "w")
    text += one("Eltwise", "eltwise_param { operation: PROD }", "x w", "z", "product")
    text += one("Scale", "", "z", "y", "s")
    net = caffe_port.Net(text, phase="TRAIN")
    net.params["l"][0].data[...] = 2
    net.blobs["x"].data[...] = 3
    for passes in (1, 2):
        net.forward()
        net.blobs["y"].diff[...] = 1
        net.backward()
        assert (net.params["l"][0].diff == 3).all()
        assert (net.params["s"][0].diff == 12 * passes).all()


def test_recurrent_states_are_reset_with_another_number_of_streams() -> None:
    text = inputs(x=(3, 2, 4), cont=(3, 2)) + one(
        "LSTM", "recurrent_param { num_output: 5 weight_filler { type: 'gaussian' } }", "x cont"
    )
    net = caffe_port.Net(text)
    x, going_on = torch.randn(3, 2, 4), torch.ones(3, 2)
    first, second = net(x=x, cont=going_on)["y"], net(x=x, cont=going_on)["y"]
    assert not torch.allclose(first, second)
    net(x=x[:, :1], cont=going_on[:, :1])
    assert torch.allclose(net(x=x, cont=going_on)["y"], first)
    assert set(net.state_dict()) == {"l.W_xc", "l.b_c", "l.W_hc"}


@pytest.mark.parametrize("chosen", [[0, 2, 3], [1], []])
def test_filters_tops_take_the_shape_of_what_was_chosen(chosen: list[int]) -> None:
    layers = one("ReLU", "", "x", "r") + one("Filter", "", "r s", "y", "f")
    net = caffe_port.Net("force_backward: true\n" + inputs(x=(4, 3), s=(4,)) + layers)
    net.blobs["x"].data[...] = np.arange(1, 13).reshape(4, 3)
    net.blobs["s"].data[...] = np.isin(np.arange(4), chosen)
    assert np.array_equal(net.forward()["y"], net.blobs["x"].data[chosen])
    net.blobs["y"].diff[...] = 1
    net.backward()
    assert np.array_equal(net.blobs["x"].diff.any(1), np.isin(np.arange(4), chosen))


def test_infogain_matrix_from_a_file(tmp_path: Path) -> None:
    matrix = np.random.RandomState(0).rand(1, 4, 4).astype(np.float32)
    write_mean(tmp_path / "h.binaryproto", matrix)
    x, t = torch.randn(3, 4), torch.tensor([0.0, 3.0, 2.0])
    by_file = one("InfogainLoss", f"infogain_loss_param {{ source: '{tmp_path}/h.binaryproto' }}", "x t")
    net = caffe_port.Net(inputs(x=(3, 4), t=(3,)) + by_file)
    third = caffe_port.Net(inputs(x=(3, 4), t=(3,), h=(4, 4)) + one("InfogainLoss", "", "x t h"))
    assert torch.equal(net(x=x, t=t)["y"], third(x=x, t=t, h=torch.from_numpy(matrix[0]))["y"])
    assert not net.state_dict()


def test_batch_norm_learns_nothing_but_keeps_count() -> None:
    fixed = "param { lr_mult: 0 decay_mult: 0 }"
    net = caffe_port.Net(inputs(x=(4, 3)) + one("BatchNorm", f"{fixed} {fixed}"), phase="TRAIN")
    assert not list(net.parameters())
    x = torch.randn(4, 3)
    for _ in range(2):
        net(x=x)
    state = net.state_dict()
    assert torch.allclose(state["l.mean"] / state["l.scale_factor"], x.mean(0))
    assert torch.allclose(state["l.variance"] / state["l.scale_factor"], x.var(0))


WRONG = [
    (inputs(x=(2, 3)) + one("AbsVal", tops="x"), "not work in place"),
    (inputs(x=(2, 3)) + one("ArgMax", "argmax_param { top_k: 4 }"), "a number from 1 to 3"),
    (inputs(x=(2, 3), t=(3,)) + one("Accuracy", "", "x t"), "a label for each position"),
    (inputs(x=(2, 3)) + one("BatchNorm", "param { lr_mult: 1 }"), "as statistics are not learned"),
    (inputs(x=(2, 3), i=(2, 1)) + one("BatchReindex", "", "x i"), "a vector of their indices"),
    (inputs(x=(2, 3, 4), s=(4,)) + one("Scale", "", "x s"), "equal numbers on these axes"),
    (inputs(x=(2, 3)) + one("Scale", "scale_param { num_axes: 3 }"), "axes of a blob of shape (2, 3)"),
    (inputs(x=(2, 3)) + one("Embed", "embed_param { num_output: 2 }"), "at least 1 each"),
    (inputs(x=(2, 3)) + one("Exp", "exp_param { base: 0 }"), "a number above 0, or -1 for e"),
    (inputs(x=(2, 3)) + one("Log", "log_param { base: 1 }"), "another base"),
    (inputs(x=(2, 3), s=(3,)) + one("Filter", "", "x s"), "one for each item"),
    (inputs(x=(2, 3)) + one("Flatten", "flatten_param { axis: 1 end_axis: 0 }"), "an end that is not before"),
    (inputs(x=(2, 3), t=(2,)) + one("InfogainLoss", "", "x t"), "a third bottom, or infogain_loss_param"),
    (inputs(x=(2, 3, 4), c=(3, 2)) + one("LSTM", "recurrent_param { num_output: 2 }", "x c"), "marks (2, 3)"),
    (inputs(x=(2, 3, 4), c=(2, 3)) + one("LSTM", "", "x c"), "at least 1"),
    (inputs(x=(2, 3, 4), c=(2, 3)) + one("RNN", "recurrent_param { expose_hidden: true }", "x c"), "3 bottoms"),
    (inputs(x=(2, 3, 4, 5, 6)) + one("MVN"), "4 axes at most"),
    (inputs(x=(2, 3, 4, 5)) + one("Pooling", POOL.replace("}", "pad: 1 }")), "no padding, one top"),
    (inputs(x=(2, 3)) + one("Reshape", "reshape_param { shape { dim: -1 dim: -1 } }"), "at most one -1"),
    (inputs(x=(2, 3)) + one("Reshape", "reshape_param { shape { dim: 4 dim: -1 } }"), "a multiple of 4"),
    (inputs(x=(2, 3)) + one("Slice", "slice_param { slice_point: 2 slice_point: 1 }", tops="a b c"), "rising points"),
    (inputs(x=(2, 3)) + one("Slice", "", tops="a b"), "a divisor of it"),
    (inputs(x=(2, 3, 5, 5)) + one("SPP", "spp_param { pyramid_height: 3 }"), "less padding than kernel"),
    (inputs(x=(2, 3)) + one("Tile"), "at least 1"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said for _, said in WRONG])
def test_wrong_definitions(text: str, said: str) -> None:
    with pytest.raises(CaffeError) as caught:
        caffe_port.Net(text)
    assert said in str(caught.value)
    assert "layer l (" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("type: CONCAT bottom: 'x' bottom: 'x' concat_param { concat_dim: 2 }", "0 or 1"),
        ("type: SLICE bottom: 'x' slice_param { slice_dim: 3 }", "0 or 1"),
        ("type: SLICE bottom: 'x' slice_param { axis: 1 }", "slice_param.axis is set"),
        ("type: ACCURACY bottom: 'x' bottom: 't' accuracy_param { ignore_label: 1 }", "ignore_label is set"),
        ("type: MVN bottom: 'x' mvn_param { eps: 1 }", "mvn_param.eps is set"),
    ],
)
def test_what_the_fork_does_not_know(layer: str, said: str) -> None:
    text = "input: 'x' input_dim: 2 input_dim: 4 input_dim: 1 input_dim: 1\n"
    text += "input: 't' input_dim: 2 input_dim: 1 input_dim: 1 input_dim: 1\n"
    with pytest.raises(CaffeError) as caught:
        caffe_port.Net(text + f"layers {{ name: 'l' top: 'y' {layer} }}", dialect="noh")
    assert said in str(caught.value)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_backward_leaves_what_forward_made(phase: str) -> None:
    """Also where forward kept nothing for it: what was drawn or carried over is not drawn or carried over once more."""
    text = "force_backward: true\n" + inputs(x=(3, 2, 4), cont=(3, 2))
    noise = "dummy_data_param { shape { dim: 3 dim: 2 dim: 4 } data_filler { type: 'uniform' } }"
    text += one("DummyData", noise, "", "d") + one("Power", "power_param { scale: 2 }", "x", "x", "p")
    text += one("Eltwise", "", "x d", "s", "sum")
    text += one("BatchNorm", "batch_norm_param { use_global_stats: false }", "s", "b", "n")
    text += one("LSTM", "recurrent_param { num_output: 5 weight_filler { type: 'gaussian' } }", "b cont", "y", "r")
    net = caffe_port.Net(text, phase=phase)
    net.blobs["cont"].data[...] = net.blobs["x"].data[...] = 1
    for _ in range(2):
        net.forward()
        made = {name: blob.data.copy() for name, blob in net.blobs.items()}
        kept = [p.data.copy() for p in net.params["n"]]
        net.backward()
        assert all(np.array_equal(blob.data, made[name]) for name, blob in net.blobs.items())
        assert all(np.array_equal(p.data, k) for p, k in zip(net.params["n"], kept, strict=True))


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_large_weights_and_few_pixels_are_one_product(kind: str) -> None:
    """Such layers go another way than the references' small ones; the sums over windows are written out here."""
    rng = np.random.default_rng(4)
    shape = (2, 64, 3, 5)
    body = "num_output: 32 kernel_h: 3 kernel_w: 6 stride_h: 1 stride_w: 2 pad_h: 1 pad_w: 2"
    net = caffe_port.Net(inputs(x=shape) + one(kind, f"convolution_param {{ {body} }}"), "TEST")
    x, weight, bias = (rng.standard_normal(s) for s in (shape, net.params["l"][0].data.shape, (32,)))
    assert weight.size >= 1 << 15
    for blob, value in ((net.blobs["x"], x), (net.params["l"][0], weight), (net.params["l"][1], bias)):
        blob.data[...] = value
    net.forward()
    ours = net.blobs["y"].data
    by = np.zeros(ours.shape)
    for i, j, k, m in np.ndindex(*(ours.shape if kind == "Convolution" else shape)[2:], 3, 6):
        row, column = i + k - 1, 2 * j + m - 2  # where tap (k, m) of window (i, j) lies
        if kind == "Convolution" and 0 <= row < 3 and 0 <= column < 5:
            by[:, :, i, j] += x[:, :, row, column] @ weight[:, :, k, m].T
        elif kind == "Deconvolution" and 0 <= row < ours.shape[2] and 0 <= column < ours.shape[3]:
            by[:, :, row, column] += x[:, :, i, j] @ weight[:, :, k, m]
    assert np.abs(ours - by - bias[:, None, None]).max() < 1e-4 * np.abs(by).max()


@pytest.mark.parametrize(("type_name", "expected"), [("Scale", [2, -3]), ("Bias", [3, -2])])
def test_an_operand_that_is_a_bottom_is_not_fused(type_name: str, expected: list[int]) -> None:
    """A convolution takes in only factors and terms that are parameters."""
    net = caffe_port.Net(
        inputs(x=(1, 1, 2, 2), f=(2,))
        + "layer { name: 'c' type: 'Convolution' bottom: 'x' top: 'c' convolution_param { num_output: 2 kernel_size: 2"
        " weight_filler { value: 0.25 } bias_term: false } }"
        f" layer {{ name: 's' type: '{type_name}' bottom: 'c' bottom: 'f' top: 's' }}"
    )
    with torch.inference_mode():
        found = net(x=torch.ones(1, 1, 2, 2), f=torch.tensor([2.0, -3.0]))["s"]
    assert found.flatten().tolist() == expected
