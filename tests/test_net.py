"""Net as in pycaffe and as a module of PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import caffe_port
from caffe_port import CaffeError
from caffe_port.errors import DefinitionError, LayerError, ShapeError, WeightsError
from caffe_port.net import Net

SMALL = """
name: "small"
force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 7 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "gaussian" std: 0.3 }
  bias_filler { type: "constant" value: 0.1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "ip.score" type: "InnerProduct" bottom: "conv" top: "score"
  inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 0.3 } } }
"""
BN = """
input: "x" input_dim: 3 input_dim: 2 input_dim: 5 input_dim: 4
force_backward: true
layers { name: "c" type: CONVOLUTION bottom: "x" top: "y" convolution_param { num_output: 3 kernel_size: 1 } }
layers { name: "b" type: BN bottom: "y" top: "y" bn_param { scale_filler { type: "constant" value: 1 } } }
"""


def net(text: str = SMALL, **options) -> caffe_port.Net:
    caffe_port.set_random_seed(7)
    net = caffe_port.Net(text, **options)
    for name in net.inputs:
        net.blobs[name].data[...] = np.random.RandomState(3).standard_normal(net.blobs[name].data.shape)
    return net


def by_hand(net: caffe_port.Net) -> np.ndarray:
    """The small net in plain torch, from the current parameters."""
    w = {k: v.detach().double() for k, v in net.state_dict().items()}
    x = torch.from_numpy(net.blobs["data"].data).double()
    x = torch.relu(torch.conv2d(x, w["conv.weight"], w["conv.bias"]))
    return (x.flatten(1) @ w["ip.score.weight"].T + w["ip.score.bias"]).numpy()


def test_names_and_shapes() -> None:
    n = net()
    assert list(n.blobs) == ["data", "conv", "score"]
    assert (n.inputs, n.outputs, n._layer_names) == (["data"], ["score"], ["data", "conv", "relu", "ip.score"])
    assert {k: tuple(v.shape) for k, v in n.state_dict().items()} == {
        "conv.weight": (4, 3, 3, 3),
        "conv.bias": (4,),
        "ip.score.weight": (2, 60),
        "ip.score.bias": (2,),
    }
    assert n.blobs["conv"].shape == (2, 4, 5, 3)
    assert (n.blobs["score"].num, n.blobs["score"].channels, n.blobs["score"].height) == (2, 2, 1)
    n.load_state_dict(n.state_dict())


def test_noh_shows_four_axes_and_no_input_layer() -> None:
    n = net(BN)
    assert n.dialect.name == "noh"
    assert n._layer_names == ["c", "b"]
    assert [p.data.shape for p in n.params["c"]] == [(3, 2, 1, 1), (1, 1, 1, 3)]
    assert tuple(n.state_dict()["c.bias"].shape) == (3,)


def test_what_is_written_to_data_is_used() -> None:
    n = net()
    for _ in range(3):
        n.blobs["data"].data[...] *= 1.5
        np.testing.assert_allclose(n.forward()["score"], by_hand(n), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["array", "held array", "torch", "torch data", "load_state_dict", "replace"])
def test_changed_parameters_are_seen(how: str) -> None:
    """Packed weights follow every change of the parameters."""
    n = net()
    for _ in range(3):
        n.forward()
    held = n.params["conv"][0].data if how == "held array" else None
    for _ in range(3):
        if how == "array":
            n.params["conv"][0].data[...] *= -0.7
        elif held is not None:
            held[1] += 0.3
        elif how == "torch":
            with torch.no_grad():
                n.get_parameter("conv.weight").mul_(-0.7)
        elif how == "torch data":
            n.get_parameter("conv.weight").data.mul_(-0.7)
        elif how == "load_state_dict":
            n.load_state_dict({k: v * 0.9 for k, v in n.state_dict().items()})
        else:
            n.layers[1].weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
        np.testing.assert_allclose(n.forward()["score"], by_hand(n), rtol=1e-5, atol=1e-6)


def test_running_in_parts_takes_blobs_as_they_are() -> None:
    n = net()
    whole = n.forward()["score"].copy()
    n.forward(end="relu")
    middle = n.blobs["conv"].data.copy()
    n.blobs["data"].data[...] = 0
    np.testing.assert_allclose(n.forward(start="ip.score")["score"], whole, rtol=1e-6)
    n.blobs["conv"].data[...] = 2 * middle
    assert not np.allclose(n.forward(start="ip.score")["score"], whole)


def test_backward_gives_autograds_gradients_and_adds_parameter_diffs() -> None:
    n = net()
    n.forward()
    seed = np.random.RandomState(4).standard_normal((2, 2)).astype(np.float32)
    n.backward(score=seed)
    x = torch.from_numpy(n.blobs["data"].data.copy()).requires_grad_()
    with torch.enable_grad():
        score = n(data=x)["score"]
    grads = torch.autograd.grad(score, [x, *n.parameters()], torch.from_numpy(seed))
    np.testing.assert_allclose(n.blobs["data"].diff, grads[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(n.params["conv"][0].diff, grads[1], rtol=1e-4, atol=1e-6)
    n.backward()
    np.testing.assert_allclose(n.params["conv"][0].diff, 2 * grads[1], rtol=1e-4, atol=1e-6)
    n.clear_param_diffs()
    assert not n.params["conv"][0].diff.any()


def test_bn_of_the_fork_overwrites_its_diffs_where_others_add() -> None:
    n = net(BN)
    n.forward()
    once: list[np.ndarray] = []
    for _ in range(2):
        n.backward(y=np.random.RandomState(5).standard_normal((3, 3, 5, 4)).astype(np.float32))
        diffs = [n.params["b"][0].diff.copy(), n.params["c"][0].diff.copy()]
        once = once or diffs
    np.testing.assert_allclose(diffs[0], once[0], rtol=1e-6)
    np.testing.assert_allclose(diffs[1], 2 * once[1], rtol=1e-4, atol=1e-7)


def test_diff_of_an_in_place_blob_is_the_first_versions() -> None:
    n = net()
    n.forward()
    n.backward(score=np.ones((2, 2), np.float32))
    after_relu = (np.ones((2, 2)) @ n.state_dict()["ip.score.weight"].numpy()).reshape(2, 4, 5, 3)
    np.testing.assert_allclose(n.blobs["conv"].diff, after_relu * (n.blobs["conv"].data > 0), rtol=1e-5, atol=1e-6)


def test_tensors_in_tensors_out() -> None:
    n = net().eval()
    x = torch.randn(2, 3, 7, 5)
    with torch.no_grad():
        first, later = n(data=x)["score"], [n(data=x)["score"] for _ in range(3)]
    assert isinstance(first, torch.Tensor) and not first.requires_grad
    for out in later:
        torch.testing.assert_close(out, first, rtol=1e-5, atol=1e-6)
    n.double()
    with torch.no_grad():
        torch.testing.assert_close(n(data=x.double())["score"].float(), first, rtol=1e-5, atol=1e-6)
    n.forward()
    assert n.blobs["score"].data.dtype == np.float64


def test_reshape_brings_all_blobs_after_the_input() -> None:
    n = net()
    n.blobs["data"].reshape(5, 3, 7, 5)
    n.reshape()
    assert n.blobs["score"].shape == (5, 2)
    assert n.forward(data=np.ones((5, 3, 7, 5)))["score"].shape == (5, 2)
    n.blobs["data"].reshape(5, 3, 9, 9)
    with pytest.raises(ShapeError, match=r"ip.score.*expected 60"):
        n.forward()


def test_saved_weights_come_back(tmp_path) -> None:
    n = net()
    for name in ("w.caffemodel", "w.caffemodel.h5"):
        n.save(tmp_path / name)
        again = caffe_port.Net(SMALL, str(tmp_path / name), caffe_port.TEST)
        for k, v in n.state_dict().items():
            assert torch.equal(again.state_dict()[k], v)
    n.save(tmp_path / "w.caffemodel")  # an existing file is replaced


def test_account_of_loading(tmp_path) -> None:
    n = net()
    n.save(tmp_path / "w.caffemodel")
    renamed = net(SMALL.replace('"conv" type', '"conv_new" type'))
    account = renamed.copy_from(tmp_path / "w.caffemodel")
    assert account.copied == ["ip.score.weight", "ip.score.bias"]
    assert account.missing == ["conv_new.weight", "conv_new.bias"]
    assert account.unexpected == ["conv"]
    wider = net(SMALL.replace("num_output: 4", "num_output: 5"))
    with pytest.raises(WeightsError, match=r"conv\[0\].*\(5, 3, 3, 3\).*\(4, 3, 3, 3\).*rename the layer"):
        wider.copy_from(tmp_path / "w.caffemodel")
    with pytest.raises(WeightsError, match=r"layer conv: expected 1 .*2 blobs"):
        net(SMALL.replace("num_output: 4", "num_output: 4 bias_term: false")).copy_from(tmp_path / "w.caffemodel")
    with pytest.raises(WeightsError, match="no layer of the net"):
        net(BN).copy_from(tmp_path / "w.caffemodel")
    account = wider.load(tmp_path / "w.caffemodel", ignore_mismatched=True)
    assert [m[0] for m in account.mismatched] == ["conv.weight", "conv.bias", "ip.score.weight"]
    with pytest.raises(WeightsError, match="missing"):
        renamed.load(tmp_path / "w.caffemodel", strict=True)


SHARED = """
input: "a" input_shape { dim: 2 dim: 3 }
layer { name: "p" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } inner_product_param { num_output: 3
  bias_term: false weight_filler { type: "gaussian" std: 1 } } }
layer { name: "q" type: "InnerProduct" bottom: "b" top: "c" param { name: "w" } inner_product_param { num_output: 3
  bias_term: false weight_filler { type: "gaussian" std: 1 } } }
force_backward: true
"""


def test_shared_parameters_are_one_and_their_diffs_add() -> None:
    n = net(SHARED)
    p, q = n.params["p"][0], n.params["q"][0]
    p.data[...] = np.eye(3) * 2
    assert np.array_equal(q.data, p.data)
    n.forward(a=np.ones((2, 3)))
    assert np.allclose(n.blobs["c"].data, 4)
    n.backward(c=np.ones((2, 3)))
    assert np.allclose(p.diff, 2 * 2 * (2 + 2) / 2)


FLAT = """
input: "a" input_shape { dim: 2 dim: 3 }
layer { name: "p" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } inner_product_param { num_output: 2
  bias_term: false weight_filler { type: "gaussian" std: 1 } } }
layer { name: "q" type: "InnerProduct" bottom: "b" top: "c" param { name: "w" share_mode: PERMISSIVE }
  inner_product_param { num_output: 3 bias_term: false weight_filler { type: "gaussian" std: 1 } } }
force_backward: true
"""


def test_permissive_sharing_asks_for_equal_counts_only() -> None:
    n = net(FLAT)
    p, q = n.params["p"][0], n.params["q"][0]
    p.data[...] = np.arange(6).reshape(2, 3)
    assert np.array_equal(q.data.ravel(), np.arange(6))
    n.forward(a=np.ones((2, 3)))
    n.backward(c=np.ones((2, 3)))
    b = n.blobs["b"].data
    from_q = np.ones((3, 2)) @ b
    from_p = (np.ones((2, 3)) @ q.data).T @ np.ones((2, 3))
    assert np.allclose(p.diff.ravel(), from_q.ravel() + from_p.ravel())
    with pytest.raises(ShapeError, match=r"p's weight, \(2, 3\).*\(3, 2\) shared as 'w'.*PERMISSIVE"):
        net(FLAT.replace("share_mode: PERMISSIVE", ""))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            SMALL.replace('bottom: "conv" top: "score"', 'bottom: "convv" top: "score"'),
            DefinitionError,
            r":\d+: .*convv.*conv",
        ),
        (
            SMALL.replace('bottom: "conv" top: "score"', 'bottom: "conv" top: "data"'),
            DefinitionError,
            r":\d+: .*'data' a second time",
        ),
        (
            SMALL.replace("kernel_size: 3", "kernel_size: 9"),
            ShapeError,
            r":\d+: layer conv .*expected at least 1 .*kernel \(9, 9\)",
        ),
        (SMALL.replace("kernel_size: 3", "kernel_size: 3 dilation: 0"), LayerError, "dilation"),
        (SMALL.replace("num_output: 4", "num_output: 4 group: 2"), LayerError, "group 2 for 3 channels"),
        (
            SMALL.replace('type: "ReLU"', 'type: "ReLu"'),
            LayerError,
            r":\d+: layer relu: unknown layer type 'ReLu' .*near: ReLU.*--plugin",
        ),
        (SMALL.replace('top: "conv" }', 'top: "conv" top: "mask" }'), LayerError, "2 tops.*--dialect noh"),
        (
            SMALL.replace('type: "ReLU" bottom: "conv" top: "conv"', 'type: "ReLU" top: "r"'),
            LayerError,
            "expected 1 bottom, found 0 bottoms",
        ),
    ],
)
def test_wrong_definitions(text: str, error: type[CaffeError], message: str) -> None:
    with pytest.raises(error, match=message):
        caffe_port.Net(text, dialect="bvlc")


def test_wrong_inputs() -> None:
    n = net()
    with pytest.raises(CaffeError, match="no input 'dat'"):
        n.forward(dat=np.ones((2, 3, 7, 5)))
    with pytest.raises(ShapeError, match="reshape the blob first"):
        n.forward(data=np.ones((3, 3, 7, 5)))
    with pytest.raises(CaffeError, match="no layer 'rellu'; near: relu"):
        n.forward(start="rellu")
    with pytest.raises(CaffeError, match="expected data"):
        n(image=torch.ones(2, 3, 7, 5))


def test_a_block_of_another_layer_is_ignored_as_caffe_ignores_it_and_listed() -> None:
    n = net(SMALL.replace('type: "ReLU"', 'type: "ReLU" pooling_param { kernel_size: 2 }'))
    assert len(n.ignored) == 1 and "pooling_param of layer relu" in n.ignored[0]


@pytest.mark.parametrize("name", ["training", "params", "a.training", "ip.training", "_plan", "phase", "forward"])
def test_a_layer_may_be_called_as_an_attribute_is(name: str) -> None:
    text = f"""input: "x" input_dim: [2, 3, 1, 1]
        layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param {{ num_output: 4 }} }}
        layer {{ name: "{name}" type: "InnerProduct" bottom: "y" top: "z" inner_product_param {{ num_output: 5 }} }}"""
    for kind in (Net, caffe_port.Net):
        net = kind(text)
        assert net.train().training
        assert not net.eval().training
        state = net.state_dict()
        assert [key for key in state if key.endswith("weight")] == ["ip.weight", f"{name}.weight"]
        state[f"{name}.weight"].fill_(1)
        state["ip.bias"].fill_(1)
        for _ in range(2):
            assert net(x=torch.zeros(2, 3, 1, 1))["z"].flatten().tolist() == [4.0] * 10
