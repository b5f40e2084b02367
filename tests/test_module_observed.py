"""Hooks and parametrizations do what torch.nn promises in every mode, after any number of passes."""

from __future__ import annotations

import pytest
import torch
from module_nets import LAYERS, TEXT, X, built, by_hand, close, weights
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import caffe_port
from caffe_port.errors import WeightsError
from caffe_port.net import Net

KINDS = pytest.mark.parametrize("kind", [Net, caffe_port.Net])
MODES = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "grad": torch.enable_grad}
ways = pytest.mark.parametrize("mode", MODES)


def passes(net: Net, mode: str, count: int = 1) -> torch.Tensor:
    with MODES[mode]():
        for _ in range(count):
            top = net(X)["prob"]
    return top


@KINDS
@ways
@pytest.mark.parametrize("name", ["data", *LAYERS])
def test_forward_hooks_fire_on_every_pass_also_when_registered_later(kind: type[Net], mode: str, name: str) -> None:
    net = built(kind)
    wanted, seen = by_hand(weights(net)), list[str]()
    passes(net, mode, 2)
    layer = net.get_submodule(name)
    layer.register_forward_pre_hook(lambda *_: seen.append("pre"))
    handle = layer.register_forward_hook(lambda *_: seen.append("post"))
    close(passes(net, mode, 3), wanted["prob"])
    assert seen == ["pre", "post"] * 3
    handle.remove()
    passes(net, mode, 2)
    assert seen[6:] == ["pre"] * 2


@KINDS
@ways
def test_a_hook_sees_and_changes_the_numbers(kind: type[Net], mode: str) -> None:
    net, seen = built(kind), list[torch.Tensor]()
    passes(net, mode, 2)
    w = weights(net)

    def double(_: nn.Module, given: object, top: torch.Tensor | tuple[torch.Tensor, ...]) -> object:
        one = top[0] if isinstance(top, tuple) else top
        seen.append(one.detach().clone())
        return one * 2

    net.get_submodule("a.conv2").register_forward_hook(double)
    wanted = by_hand({**w, "a.conv2.weight": 2 * w["a.conv2.weight"], "a.conv2.bias": 2 * w["a.conv2.bias"]})
    for _ in range(2):
        close(passes(net, mode), wanted["prob"])
    inner = torch.conv2d(by_hand(w)["conv1"], w["a.conv2.weight"], w["a.conv2.bias"])
    assert len(seen) == 2
    close(seen[0], inner)


@ways
def test_a_hook_of_an_input_sees_and_changes_it(mode: str) -> None:
    net, seen = built(), list[torch.Tensor]()
    wanted = by_hand(weights(net), X * 2)["prob"]

    def double(_: nn.Module, given: tuple[torch.Tensor, ...], tops: tuple[torch.Tensor, ...]) -> object:
        seen.extend((*given, *tops))
        return tuple(t * 2 for t in tops)

    net.data.register_forward_hook(double)
    close(passes(net, mode), wanted)
    assert [torch.equal(t, X) for t in seen] == [True, True]


@ways
def test_hooks_for_all_modules_fire(mode: str) -> None:
    net, seen = built(), list[str]()
    passes(net, mode, 2)
    names = {module: name for name, module in net.named_modules()}
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(names[module]))
    try:
        passes(net, mode, 2)
    finally:
        handle.remove()
    assert seen == ["data", *LAYERS, ""] * 2
    passes(net, mode)
    assert len(seen) == 2 * (len(LAYERS) + 2)


@KINDS
@pytest.mark.parametrize("name", LAYERS)
def test_full_backward_hooks_fire(kind: type[Net], name: str) -> None:
    net, seen = built(kind), list[str]()
    passes(net, "no_grad", 2)
    net.get_submodule(name).register_full_backward_hook(lambda *_: seen.append("full"))
    net.get_submodule(name).register_full_backward_pre_hook(lambda *_: seen.append("pre"))
    for _ in range(2):
        net(X.clone().requires_grad_())["prob"][:, 0].sum().backward()
    assert seen == ["pre", "full"] * 2


@pytest.mark.parametrize("name", ["conv1", "relu1", "a.conv2", "ip1", "ip2"])
def test_backward_hooks_fire_in_pycaffes_backward_and_in_losses(name: str) -> None:
    net, seen = built(caffe_port.Net, "force_backward: true" + TEXT), list[str]()
    net.get_submodule(name).register_full_backward_hook(lambda *_: seen.append("full"))
    net.get_submodule(name).register_forward_hook(lambda *_: seen.append("forward"))
    net.train()  # from the first pass on it keeps what backward needs
    for _ in range(2):
        net.forward()
        net.blobs["prob"].diff[...] = 1
        net.backward()
    assert seen == ["forward", "full"] * 2


@ways
def test_only_observed_layers_leave_the_fast_way(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others keep their packed weights: the same objects are used after a hook was added and removed."""
    monkeypatch.setenv("CAFFE_PORT_STEPS", "0")
    net = built()
    passes(net, "no_grad", 2)
    before = _prepared(net)
    assert set(before) == {1, 3, 7, 9}
    handle = net.get_submodule("relu1").register_forward_hook(lambda *_: None)
    passes(net, "no_grad", 2)
    during = _prepared(net)
    assert set(during) == {1, 3, 7, 9}  # conv1 by itself, without its ReLU
    assert all(during[i] is before[i] for i in (3, 7, 9))
    handle.remove()
    handle = net.conv1.register_forward_hook(lambda *_: None)
    passes(net, mode, 2)
    passes(net, "no_grad", 2)
    assert set(_prepared(net)) == {3, 7, 9}
    handle.remove()


def _prepared(net: Net) -> dict[int, object]:
    (infer, _), *_ = net.executor._fused.values()
    return {i: step.packed for i, step in infer.items() if step.packed is not None}


class Tripled(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return 3 * w


def _weight_norm(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.mul_(3)


def _old_weight_norm(layer: nn.Module) -> None:
    nn.utils.weight_norm(layer)
    layer.weight_g.data.mul_(3)


def _mask(layer: nn.Module) -> None:
    prune.custom_from_mask(layer, "weight", torch.ones_like(layer.weight))
    layer.weight_orig.data.mul_(3)


def _patch(layer: nn.Module) -> None:
    plain = layer.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        layer.weight.data.mul_(3)
        y = plain(x)
        layer.weight.data.div_(3)
        return y

    layer.forward = forward


CHANGES = {
    "parametrize": lambda layer: parametrize.register_parametrization(layer, "weight", Tripled()),
    "weight_norm": _weight_norm,
    "weight_norm, by hook": _old_weight_norm,
    "prune": _mask,
    "forward": _patch,
}


@KINDS
@ways
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("name", ["conv1", "a.conv2", "ip1", "ip2"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_layer_is_as_it_was_changed(kind: type[Net], mode: str, name: str, change: str) -> None:
    net = built(kind)
    w = weights(net)
    passes(net, "no_grad", 2)
    CHANGES[change](net.get_submodule(name))
    wanted = by_hand({**w, f"{name}.weight": 3 * w[f"{name}.weight"]})["prob"]
    for _ in range(3):
        close(passes(net, mode), wanted)
    if kind is caffe_port.Net:
        net.blobs["data"].data[...] = X.numpy()
        for _ in range(2):
            close(torch.from_numpy(net.forward()["prob"].copy()), wanted)


def test_a_parametrized_weight_learns_and_saves_but_takes_no_file(tmp_path) -> None:
    net = built(caffe_port.Net)
    net.save(tmp_path / "before.caffemodel")
    parametrize.register_parametrization(net.conv1, "weight", Tripled())
    original = net.conv1.parametrizations.weight.original
    net(X, blobs=["ip2"])["ip2"].square().sum().backward()
    once = original.grad.clone()
    close(torch.from_numpy(net.params["conv1"][0].data.copy()), 3 * original.detach())
    with pytest.raises(ValueError, match="read-only"):
        net.params["conv1"][0].data[...] = 0
    with pytest.raises(WeightsError, match=r"layer conv1: expected a parameter.*weight is computed"):
        net.load(tmp_path / "before.caffemodel")
    net.save(tmp_path / "after.caffemodel")
    again = Net(net.definition, tmp_path / "after.caffemodel")
    close(again.conv1.weight.detach(), 3 * original.detach())
    x = torch.nn.Parameter(original.detach().clone())
    by_hand({**weights(again), "conv1.weight": 3 * x})["ip2"].square().sum().backward()
    close(once, x.grad, 1e-4)
