"""Layers and nets against the numbers of real Caffe."""

from __future__ import annotations

import numpy as np
import pytest
from reference import FORWARD, Case, cases, moments, outside, sample, switches

import caffe_port

LAYERS = cases("noh_layers", "noh")
NETS = cases("noh_nets", "noh")


def build(case: Case) -> caffe_port.Net:
    """The case's net with its parameters and inputs set."""
    net = caffe_port.Net(case.prototxt, phase=case.phase, dialect=case.dialect)
    arrays = case.arrays
    for key in arrays.files:
        kind, *rest = key.split("/")
        if kind == "in":
            net.blobs["/".join(rest)].reshape(*arrays[key].shape)
            net.blobs["/".join(rest)].data[...] = arrays[key]
        elif kind == "param":
            net.params["/".join(rest[:-1])][int(rest[-1])].data[...] = arrays[key]
    return net


def ours(net: caffe_port.Net, key: str) -> np.ndarray:
    """Our array for a reference key."""
    kind, name = key.split("/", 1)
    if kind in ("pdiff", "after"):
        layer, _, index = name.rpartition("/")
        blob = net.params[layer][int(index)]
        return blob.diff if kind == "pdiff" else blob.data
    if kind == "diff":
        return net.blobs[name].diff
    data = net.blobs[name].data
    return {"out": np.asarray, "sample": sample, "moments": moments}[kind](data)


def wrong(net: caffe_port.Net, case: Case, kinds: tuple[str, ...], **options: bool) -> list[str]:
    arrays = case.arrays
    found = (
        outside(key, ours(net, key), arrays[key], case.bound(key), **options)
        for key in arrays.files
        if key.split("/")[0] in kinds
    )
    return [w for w in found if w]


@pytest.mark.parametrize("case", LAYERS + NETS, ids=str)
def test_forward_and_backward(case: Case) -> None:
    net, arrays = build(case), case.arrays
    for _ in range(case.forwards):
        net.forward()
    assert not wrong(net, case, ("out", "sample", "after") if case.suite == "noh_nets" else ("out", "sample", "moments", "after"))
    if case.backward:
        for key in arrays.files:
            if key.startswith("seed/"):
                net.blobs[key[5:]].diff[...] = arrays[key]
        net.backward()
        assert not wrong(net, case, ("diff", "pdiff"))


@pytest.mark.parametrize("case", [c for c in NETS if any(k.startswith("switch/") for k in c.arrays.files)], ids=str)
def test_forward_strictly_with_the_references_own_switches(case: Case) -> None:
    """With near ties taken out of the comparison everything lies within the bound."""
    net, arrays = build(case), case.arrays
    start = None
    for node, _ in net.nodes:
        masks = [t for t in node.tops if f"switch/{t}" in arrays.files]
        if masks:
            net.forward(start=start, end=node.name)
            for mask in masks:
                net.blobs[mask].data[...] = switches(arrays[f"switch/{mask}"])
            start = net.nodes[node.index + 1][0].name
    net.forward(start=start)
    assert not wrong(net, case, ("out", "sample", "moments"), ties=False)


def test_bounds_can_fail() -> None:
    reference = np.linspace(-1, 1, 5000)
    assert not outside("out/x", reference + 0.5 * FORWARD, reference, FORWARD)
    assert outside("out/x", reference + 2 * FORWARD, reference, FORWARD)
    assert outside("out/x", reference[:-1], reference, FORWARD)
    assert outside("out/x", np.full_like(reference, np.nan), reference, FORWARD)
