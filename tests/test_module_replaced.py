"""``net.ip2 = torch.nn.Linear(...)``: the usual way to replace a head. Expectations are plain torch's."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from module_nets import TEXT, X, built, by_hand, close, weights
from torch import nn

import caffe_port
from caffe_port import CaffeError
from caffe_port.net import Net

KINDS = pytest.mark.parametrize("kind", [Net, caffe_port.Net])
MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
BEFORE = pytest.mark.parametrize("before", [0, 2], ids=["at once", "after passes"])


def head(*sizes: int) -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(*sizes)


@KINDS
@MODES
@BEFORE
def test_a_replaced_head_is_the_net(kind: type[Net], mode, before: int) -> None:
    net = built(kind)
    with mode():
        for _ in range(before):
            net(X)
    net.ip2 = head(6, 3)
    wanted = by_hand(weights(net), head=net.ip2)["prob"]
    with mode():
        for _ in range(3):
            close(net(X)["prob"], wanted.detach())
    assert {k: tuple(v.shape) for k, v in net.state_dict().items() if k.startswith("ip2")} == {
        "ip2.weight": (3, 6),
        "ip2.bias": (3,),
    }
    assert net.shapes["ip2"] == net.shapes["prob"] == (2, 3)
    with mode():
        assert net(X[:1])["prob"].shape == (1, 3)


@KINDS
def test_gradients_reach_it_and_what_is_below(kind: type[Net]) -> None:
    net = built(kind)
    net(X)
    net.ip2 = head(6, 3)
    net(X, blobs=["ip2"])["ip2"].square().sum().backward()
    w = {k: v.requires_grad_() for k, v in weights(net).items()}
    twin = copy.deepcopy(net.ip2)
    twin.zero_grad()
    by_hand(w, head=twin)["ip2"].square().sum().backward()
    close(net.ip2.weight.grad, twin.weight.grad, 1e-4)
    close(net.conv1.weight.grad, w["conv1.weight"].grad, 1e-3)


def test_pycaffe_sees_it() -> None:
    net = built(caffe_port.Net, "force_backward: true" + TEXT)
    net.blobs["data"].data[...] = X.numpy()
    net.forward()
    net.ip2 = head(6, 3)
    wanted = by_hand(weights(net), head=net.ip2)
    for _ in range(2):
        close(torch.from_numpy(net.forward()["prob"].copy()), wanted["prob"].detach())
    assert net.blobs["prob"].shape == net.blobs["ip2"].data.shape == (2, 3)
    assert [b.data.shape for b in net.params["ip2"]] == [(3, 6), (3,)]
    seed = np.random.RandomState(1).standard_normal((2, 3)).astype(np.float32)
    net.backward(prob=seed)
    x = X.clone().requires_grad_()
    (dx,) = torch.autograd.grad(by_hand(weights(net), x, net.ip2)["prob"], x, torch.from_numpy(seed))
    close(torch.from_numpy(net.blobs["data"].diff.copy()), dx, 1e-4)
    net.params["ip2"][0].data[...] = 0
    net.params["ip2"][1].data[...] = [0, 0, np.log(2)]
    np.testing.assert_allclose(net.forward()["prob"], [[0.25, 0.25, 0.5]] * 2, rtol=1e-6)


REPLACED = {
    "conv by conv": ("conv1", lambda: nn.Conv2d(3, 4, 3)),
    "a name with a dot": ("a.conv2", lambda: nn.Conv2d(4, 5, 2, bias=False)),
    "several modules": ("ip1", lambda: nn.Sequential(nn.Flatten(), nn.Linear(45, 6))),
    "in place": ("relu1", lambda: nn.ReLU(inplace=True)),
    "left out": ("norm", nn.Identity),
    "normalized": ("norm", lambda: nn.BatchNorm2d(5)),
}


@KINDS
@MODES
@pytest.mark.parametrize("name", REPLACED)
def test_any_layer_by_any_module(kind: type[Net], mode, name: str) -> None:
    net, (key, make) = built(kind), REPLACED[name]
    with torch.no_grad():
        net(X)
    pool = by_hand(weights(net))["pool"]
    if key == "ip1":
        make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(pool[0].numel(), 6))  # noqa: E731
    torch.manual_seed(9)
    module = make().eval()
    *path, last = key.split(".")
    setattr(net.get_submodule(".".join(path)), last, module)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    module.register_forward_hook(lambda _, given, top: seen.append((given[0].detach().clone(), top.detach().clone())))
    with mode():
        for _ in range(2):
            net(X)
    assert len(seen) == 2  # working out shapes calls no hooks
    for given, top in seen:
        with torch.no_grad():
            close(top, copy.deepcopy(module).forward(given) if key != "relu1" else given.relu())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda net: setattr(net, "ip2", nn.Linear(7, 3)),
            r"layer ip2 \(Linear in place of .*InnerProduct\).*\(2, 6\)",
        ),
        (lambda net: setattr(net, "ip1", nn.Linear(20, 3)), r"layer ip1 \(Linear.*Flatten"),
        (lambda net: setattr(net, "data", nn.Identity()), r"layer data \(Input\): a module in its place.*Sequential"),
        (lambda net: setattr(net, "ip2", None), r"layer ip2 \(InnerProduct\): no module in its place.*Identity"),
        (lambda net: delattr(net, "pool"), r"layer pool \(Pooling\): no module in its place"),
        (lambda net: setattr(net, "ip1", nn.Sequential(nn.Flatten(), nn.Linear(20, 3))), r"layer ip1"),
        (lambda net: setattr(net, "norm", nn.Flatten()), r"layer pool.*4 axes"),
        (lambda net: setattr(net, "pool", nn.MaxPool2d(2, return_indices=True)), r"Tensor, Tensor"),
        (lambda net: setattr(net, "ip2", net.pool), r"layer pool"),
    ],
)
@KINDS
@MODES
def test_what_cannot_work_raises(kind: type[Net], mode, change, message: str) -> None:
    net = built(kind)
    with mode():
        net(X)
        change(net)
        for _ in range(2):
            with pytest.raises(CaffeError, match=message) as error:
                net(X)
            assert "\n" not in str(error.value)


def test_files_of_caffe_hold_the_definitions_layers_only(tmp_path) -> None:
    net = built()
    net.save(tmp_path / "w.caffemodel")
    net.ip2 = head(6, 3)
    with pytest.raises(CaffeError, match=r"layer ip2: expected the definition's layers.*Linear.*state_dict"):
        net.save(tmp_path / "x.caffemodel")
    assert not (tmp_path / "x.caffemodel").exists()
    with pytest.raises(CaffeError, match=r"ip2\[0\].*\(4, 6\) in the file"):
        net.load(tmp_path / "w.caffemodel")
    net.load(tmp_path / "w.caffemodel", ignore_mismatched=True)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    other = built()
    other.ip2 = nn.Linear(6, 3)
    other.load_state_dict(torch.load(tmp_path / "w.pth"))
    close(other(X)["prob"], net(X)["prob"])


def test_a_replaced_layer_learns_where_the_net_is_frozen() -> None:
    text = TEXT
    for block in ("convolution_param", "inner_product_param"):
        text = text.replace(block, f"param {{ lr_mult: 0 }} param {{ lr_mult: 0 }} {block}")
    label = 'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 2 } } }'
    softmax, loss = '"Softmax" bottom: "ip2" top: "prob"', '"SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss"'
    frozen = label + text.replace(softmax, loss)
    net = built(caffe_port.Net, frozen)
    net.ip2 = head(6, 3)
    labels = torch.tensor([2.0, 0.0])
    total, _ = net.losses(data=X, label=labels)
    total.backward()
    twin = copy.deepcopy(net.ip2)
    twin.zero_grad()
    wanted = nn.functional.cross_entropy(by_hand(weights(net), head=twin)["ip2"], labels.long())
    wanted.backward()
    close(total.detach(), wanted.detach())
    close(net.ip2.weight.grad, twin.weight.grad)
    assert net.conv1.weight.grad is None


def test_a_layer_of_another_net_and_back_again() -> None:
    net, other = built(), built(text=TEXT.replace("num_output: 4 weight_filler", "num_output: 7 weight_filler"))
    own, w = net.ip2, weights(net)
    with torch.no_grad():
        first = net(X)["prob"]
        net.ip2 = other.ip2
        wanted = by_hand({**w, "ip2.weight": other.ip2.weight, "ip2.bias": other.ip2.bias})
        close(net(X)["prob"], wanted["prob"].detach())
        net.ip2 = own
        close(net(X)["prob"], first)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_keep_it(copied) -> None:
    net = built(caffe_port.Net)
    net.ip2 = head(6, 3)
    with torch.no_grad():
        wanted = net(X)["prob"]
        again = copied(net)
        close(again(X)["prob"], wanted)
        nn.init.zeros_(again.ip2.weight)
        close(net(X)["prob"], wanted)


@pytest.mark.parametrize("recorded", [False, True], ids=["first pass", "later pass"])
@pytest.mark.parametrize("change", ["module", "parameter", "other shape"])
def test_backward_refuses_what_forward_did_not_run(recorded: bool, change: str) -> None:
    """And leaves all diffs as they are; after the next forward it gives torch's gradients of the new layer."""
    net = built(caffe_port.Net, "force_backward: true" + TEXT)
    net.blobs["data"].data[...] = X.numpy()
    if recorded:
        net.forward()
        net.backward()
        net.clear_param_diffs()
    net.forward()
    if change == "parameter":
        net.ip2.weight = nn.Parameter(net.ip2.weight.detach().clone())
    else:
        net.ip2 = head(6, 3 if change == "other shape" else 4)
    with pytest.raises(
        CaffeError, match=r"layer ip2 .*another (module|parameter) than forward ran; run forward\(\) again"
    ):
        net.backward()
    assert not any(blob.diff.any() for name, blobs in net.params.items() if name != "ip2" for blob in blobs)
    net.backward(end="prob", start="prob")  # layers above it are as they were
    net.forward()
    seed = np.random.RandomState(1).standard_normal(net.blobs["prob"].shape).astype(np.float32)
    net.backward(prob=seed)
    x = X.clone().requires_grad_()
    twin = copy.deepcopy(net.ip2) if change != "parameter" else None
    (dx,) = torch.autograd.grad(by_hand(weights(net), x, twin)["prob"], x, torch.from_numpy(seed))
    close(torch.from_numpy(net.blobs["data"].diff.copy()), dx, 1e-4)
