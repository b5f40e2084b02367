"""Dialects: derivation, detection, their layers and messages; an example in one file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import caffe_port
from caffe_port.dialects import BVLC, DIALECTS, MIXED, NOH, Dialect, dialect, register
from caffe_port.errors import CaffeError, DefinitionError, LayerError
from caffe_port.layers import REGISTRY, Layer, layer, layer_class, layer_types
from caffe_port.schema import read_net, schema_of
from caffe_port.spec import RECORDS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Leaves the registries as they were."""
    dialects = dict(DIALECTS)
    layers, records = ({name: dict(of) for name, of in registry.items()} for registry in (REGISTRY, RECORDS))
    yield
    for registry, before in ((DIALECTS, dialects), (REGISTRY, layers), (RECORDS, records)):
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]


def test_a_dialect_has_a_lineage() -> None:
    one = register(replace(BVLC, name="one"))
    two = register(replace(one, name="two"))
    assert (BVLC.lineage, one.lineage, two.lineage) == (("bvlc",), ("one", "bvlc"), ("two", "one", "bvlc"))
    assert dialect("two") is two


def test_layers_are_inherited_replaced_and_lacked() -> None:
    one = register(replace(BVLC, name="one"))
    two = register(replace(one, name="two", lacks=frozenset({"type Power"})))

    @layer("AbsVal", dialects=("one",))
    class Other(Layer):
        """Another."""

    assert layer_class("AbsVal", BVLC) is not Other
    assert layer_class("AbsVal", one) is layer_class("AbsVal", two) is Other
    assert layer_class("Power", one) is layer_class("Power", BVLC) is not None
    assert layer_class("Power", two) is None
    assert set(layer_types(one)) - set(layer_types(two)) == {"Power"}


def test_a_built_in_layer_is_replaced_only_when_asked() -> None:
    with pytest.raises(DefinitionError, match=r"already registered by .*; pass replace=True to replace it"):
        layer("AbsVal", dialects=("bvlc",))(type("Mine", (Layer,), {}))
    mine = layer("AbsVal", dialects=("bvlc",), replace=True)(type("Mine", (Layer,), {}))
    assert layer_class("AbsVal", BVLC) is mine
    assert layer_class("AbsVal", NOH) is not mine


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: layer("New", dialects=("bvlcc",))(type("New", (Layer,), {})), "expected some of bvlc"),
        (lambda: register(replace(BVLC, name="new", lineage=("nobody",))), "found a lineage with 'nobody'"),
        (lambda: register(replace(BVLC, name="noh")), "found a second one of this name"),
        (lambda: dialect("bvcl"), "near: bvlc"),
    ],
)
def test_wrong_names(make, says: str) -> None:
    with pytest.raises(CaffeError, match=says):
        make()


# marks of two dialects, the second one's base, a net, the dialect that is found
FOUND = [
    ({"type A"}, {"type B"}, "bvlc", "layer { type: 'A' }", "one"),
    ({"type A"}, {"type B"}, "bvlc", "layer { type: 'B' }", "two"),
    ({"type A"}, {"type A", "type B"}, "bvlc", "layer { type: 'A' } layer { type: 'B' }", "two"),
    ({"type A"}, {"type B"}, "one", "layer { type: 'A' }", "one"),
    ({"type A"}, {"type B"}, "one", "layer { type: 'A' } layer { type: 'B' }", "two"),
    ({"field loss_param.w"}, set(), "bvlc", "layer { loss_param { ignore_label: 1 w: 2 } }", "one"),
    ({"field loss_param.w"}, set(), "bvlc", "layer { other_param { w: 2 } }", "bvlc"),
]


@pytest.mark.parametrize(("first", "second", "base", "text", "found"), FOUND)
def test_the_only_dialect_that_knows_everything_is_found(first, second, base, text, found) -> None:
    from caffe_port.schema.detect import detect_dialect, evidence_of_text

    register(replace(BVLC, name="one", marks=frozenset(first)))
    register(replace(DIALECTS[base], name="two", marks=frozenset(second)))
    assert detect_dialect(evidence_of_text(text, "net"))[0].name == found


def test_ambiguity_names_the_candidates(tmp_path: Path) -> None:
    register(replace(BVLC, name="one", marks=frozenset({"type A"})))
    register(replace(BVLC, name="two", marks=frozenset({"type A"})))
    with pytest.raises(
        DefinitionError, match=r"<text>:1: layer x: expected .*, found a layer that is of type A, which one"
    ):
        read_net("layer { name: 'x' type: 'A' }")
    assert read_net("layer { name: 'x' type: 'A' }", dialect="two").dialect.name == "two"


def test_a_proto_of_a_dialect_may_use_messages_of_its_base(tmp_path: Path) -> None:
    proto = tmp_path / "one.proto"
    proto.write_text(
        "message OneParameter { optional FillerParameter filler = 1; }\n"
        "message LayerParameter { optional OneParameter one_param = 147; }"
    )
    one = register(replace(BVLC, name="one", proto=proto, marks=frozenset({"field one_param"})))
    two = register(replace(one, name="two"))
    for dialect_ in (one, two):
        fields = schema_of(dialect_).LayerParameter.DESCRIPTOR.fields_by_name
        assert (fields["one_param"].number, fields["swish_param"].number > 100_000) == (147, True)
    read = read_net("layer { type: 'AbsVal' one_param { filler { type: 'xavier' } } }")
    assert (read.dialect, read.net.layer[0].one_param.filler.type) == (one, "xavier")


MIX = """
layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }
layer { name: 'p' type: 'Pooling' bottom: 'x' top: 'p' top: 'mask' pooling_param { kernel_size: 2 stride: 2 } }
layer { name: 's' type: 'Scale' bottom: 'p' top: 's' scale_param { filler { type: 'constant' value: 3 } } }
layer { name: 'u' type: 'Unpooling' bottom: 's' bottom: 'mask' top: 'u'
  unpooling_param { unpool: MAX kernel_size: 2 stride: 2 unpool_size: 4 } }
"""


def test_layers_of_two_caffes_make_one_net() -> None:
    net = caffe_port.Net(MIX)
    assert net.dialect is MIXED
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    up = net(x=x)["u"]
    expected = torch.zeros_like(x)
    expected[:, :, 1::2, 1::2] = 3 * x[:, :, 1::2, 1::2]
    assert torch.equal(up, expected)
    with pytest.raises(LayerError, match=r"type Scale, which noh does not have; --dialect bvlc or .*mixed"):
        caffe_port.Net(MIX, dialect="noh")


def test_the_example_is_a_dialect_in_one_file() -> None:
    """In a separate process, because it registers a dialect."""
    run = (
        "import torch, caffe_port\nfrom caffe_port.schema.plugins import load_plugin\n"
        "load_plugin('docs/examples/small_fork.py')\n"
        "x = torch.tensor([1.0, 20.0, -3.0, 4.0, 0.0, 2.5]).reshape(1, 3, 1, 2)\n"
        "net = caffe_port.Net('docs/examples/small_fork.prototxt')\n"
        "print(net.dialect.name, net.dialect.mvn_eps, *net(data=x)['max'].flatten().tolist())\n"
        "print(caffe_port.Net('docs/examples/small_fork.prototxt', dialect='small-fork').definition.dialect_reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", run], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "small-fork 1e-06 5.0 6.0\nrequested\n"


def test_every_flag_differs_somewhere() -> None:
    """A flag that all dialects agree on is no difference."""
    flags = [name for name, kind in Dialect.__annotations__.items() if kind in ("bool", "float | None")]
    assert len(flags) > 20
    for flag in flags:
        assert len({getattr(d, flag) for d in DIALECTS.values()}) > 1, flag
