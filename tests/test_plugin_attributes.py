"""Attributes of a layer's own: what a plugin may call its attributes, and a .proto that uses the schema's messages."""

from __future__ import annotations

from pathlib import Path

import pytest

import caffe_port
from caffe_port.errors import LayerError
from caffe_port.layers import Layer, layer

PROTO = """
message LayerParameter { optional AttributedParameter attributed_param = 1200; }
message AttributedParameter { optional FillerParameter weight_filler = 1; optional string attribute = 2; }
"""
NET = """
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: [1, 2] }} }} }}
layer {{ name: "m" type: "Attributed" bottom: "x" top: "y"
         attributed_param {{ weight_filler {{ type: "constant" value: 2 }} attribute: "{name}" }} }}
"""


@layer("Attributed", param="attributed_param")
class Attributed(Layer):
    """Twice its bottom, and an attribute of the name that the definition gives."""

    def setup(self, x: tuple[int, ...]) -> None:
        setattr(self, self.p.attribute, 3)
        self.blob("weight", (1,), self.p.weight_filler)

    def forward(self, x):
        return x * self.weight


@pytest.fixture
def proto(tmp_path: Path) -> Path:
    (tmp_path / "fork.proto").write_text(PROTO)
    return tmp_path / "fork.proto"


@pytest.mark.parametrize("name", ["mine", "count", "size", "allowed", "state", "copied"])
def test_any_other_name_is_free_and_weights_load(name: str, proto: Path, tmp_path: Path) -> None:
    net = caffe_port.Net(NET.format(name=name), proto=proto)
    net.blobs["x"].data[...] = 1
    assert (net.forward()["y"] == 2).all()
    net.save(tmp_path / "w.caffemodel")
    again = caffe_port.Net(NET.format(name=name), tmp_path / "w.caffemodel", caffe_port.TEST, proto=proto)
    assert again.params["m"][0].data == [2]
    assert getattr(again.layers[1], name) == 3


@pytest.mark.parametrize(
    "name", ["shared", "copies", "aliases", "held_arrays", "filled", "fillers", "fields", "name", "where"]
)
def test_what_the_net_reads_is_refused(name: str, proto: Path) -> None:
    with pytest.raises(LayerError, match=rf"layer m \(Attributed\): expected another name: .*sets self\.{name}"):
        caffe_port.Net(NET.format(name=name), proto=proto)
