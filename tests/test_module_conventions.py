"""Copies, files, compilers, transforms, wrappers, precisions: a net is a module. Expectations are plain torch's."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from module_nets import LAYERS, TEXT, X, built, by_hand, close, weights
from torch import Tensor, nn

import caffe_port
from caffe_port import CaffeError
from caffe_port.net import Net

KINDS = pytest.mark.parametrize("kind", [Net, caffe_port.Net])
BATCH = torch.export.Dim("batch")
TRIPLE = torch.cat([X, -X, 0.5 * X])


def passed(kind: type[Net] = Net, text: str = TEXT) -> Net:
    """A net with passes in every grad mode behind it."""
    net = built(kind, text)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            net(X)
            net(X)
    if isinstance(net, caffe_port.Net):
        net.blobs["data"].data[...] = X.numpy()
        net.params["conv1"][0].data[...] *= 1
        net.forward()
        net.backward()
    return net


def saved(net: Net) -> Net:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda net: pickle.loads(pickle.dumps(net)), "torch.save": saved}


@KINDS
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("train", [False, True])
def test_copies_are_nets_of_their_own(kind: type[Net], way: str, train: bool) -> None:
    net = passed(kind).train(train)
    wanted = by_hand(weights(net))["prob"]
    again = COPIES[way](net)
    close(again(X)["prob"], wanted)
    nn.init.zeros_(again.ip2.weight)
    nn.init.zeros_(again.ip2.bias)
    with torch.no_grad():
        for one, numbers in ((again, torch.full((2, 4), 0.25)), (net, wanted)):
            close(one(X)["prob"], numbers)
    if isinstance(again, caffe_port.Net):
        again.blobs["data"].data[...] = 0
        np.testing.assert_allclose(again.forward()["prob"], 0.25, rtol=1e-6)
        close(torch.from_numpy(net.forward()["prob"].copy()), wanted)
        assert again.layer_dict["conv1"] is again.conv1


def exported(net: Net, strict: bool = False) -> nn.Module:
    return torch.export.export(net, (X,), dynamic_shapes={"given": ({0: BATCH},)}, strict=strict).module()


def traced(net: Net) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = torch.jit.trace(net, (X,), strict=False)
    file = io.BytesIO()
    torch.jit.save(trace, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("pool", ["MAX", "AVE"])
def test_pooling_of_many_channels_in_traces_and_transforms(pool: str, grad: bool) -> None:
    """Outside of them it may turn to channels-last; torch.jit.trace compares with a trace without gradients."""
    text = """input: "data" input_shape { dim: 2 dim: 3 dim: 8 dim: 8 }
        layer { name: "c" type: "Convolution" bottom: "data" top: "c"
          convolution_param { num_output: 40 kernel_size: 1 weight_filler { type: "xavier" } } }
        layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: %s kernel_size: 2 stride: 2 } }"""
    net = Net(text % pool)
    x = torch.linspace(-3, 3, 384).view(2, 3, 8, 8).mul(9).sin()
    y = torch.nn.functional.conv2d(x, net.c.weight, net.c.bias).detach()
    wanted = torch.max_pool2d(y, 2) if pool == "MAX" else torch.nn.functional.avg_pool2d(y, 2)
    with torch.set_grad_enabled(grad):
        close(torch.jit.trace(net, (x,), strict=False)(x)["p"], wanted)
        close(torch.func.vmap(lambda one: net(one[None])["p"][0])(x), wanted)
        close(torch.func.jvp(lambda x: net(x)["p"], (x,), (x,))[0], wanted)


@KINDS
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exporter", [exported, traced])
@pytest.mark.parametrize("grad", [True, False])
def test_a_dynamic_batch_stays_dynamic(kind: type[Net], exporter, grad: bool) -> None:
    net = passed(kind, TEXT.replace("num_output: 6", "num_output: 700"))  # large weights: a product of matrices
    with torch.set_grad_enabled(grad):
        module = exporter(net)
    wanted = by_hand(weights(net), TRIPLE)["prob"]
    with torch.no_grad():
        close(module(TRIPLE)["prob"], wanted)
        close(module(TRIPLE[:1])["prob"], wanted[:1])


LARGE = """input: "data" input_shape {{ dim: 2 dim: 64 dim: 5 dim: 4 }}
layer {{ name: "c" type: "{}" bottom: "data" top: "c" convolution_param {{ num_output: 64 kernel_size: 3 {} {}
  weight_filler {{ type: "gaussian" std: 0.1 }} }} }}"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exporter", [exported, traced])
@pytest.mark.parametrize("window", ["", "stride: 2", "pad: 1"])
@pytest.mark.parametrize("dilation", ["", "dilation: 2 pad: 2"])
@pytest.mark.parametrize("layer", ["Convolution", "Deconvolution"])
def test_convolutions_done_as_products_take_any_batch(layer: str, window: str, dilation: str, exporter) -> None:
    if dilation and "pad" in window:
        return
    net = Net(LARGE.format(layer, window, dilation))
    assert net.c.as_product(torch.zeros(2, 64, 5, 4))
    x = torch.linspace(-3, 3, 5 * 64 * 20).view(5, 64, 5, 4).mul(9).sin()

    def run(net: Net) -> nn.Module:
        if exporter is exported:
            return torch.export.export(net, (x[:2],), dynamic_shapes={"given": ({0: BATCH},)}).module()
        return torch.jit.trace(net, (x[:2],), strict=False)

    stride, pad = 2 if "stride" in window else 1, 2 if dilation else 1 if "pad" in window else 0
    function = torch.conv2d if layer == "Convolution" else torch.conv_transpose2d
    options = {"stride": stride, "padding": pad, "dilation": 2 if dilation else 1}
    wanted = function(x, net.c.weight, net.c.bias, **options).detach()
    with torch.no_grad():
        close(run(net)(x)["c"], wanted, 1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_compile_takes_the_whole_net(backend: str, grad: bool) -> None:
    torch.compiler.reset()
    net = passed()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    wanted = by_hand(weights(net))["prob"]
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            close(compiled(X)["prob"].detach(), wanted)
    if grad:
        compiled(X)["prob"][:, 0].sum().backward()
        once = net.conv1.weight.grad.clone()
        net.zero_grad()
        net(X)["prob"][:, 0].sum().backward()
        close(once, net.conv1.weight.grad, 1e-4)


def test_transforms_of_functions() -> None:
    net = passed()
    w = weights(net)
    state = dict(net.state_dict())
    doubled = {**state, "ip2.weight": 2 * state["ip2.weight"]}
    call = torch.func.functional_call
    with torch.no_grad():
        for _ in range(2):
            close(call(net, doubled, (X,))["prob"], by_hand(doubled)["prob"])
            close(net(X)["prob"], by_hand(w)["prob"])

    def loss(w: dict[str, Tensor], x: Tensor) -> Tensor:
        return call(net, w, (x,))["prob"][:, 0].sum()

    grads = torch.func.grad(loss)(state, X)
    for name, grad in grads.items():
        parameter = state[name].detach().clone().requires_grad_()
        (wanted,) = torch.autograd.grad(by_hand({**w, name: parameter})["prob"][:, 0].sum(), parameter)
        close(grad, wanted, 1e-4)
    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, X[:, None])
    close(each["conv1.bias"].sum(0), grads["conv1.bias"], 1e-4)
    with torch.no_grad():
        both = {k: torch.stack([v, doubled[k]]) for k, v in state.items()}
        found = torch.vmap(lambda w: call(net, w, (X,))["prob"])(both)
    close(found[1], by_hand(doubled)["prob"])


def test_wrappers(tmp_path) -> None:
    net = passed()
    wanted = by_hand(weights(net))["prob"]
    close(nn.DataParallel(net)(X)["prob"].detach(), wanted)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        for given in ((X,), ()):
            net.zero_grad()
            top = wrapped(*given, **({} if given else {"data": X}))["prob"]
            close(top.detach(), wanted)
            top[:, 0].sum().backward()
        once = net.conv1.weight.grad.clone()
        del wrapped  # torch 2.13 may wait forever for gloo's threads where the wrapper is the last to hold the group
    finally:
        torch.distributed.destroy_process_group()
    net.zero_grad()
    net(X)["prob"][:, 0].sum().backward()
    close(once, net.conv1.weight.grad)


def test_a_replica_runs_on_its_own_parameters() -> None:
    """What nn.DataParallel does on several GPUs: modules copied without parameters, which become plain attributes."""
    net = passed()
    replicas = {name: module._replicate_for_data_parallel() for name, module in net.named_modules()}
    for name, replica in replicas.items():
        for key in replica._modules:
            replica._modules[key] = replicas[f"{name}.{key}".lstrip(".")]
        for key, parameter in net.get_submodule(name)._parameters.items():
            setattr(replica, key, 2 * parameter.detach())
    w = {k: 2 * v for k, v in weights(net).items()}
    with torch.no_grad():
        for _ in range(2):
            close(replicas[""](X)["prob"], by_hand(w)["prob"])
            close(net(X)["prob"], by_hand(weights(net))["prob"])


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(kind: type[Net], dtype: torch.dtype, tmp_path) -> None:
    net = passed(kind)
    wanted = by_hand(weights(net))["prob"]
    net.to(dtype)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            for _ in range(2):
                top = net(X.to(dtype))["prob"]
                assert top.dtype == dtype
                close(top.detach().float(), wanted, 0.02)
    net.save(tmp_path / "w.caffemodel")
    again = Net(TEXT, tmp_path / "w.caffemodel")
    close(again.conv1.weight.detach(), net.conv1.weight.detach().float())
    with pytest.raises(CaffeError, match="input data"):
        net(X)
    if isinstance(net, caffe_port.Net):
        net.blobs["data"].data[...] = X.numpy()
        np.testing.assert_allclose(net.forward()["prob"].astype(np.float32), wanted, atol=0.02)
        net.params["ip2"][0].data[...] = 0
        net.params["ip2"][1].data[...] = 0
        np.testing.assert_allclose(net.forward()["prob"].astype(np.float32), 0.25)
        assert net.params["ip2"][0].diff.shape == (4, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_backward_as_pycaffe_has_it(dtype: torch.dtype) -> None:
    text = "force_backward: true" + TEXT
    diffs = []
    for net in (built(caffe_port.Net, text), built(caffe_port.Net, text).to(dtype)):
        net.blobs["data"].data[...] = X.numpy()
        net.forward()
        net.blobs["prob"].diff[...] = [1, 0, 0, 0]
        net.backward()
        diffs.append([net.blobs["data"].diff.astype(np.float32), net.params["ip1"][0].diff.astype(np.float32)])
    for whole, half in zip(*diffs, strict=True):
        np.testing.assert_allclose(half, whole, atol=0.05 * np.abs(whole).max())


def test_autocast_casts() -> None:
    net = passed()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tops = net(X, blobs=["conv1", "ip1"])
    assert {tops["conv1"].dtype, tops["ip1"].dtype} == {torch.bfloat16}
    close(tops["prob"].float(), by_hand(weights(net))["prob"], 0.05)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ('type: "Dropout" bottom: "x" top: "y"', "it draws random numbers"),
        ('type: "DummyData" top: "y" dummy_data_param { shape { dim: 2 } data_filler { type: "gaussian" } }', "draws"),
    ],
)
def test_what_a_trace_cannot_hold_is_an_error(layer: str, reason: str) -> None:
    net = Net(f'input: "x" input_shape {{ dim: 2 dim: 3 }} layer {{ name: "l" {layer} }}', phase="TRAIN")
    x = torch.ones(2, 3)
    for export in (lambda: torch.jit.trace(net, (x,), strict=False), lambda: torch.export.export(net, (x,))):
        with pytest.raises(CaffeError, match=rf"layer l .*{reason}.*trace a deploy net"):
            export()


def test_names_of_modules_parameters_and_state() -> None:
    net = passed()
    assert [name for name, _ in net.named_parameters()] == list(net.state_dict())
    assert [name for name, module in net.named_modules() if name and "." not in name and name != "a"] == [
        name for name in ["data", *LAYERS] if "." not in name
    ]
    other = built()
    nn.init.zeros_(other.conv1.weight)
    assert not other.load_state_dict(net.state_dict()).missing_keys
    close(other(X)["prob"], net(X)["prob"])
    assert net.train().training and net.conv1.training and not net.eval().conv1.training
    assert next(net.double().parameters()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_indices_whole(dtype: torch.dtype) -> None:
    """Those of 60 x 60 pixels and of 3,000 classes are more than 11 or 8 bits hold."""
    net = Net(
        """input: "data" input_shape { dim: 1 dim: 1 dim: 60 dim: 60 }
        layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" top: "mask"
          pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
        layer { name: "unpool" type: "Unpooling" bottom: "pool" bottom: "mask" top: "unpool"
          unpooling_param { unpool: MAX kernel_size: 2 stride: 2 unpool_size: 60 } }
        layer { name: "best" type: "ArgMax" bottom: "data" top: "best" argmax_param { out_max_val: true } }""",
        phase="TEST",
        dialect="noh",
    ).to(dtype)
    x = torch.zeros(1, 1, 60, 60, dtype=dtype)
    x[..., 1::2, 1::2] = 1
    x[0, 0, 57, 55] = 2
    for _ in range(2):
        with torch.no_grad():
            tops = net(data=x)
        assert torch.equal(tops["unpool"], x)
        assert tops["best"].flatten().tolist() == [57 * 60 + 55, 2]
