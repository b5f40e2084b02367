"""pycaffe's Net: parameters that are shared, saved and on another device."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pycaffe_net import NET, inputs, summed

import caffe_port
from caffe_port import TEST, TRAIN, CaffeError
from caffe_port.errors import LayerError, WeightsError
from caffe_port.layers.blobs import Copies
from caffe_port.pycaffe import mode


@pytest.fixture
def net() -> Any:
    caffe_port.set_random_seed(5)
    return caffe_port.Net(NET, TRAIN)


# -- parameters --------------------------------------------------------------------------------------------------------


def test_sharing_shares_data_and_leaves_diffs_apart(net: Any) -> None:
    other = caffe_port.Net(NET, TEST)
    other.share_with(net)
    net.params["ip"][0].data[...] = 4
    assert (other.params["ip"][0].data == 4).all()
    given = inputs()
    np.testing.assert_allclose(other.forward(blobs=["sum"], **given)["sum"], summed(net, **given), rtol=1e-5)
    net.params["ip"][0].diff[...] = 1
    assert not other.params["ip"][0].diff.any()
    wide = caffe_port.Net(NET.replace("num_output: 4", "num_output: 5").replace("dim: 2 dim: 4", "dim: 2 dim: 5"), TEST)
    with pytest.raises(WeightsError, match=r"layer ip: expected \[\(5, 3\), \(5,\)\], found blobs .*\(4, 3\)"):
        wide.share_with(net)


def test_hdf5_by_name_of_the_method(net: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    net.params["ip"][0].diff[...] = 3
    net.save_hdf5(file, diffs=True)
    assert file.read_bytes()[1:4] == b"HDF"
    other = caffe_port.Net(NET, TEST)
    other.load_hdf5(file)
    assert np.array_equal(other.params["ip"][0].data, net.params["ip"][0].data)
    from caffe_port.formats import open_weights

    assert (next(s for s in open_weights(file).layers if s.name == "ip").diffs[0] == 3).all()


def test_blobs_outlive_their_net(net: Any) -> None:
    blob, parameter = net.blobs["ip"], net.params["ip"][0]
    data = parameter.data
    del net
    assert blob.data.shape == (2, 4)
    assert parameter.diff.shape == data.shape == (4, 3)


def test_memory_data() -> None:
    text = """
    layer { name: "m" type: "MemoryData" top: "x" top: "y"
      memory_data_param { batch_size: 2 channels: 1 height: 1 width: 3 } }
    layer { name: "p" type: "Power" bottom: "x" top: "p" power_param { scale: 2 } }
    """
    net = caffe_port.Net(text, TEST)
    data = np.arange(12, dtype=np.float32).reshape(4, 1, 1, 3)
    net.set_input_arrays(data, np.arange(4, dtype=np.float32))
    for batch in (0, 1, 0):
        out = net.forward()
        np.testing.assert_array_equal(out["p"].ravel(), 2 * data.ravel()[6 * batch :][:6])
        np.testing.assert_array_equal(out["y"], [2 * batch, 2 * batch + 1])
    with pytest.raises(LayerError, match="float32"):
        net.set_input_arrays(data.astype(float), np.zeros(4))
    with pytest.raises(CaffeError, match="expected MemoryData, found a net that starts with Input"):
        caffe_port.Net(NET).set_input_arrays(data, data)


# -- another device ----------------------------------------------------------------------------------------------------


def test_arrays_over_copies_are_taken_over(net: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a GPU arrays are copies; here numpy is made to access no tensor."""
    given = inputs()
    monkeypatch.setattr(Copies, "seen", staticmethod(lambda tensor: False))
    net.params["ip"][0].data[...] = 2
    net.params["ip"][1].data[...] = 1
    weight = torch.full((4, 3), 2.0)
    assert not torch.equal(net.get_parameter("ip.weight"), weight)
    out = net.forward(blobs=["sum"], **given)["sum"]
    assert torch.equal(net.get_parameter("ip.weight"), weight)
    np.testing.assert_allclose(out, 3 * (given["data"].sum(1, keepdims=True) * 2 + 1) + given["aim"], rtol=1e-5)
    net.blobs["half"].diff[...] = 2
    net.params["ip"][1].diff[...] = 10
    net.backward()
    assert (net.params["ip"][1].diff == 10 + 2 * 2 * 0.5 * 3).all()
    net.params["ip"][0].data[...] = 5
    assert (net.state_dict()["ip.weight"] == 5).all()
    net.params["ip"][0].data[...] = 6
    net.save(tmp_path / "w.caffemodel")
    other = caffe_port.Net(NET, TEST, weights=tmp_path / "w.caffemodel")
    assert (other.params["ip"][0].data == 6).all()
    net.after_forward(lambda layer: net.blobs["ip"].data.fill(layer) if layer == 1 else None)
    net.before_forward(lambda layer: net.params["ip"][1].data.fill(0))
    np.testing.assert_allclose(net.forward(blobs=["sum"], **given)["sum"], 3 + given["aim"], rtol=1e-6)
    assert (net.params["ip"][1].data == 0).all()
    with torch.no_grad():
        net.get_parameter("ip.bias").add_(8)
    assert (net.params["ip"][1].data == 8).all()
    assert (net.state_dict()["ip.bias"] == 8).all()


def test_a_missing_gpu_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(mode._State, "warned", False)
    net = caffe_port.Net(NET)
    with pytest.warns(UserWarning, match="runs on the CPU") as said:
        net.set_mode_gpu()
    caffe_port.set_device(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caffe_port.set_mode_gpu()
    assert [Path(w.filename).name for w in said] == [Path(__file__).name]
    assert mode.device() == torch.device("cpu")
