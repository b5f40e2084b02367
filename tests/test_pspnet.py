"""PSPNet's fork: its batch normalization against the running program, its weights, its definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import EMBEDDED, cases

import caffe_port
from caffe_port.dialects import PSPNET
from caffe_port.errors import CaffeError
from caffe_port.formats import open_weights
from caffe_port.schema import read_net, schema_of
from caffe_port.tools.replay import prepare, replay

FOLDER = EMBEDDED / "pspnet_bn"
CASES = {case.name: case for case in cases("pspnet_bn", "pspnet")}


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"bn_accumulates"}))
def test_forward_and_backward(name: str) -> None:
    case = CASES[name]
    net = caffe_port.Net(case.prototxt, phase=case.phase)
    assert net.dialect is PSPNET
    assert not [str(c) for c in replay(net, case.reference, forwards=case.forwards) if not c.ok]


def test_parameter_gradients_add_up() -> None:
    """Unlike those of the BN of SegNet's fork and the 2015 one."""
    case = CASES["bn_accumulates"]
    assert json.loads((FOLDER / "manifest.json").read_text())["bn_accumulates"]["backwards"] == 2
    net = caffe_port.Net(case.prototxt, phase=case.phase)
    prepare(net, case.reference)
    net.forward()
    net.clear_param_diffs()
    for _ in range(2):
        net.blobs["y"].diff[...] = case.reference["seed/y"]
        net.backward()
    for i in (0, 1):
        np.testing.assert_allclose(net.params["l"][i].diff, case.reference[f"pdiff/l/{i}"], rtol=1e-4, atol=1e-5)


def test_weights_of_the_fork_convert_with_names(tmp_path: Path) -> None:
    """The fork's own file into a state dict, and back into one that has the same blobs."""
    source = open_weights(FOLDER / "bn_train.caffemodel")
    state = source.state_dict()
    assert list(state) == [f"l.{name}" for name in ("slope", "bias", "mean", "variance")]
    net = caffe_port.Net(CASES["bn_momentum"].prototxt, str(FOLDER / "bn_train.caffemodel"), phase=1)
    for ours, theirs in zip(net.params["l"], state.values(), strict=True):
        np.testing.assert_array_equal(ours.data.ravel(), theirs.ravel())
    net.save(str(tmp_path / "b.caffemodel"))
    first, second = (
        next(layer.blobs for layer in weights.layers if layer.name == "l")
        for weights in (source, open_weights(tmp_path / "b.caffemodel"))
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


BN = "input: 'x' input_shape { dim: 2 dim: 3 dim: 4 dim: 5 } layer { name: 'l' type: 'BN' bottom: 'x' top: 'y' %s }"


def test_without_fillers_the_output_is_zero() -> None:
    net = caffe_port.Net(BN % "bn_param { frozen: true }")
    assert [blob.data.ravel()[0] for blob in net.params["l"]] == [0, 0, 0, 1]
    net.blobs["x"].data[...] = torch.randn(2, 3, 4, 5)
    net.forward()
    assert not net.blobs["y"].data.any()


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("layer { type: 'BN' bn_param { slope_filler { value: 1 } } }", "pspnet"),
        ("layer { type: 'BN' bn_param { frozen: true } } layer { type: 'Interp' }", "pspnet"),
        ("layer { type: 'BN' bn_param { scale_filler { value: 1 } } } layer { type: 'Upsample' }", "segnet"),
        ("layer { type: 'Interp' interp_param { zoom_factor: 2 } }", "deeplab2"),
    ],
)
def test_which_fork(text: str, dialect: str) -> None:
    assert read_net(text).dialect.name == dialect


def test_a_batch_normalization_that_does_not_tell_its_fork() -> None:
    with pytest.raises(CaffeError, match="which pspnet and segnet have; specify it: --dialect pspnet"):
        read_net("layer { type: 'BN' }")


def test_a_file_is_read_with_the_forks_numbers() -> None:
    assert schema_of(PSPNET).LayerParameter.DESCRIPTOR.fields_by_name["bn_param"].number == 152
    fields = schema_of(PSPNET).BNParameter.DESCRIPTOR.fields_by_name
    numbers = {name: fields[name].number for name in ("slope_filler", "bias_filler", "momentum", "eps", "frozen")}
    assert numbers == {"slope_filler": 1, "bias_filler": 2, "momentum": 3, "eps": 4, "frozen": 5}


def test_a_bottom_without_pixels() -> None:
    with pytest.raises(CaffeError, match="expected 4 axes: num, channels, height, width"):
        caffe_port.Net(
            "input: 'x' input_shape { dim: 2 dim: 3 } layer { type: 'BN' name: 'l' bottom: 'x' top: 'y' bn_param "
            "{ frozen: true } }"
        )
