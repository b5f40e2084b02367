"""Another Caffe's caffe.proto and plugin: its fields and types are accepted."""

from __future__ import annotations

import sys

import pytest
from google.protobuf.internal import api_implementation

from caffe_port.dialects import BVLC, NOH
from caffe_port.errors import CaffeError, DefinitionError, FileError
from caffe_port.schema import SCHEMA, load_proto, messages, parse_text, read_net, read_solver

NEW = """
syntax = "proto2";
package caffe;
message InterpParameter { optional int32 height = 1 [default = 0]; optional string mode = 2; }
message LayerParameter {
  optional string name = 1;
  optional InterpParameter interp_param = 147;          // ours: swish_param
  optional BNParameter bn_param = 149;                  // ours: under a private number
}
message BNParameter { optional FillerParameter slope_filler = 1; optional float momentum = 3; }
message FillerParameter { optional string type = 1; optional bool static = 9; }
message PoolingParameter { enum PoolMethod { MAX = 0; AVE = 1; STOCHASTIC = 2; LP = 3; } optional PoolMethod pool = 1; }
message SolverParameter { optional float rate = 50; }
"""
OLD = """
message NetParameter { optional string name = 1; repeated LayerParameter layers = 2; }
message LayerParameter {
  enum LayerType { NONE = 0; RELU = 18; INTERP = 40; DEEP = 60; }
  optional string name = 4;
  optional LayerType type = 5;
  optional InterpParameter interp_param = 43;
  optional OldestParameter layer = 1;
}
message OldestParameter { optional string name = 1; optional int32 old_field = 99; }
message InterpParameter { optional int32 height = 1; repeated LayerParameter.LayerType types = 2; }
"""


@pytest.fixture
def new(tmp_path):
    path = tmp_path / "new.proto"
    path.write_text(NEW)
    return path


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old.proto"
    path.write_text(OLD)
    return path


def test_their_fields_are_known(new):
    text = 'layer { name: "i" type: "Interp" interp_param { height: 7 } }\nlayer { pooling_param { pool: LP } }'
    with pytest.raises(DefinitionError, match="LP"):
        read_net(text)
    net = read_net(text, proto=new).net
    assert net.layer[0].interp_param.height == 7
    assert net.layer[1].pooling_param.pool == 3
    assert read_solver("rate: 2\n", proto=new).rate == 2


def test_their_weights_are_read(new):
    theirs = load_proto(new).LayerParameter(name="i")
    theirs.interp_param.height = 300
    assert theirs.SerializeToString() == b"\x0a\x01i\x9a\x09\x03\x08\xac\x02"  # fields 1, 147 { 1 }
    net = load_proto(new).NetParameter.FromString(b"\xa2\x06\x09\x0a\x01i" + b"\x9a\x09\x03\x08\xac\x02"[:6])
    assert net.layer[0].interp_param.height == 300


def test_ours_stay_known_under_other_numbers(new):
    schema = load_proto(new)
    fields = schema.LayerParameter.DESCRIPTOR.fields_by_name
    assert (fields["interp_param"].number, fields["bn_param"].number) == (147, 149)
    assert fields["swish_param"].number > 100_000
    bn = schema.BNParameter.DESCRIPTOR.fields_by_name
    assert (bn["slope_filler"].number, bn["momentum"].number) == (1, 3)
    assert bn["scale_filler"].number > 100_000 and bn["bn_mode"].number > 100_000
    assert schema.displaced == {
        "LayerParameter.swish_param",
        "LayerParameter.bn_param",
        "BNParameter.scale_filler",
        "BNParameter.bn_mode",
    }
    assert schema.FillerParameter.DESCRIPTOR.fields_by_name["type"].default_value == "constant"
    assert not hasattr(SCHEMA, "InterpParameter")


def test_messages_of_before_2015_are_matched_by_their_part(old):
    schema = load_proto(old)
    text = "layers { name: 'i' type: INTERP interp_param { height: 7 types: DEEP } } layers { type: DEEP }"
    definition = read_net(text, proto=old)
    assert [layer.type for layer in definition.net.layer] == ["Interp", "Deep"]
    assert schema.V1LayerParameter.DESCRIPTOR.fields_by_name["interp_param"].number == 43
    assert schema.V0LayerParameter.DESCRIPTOR.fields_by_name["old_field"].number == 99
    assert schema.V0LayerParameter.DESCRIPTOR.fields_by_name["num_output"].number == 3
    assert {"V1LayerParameter.eltwise_accuracy_param", "LayerType.CROP"} == schema.displaced


def test_v1_blocks_reach_v2_layers(old):
    net = read_net("layers { type: INTERP interp_param { height: 7 } }", proto=old).net
    assert net.layer[0].interp_param.height == 7


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("layers { type: CROP }", BVLC),  # their 40 is INTERP: CROP proves nothing any more
        ("layers { type: UNPOOLING }", NOH),
    ],
)
def test_displaced_names_do_not_determine_a_dialect(text, dialect, old):
    assert read_net(text, proto=old).dialect is dialect


def test_their_bn_is_not_the_forks(new):
    text = "layer { type: 'BN' bn_param { momentum: 0.9 } }"
    assert read_net("layers { type: BN }").dialect is NOH
    assert read_net(text, proto=new).dialect is not NOH


def test_our_own_file_changes_nothing():
    schema = load_proto(messages.__file__.replace("messages.py", "caffe.proto"))
    assert schema.displaced == frozenset()
    assert schema.file == SCHEMA.file


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("message A { optional B b = 1; }", "their.proto:1:22: expected the type of b, found 'B'"),
        pytest.param(
            "enum Other { FLOAT = 0; }",
            "their.proto: cannot be merged with this port's caffe.proto",
            marks=pytest.mark.skipif(api_implementation.Type() == "python", reason="protobuf in Python minds no clash"),
        ),
    ],
)
def test_wrong_proto(source, says, tmp_path):
    path = tmp_path / "their.proto"
    path.write_text(source)
    with pytest.raises(DefinitionError) as error:
        read_net("layer { }", proto=path)
    assert says in str(error.value)


def test_missing_proto(tmp_path):
    with pytest.raises(FileError, match=r"expected a caffe.proto, found No such file"):
        load_proto(tmp_path / "none.proto")


def test_changed_proto_is_read_again(new):
    assert not hasattr(load_proto(new), "MoreParameter")
    new.write_text(NEW + "message MoreParameter { }")
    assert hasattr(load_proto(new), "MoreParameter")


def test_plugin_runs_once(tmp_path):
    plugin = tmp_path / "my_layers.py"
    plugin.write_text("import sys\nsys.plugin_runs = getattr(sys, 'plugin_runs', 0) + 1\n")
    for _ in range(2):
        read_net("layer { }", plugins=[plugin])
    assert sys.plugin_runs == 1


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\ny = 1 / 0\n", ":2: ZeroDivisionError: division by zero; correct the plugin"),
        ("x = 1\ndef f(:\n", ":2: SyntaxError"),
        ("from caffe_port.errors import LayerError\nraise LayerError('here', 'this')", "here: this"),
    ],
)
def test_wrong_plugin(source, says, tmp_path):
    plugin = tmp_path / "wrong.py"
    plugin.write_text(source)
    for _ in range(2):
        with pytest.raises(CaffeError) as error:
            read_net("layer { }", plugins=[plugin])
        assert says in str(error.value)


@pytest.mark.parametrize("name", ["none.py", "folder.py"])
def test_missing_plugin(name, tmp_path):
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(FileError, match="with @layer, @policy or @rule classes, found no such file"):
        read_net("layer { }", plugins=[tmp_path / name])


def test_unknown_text_after_merge_still_has_a_place(new):
    with pytest.raises(
        DefinitionError, match=r"<text>:2:3: unknown field 'interp_prm' of LayerParameter \(near: interp"
    ):
        read_net("layer {\n  interp_prm { } }", proto=new)


def test_to_our_messages_from_theirs(new):
    theirs = parse_text("layer { name: 'x' }", load_proto(new).NetParameter, "t")
    assert read_net(theirs).net.layer[0].name == "x"
