"""Our caffe.proto has the originals' numbers, and our parser reads .proto files as protoc does."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2

from caffe_port.errors import DefinitionError
from caffe_port.schema import SCHEMA, TEST, TRAIN, messages
from caffe_port.schema.protoparser import parse_proto

FIELD = descriptor_pb2.FieldDescriptorProto

# Of the fork's description, read from the fork: message, field, number.
FORK = """
V1LayerParameter eltwise_accuracy_param=43 unpooling_param=44 bn_param=45 red_softmax_loss_param=46
V1LayerParameter red_accuracy_param=47 binary_accuracy_param=48 window_cls_data_param=49 select_seg_binary_param=50
BNParameter scale_filler=1 shift_filler=2 bn_mode=3
BinaryAccuracyParameter accuracy_mode=1
EltwiseAccuracyParameter top_k=1 ignore_label=2
ImageDataParameter has_label=13 max_labels=14 ignore_label=15 label_type=16 other_object_label=17
RedAccuracyParameter top_k=1 ignore_label=2 class_num=3
RedSoftmaxWithLossParameter class_num=1
SelectSegBinaryParameter cls_label_base=1
UnpoolingParameter unpool=1 kernel_size=2 stride=3 pad=4 kernel_h=5 kernel_w=6 stride_h=7 stride_w=8 pad_h=9 pad_w=10
UnpoolingParameter engine=11 unpool_size=12 unpool_h=13 unpool_w=14
WindowClsDataParameter label_dim=1
"""
# Of DeepLab's description; numbers from 1000 up are its own + 1000.
DEEPLAB = """\
V1LayerParameter bias_channel_param=1050 unique_label_param=1051 adaptive_bias_channel_param=1053
ConvolutionParameter hole=1017 hole_h=1018 hole_w=1019
AdaptiveBiasChannelParameter num_iter=1 bg_portion=2 fg_portion=3 suppress_others=4 margin_others=5
BiasChannelParameter bg_bias=1 fg_bias=2 ignore_label=3
UniqueLabelParameter max_labels=1 ignore_label=2 force_label=3
"""
NVCAFFE = "BlobProto raw_data_type=10 raw_diff_type=11 raw_data=12 raw_diff=13"
ENUMS = """
V1LayerParameter.LayerType CROP=40 ELTWISE_ACCURACY=41 UNPOOLING=42 BN=43 RED_SOFTMAX_LOSS=44 RED_ACCURACY=45
V1LayerParameter.LayerType IMAGE_SEG_DATA=46 WINDOW_SEG_DATA=47 WINDOW_INST_SEG_DATA=48 BIN_ACCURACY=49
V1LayerParameter.LayerType WINDOW_CLS_DATA=50 WINDOW_SEG_BINARY=51 SELECT_SEG_BINARY=52 DROPOUT_CHANNEL=53
V1LayerParameter.LayerType BIAS_CHANNEL=1047 UNIQUE_LABEL=1048 ADAPTIVE_BIAS_CHANNEL=1050
BNParameter.BNMode LEARN=0 INFERENCE=1
BinaryAccuracyParameter.AccuracyMode Accuracy=0 Precision=1 Recall=2 F_measure=3
ImageDataParameter.LabelType NONE=0 IMAGE=1 PIXEL=2
UnpoolingParameter.UnpoolMethod MAX=0 AVE=1 TILE=2
UnpoolingParameter.Engine DEFAULT=0 CAFFE=1
"""
DEFAULTS = """
AdaptiveBiasChannelParameter num_iter=1 bg_portion=0.20000000298023224 fg_portion=0.20000000298023224
AdaptiveBiasChannelParameter suppress_others=True margin_others=9.999999747378752e-06
BiasChannelParameter bg_bias=1.0 fg_bias=2.0
BNParameter bn_mode=0
ImageDataParameter has_label=True max_labels=1 ignore_label=255 label_type=1 other_object_label=0
SelectSegBinaryParameter cls_label_base=0
UnpoolingParameter unpool=0 stride=1 pad=0
WindowClsDataParameter label_dim=1
"""
BVLC_DIGEST = "c21cea4c1153fd51"
"""Of the same rows as :func:`_rows` gives, from protoc's compilation of BVLC Caffe 1.0's own file."""


BVLCS_OWN = {
    "V0LayerParameter.hdf5_output_param",
    "V1LayerParameter.blob_share_mode",
    "V1LayerParameter.param",
}
"""BVLC's fields with numbers from 1000 on, where this port's additions lie."""
MESSAGES = {
    *("MulParameter", "PadParameter", "QuantizationParameter", "ReLU6Parameter", "ReorgParameter"),
    *("ResizeNearestNeighborParameter", "ShuffleChannelParameter", "SqueezeParameter", "UpsampleDarknetParameter"),
    *("YoloDetectionOutputParameter", "Yolov3DetectionOutputParameter"),
}
"""Messages that BVLC lacks."""
OTHERS = {
    *(f"BatchNormParameter.Engine.{engine}" for engine in ("DEFAULT", "CAFFE", "CUDNN")),
    *("SolverParameter.plateau_winsize", "SolverState.iter_last_event", "SolverState.minimum_loss"),
}
"""Of intel/caffe and SSD."""


def _table(text: str) -> list:
    rows = [line.split() for line in text.strip().splitlines()]
    pairs = [(message, *pair.split("=")) for message, *pairs in rows for pair in pairs]
    return [pytest.param(message, name, value, id=f"{message}.{name}") for message, name, value in pairs]


@pytest.mark.parametrize(("message", "name", "number"), _table(FORK + DEEPLAB + NVCAFFE))
def test_numbers_of_additions(message, name, number):
    assert getattr(SCHEMA, message).DESCRIPTOR.fields_by_name[name].number == int(number)


@pytest.mark.parametrize(("enum", "name", "number"), _table(ENUMS))
def test_enum_values_of_additions(enum, name, number):
    message, _, enum = enum.partition(".")
    assert getattr(SCHEMA, message).DESCRIPTOR.enum_types_by_name[enum].values_by_name[name].number == int(number)


@pytest.mark.parametrize(("message", "name", "value"), _table(DEFAULTS))
def test_defaults_of_additions(message, name, value):
    assert str(getattr(getattr(SCHEMA, message)(), name)) == value


def test_v2_layers_have_the_forks_blocks_under_private_numbers():
    v1, v2 = (getattr(SCHEMA, m).DESCRIPTOR.fields_by_name for m in ("V1LayerParameter", "LayerParameter"))
    for name, field in v1.items():
        if 43 <= field.number <= 50 or 1050 <= field.number:
            assert (v2[name].number, v2[name].message_type) == (field.number + 2000, field.message_type)


def _rows(file: descriptor_pb2.FileDescriptorProto) -> list[str]:
    """Every field and enum value of a description as a line of text."""
    rows: list[str] = []

    def enums(scope: str, items) -> None:
        rows.extend(f"{scope}{e.name}.{v.name} = {v.number}" for e in items for v in e.value)

    enums("", file.enum_type)
    for message in file.message_type:
        enums(f"{message.name}.", message.enum_type)
        for f in message.field:
            default = float(f.default_value) if f.type == FIELD.TYPE_FLOAT and f.default_value else f.default_value
            rows.append(
                f"{message.name}.{f.name} = {f.number} {f.label} {f.type} {f.type_name} {default} {f.options.packed}"
            )
    return sorted(rows)


def test_everything_else_is_bvlc():
    additions = {f"{p.values[0]}.{p.values[1]}" for p in _table(FORK + DEEPLAB + NVCAFFE + ENUMS)} | OTHERS
    rows: list[str] = []
    for row in _rows(SCHEMA.file):
        name, _, rest = row.partition(" = ")
        private = int(rest.split()[0]) >= 1000 and name not in BVLCS_OWN
        if not (private or name in additions or name.startswith("Type.") or name.partition(".")[0] in MESSAGES):
            rows.append(row)
    assert len(rows) == 534
    assert hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16] == BVLC_DIGEST


def test_messages_need_no_torch_and_no_generated_module():
    code = (
        "import sys, caffe_port.schema as s; net = s.SCHEMA.NetParameter(name='n'); "
        "assert net.FromString(net.SerializeToString()) == net; "
        "print(sorted(m for m in sys.modules if m == 'torch' or m.endswith('_pb2') and 'caffe' in m))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_messages_are_attributes_of_the_module():
    assert messages.BlobProto is SCHEMA.BlobProto
    assert (messages.NetState(phase="TRAIN").phase, messages.NetState().phase) == (TRAIN, TEST)
    with pytest.raises(AttributeError, match="no message 'BlobPrato'"):
        _ = messages.BlobPrato


def test_floats_are_read_packed_and_not():
    packed = SCHEMA.BlobProto(data=[1.5, -2])
    unpacked = b"".join(b"\x2d" + packed.SerializeToString()[2 + 4 * i : 6 + 4 * i] for i in range(2))
    assert SCHEMA.BlobProto.FromString(unpacked) == packed


PROTO = """
syntax = "proto2";   // a comment
package their.caffe;
import "other.proto";
option java_package = "x.y";
/* a comment
   of two lines */
message A {
  extensions 100 to max [declaration = { number: 100 }];
  reserved 7, 8;
  enum E { option allow_alias = true; X = 0; Y = -0x10; Z = -16 [deprecated = true]; };
  message Inner { optional their.caffe.A a = 1; }
  optional E e = 1 [default = Y, deprecated = true];
  repeated Inner.Deep inner = 2;
  required double d = 3 [default = .5];
  optional string s = 4 [(custom) = { a: 1 }, default = 'it''s'];
  repeated int32 packed_ones = 5 [packed = true, json_name = "p"];
  oneof which { float f = 6 [default = -1e-3]; bool b = 9 [default = true]; }
}
message B { optional .their.caffe.A.E e = 1; optional float inf = 2 [default = inf]; }
extend A { optional int32 more = 100; }
service S { rpc Call (A) returns (B) { option x = 1; } }
"""


def test_parser_reads_what_describes_messages():
    source = PROTO.replace("message Inner {", "message Inner { message Deep {}").replace("'it''s'", "'it' \"s\"")
    file = parse_proto(source, "their.proto")
    a, b = file.message_type
    fields = {f.name: f for m in (a, b) for f in m.field}
    assert [(v.name, v.number) for v in a.enum_type[0].value] == [("X", 0), ("Y", -16), ("Z", -16)]
    assert {f.name: f.number for f in a.field} == {
        "e": 1, "inner": 2, "d": 3, "s": 4, "packed_ones": 5, "f": 6, "b": 9
    }  # fmt: skip
    assert fields["inner"].type_name == ".caffe.A.Inner.Deep"
    assert a.nested_type[0].field[0].type_name == ".caffe.A"
    assert (fields["s"].default_value, fields["f"].default_value, fields["d"].default_value) == ("its", "-0.001", "0.5")
    assert fields["packed_ones"].options.packed
    assert b.field[0].type_name == ".caffe.A.E" and b.field[0].type == FIELD.TYPE_ENUM
    assert fields["inf"].default_value == "inf"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("message A {\n  optional int32 a = x;\n}", "t.proto:2:22: expected a number from 1 to 536870911, found 'x'"),
        ("message A {", "t.proto:1:12: expected more of a definition, found the end of the file"),
        ("message A { optional Bx b = 1; } message Bxx {}", "1:22: expected the type of b, found 'Bx', which"),
        ("message A { optional Bx b = 1; } message Bxx {}", "did you mean Bxx?"),
        ("message A { optional int32 a = 1 }", "1:34: expected ';', found '}'"),
        ("message A { optional int32 a = 1 [default = x]; }", "1:45: expected a default of type int32, found 'x'"),
        ("message A { map<string, int32> a = 1; }", "1:13: expected a message, an enum or a scalar, found a map field"),
        ("hello", "1:1: expected message or enum, found 'hello'"),
        ("message 1 {}", "1:9: expected a name, found '1'"),
        ("message A { § }", "1:13: '§'"),
    ],
)
def test_parser_says_where(source, says):
    with pytest.raises(DefinitionError) as error:
        parse_proto(source, "t.proto")
    assert says in str(error.value)
