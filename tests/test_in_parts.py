"""Batches larger than memory are run in parts, with the numbers of the whole."""

from __future__ import annotations

import pytest
import torch

from caffe_port.execution import in_parts, memory
from caffe_port.execution.executor import Executor
from caffe_port.net import Net

HEAD = """
layer { name: "x" type: "Input" top: "x" top: "z" input_param { shape { dim: 7 dim: 3 dim: 12 dim: 10 }
        shape { dim: 7 dim: 5 dim: 12 dim: 10 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 5 kernel_size: 3 pad: 1
        weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "b" type: "BatchNorm" bottom: "c" top: "c" }
layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
layer { name: "e" type: "Eltwise" bottom: "c" bottom: "z" top: "e" }
layer { name: "p" type: "Pooling" bottom: "e" top: "p" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "d" type: "Deconvolution" bottom: "p" top: "d" convolution_param { num_output: 4 kernel_size: 2 stride: 2
        weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "k" type: "Concat" bottom: "d" bottom: "e" top: "k" }
"""
SOFTMAX = 'layer { name: "s" type: "Softmax" bottom: "k" top: "s" softmax_param { axis: AXIS } }'
PRODUCT = """layer { name: "i" type: "InnerProduct" bottom: "p" top: "i" inner_product_param { num_output: 6
             weight_filler { type: "xavier" } } }"""
WHOLE = {
    "an axis of the batch": SOFTMAX.replace("AXIS", "0"),
    "statistics of the batch": 'layer { name: "n" type: "BatchNorm" bottom: "k" top: "n" '
    "batch_norm_param { use_global_stats: false } }",
    "a sum over items": 'layer { name: "t" type: "Reduction" bottom: "k" top: "t" }',
    "another first axis": """layer { name: "h" type: "Reshape" bottom: "k" top: "h"
                             reshape_param { shape { dim: -1 dim: 3 dim: 12 dim: 10 } } }""",
}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each run had; there is memory for three at a time."""
    seen: list[int] = []
    run = Executor.run

    def counted(self: Executor, mode: object, blobs: dict, *args: object, **options: object) -> object:
        seen.append(len(blobs["x"]))
        return run(self, mode, blobs, *args, **options)

    monkeypatch.setattr(Executor, "run", counted)
    return seen


def limit(net: Net, monkeypatch: pytest.MonkeyPatch, items: int) -> None:
    inputs = [torch.empty(net.shapes[name], device="meta") for name in net.graph.inputs]
    needed = net.executor.most_bytes(inputs, net.shapes, net.graph.outputs)
    monkeypatch.setattr(memory, "SMALL", 0)
    monkeypatch.setattr(in_parts, "available", lambda: 2 * (needed * items // 7 + needed // 14))


def given() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {"x": torch.randn(7, 3, 12, 10, generator=draw), "z": torch.randn(7, 5, 12, 10, generator=draw)}


@pytest.mark.parametrize("tail", [SOFTMAX.replace("AXIS", "1"), PRODUCT, SOFTMAX.replace("AXIS", "-1") + PRODUCT])
def test_parts_give_what_the_whole_gives(tail: str, runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(HEAD + tail, phase="TEST", dialect="bvlc").eval()
    with torch.no_grad():
        expected = net(**given(), blobs=["e"])
        assert runs == [7]
        limit(net, monkeypatch, 3)
        found = net(**given())
        assert sorted(runs[1:]) == [1, 3, 3]
        limit(net, monkeypatch, 7)
        net(**given())
    assert runs[4:] == [7]
    assert net.shapes["e"] == (7, 5, 12, 10)
    assert found.keys() == {*net.graph.outputs}
    for name, blob in found.items():
        assert blob.is_contiguous()
        largest = float(expected[name].abs().max())  # sums of large terms may be small
        torch.testing.assert_close(blob, expected[name], rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("why", WHOLE)
def test_items_that_depend_on_each_other_stay_together(
    why: str, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net(HEAD + WHOLE[why], phase="TEST", dialect="bvlc").eval()
    limit(net, monkeypatch, 3)
    with torch.no_grad():
        net(**given())
    assert runs == [7]


def test_a_net_whose_layers_are_observed_stays_together(runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(HEAD, phase="TEST", dialect="bvlc").eval()
    limit(net, monkeypatch, 3)
    net.c.register_forward_hook(lambda module, args, y: None)
    with torch.no_grad():
        net(**given())
    assert runs == [7]


def test_the_most_bytes_are_those_of_the_blobs_alive() -> None:
    net = Net(HEAD, phase="TEST", dialect="bvlc")
    inputs = [torch.empty(net.shapes[name]) for name in net.graph.inputs]
    pixels = 7 * 12 * 10
    # At the end d and e are read, and k is made of them.
    assert net.executor.most_bytes(inputs, net.shapes, net.graph.outputs) == 4 * pixels * (4 + 5 + 9)


def test_the_available_memory_is_the_machines_or_less() -> None:
    assert 0 < in_parts.available() < 1 << 62


def test_a_dropout_that_draws_in_inference_keeps_items_together() -> None:
    """Its numbers come from one stream, in the order of the layers."""
    text = """input: "x" input_shape { dim: 2 dim: 3 dim: 4 dim: 4 }
              layer { name: "d" type: "Dropout" bottom: "x" top: "d" dropout_param { DRAWS } }"""
    always = Net(text.replace("DRAWS", "sample_weights_test: true"), dialect="segnet")
    assert not in_parts.itemwise(always.executor)
    assert in_parts.itemwise(Net(text.replace("DRAWS", ""), dialect="segnet").executor)
