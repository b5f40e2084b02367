"""pycaffe's Net: how it is built, what it is asked, how it runs in parts, batches and with callbacks."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffe_port
from caffe_port import TEST, TRAIN, CaffeError
from caffe_port.errors import ShapeError

NET = """
force_backward: true
layer { name: "data" type: "Input" top: "data" top: "aim"
  input_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4
  weight_filler { type: "gaussian" std: 1 } bias_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "scale" type: "Scale" bottom: "ip" top: "ip" scale_param { filler { value: 3 } } }
layer { name: "sum" type: "Eltwise" bottom: "ip" bottom: "aim" top: "sum" }
layer { name: "half" type: "Power" bottom: "sum" top: "half" power_param { scale: 0.5 } }
layer { name: "twice" type: "Power" bottom: "sum" top: "twice" power_param { scale: 2 } }
"""
CHOICE = """
layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 1 dim: 2 } } }
layer { name: "train" type: "Power" bottom: "d" top: "train" include { phase: TRAIN } }
layer { name: "test" type: "Power" bottom: "d" top: "test" include { phase: TEST } }
layer { name: "deep" type: "Power" bottom: "d" top: "deep" include { min_level: 2 } }
layer { name: "staged" type: "Power" bottom: "d" top: "staged" include { stage: "deploy" } }
"""
LOSS = """
layer { name: "d" type: "Input" top: "x" top: "y" input_param { shape { dim: 3 dim: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "z" inner_product_param { num_output: 2
  weight_filler { type: "gaussian" std: 1 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "z" bottom: "y" top: "loss" loss_weight: 0.5 }
layer { name: "more" type: "Reduction" bottom: "z" top: "more" loss_weight: 3 }
layer { name: "less" type: "EuclideanLoss" bottom: "z" bottom: "y" }
"""


@pytest.fixture
def net() -> Any:
    caffe_port.set_random_seed(5)
    return caffe_port.Net(NET, TRAIN)


def inputs() -> dict[str, np.ndarray]:
    r = np.random.RandomState(0)
    return {"data": r.standard_normal((2, 3)).astype(np.float32), "aim": r.standard_normal((2, 4)).astype(np.float32)}


def summed(net: Any, data: np.ndarray, aim: np.ndarray) -> np.ndarray:
    weight, bias = (p.data for p in net.params["ip"])
    return 3 * (data @ weight.T + bias) + aim


# -- building ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named", "tops"),
    [
        ((TRAIN,), {}, ["d", "train"]),
        ((TEST,), {}, ["d", "test"]),
        ((), {"phase": TRAIN}, ["d", "train"]),
        ((), {}, ["d", "test"]),
        ((TEST, 2), {}, ["d", "test", "deep"]),
        ((TEST,), {"level": 3, "stages": ["deploy"]}, ["d", "test", "deep", "staged"]),
        ((TEST, 0, ["deploy"]), {}, ["d", "test", "staged"]),
        ((TEST, 0, None, None), {}, ["d", "test"]),
    ],
)
def test_phase_level_and_stages_choose_layers(
    arguments: tuple[Any, ...], named: dict[str, Any], tops: list[str]
) -> None:
    shown = [name for name in caffe_port.Net(CHOICE, *arguments, **named).blobs if "split" not in name]
    assert shown == tops


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("WEIGHTS", TEST), {}),
        (("WEIGHTS",), {}),
        ((TEST,), {"weights": "WEIGHTS"}),
        ((TEST, 0, [], "WEIGHTS"), {}),
    ],
)
def test_weights_in_either_order(net: Any, tmp_path: Path, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    file = tmp_path / "w.caffemodel"
    net.save(file)
    arguments = tuple(str(file) if a == "WEIGHTS" else a for a in arguments)
    again = caffe_port.Net(NET, *arguments, **{name: str(file) for name in named})
    for mine, theirs in zip(net.params["ip"], again.params["ip"], strict=True):
        assert np.array_equal(mine.data, theirs.data)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((7,), {}),
        ((TEST,), {"phase": TEST}),
        ((TEST, 0, [], None, 1), {}),
        ((), {"wieghts": "x"}),
        (("a", "b", TEST), {}),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(CaffeError, match="Net: expected"):
        caffe_port.Net(NET, *arguments, **named)


# -- names -------------------------------------------------------------------------------------------------------------


def test_names(net: Any) -> None:
    assert net._layer_names == ["data", "ip", "scale", "sum", "sum_sum_0_split", "half", "twice"]
    assert list(net.layer_dict) == net._layer_names
    assert [layer.type for layer in net.layers][:3] == ["Input", "InnerProduct", "Scale"]
    assert net.layer_dict["ip"].blobs[1].data.shape == (4,)
    assert list(net.params) == ["ip", "scale"]
    assert (net.inputs, net.outputs) == (["data", "aim"], ["half", "twice"])
    names = net._blob_names
    assert names == ["data", "aim", "ip", "sum", "sum_sum_0_split_0", "sum_sum_0_split_1", "half", "twice"]
    assert list(net.blobs) == names
    assert [names[i] for i in net._inputs] == net.inputs
    assert [names[i] for i in net._outputs] == net.outputs
    assert isinstance(net.top_names, OrderedDict)
    assert net.top_names["data"] == ["data", "aim"]
    assert net.bottom_names["sum"] == ["ip", "aim"]
    assert [names[i] for i in net._bottom_ids(3)] == ["ip", "aim"]
    assert [names[i] for i in net._top_ids(4)] == ["sum_sum_0_split_0", "sum_sum_0_split_1"]


def test_loss_weights_and_the_loss_without_a_name() -> None:
    net = caffe_port.Net(LOSS, TRAIN)
    assert {k: v for k, v in net.blob_loss_weights.items() if v} == {"loss": 0.5, "more": 3, "(automatic)": 1}
    assert net.outputs == ["loss", "more"]
    assert net.top_names["less"] == ["(automatic)"]
    r = np.random.RandomState(1)
    x, y = (r.standard_normal((3, 2)).astype(np.float32) for _ in "xy")
    net.blobs["x"].data[...], net.blobs["y"].data[...] = x, y
    total = net._forward(0, len(net.layers) - 1)
    z = x @ net.params["ip"][0].data.T
    euclidean = ((z - y) ** 2).sum() / 6
    assert np.isclose(net.blobs["(automatic)"].data, euclidean, rtol=1e-5)
    assert np.isclose(total, 1.5 * euclidean + 3 * z.sum(), rtol=1e-5)
    net.backward()
    dz = 1.5 * (z - y) / 3 + 3
    assert np.allclose(net.params["ip"][0].diff, dz.T @ x, rtol=1e-4, atol=1e-6)


# -- running -----------------------------------------------------------------------------------------------------------


def test_forward_returns_outputs_and_what_is_asked_for(net: Any) -> None:
    given = inputs()
    out = net.forward(blobs=["sum"], **given)
    assert set(out) == {"half", "twice", "sum"}
    np.testing.assert_allclose(out["sum"], summed(net, **given), rtol=1e-5)
    assert set(net.forward(end="sum")) == {"sum"}
    assert set(net.forward(start="half", end="half", blobs=["data"])) == {"half", "data"}


def test_backward_returns_input_diffs_and_what_is_asked_for(net: Any) -> None:
    net.forward(**inputs())
    r = np.random.RandomState(2)
    seeds = {name: r.standard_normal((2, 4)).astype(np.float32) for name in ("half", "twice")}
    back = net.backward(diffs=["sum"], **seeds)
    both = 0.5 * seeds["half"] + 2 * seeds["twice"]
    np.testing.assert_allclose(back["sum"], both, rtol=1e-5)
    np.testing.assert_allclose(back["aim"], both, rtol=1e-5)
    np.testing.assert_allclose(back["data"], 3 * both @ net.params["ip"][0].data, rtol=1e-4, atol=1e-5)
    assert set(net.backward(end="sum")) == {"ip", "aim"}


def test_backward_from_a_layer_on(net: Any) -> None:
    """As it is done to see what a unit in the middle looks for."""
    net.forward(end="sum", **inputs())
    net.blobs["sum"].diff[...] = 1
    back = net.backward(start="sum")
    np.testing.assert_allclose(back["data"], 3 * np.ones((2, 4)) @ net.params["ip"][0].data, rtol=1e-5)


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_backward_without_forward_takes_the_blobs_as_they_are(phase: int) -> None:
    net = caffe_port.Net(NET, phase)
    net.blobs["data"].data[...] = 2
    net.blobs["ip"].diff[...] = 1
    net.backward(start="scale", end="ip")
    np.testing.assert_allclose(net.params["ip"][0].diff, np.full((4, 3), 12), rtol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_torchs_modes_make_no_difference_to_blobs(net: Any, mode: Any) -> None:
    net.forward(**inputs())
    seeds = {name: np.ones((2, 4)) for name in ("half", "twice")}
    expected = net.backward(**seeds)["data"].copy()
    with mode():
        net.forward(**inputs())
        np.testing.assert_array_equal(net.backward(**seeds)["data"], expected)
    net.blobs["data"].data[...] = 0
    net.forward()


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_backward_after_forward_in_parts(phase: int) -> None:
    net = caffe_port.Net(NET, phase)
    net.forward(end="sum", **inputs())
    net.blobs["sum_sum_0_split_0"].data[...] = 7
    net.forward(start="half")
    assert (net.blobs["half"].data == 3.5).all()
    net.blobs["half"].diff[...] = 1
    net.blobs["twice"].diff[...] = 0
    net.backward()
    np.testing.assert_allclose(net.blobs["data"].diff, 1.5 * np.ones((2, 4)) @ net.params["ip"][0].data, rtol=1e-5)
    assert (net.blobs["half"].data == 3.5).all()


def test_backward_does_not_draw_new_data_in_a_test_net() -> None:
    text = """
    force_backward: true
    layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 3 dim: 2 }
      data_filler { type: "gaussian" std: 1 } } }
    layer { name: "s" type: "Power" bottom: "d" top: "s" power_param { power: 2 } }
    """
    net = caffe_port.Net(text, TEST)
    drawn = net.forward(blobs=["d"])["d"].copy()
    net.backward(s=np.ones((3, 2)))
    assert np.array_equal(net.blobs["d"].data, drawn)
    np.testing.assert_allclose(net.blobs["d"].diff, 2 * drawn, rtol=1e-5)
    assert not np.array_equal(net.forward(blobs=["d"])["d"], drawn)


def test_forward_and_backward_by_number(net: Any) -> None:
    given = inputs()
    for name, value in given.items():
        net.blobs[name].data[...] = value
    net._forward(0, 3)
    np.testing.assert_allclose(net.blobs["sum"].data, summed(net, **given), rtol=1e-5)
    net.blobs["sum"].diff[...] = 1
    net._backward(3, 3)
    assert (net.blobs["ip"].diff == 1).all()
    for wrong in ((0, 7), (-1, 3)):
        with pytest.raises(CaffeError, match="expected 0 to 6, found layer number"):
            net._forward(*wrong)


def test_numbers_of_layers_leave_out_the_forks_inputs() -> None:
    text = """
    input: "x" input_dim: 2 input_dim: 1 input_dim: 1 input_dim: 3
    layers { name: "a" type: POWER bottom: "x" top: "a" power_param { scale: 2 } }
    layers { name: "b" type: POWER bottom: "a" top: "b" power_param { shift: 1 } }
    """
    net = caffe_port.Net(text, dialect="noh")
    assert len(net.layers) == 2
    net.blobs["x"].reshape(5, 1, 1, 3)
    net.blobs["x"].data[...] = 4
    net._forward(0, 1)
    assert net.blobs["b"].data.shape == (5, 1, 1, 3)
    assert (net.blobs["b"].data == 9).all()


def test_a_blob_in_the_middle_takes_another_shape(net: Any) -> None:
    net.blobs["sum_sum_0_split_1"].reshape(5, 4)
    net.blobs["sum_sum_0_split_1"].data[...] = 1
    out = net.forward(start="twice")["twice"]
    assert out.shape == (5, 4)
    assert (out == 2).all()
    assert net.forward(**inputs())["twice"].shape == (2, 4)


def test_callbacks_are_called_in_order_with_the_layers_number(net: Any) -> None:
    calls: list[tuple[str, int]] = []
    for name in ("before_forward", "after_forward", "before_backward", "after_backward"):
        for nth in "12":
            getattr(net, name)(lambda i, said=name + nth: calls.append((said, i)))
    net.forward(start="sum", end="sum_sum_0_split")
    assert calls == [
        (f"{when}_forward{nth}", layer) for layer in (3, 4) for when in ("before", "after") for nth in "12"
    ]
    calls.clear()
    net.forward()
    assert [i for said, i in calls if said == "before_forward1"] == list(range(7))
    calls.clear()
    net.backward()
    assert calls == [
        (f"{when}_backward{nth}", layer) for layer in range(6, -1, -1) for when in ("before", "after") for nth in "12"
    ]


def test_what_a_callback_writes_is_used(net: Any) -> None:
    given = inputs()

    def double(layer: int) -> None:
        if net._layer_names[layer] == "ip":
            net.blobs["ip"].data[...] *= 2

    expected = summed(net, **given) - given["aim"]
    net.after_forward(double)
    np.testing.assert_allclose(net.forward(blobs=["sum"], **given)["sum"], 2 * expected + given["aim"], rtol=1e-5)


def test_inputs_are_all_or_none_in_bvlc(net: Any) -> None:
    with pytest.raises(CaffeError, match="all inputs, or for none, found nothing for aim"):
        net.forward(data=np.zeros((2, 3)))
    with pytest.raises(CaffeError, match="all outputs, or for none, found nothing for twice"):
        net.backward(half=np.zeros((2, 4)))
    with pytest.raises(ShapeError, match=r"input data: expected \(2, 3\), found shape \(2, 5\)"):
        net.forward(data=np.zeros((2, 5)), aim=np.zeros((2, 4)))
    with pytest.raises(CaffeError, match="no blob 'summ'; near: sum"):
        net.forward(blobs=["summ"])
    with pytest.raises(ShapeError, match=r"output half: expected \(2, 4\), found shape \(1, 4\)"):
        net.backward(half=np.zeros((1, 4)), twice=np.zeros((2, 4)))


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [1, 2, 5])
def test_all_items_in_batches(net: Any, items: int) -> None:
    r = np.random.RandomState(3)
    given = {"data": r.standard_normal((items, 3)), "aim": r.standard_normal((items, 4))}
    expected = summed(net, **given)
    outs = net.forward_all(blobs=["sum"], **given)
    assert set(outs) == {"half", "twice", "sum"}
    np.testing.assert_allclose(outs["sum"], expected, rtol=1e-4, atol=1e-5)
    seeds = {name: r.standard_normal((items, 4)) for name in ("half", "twice")}
    outs, diffs = net.forward_backward_all(blobs=["sum"], diffs=["ip"], **given, **seeds)
    np.testing.assert_allclose(outs["half"], expected / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(diffs["aim"], 0.5 * seeds["half"] + 2 * seeds["twice"], rtol=1e-4, atol=1e-5)
    assert diffs["ip"].shape == (items, 4)
    with pytest.raises(CaffeError, match="one for each input"):
        net.forward_all()


# -- what the fork has -------------------------------------------------------------------------------------------------

FORK = """
input: "data" input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 5
layers { name: "drop" type: DROPOUT bottom: "data" top: "drop" dropout_param { dropout_ratio: 0.5 } }
"""


def test_phase_set_on_the_net() -> None:
    net = caffe_port.Net(FORK, dialect="noh")
    x = np.ones((2, 3, 4, 5), np.float32)
    assert (net.forward(data=x)["drop"] == 1).all()
    net.set_phase_train()
    assert set(np.unique(net.forward(data=x)["drop"])) == {0, 2}
    kept = net.blobs["drop"].data.copy()
    net.backward(drop=x)
    assert np.array_equal(net.blobs["drop"].data, kept)
    net.set_phase_test()
    assert (net.forward(data=x)["drop"] == 1).all()


def test_preprocessing_by_the_net() -> None:
    net = caffe_port.Net(FORK, dialect="noh")
    r = np.random.RandomState(0)
    picture, mean = r.rand(4, 5, 3), r.rand(3, 4, 5)
    net.set_raw_scale("data", 255)
    net.set_channel_swap("data", (2, 1, 0))
    net.set_mean("data", mean)
    net.set_input_scale("data", 0.1)
    expected = (picture[:, :, ::-1].transpose(2, 0, 1) * 255 - mean) * 0.1
    ready = net.preprocess("data", picture)
    np.testing.assert_allclose(ready, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(net.deprocess("data", ready), picture, rtol=1e-4, atol=1e-5)
    net.set_mean("data", mean, mode="channel")
    np.testing.assert_allclose(net.mean["data"].ravel(), mean.reshape(3, -1).mean(1))
    for wrong in (lambda: net.set_mean("data", mean, mode="pixel"), lambda: net.set_raw_scale("dat", 1)):
        with pytest.raises(CaffeError, match=r"pixel|no input 'dat'"):
            wrong()


def test_a_net_built_without_a_phase_crops_at_random_as_the_forks(tmp_path: Path) -> None:
    import cv2

    picture = np.random.RandomState(0).randint(0, 256, (9, 9, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "p.png"), picture)
    (tmp_path / "list.txt").write_text(f"{tmp_path}/p.png 1\n")
    text = f"""
    layers {{ name: "d" type: IMAGE_DATA top: "d" top: "l"
      image_data_param {{ source: "{tmp_path}/list.txt" batch_size: 8 }} transform_param {{ crop_size: 5 }} }}
    """
    caffe_port.set_random_seed(3)
    crops = caffe_port.Net(text, dialect="noh").forward()["d"]
    assert len({crop.tobytes() for crop in crops}) > 3
    middle = picture[2:7, 2:7].transpose(2, 0, 1)
    assert (caffe_port.Net(text, TEST, dialect="noh").forward()["d"] == middle).all()
