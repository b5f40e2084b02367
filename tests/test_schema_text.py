"""Prototxt: reading, and errors for wrong ones."""

from __future__ import annotations

import pytest

from caffe_port.errors import CaffeError, DefinitionError, FileError, FormatError
from caffe_port.schema import SCHEMA, parse_text, read_net, read_solver, to_text
from caffe_port.schema.text import field_lines

ANOTHER = "--proto their_caffe.proto"
PLUGIN = 'by @layer("{}") in a Python file given by --plugin'


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("name: 'single' \"double\"", 'name: "singledouble"'),
        ("# comment\nname: 'n' # another 'one' {", 'name: "n"'),
        ("layer: { name: 'a', type: 'T'; }", 'layer { name: "a" type: "T" }'),
        ("layer < name: 'a' >", 'layer { name: "a" }'),
        ("layer: [{ name: 'a' }, { name: 'b' }]", 'layer { name: "a" } layer { name: "b" }'),
        ("input_dim: [1, 0x10, 010]", "input_dim: 1 input_dim: 16 input_dim: 8"),
        ("layer { phase: 0 }", "layer { phase: TRAIN }"),
        ("force_backward: True", "force_backward: true"),
        ("layer { loss_weight: 1.0f loss_weight: 1e-1 loss_weight: .5 }", "layer { loss_weight: [1, 0.1, 0.5] }"),
        (r"name: '\303\251\n\"'", 'name: "é\\n\\""'),
    ],
)
def test_reads(text, same_as):
    assert parse_text(text, SCHEMA.NetParameter, "t") == parse_text(same_as, SCHEMA.NetParameter, "t")


# text, then the place and what the error says about it
WRONG = {
    "unknown field": ('layer {\n  nam: "x"\n}', "2:3", "unknown field 'nam' of LayerParameter (near: name)", ANOTHER),
    "unknown field, ways on": ("layer { inter_param { } }", "1:9", PLUGIN.format("TheirType"), ANOTHER),
    "field of a block": ("layer { kernel_size: 3 }", "1:9", "it belongs inside convolution_param, pooling_param"),
    "field in a block": (
        "layers { type: POOLING pooling_param { kernel: 3 } }",
        "1:40",
        "PoolingParameter",
        "kernel_w",
    ),
    "unknown V1 type": (
        "layers {\n type: WOBBLE }",
        "2:8",
        "unknown layer type WOBBLE",
        PLUGIN.format("Wobble"),
        ANOTHER,
    ),
    "mistyped V1 type": ("layers { type: CONVOLUTON }", "1:16", "(near: CONVOLUTION, DECONVOLUTION)"),
    "V2 type in layers": ('layers { type: "ReLU" }', "1:16", 'expected RELU, found "ReLU"'),
    "V1 type in layer": ("layer { type: SOFTMAX_LOSS }", "1:15", 'expected "SoftmaxWithLoss", found SOFTMAX_LOSS; put'),
    "string without quotes": (
        "layer { name: conv1 }",
        "1:15",
        'expected "conv1", found conv1; put the string in quotes',
    ),
    "unknown value": (
        "layer { pooling_param { pool: MAXX } }",
        "1:31",
        "expected one of MAX, AVE, STOCHASTIC, AVE_EXC_PAD, AVE_TF, found MAXX",
    ),
    "twice": ('name: "a"\nname: "b"', "2:7", "name a second time"),
    "no brace": ('layer {\n  name: "a"\n', "2:", 'expected "}"', "found"),
    "a brace too many": ('layer { name: "a" }\n}', "2:1", "expected identifier or number, found }"),
    "no colon": ('layer { name "x" }', "1:14", """expected ":", found "x\""""),
    "no quote": ('name: "abc\n', "1:7", "missing ending quote"),
    "negative unsigned": ("layer { convolution_param { pad: -1 } }", "1:34", "out of range: -1"),
    "no integer": ("layer { lrn_param { local_size: 5.5 } }", "1:33", "5.5"),
    "Windows path": (
        r"""layer { data_param { source: 'D:\Users\me' } }""",
        "1:30",
        "a Windows path? write /",
        "in: layer",
    ),
    "Windows path, not in ASCII": (r'name: "C:\777"', "1:7", "a Windows path? write /"),
    "required field": ("layer { clip_param { min: 1 } }", "", "no layer[0].clip_param.max, a required field"),
    "a solver": ("base_lr: 0.1\n", "1:1", "the file looks like a solver's definition"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_text(name, tmp_path):
    text, place, *says = WRONG[name]
    path = tmp_path / "net.prototxt"
    path.write_text(text)
    with pytest.raises(DefinitionError) as error:
        read_net(path)
    message = str(error.value)
    assert message.startswith(f"{path}:{place}") and "\n" not in message
    assert all(part in message for part in says), message


def test_net_given_as_solver():
    with pytest.raises(DefinitionError, match=r"1:1: unknown field 'layer' .* looks like a net's definition"):
        read_solver("layer { }")


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (None, FileError, "no such file; did you mean other.prototxt?"),
        (b"", FormatError, "expected a prototxt, found an empty file"),
        (b" \n\t", FormatError, "expected a prototxt, found an empty file"),
        (b"<!DOCTYPE html>\n<html>", FormatError, "found a web page; download the raw file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", FormatError, "found a Git LFS pointer"),
        (b"\n\x04lenet\x12\x00", FormatError, "found a binary file; weights are a separate argument"),
    ],
)
def test_wrong_file(data, kind, says, tmp_path):
    (tmp_path / "other.prototxt").write_bytes(b"")
    path = tmp_path / "othr.prototxt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(kind) as error:
        read_net(path)
    assert str(error.value).startswith(f"{path}: ") and says in str(error.value)
    with pytest.raises(CaffeError):
        read_net(str(path))


def test_folder_is_not_a_file(tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        read_net(tmp_path)


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfname: 'n'", "# café\nname: 'n'".encode("latin-1"), b"name: 'n'\r\n"])
def test_encodings(data, tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_bytes(data)
    assert read_net(path).net.name == "n"


def test_text_or_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a{b}:c").write_text("name: 'from a file'")
    assert read_net("a{b}:c").net.name == "from a file"
    assert read_net("name: 'text'").path == "<text>"
    assert read_net("name: '" + "n" * 5000 + "'").path == "<text>"


def test_to_text_and_back():
    net = parse_text('name: "é" layer { name: "l" loss_weight: 0.1 include { phase: TEST } }', SCHEMA.NetParameter, "t")
    text = to_text(net)
    assert "é" in text and "loss_weight: 0.1\n" in text
    assert parse_text(text, SCHEMA.NetParameter, "t") == net


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("layer { name: 'a'\n layer_x { } }\n\nlayer{}", [1, 4]),
        ("# layer {\nlayer # { \n {\n}\n", [2]),
        ("name: 'layer { \\' {'\nlayer { name: \"} layer {\" }\nlayer {}", [2, 3]),
        ("layer: [\n{},\n{ x { } },\n{}]\nlayer <\n>\n", [1, 3, 4, 5]),
    ],
)
def test_lines_of_layers(text, lines):
    assert field_lines(text)["layer"] == lines
