"""Gradients where layers work in place, compared with both programs; other blobs that share memory there.

``*_inplace`` hold two layers in one blob. ``bvlc_overwritten``, from BVLC Caffe 1.0 too, holds single layers in place
and blobs written over through a Split, Reshape, Concat or Slice that shares its bottom's memory. ``ssd_inplace`` holds
the types of SSD's fork.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from reference import Case, cases

import caffe_port
from caffe_port.errors import CaffeError, DefinitionError, LayerError
from caffe_port.net import Net
from caffe_port.schema import read_net, read_solver
from caffe_port.solver import Solver
from caffe_port.solver.log import Log
from caffe_port.tools.compare import BACKWARD, compare
from caffe_port.tools.replay import ours, replay

CASES = [
    case
    for suite, dialect in (
        ("bvlc_inplace", "bvlc"),
        ("noh_inplace", "noh"),
        ("bvlc_overwritten", "bvlc"),
        ("ssd_inplace", "ssd"),
    )
    for case in cases(suite, dialect)
]
ZERO = {
    "bvlc_inplace/bn_in_under_power": ["pdiff/c/1"],
    "bvlc_inplace/bn_under_power": ["pdiff/c/1"],
    "noh_inplace/bn_in_under_power": ["pdiff/c/1"],
    "noh_inplace/bn_stats_in_under_power": ["pdiff/c/1"],
    "noh_inplace/bninf_in_under_bn_test": ["pdiff/l/1"],
}
"""Sums before a batch normalization whose true value is zero: what both programs give is rounding."""
TWO_NUMBERS = ["noh_inplace/flatten_under_bn"]
"""BN of two numbers a channel: its gradient is as far from 0 as the fork's variance, E[x^2] - E[x]^2, is wrong."""


def built(case: Case, **options: Any) -> Any:
    if case.random_seed is not None:
        caffe_port.set_random_seed(case.random_seed)
    return caffe_port.Net(case.prototxt, phase=case.phase, dialect=case.dialect, **options)


def is_zero(case: Case, net: Any, key: str) -> bool:
    """Whether ours and theirs are both no more than rounding, beside the diffs that they are sums of."""
    seed = max(np.abs(case.reference[k]).max() for k in case.reference.keys("seed"))
    return max(np.abs(x).max() for x in (ours(net, key), case.reference[key])) <= BACKWARD * seed


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_is_caffes(case: Case) -> None:
    net = built(case)
    wrong = [c for c in replay(net, case.reference) if not c.ok]
    if str(case) in TWO_NUMBERS:
        wrong = [c for c in wrong if not c.key.startswith(("diff/x", "pdiff/c"))]
    assert not [str(c) for c in wrong if c.key not in ZERO.get(str(case), ()) or not is_zero(case, net, c.key)]


@pytest.mark.parametrize("case", [c for c in CASES if str(c) not in [*ZERO, *TWO_NUMBERS]][::3], ids=str)
def test_autograd_is_caffes_on_request(case: Case) -> None:
    """The way of the solver: one graph through the net."""
    net, reference = built(case, gradients="caffe"), case.reference
    for key in reference.keys("param"):
        target = ours(net, key)
        target[...] = reference.fitted(key, target.shape)
    if case.random_seed is not None:
        caffe_port.set_random_seed(case.random_seed)
    x = torch.from_numpy(reference["in/x"]).requires_grad_()
    seeds = {key.removeprefix("seed/"): torch.from_numpy(reference[key]) for key in reference.keys("seed")}
    tops = net(x=x, blobs=list(seeds))
    params = {key: net.get_parameter(_name(net, key)) for key in reference.keys("pdiff") if _learns(net, key)}
    of = [(tops[name], seed.view(tops[name].shape)) for name, seed in seeds.items() if tops[name].requires_grad]
    grads = torch.autograd.grad([t for t, _ in of], [x, *params.values()], [s for _, s in of], allow_unused=True)
    for key, grad in zip(["diff/x", *params], grads, strict=True):
        theirs = reference[key]
        found = np.zeros_like(theirs) if grad is None else grad.numpy().reshape(theirs.shape)
        assert compare(key, found, theirs, reference.bound(key)).ok, key


def _name(net: Any, key: str) -> str:
    _, name, index = key.split("/")
    layer = next(layer for _, layer in net.nodes if layer.name == name)
    return f"{name}.{layer.blob_names[int(index)]}"


def _learns(net: Any, key: str) -> bool:
    return _name(net, key) in dict(net.named_parameters())


# -- which of the two --------------------------------------------------------------------------------------------------

CHAIN = """force_backward: true input: "x" input_shape { dim: 2 dim: 2 dim: 2 dim: 3 }
layer { name: "c" type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 2 kernel_size: 1
  weight_filler { type: "constant" value: 0.5 } } }
layer { name: "r" type: "ReLU" bottom: "y" top: "%s" }
layer { name: "b" type: "BatchNorm" bottom: "%s" top: "%s" batch_norm_param { use_global_stats: true } }
layer { name: "s" type: "Scale" bottom: "%s" top: "%s" scale_param { bias_term: true filler { value: 2 }
  bias_filler { value: 1 } } }"""
IN_PLACE, APART = CHAIN % (("y",) * 5), CHAIN % ("z", "z", "w", "w", "v")
CAFFES = [-0.6627306938171387, -11.356924057006836, -4.094594955444336, -4.825063705444336]
"""diff of c's weight, real Caffe's own (BVLC Caffe 1.0), in place; below, with blobs apart."""
DERIVATIVE = [7.30548095703125, 3.3478357791900635, 0.8443164825439453, 7.495769023895264]


def chain(text: str, **options: Any) -> Any:
    net = caffe_port.Net(text, caffe_port.TRAIN, **options)
    net.params["c"][0].data[...] = np.array([[0.5, -1.0], [1.5, 0.25]]).reshape(2, 2, 1, 1)
    for blob, value in zip(net.params["b"], (0.2, 0.5, 1), strict=True):
        blob.data[...] = value
    return net


@pytest.mark.parametrize(
    ("text", "gradients", "by_blobs", "by_tensors"),
    [
        (IN_PLACE, None, CAFFES, DERIVATIVE),
        (IN_PLACE, "caffe", CAFFES, CAFFES),
        (IN_PLACE, "true", DERIVATIVE, DERIVATIVE),
        (APART, None, DERIVATIVE, DERIVATIVE),
        (APART, "caffe", DERIVATIVE, DERIVATIVE),
    ],
)
def test_which_layers_get_which_gradient(text: str, gradients: str | None, by_blobs: list, by_tensors: list) -> None:
    x = np.random.RandomState(1).randn(2, 2, 2, 3).astype(np.float32)
    diff = np.random.RandomState(2).randn(2, 2, 2, 3).astype(np.float32)
    net = chain(text, gradients=gradients)
    top = net.outputs[0]
    net.forward(x=x)
    net.blobs[top].diff[...] = diff
    net.backward()
    np.testing.assert_allclose(net.params["c"][0].diff.ravel(), by_blobs, rtol=1e-5)
    net.clear_param_diffs()
    net(x=torch.from_numpy(x))[top].backward(torch.from_numpy(diff))
    np.testing.assert_allclose(net.params["c"][0].diff.ravel(), by_tensors, rtol=1e-5)


DATA = """layer { name: "x" type: "DummyData" top: "x"
  dummy_data_param { data_filler { value: 0.7 } shape { dim: 2 dim: 2 dim: 2 dim: 3 } } }"""
LOSS = """
layer { name: "l" type: "Reduction" bottom: "y" top: "l" reduction_param { operation: SUMSQ } loss_weight: 0.5 }"""
TRAINED = IN_PLACE.replace('input: "x" input_shape { dim: 2 dim: 2 dim: 2 dim: 3 }', DATA) + LOSS


@pytest.mark.parametrize("debug_info", ["false", "true"])
@pytest.mark.parametrize("gradients", ["caffe", "true"])
def test_solver_uses_the_chosen_gradient(gradients: str, debug_info: str) -> None:
    """It equals pycaffe's backward, which the cases above check, with observers or without."""
    stream = io.StringIO()
    param = read_solver(f'base_lr: 0.1 lr_policy: "fixed" max_iter: 1 display: 1 debug_info: {debug_info}')
    param.net_param.MergeFrom(read_net(TRAINED, phase="TRAIN").net)
    log = Log(stream)
    log.quiet = False
    solver, by_blobs = Solver(param, gradients=gradients, log=log), chain(TRAINED, gradients=gradients)
    solver.net.load_state_dict(by_blobs.state_dict())
    by_blobs.forward()
    by_blobs.backward()
    expected = by_blobs.params["c"][0].data - 0.1 * by_blobs.params["c"][0].diff
    solver.step(1)
    np.testing.assert_allclose(solver.net.params["c"][0].data, expected, rtol=1e-5)
    logged = [line for line in stream.getvalue().splitlines() if "Gradients of layers" in line]
    assert len(logged) == 1 and "r (ReLU) under b, s" in logged[0]
    assert ("derivatives" in logged[0]) == (gradients == "true")


def test_an_invalid_choice() -> None:
    with pytest.raises(CaffeError, match="expected 'caffe' or 'true', found 'numeric'"):
        caffe_port.Net(APART, gradients="numeric")


CONV = (
    'input: "x" input_shape { dim: 2 dim: 3 dim: 6 dim: 5 } layer { name: "c" type: "Convolution" bottom: "x" top: "y" '
)
CONV += "convolution_param { num_output: 4 kernel_size: 3 } } "
AFTER = 'layer { name: "%s" type: "%s" bottom: "y" top: "y" %s } '


@pytest.mark.parametrize(
    ("layers", "concerned"),
    [
        (["ReLU"], []),
        (["ReLU", "Dropout"], []),  # where Dropout has cleared, no gradient comes down to ReLU
        (["ReLU", "ReLU"], []),
        (["BatchNorm", "Scale", "ReLU", "Dropout"], []),
        (["TanH"], []),
        (["Dropout"], []),
        (["TanH", "Dropout"], ["0 (TanH) under 1"]),
        (["ELU", "Dropout"], ["0 (ELU) under 1"]),
        (["ReLU", "BatchNorm", "Scale"], ["0 (ReLU) under 1, 2"]),
        (["ReLU", "Sigmoid", "Dropout"], ["0 (ReLU) under 1, 2", "1 (Sigmoid) under 2"]),
        (["BNLL"], ["0 (BNLL) under itself"]),
        (["Power"], ["0 (Power) under itself"]),
    ],
)
def test_which_layers_are_concerned(layers: list[str], concerned: list[str]) -> None:
    """By what each reads backward in its Backward_cpu."""
    text = CONV + "".join(AFTER % (i, t, "") for i, t in enumerate(layers)) + " force_backward: true"
    net = caffe_port.Net(text, phase="TRAIN")
    assert net.caffe_gradients.pairs(net.needs) == concerned
    assert bool(net.caffe_gradients) == bool(concerned)


@pytest.mark.parametrize(
    ("type_name", "params"),
    [
        ("InnerProduct", "inner_product_param { num_output: 4 axis: 3 }"),
        ("Pooling", "pooling_param { kernel_size: 1 }"),
        ("Tile", "tile_param { tiles: 1 }"),
        ("Reshape", "reshape_param { shape { dim: 0 } }"),
        ("Im2col", "convolution_param { kernel_size: 1 }"),
    ],
)
def test_in_place_where_caffe_reads_what_it_has_just_written(type_name: str, params: str) -> None:
    with pytest.raises(LayerError, match="the layer does not work in place"):
        caffe_port.Net(CONV + AFTER % ("a", type_name, params))


def test_a_recurrent_layer_over_a_blob_written_over() -> None:
    text = """force_backward: true
    input: "x" input_shape { dim: 4 dim: 2 dim: 3 } input: "go" input_shape { dim: 4 dim: 2 }
    layer { name: "k" type: "LSTM" bottom: "x" bottom: "go" top: "y" recurrent_param { num_output: 3 } }
    layer { name: "f" type: "Flatten" bottom: "x" top: "f" } layer { name: "r" type: "ReLU" bottom: "f" top: "f" }"""
    net = caffe_port.Net(text, phase="TRAIN")
    net.forward()
    with pytest.raises(LayerError, match='use true derivatives: gradients="true"'):
        net.backward()
    net = caffe_port.Net(text, phase="TRAIN", gradients="true")
    net.forward()
    net.backward()


# -- other facts of nets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize(("given", "n"), [("propagate_down: true", 1), ("propagate_down: [true, false, true]", 3)])
def test_a_wrong_number_of_propagate_down(given: str, n: int, loss: bool) -> None:
    """net.cpp, Init: "propagate_down param must be specified either 0 or bottom_size times"."""
    text = 'input: "x" input_shape { dim: 2 dim: 3 } input: "w" input_shape { dim: 2 dim: 3 } layer { name: "a" '
    text += f'type: "{"EuclideanLoss" if loss else "Eltwise"}" bottom: "x" bottom: "w" top: "y" {given} }}'
    with pytest.raises(DefinitionError, match=f"layer a: expected none, or one for each bottom, found {n} propagate"):
        Net(text)


@pytest.mark.parametrize(
    ("dilated", "plain"),
    [
        ("kernel_size: 3 dilation: 2", "kernel_size: 5"),
        ("kernel_h: 3 kernel_w: 2 dilation: [3, 4]", "kernel_h: 7 kernel_w: 5"),
        ("kernel_size: 3 dilation: 2 pad: 1 stride: 1", "kernel_size: 5 pad: 1 stride: 1"),
    ],
)
@pytest.mark.parametrize("type_name", ["Convolution", "Deconvolution"])
def test_crop_sees_a_dilated_window_as_wide_as_it_is(type_name: str, dilated: str, plain: str) -> None:
    """As BVLC's coord_map.py: its extent is (k - 1) d + 1. The fork itself has no dilation."""
    offsets = []
    for window in (dilated, plain):
        a, b = ("x", "c") if type_name == "Convolution" else ("c", "x")
        net = Net(
            'input: "x" input_shape { dim: 2 dim: 3 dim: 20 dim: 24 } '
            f'layer {{ name: "c" type: "{type_name}" bottom: "x" top: "c" '
            f"convolution_param {{ num_output: 3 {window} }} }} "
            f'layer {{ name: "k" type: "Crop" bottom: "{a}" bottom: "{b}" top: "y" }}',
            dialect="noh",
        )
        offsets.append(net.nodes[-1][1].offset)
    assert offsets[0] == offsets[1] != [0, 0]


@pytest.mark.parametrize("type_name", ["MVN", "Slice", "LRN", "Softmax", "Concat", "TanH"])
def test_crop_through_layers_that_the_fork_knows_to_keep_pixels(type_name: str) -> None:
    """As the fork ran them: behind a convolution of 5 the offset stays (2, 2)."""
    text = f"""input: "x" input_shape {{ dim: 2 dim: 3 dim: 20 dim: 24 }}
    layer {{ name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param {{ num_output: 3 kernel_size: 5 }} }}
    layer {{ name: "o" type: "{type_name}" bottom: "c" top: "o" }}
    layer {{ name: "k" type: "Crop" bottom: "x" bottom: "o" top: "y" }}"""
    assert Net(text, dialect="noh").nodes[-1][1].offset == [2, 2]


def test_crop_behind_a_pooling_of_the_whole_blob() -> None:
    """Its window is its bottom's: over 5 x 5 pixels the centre is the third (noh: pooling_layer.cpp, LayerSetUp)."""
    text = """input: "x" input_shape { dim: 1 dim: 3 dim: 5 dim: 5 }
    layer { name: "p" type: "Pooling" bottom: "x" top: "p" pooling_param { global_pooling: true } }
    layer { name: "k" type: "Crop" bottom: "x" bottom: "p" top: "y" }"""
    assert Net(text, dialect="noh").nodes[-1][1].offset == [2, 2]
