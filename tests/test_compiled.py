"""Compiled runs of layers: their numbers beside the same net in double precision, and when they are used."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compiled_nets import IMAGE, LINEAR, NETS, inputs, layer, pool, relu, unpool
from torch import Tensor, nn

from caffe_port import native
from caffe_port.errors import CaffeError, ShapeError
from caffe_port.execution.compiled import Run
from caffe_port.execution.executor import Executor
from caffe_port.net import Net

pytestmark = pytest.mark.skipif(native.library("steps") is None, reason="needs a C compiler")


@pytest.fixture
def run_count(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Run]]:
    """The runs, as they are called."""
    called: list[Run] = []
    original = Run.__call__
    monkeypatch.setattr(Run, "__call__", lambda self, blobs: called.append(self) or original(self, blobs))
    return called


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each pass was a repetition."""
    found: list[bool] = []
    original = Executor.repeated

    def repeated(self: Executor, *given: Any) -> Any:
        result = original(self, *given)
        found.append(result is not None)
        return result

    monkeypatch.setattr(Executor, "repeated", repeated)
    return found


def drawn(text: str) -> tuple[Net, Net, dict[str, Tensor]]:
    """A net with random weights, the same in double precision, and inputs."""
    torch.manual_seed(0)
    net = Net(text)
    with torch.no_grad():
        for name, blob in net.state_dict().items():
            positive = name.endswith(("variance", "scale_factor"))
            blob.copy_(torch.rand_like(blob) + 0.5 if positive else torch.randn_like(blob) * 0.3)
    exact = Net(text).double()
    exact.load_state_dict({k: v.double() for k, v in net.state_dict().items()})
    return net, exact, {name: torch.randn(net.shapes[name]) for name in net.graph.inputs}


def compare(net: Net, exact: Net, given: dict[str, Tensor], blobs: tuple[str, ...] = ()) -> None:
    with torch.no_grad():
        found = net(given, blobs=blobs)
        expected = exact({k: v.double() for k, v in given.items()}, blobs=blobs)
    assert found.keys() == expected.keys()
    for name, y in expected.items():
        assert found[name].shape == y.shape
        assert found[name].is_contiguous()
        assert (found[name] - y).abs().max() < 3e-6 * max(1e-3, float(y.abs().max())), name


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", NETS)
def test_numbers(name: str, threads: int, run_count: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    net, exact, given = drawn(NETS[name])
    before, last = torch.get_num_threads(), len(net.nodes) - 1
    torch.set_num_threads(threads)
    monkeypatch.setattr(ctypes.c_long.in_dll(native.library("steps"), "few"), "value", 0)
    try:
        for form in (torch.contiguous_format, torch.channels_last):
            formed = {k: v.contiguous(memory_format=form) if v.dim() == 4 else v for k, v in given.items()}
            kept = {k: v.clone() for k, v in formed.items()}
            compare(net, exact, formed)
            assert all(torch.equal(formed[k], kept[k]) for k in kept)  # inputs are not written to
        others = tuple(dict.fromkeys(top for node, _ in net.nodes for top in node.tops))
        compare(net, exact, given, others)  # every blob kept
    finally:
        torch.set_num_threads(before)
    assert run_count
    if name not in ("a layer between", "what only a refused layer reads"):
        assert all(run.last == last for run in run_count)


def same_on_threads(net: Net, given: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blob g is the same to the bit on 1, 2 and 5 threads, with small layers on all of them too."""
    before, results = torch.get_num_threads(), []
    monkeypatch.setattr(ctypes.c_long.in_dll(native.library("steps"), "few"), "value", 0)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        with torch.no_grad():
            results.append(net(given)["g"])
    torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results[1:])


def test_a_switch_outside_is_an_error(run_count: list[Run]) -> None:
    net = Net(inputs((2, 3, 2, 2), (2, 3, 2, 2)) + unpool("a", "x0 x1", "kernel_size: 2 stride: 2 unpool_size: 4"))
    x, at = torch.randn(2, 3, 2, 2), torch.tensor([[0.0, 2.0], [8.0, 10.0]]).expand(2, 3, 2, 2).clone()
    with torch.no_grad():
        assert net(x, at)["a"][0, 0, 2, 2] == x[0, 0, 1, 1]
        at[1, 2, 1, 1] = 15.5  # of no window, in the last pixel
        assert net(x, at)["a"][1, 2, 3, 3] == x[1, 2, 1, 1]
        for wrong in (16.0, -1.0, float("nan")):
            at[1, 2, 0, 1] = wrong
            with pytest.raises(ShapeError, match=r"layer a \(Unpooling\): expected 0 to 15, .* found a switch outside"):
                net(x, at)
    assert len(run_count) == 5


def test_threads_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    net, _, given = drawn(NETS["branches"])
    same_on_threads(net, given, monkeypatch)


def test_every_item_of_a_batch_as_by_itself(run_count: list[Run]) -> None:
    net, _, given = drawn(NETS["branches"])
    with torch.no_grad():
        whole = net(given)["g"]
        parts = [net(x0=x)["g"] for x in given["x0"].split(1)]
    assert (torch.cat(parts) - whole).abs().max() < 1e-6
    assert len(run_count) == 3


@pytest.mark.parametrize("name", ["depthwise", "dense", "alone", "winograd", "large dense"])
def test_changes_of_parameters_are_seen(name: str, run_count: list[Run]) -> None:
    net, exact, given = drawn(NETS[name])
    compare(net, exact, given)
    for blob, key in enumerate(net.state_dict()):
        ways = [
            lambda p: p.mul_(1.5),
            lambda p: p.data.copy_(p * 0.5),
            lambda p: setattr(p, "data", p * 2),
        ]
        with torch.no_grad():
            ways[blob % 3](dict([*net.named_parameters(), *net.named_buffers()])[key])
        exact.load_state_dict({k: v.double() for k, v in net.state_dict().items()})
        compare(net, exact, given)
    module = next(m for _, m in net.nodes if m.blob_names)
    setattr(module, module.blob_names[0], torch.nn.Parameter(getattr(module, module.blob_names[0]).detach() * 2))
    exact.load_state_dict({k: v.double() for k, v in net.state_dict().items()})
    compare(net, exact, given)
    assert len({id(run) for run in run_count}) > 3


def test_arrays_over_parameters_may_be_written_to() -> None:
    import caffe_port

    net = caffe_port.Net(NETS["dense"])
    x = torch.randn(3, 4, 5, 2)
    with torch.no_grad():
        net(x)
        array = net.params["a"][0].data
        for value in (0.1, 0.2):
            array[5] = value
            expected = caffe_port.Net(NETS["dense"])
            expected.load_state_dict(net.state_dict())
            assert torch.allclose(net(x)["p"], expected(x)["p"], 1e-5)


def test_an_observed_layer_runs_by_itself(run_count: list[Run]) -> None:
    net, exact, given = drawn(NETS["branches"])
    seen: list[tuple[int, ...]] = []
    handle = net.get_submodule("b").register_forward_hook(
        lambda module, bottoms, tops: seen.append(tuple(tops[0].shape))
    )
    compare(net, exact, given)
    assert seen == [(2, 40, 9, 9)]
    assert len(run_count) == 2
    handle.remove()
    compare(net, exact, given)
    assert len(seen) == 1
    assert len(run_count) == 3


def test_shapes_may_change_from_pass_to_pass() -> None:
    net, exact, _ = drawn(NETS["branches"])
    for size in [(2, 9, 9), (1, 9, 9), (1, 12, 31), (2, 9, 9), (5, 3, 3), (1, 20, 20), (3, 8, 8), (1, 9, 9)]:
        compare(net, exact, {"x0": torch.randn(size[0], 16, *size[1:])})


def test_values_that_are_not_finite_stay() -> None:
    text = inputs((1, 33, 6, 6)) + pool("a", "x0", "kernel_size: 2 stride: 2") + relu("a") + layer("ReLU", "b", "x0")
    net, x = Net(text), torch.randn(1, 33, 6, 6)
    x[0, 3, 0, 0], x[0, 4, 5, 5], x[0, 32, 2, 2] = torch.nan, torch.inf, torch.nan
    with torch.no_grad():
        found = net(x0=x)
    assert torch.allclose(found["b"], x.relu(), equal_nan=True, rtol=0)
    expected = torch.nn.functional.max_pool2d(x, 2).relu()
    assert torch.allclose(found["a"], expected, equal_nan=True, rtol=0)


@pytest.mark.parametrize("steps", ["0", "1"])
@pytest.mark.parametrize("name", ["direct", "slopes", "depthwise", "deconvolution", "winograd", "dense", "many rows"])
def test_nan_stays_nan(name: str, steps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under a ReLU that a convolution or product computes; Winograd's tiles may spread it."""
    monkeypatch.setenv("CAFFE_PORT_STEPS", steps)
    net, exact, given = drawn(NETS[name] + (relu("a") if name == "many rows" else ""))
    given = {key: x.index_fill(-1, torch.tensor([1]), torch.nan) for key, x in given.items()}
    expected = {key: y.isnan() for key, y in exact(**{key: x.double() for key, x in given.items()}).items()}
    with torch.no_grad():
        for _ in range(3):
            for key, y in net(**given).items():
                assert expected[key].any()
                assert y[expected[key]].isnan().all()


def twice(tops: tuple[Tensor, ...]) -> Tensor:
    return 2 * tops[0]


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return twice(self.layer(x))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _everywhere(net: Net) -> None:
    def hook(module: nn.Module, bottoms: object, tops: tuple[Tensor, ...]) -> Tensor | None:
        return twice(tops) if module is net.a else None

    nn.modules.module.register_module_forward_hook(hook)


def _put(net: Net, name: str, value: object) -> None:
    vars(net.a)[name] = value


def _doubled(module: object, bottoms: object, tops: tuple[Tensor, ...]) -> Tensor:
    return twice(tops)


def _patched(net: Any) -> None:
    own = net.a.forward
    _put(net, "forward", lambda x: twice(own(x)))


CHANGES: dict[str, Callable[[Any], object]] = {
    "a hook": lambda net: net.a.register_forward_hook(_doubled),
    "a hook before": lambda net: net.a.register_forward_pre_hook(lambda module, bottoms: twice(bottoms)),
    "another table of hooks": lambda net: _put(net, "_forward_hooks", OrderedDict({0: _doubled})),
    "hooks for all": _everywhere,
    "forward": _patched,
    "values": lambda net: net.a.weight.data.mul_(2),
    "memory": lambda net: setattr(net.a.weight, "data", net.a.weight.data * 2),
    "a parameter": lambda net: setattr(net.a, "weight", nn.Parameter(net.a.weight.detach() * 2)),
    "a parametrization": lambda net: nn.utils.parametrize.register_parametrization(net.a, "weight", Doubled()),
    "a layer": lambda net: setattr(net, "a", Twice(net.a)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_repeated_pass_sees_every_change(change: str, repeats: list[bool]) -> None:
    net, x = Net(inputs(IMAGE) + layer("Convolution", "a", "x0", LINEAR)), torch.randn(IMAGE)
    with torch.no_grad():
        first = net(x)["a"]
        assert torch.equal(net(x)["a"], first)
        assert repeats == [False, True]
        CHANGES[change](net)
        try:
            for _ in range(2):
                torch.testing.assert_close(net(x)["a"], 2 * first)
        finally:
            nn.modules.module._global_forward_hooks.clear()
    assert repeats[2] is False


def test_a_pass_of_another_kind_is_not_repeated(repeats: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Net(NETS["direct"]), torch.randn(IMAGE)
    with torch.no_grad():
        for _ in range(2):
            net(x)
        assert repeats.pop()
        for other in (x.double(), x[0], x[:, :2]):
            with pytest.raises(CaffeError):
                net(x0=other)
        assert net(x[:1])["a"].shape[0] == net.shapes["a"][0] == 1
        assert net(x)["a"].shape[0] == net.shapes["a"][0] == 2
        net(x.contiguous(memory_format=torch.channels_last))
        assert net(x, blobs=["x0"])["x0"] is x
        monkeypatch.setenv("CAFFE_PORT_STEPS", "0")
        net(x)
    assert net(x)["a"].requires_grad
    assert net.double()(x.double())["a"].dtype == torch.float64
    assert not any(repeats)


def test_off(monkeypatch: pytest.MonkeyPatch, run_count: list[Run]) -> None:
    monkeypatch.setenv("CAFFE_PORT_STEPS", "0")
    compare(*drawn(NETS["branches"]))
    assert not run_count
