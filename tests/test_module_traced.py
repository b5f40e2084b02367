"""Tracers and compilers: every layer that can be exported, run on other inputs than those it was traced with."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from reference import Case, cases
from torch._subclasses.fake_tensor import FakeTensorMode

from caffe_port import CaffeError
from caffe_port.layers.capabilities import Stateful
from caffe_port.net import Net

ROWS = [case for suite, dialect in (("bvlc_layers", "bvlc"), ("noh_layers", "noh")) for case in cases(suite, dialect)]
for fork in ("segnet", "deeplab2", "ssd"):  # their layers differ in fewer ways than they have cases
    ROWS += {case.name.partition("_")[0]: case for case in cases(fork, fork)}.values()


def given(net: Net, case: Case) -> tuple[torch.Tensor, ...]:
    arrays = ((case.reference[f"in/{n}"].astype(np.float32), net.shapes[n]) for n in net.graph.inputs)
    return tuple(torch.from_numpy(array.reshape(shape)) for array, shape in arrays)


def traced(net: Net, x: tuple[torch.Tensor, ...]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = torch.jit.trace(net, x, strict=False)
    file = io.BytesIO()
    torch.jit.save(trace, file)
    file.seek(0)
    return torch.jit.load(file)


def exported(net: Net, x: tuple[torch.Tensor, ...]):
    logging.disable(logging.CRITICAL)
    try:
        return torch.export.export(net, x).module()
    finally:
        logging.disable(logging.NOTSET)


EXPORTERS = {"torch.jit.trace": traced, "torch.export": exported}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_every_layer_in_a_trace_gives_what_it_gives_outside(case: Case, exporter: str) -> None:
    """On inputs turned round in all axes: what a trace took for a constant shows."""
    net = Net(case.prototxt, phase="TEST", dialect=case.dialect)
    x = given(net, case)
    untraceable = [reason for _, layer in net.nodes if (reason := layer.untraceable)]
    if untraceable:
        with pytest.raises(CaffeError, match="which a trace cannot record"):
            EXPORTERS[exporter](net, x)
        return
    module = EXPORTERS[exporter](net, x)
    turned = tuple(t.flip([*range(t.dim())]) for t in x)
    with torch.no_grad():
        wanted, found = net(*turned), module(*turned)
    assert {type(top) for top in wanted.values()} == {torch.Tensor}, "what a tracer made stays in the net"
    assert set(found) == set(wanted)
    for name, top in wanted.items():
        torch.testing.assert_close(found[name], top, rtol=1e-4, atol=1e-5, equal_nan=True)


def clear_caches() -> None:
    """Empty what the package's modules have cached: earlier tests filled it with plain tensors."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "caffe_port":
            for function in vars(module).values():
                if hasattr(function, "cache_clear"):
                    function.cache_clear()


def as_fakes(net: Net, x: tuple[torch.Tensor, ...]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        net(*map(mode.from_tensor, x))


def inferred(net: Net, x: tuple[torch.Tensor, ...]) -> None:
    with torch.inference_mode():
        net(*x)


WAYS = EXPORTERS | {
    "vmap": lambda net, x: torch.func.vmap(net)(*(t.unsqueeze(0) for t in x)),
    "grad": lambda net, x: torch.func.grad(lambda *x: sum(t.sum() for t in net(*x).values()))(*x),
    "fake tensors": as_fakes,
    "inference_mode": inferred,
}
FIRST = {(case.dialect, case.name.partition("_")[0]): case for case in reversed(ROWS)}.values()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", FIRST, ids=str)
def test_nothing_stays_behind(case: Case) -> None:
    """After a pass under a tracer or transform, whether it worked or not, plain passes give what they did before."""
    fresh = Net(case.prototxt, phase="TEST", dialect=case.dialect)
    x = given(fresh, case)
    with torch.no_grad():
        wanted = fresh(*x)
    for name, way in WAYS.items():
        net = Net(case.prototxt, phase="TEST", dialect=case.dialect)
        net.load_state_dict(fresh.state_dict())
        if name == "inference_mode" and any(isinstance(layer, Stateful) for _, layer in net.nodes):
            continue  # an ordinary pass, from whose state the next goes on
        clear_caches()
        with suppress(Exception):
            way(net, x)
        leaves = tuple(t.clone().requires_grad_() for t in x)
        with torch.no_grad():
            passes = [net(*x)]
        if not any(isinstance(layer, Stateful) for _, layer in net.nodes):
            passes.append(net(*leaves))
            sum(
                (t.sum() for t in passes[1].values() if t.requires_grad), torch.zeros((), requires_grad=True)
            ).backward()
        for found in passes:
            for top, array in wanted.items():
                assert type(found[top]) is torch.Tensor, (name, top)
                torch.testing.assert_close(found[top].detach(), array, rtol=1e-5, atol=1e-6, equal_nan=True)
