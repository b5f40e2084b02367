"""Lenient parsing: all unknown parts of a definition at once, by fork, and the text without them."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from caffe_port.dialects import BVLC, NOH
from caffe_port.errors import CaffeError, DefinitionError
from caffe_port.layers import REGISTRY
from caffe_port.net import Net
from caffe_port.schema import SCHEMA, parse_text, scan
from caffe_port.schema.forks import fork_of
from caffe_port.schema.layer_types import known_names, known_type

ROOT = Path(__file__).resolve().parents[1]
NET = SCHEMA.NetParameter.DESCRIPTOR
MANY = """\
name: "n"  input: "x"
layer { name: "a" type: "Convolution" zz: 3
  convolution_param { num_outputs: 2 pad: 1 pad: 2 weight_filler { type: "x" variance_norm: SIDEWAYS } } }
layer { name: "b" type: "CenterLoss" center_loss_param { num_output: 3 s { t: [1, 2] } } }
layer { name: "c" type: "Convolution" zz: 4 pooling_param { pool: MEDIAN kernel_size: 3 } }
layer: [ { type: "MyOwn" }, < type: 'ReLU' bottom: "x" "y" > ]
"""
EXPECTED = {
    "field LayerParameter.zz": [2, 5],
    "field ConvolutionParameter.num_outputs": [3],
    "value FillerParameter.type.x": [3],
    "value VarianceNorm.SIDEWAYS": [3],
    "type CenterLoss": [4],
    "field LayerParameter.center_loss_param": [4],
    "value PoolMethod.MEDIAN": [5],
    "type MyOwn": [6],
}


def names(text: str) -> list[scan.Unknown]:
    return scan.unknown(scan.fields(text), NET, known_names())


def test_all_unknown_names_with_their_lines() -> None:
    assert {str(one): [scan.line_of(MANY, at) for at in one.at] for one in names(MANY)} == EXPECTED


def test_what_is_left_is_what_protobuf_reads_of_it() -> None:
    """Protobuf's own lenient parse, of the text whose wrong values are taken out by hand."""
    by_hand = MANY.replace("variance_norm: SIDEWAYS", "").replace("pool: MEDIAN", "")
    expected = text_format.Parse(by_hand, SCHEMA.NetParameter(), allow_unknown_field=True)
    built = SCHEMA.NetParameter()
    scan.build(scan.fields(MANY), built)
    assert built == expected


def test_one_error_names_them_all() -> None:
    with pytest.raises(DefinitionError) as caught:
        parse_text(MANY, SCHEMA.NetParameter, "n.prototxt")
    said = str(caught.value)
    assert said.startswith("n.prototxt:2:39: unknown field 'zz' of LayerParameter")
    assert all(f"{name} (line {lines[0]})" in said for name, lines in list(EXPECTED.items())[1:])
    assert said.count("ydwen/caffe-face") == 1, "names of one fork stand together"
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("layer { num_output: ${N} }", "1:21", "${N}, a template's placeholder"),
        ('name: "x"\nlayer { {{ body }} }', "2:9", "{{ body }}, a template's placeholder"),
        ("{% for x in y %}layer { }", "1:1", "{% for x in y %}, a template's placeholder"),
    ],
)
def test_a_template_is_recognised(text: str, where: str, found: str) -> None:
    for read in (scan.fields, lambda text, path: parse_text(text, SCHEMA.NetParameter, path)):
        with pytest.raises(DefinitionError) as caught:
            read(text, "t")
        assert str(caught.value).startswith(f"t:{where}: expected a prototxt, found {found}")


def test_placeholders_in_strings_are_not_a_template() -> None:
    text = 'layer { name: "${N}" } # {{ x }}'
    assert scan.fields(text)[0].value[0].value == '"${N}"'


@pytest.mark.parametrize(
    "text",
    [
        "layer {",
        "layer }",
        "layer { name }",
        "name: [1, 2",
        "name: ]",
        "name: : 1",
        "layer { name: { }",
        "layer: [ { ]",
        '"alone"',
        "a: [" * 200,
    ],
)
def test_a_wrong_text_is_one_error_and_protobuf_refuses_it_too(text: str) -> None:
    with pytest.raises(DefinitionError):
        scan.fields(text)
    with pytest.raises((text_format.ParseError, RecursionError)):
        text_format.Parse(text, SCHEMA.NetParameter(), allow_unknown_field=True)


def count(message) -> int:
    """The values of all fields of a message and of those inside it."""
    total = 0
    for field, value in message.ListFields():
        values = [value] if not hasattr(value, "append") and not hasattr(value, "add") else value
        total += sum(1 + (count(one) if field.message_type else 0) for one in values)
    return total


def counted(fields: list[scan.Field]) -> int:
    return sum(1 + (counted(field.value) if isinstance(field.value, list) else 0) for field in fields)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# a comment at the end",
        "name # between\n : # and\n 'a' # pieces\n \"b\" # end",
        "layer: { name: 'a'; type: 'ReLU', }",
        "input_dim: [1, 0x10, -2] layer { loss_weight: [.5, 1e-3, 1.0f] loss_weight: inf }",
        "layer < top: ['a', 'b'] include { phase: TRAIN } >",
        "layer: [{ name: 'a' }, <>]",
        "name: '\\'{' # }\nforce_backward: true",
        *(path.read_text() for path in sorted((ROOT / "prototxt").glob("*/*.prototxt")) if "solver" not in path.name),
    ],
)
def test_fields_are_those_that_protobuf_reads(text: str) -> None:
    fields = scan.fields(text)
    expected, built = parse_text(text, SCHEMA.NetParameter, "t"), SCHEMA.NetParameter()
    assert counted(fields) == count(expected)
    scan.build(fields, built)
    assert built.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert scan.unknown(fields, NET, known_names()) == []


def test_messages_too_deep_are_one_error() -> None:
    with pytest.raises(DefinitionError, match="more than 100 messages inside one another"):
        scan.fields("a { " * 20_000)


def test_every_registered_type_is_known_to_its_dialects() -> None:
    """The list that needs no torch, compared with the registry."""
    builtin = {name: classes for name, classes in REGISTRY.items() if name}
    assert [name for name in builtin if not known_type(name)] == []
    assert known_type("Swish", BVLC)
    assert not known_type("Swish", NOH)
    assert not known_type("Unpooling", BVLC)
    assert not known_type("Nonsense")


@pytest.mark.parametrize(
    ("name", "fork"),
    [
        ("DetectionEvaluate", "ssd"),
        ("LayerParameter.margin_inner_product_param", "SphereFace (wy1iu/sphereface)"),
        ("Axpy", "eric612/MobileNet-YOLO"),
        ("LayerParameter.mine", ""),
    ],
)
def test_forks(name: str, fork: str) -> None:
    assert fork in fork_of(name).lower() if fork == "ssd" else fork_of(name) == fork


def test_a_net_names_all_unknown_types() -> None:
    text = "".join(
        f'layer {{ name: "{i}" type: "{kind}" top: "{i}" }}\n'
        for i, kind in enumerate(["Mine", "Gramian", "Mine", "CenterLoss"])
    )
    with pytest.raises(CaffeError) as caught:
        Net(text)
    said = str(caught.value)
    assert said.startswith("<text>:1: layer 0: unknown layer type 'Mine'")
    assert (
        "; also unknown: Gramian of TransferNet (maga33/TransferNet); CenterLoss of Center loss (ydwen/caffe-face)"
        in said
    )
