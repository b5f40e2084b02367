"""Reading and writing .caffemodel, against protobuf's own parser and serialiser."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caffe_port.errors import FileError, FormatError, WeightsError
from caffe_port.formats import LayerWeights, open_weights, write_caffemodel
from caffe_port.formats.caffemodel_writer import layer_definition
from caffe_port.formats.typenames import V0_TYPES, V1_TYPES
from caffe_port.schema import SCHEMA, V1_TO_V2
from caffe_port.schema.layer_types import V0_TO_V1

SHARED = Path(__file__).resolve().parents[2] / "shared"
FILES = sorted([*SHARED.glob("**/*.caffemodel"), *(Path(__file__).parent / "reference").glob("**/*.caffemodel")])
IDS = [str(path.relative_to(path.parents[2])) for path in FILES]
FLOATS = {"data": np.float32, "double_data": np.float64}


def parsed(path: Path):
    """The reference: the complete file through protobuf."""
    net = SCHEMA.NetParameter()
    net.ParseFromString(path.read_bytes())
    return net


def blob_of(message) -> tuple[tuple[int, ...], np.ndarray]:
    """A BlobProto's shape and numbers as protobuf gives them."""
    legacy = [f for f in ("num", "channels", "height", "width") if message.HasField(f)]
    shape = (message.num, message.channels, message.height, message.width) if legacy else tuple(message.shape.dim)
    wide = message.double_data
    return shape, np.array(wide, np.float64) if wide else np.array(message.data, np.float32)


def arrays_of(layer: LayerWeights) -> list[np.ndarray]:
    assert all(blob is not None for blob in layer.blobs)
    return [blob for blob in layer.blobs if blob is not None]


def assert_same(layers: list[LayerWeights], messages) -> None:
    assert [layer.name for layer in layers] == [message.name for message in messages]
    for layer, message in zip(layers, messages, strict=True):
        assert len(layer.blobs) == len(message.blobs)
        for array, blob in zip(arrays_of(layer), message.blobs, strict=True):
            shape, numbers = blob_of(blob)
            assert array.shape == shape
            assert array.dtype == numbers.dtype
            assert array.tobytes() == numbers.tobytes()


@pytest.mark.skipif(not FILES, reason="no weight files here: ../shared is missing")
@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_reads_what_protobuf_reads(path: Path) -> None:
    weights, net = open_weights(path), parsed(path)
    assert weights.name == net.name
    assert weights.generation == (1 if net.layers else 2)
    assert_same(weights.layers, net.layers or net.layer)
    kind = SCHEMA.V1LayerParameter.DESCRIPTOR.enum_types_by_name["LayerType"]
    types = [V1_TO_V2[kind.values_by_number[m.type].name] for m in net.layers] or [m.type for m in net.layer]
    assert [layer.type for layer in weights.layers] == types


@pytest.mark.skipif(not FILES, reason="no weight files here: ../shared is missing")
@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_writes_again_byte_for_byte(path: Path, tmp_path: Path) -> None:
    w = open_weights(path)
    again = tmp_path / "again.caffemodel"
    write_caffemodel(again, w.layers, name=w.name, generation=w.generation, definition=w.definition)
    assert again.read_bytes() == path.read_bytes()


def test_type_tables_equal_the_schema() -> None:
    kind = SCHEMA.V1LayerParameter.DESCRIPTOR.enum_types_by_name["LayerType"]
    assert {value.number: V1_TO_V2[value.name] for value in kind.values if value.number} == V1_TYPES
    assert {name: V1_TO_V2[v1] for name, v1 in V0_TO_V1.items()} == V0_TYPES


# -- hand-made messages ------------------------------------------------------------------------------------------------


def save(tmp_path: Path, net) -> Path:
    path = tmp_path / "w.caffemodel"
    path.write_bytes(net if isinstance(net, bytes) else net.SerializeToString())
    return path


def field(number: int, wire: int, value: bytes) -> bytes:
    """One field, its tag and (for wire type 2) its length spelled out independently of the code under test."""

    def varint(n: int) -> bytes:
        return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])

    return varint(number << 3 | wire) + (varint(len(value)) if wire == 2 else b"") + value


def net_with(blob: bytes) -> bytes:
    return field(100, 2, field(1, 2, b"ip") + field(2, 2, b"InnerProduct") + field(7, 2, blob))


SHAPE_2_3 = field(7, 2, field(1, 2, bytes([2, 3])))
SIX = [struct.pack("<f", value) for value in (1, 2, 3, 4, 5, 6)]
DOUBLES = [struct.pack("<d", value) for value in (1, 2, 3, 4, 5, 6)]
HALVES = struct.pack("<6e", 1, 2, 3, 4, 5, 6)

READABLE = {
    "packed": SHAPE_2_3 + field(5, 2, b"".join(SIX)),
    "data before shape": field(5, 2, b"".join(SIX)) + SHAPE_2_3,
    "unpacked": SHAPE_2_3 + b"".join(field(5, 5, one) for one in SIX),
    "unpacked doubles": SHAPE_2_3 + b"".join(field(8, 1, one) for one in DOUBLES),
    "packed in two runs": SHAPE_2_3 + field(5, 2, b"".join(SIX[:2])) + field(5, 2, b"".join(SIX[2:])),
    "packed, then unpacked": SHAPE_2_3 + field(5, 2, b"".join(SIX[:5])) + field(5, 5, SIX[5]),
    "unpacked on both sides of the shape": field(5, 5, SIX[0])
    + SHAPE_2_3
    + b"".join(field(5, 5, one) for one in SIX[1:]),
    "doubles win over floats": SHAPE_2_3 + field(5, 2, SIX[5] * 6) + field(8, 2, b"".join(DOUBLES)),
    "unpacked dims": field(7, 2, field(1, 0, b"\x02") + field(1, 0, b"\x03")) + field(5, 2, b"".join(SIX)),
    "NVCaffe halves": SHAPE_2_3 + field(10, 0, b"\x02") + field(12, 2, HALVES),
    "NVCaffe floats": SHAPE_2_3 + field(10, 0, b"\x01") + field(12, 2, b"".join(SIX)),
    "NVCaffe doubles": SHAPE_2_3 + field(10, 0, b"\x00") + field(12, 2, b"".join(DOUBLES)),
    "a field of another fork": SHAPE_2_3
    + field(77, 2, b"new")
    + field(5, 2, b"".join(SIX))
    + field(78, 1, b"8 bytes."),
}


@pytest.mark.parametrize("blob", READABLE.values(), ids=READABLE)
def test_reads_every_way_to_store_numbers(blob: bytes, tmp_path: Path) -> None:
    (layer,) = open_weights(save(tmp_path, net_with(blob))).layers
    (array,) = arrays_of(layer)
    assert array.dtype.kind == "f"
    np.testing.assert_array_equal(array, [[1, 2, 3], [4, 5, 6]])


SHAPES = {
    "legacy dims win over shape": (field(1, 0, b"\x01") + field(2, 0, b"\x01") + field(3, 0, b"\x02"), (1, 1, 2, 3)),
    "no axes": (field(7, 2, b""), ()),
    "no shape at all": (b"", ()),
    "an empty axis": (field(7, 2, field(1, 2, bytes([2, 0]))), (2, 0)),
}


@pytest.mark.parametrize(("dims", "shape"), SHAPES.values(), ids=SHAPES)
def test_shapes(dims: bytes, shape: tuple[int, ...], tmp_path: Path) -> None:
    count = int(np.prod(shape))
    blob = dims + (field(4, 0, b"\x03") if len(shape) == 4 else b"") + (SHAPE_2_3 if len(shape) == 4 else b"")
    (layer,) = open_weights(save(tmp_path, net_with(blob + field(5, 2, b"".join(SIX[:count]))))).layers
    assert [array.shape for array in arrays_of(layer)] == [shape]


def test_generation_0(tmp_path: Path) -> None:
    net = SCHEMA.NetParameter(name="old")
    for name, kind, shape in (("c", "conv", (2, 3, 5, 7)), ("p", "pool", ()), ("f", "innerproduct", (1, 1, 4, 6))):
        outer = net.layers.add(bottom=["x"], top=["y"])
        outer.layer.name, outer.layer.type = name, kind
        if shape:
            num, channels, height, width = shape
            numbers = np.arange(np.prod(shape), dtype=np.float32)
            outer.layer.blobs.add(num=num, channels=channels, height=height, width=width, data=numbers)
    weights = open_weights(save(tmp_path, net))
    assert weights.generation == 0
    assert [(layer.name, layer.type) for layer in weights.layers] == [
        ("c", "Convolution"),
        ("p", "Pooling"),
        ("f", "InnerProduct"),
    ]
    assert_same(weights.layers, [outer.layer for outer in net.layers])
    assert {key: array.shape for key, array in weights.state_dict().items()} == {
        "c.weight": (2, 3, 5, 7),
        "f.weight": (4, 6),
    }
    again = tmp_path / "again.caffemodel"
    write_caffemodel(again, weights.layers, generation=0)
    written = parsed(again)
    kind = SCHEMA.V1LayerParameter
    assert [(m.HasField("layer"), m.type, list(m.bottom)) for m in written.layers] == [
        (False, kind.CONVOLUTION, ["x"]),
        (False, kind.POOLING, ["x"]),
        (False, kind.INNER_PRODUCT, ["x"]),
    ]
    assert_same(weights.layers, written.layers)


def test_diffs_are_read_and_written(tmp_path: Path) -> None:
    net = SCHEMA.NetParameter(name="n")
    layer = net.layer.add(name="a", type="Convolution")
    layer.blobs.add(data=[1, 2], diff=[3, 4]).shape.dim.append(2)
    layer.blobs.add(double_data=[5], double_diff=[6]).shape.dim.append(1)
    layer.blobs.add(data=[7]).shape.dim.append(1)
    path = save(tmp_path, net)
    weights = open_weights(path)
    assert [None if d is None else d.tolist() for d in weights.layers[0].diffs] == [[3, 4], [6], None]
    again = tmp_path / "again.caffemodel"
    write_caffemodel(again, weights.layers, name="n")
    assert again.read_bytes() == path.read_bytes()


def test_arrays_are_views_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path, net_with(READABLE["packed"]))
    before = path.read_bytes()
    (array,) = arrays_of(open_weights(path).layers[0])
    assert not array.flags.owndata
    array[...] = 9
    assert path.read_bytes() == before
    np.testing.assert_array_equal(open_weights(path).layers[0].blobs[0], [[1, 2, 3], [4, 5, 6]])
    (fixed,) = arrays_of(open_weights(path, writable=False).layers[0])
    assert not fixed.flags.writeable


# -- writing -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrays=st.lists(
        hnp.arrays(
            st.sampled_from([np.float32, np.float64, np.float16]),
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
            elements={"allow_nan": True},
        ),
        max_size=4,
    ),
    name=st.text(max_size=40).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)),
    generation=st.sampled_from([1, 2]),
)
def test_protobuf_reads_what_is_written(arrays, name: str, generation: int, tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel"
    layers = [LayerWeights(name, "Convolution", list(arrays)), LayerWeights("empty", "ReLU")]
    write_caffemodel(path, layers, name=name, generation=generation, overwrite=True)
    net = parsed(path)
    messages = net.layers if generation == 1 else net.layer
    assert net.name == name
    assert [m.name for m in messages] == [name, "empty"]
    for array, blob in zip(arrays, messages[0].blobs, strict=True):
        shape, numbers = blob_of(blob)
        assert shape == ((1,) * (4 - array.ndim) if generation == 1 else ()) + array.shape
        assert numbers.tobytes() == array.astype(np.float64 if array.dtype == np.float64 else np.float32).tobytes()
    for array, back in zip(arrays, arrays_of(open_weights(path).layers[0]), strict=True):
        np.testing.assert_array_equal(array.ravel(), back.ravel())


@pytest.mark.parametrize(
    ("array", "generation", "says"),
    [
        (np.zeros((2, 1, 1, 1, 1), np.float32), 1, "5 axes"),
        (np.zeros(3, np.int32), 2, "int32"),
        (None, 2, "no array"),
    ],
)
def test_refuses_to_write(array, generation: int, says: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=says):
        write_caffemodel(tmp_path / "w.caffemodel", [LayerWeights("a", "", [array])], generation=generation)
    assert not list(tmp_path.iterdir())


def test_a_type_without_a_number_is_refused() -> None:
    with pytest.raises(WeightsError, match="BatchNorm"):
        layer_definition("a", "BatchNorm", generation=1)


# -- wrong files -------------------------------------------------------------------------------------------------------

GOOD = net_with(READABLE["packed"])
SOLVERSTATE = SCHEMA.SolverState(iter=5, learned_net="snap_5.caffemodel", history=[SCHEMA.BlobProto(data=[1])])
WRONG = {
    "empty": (b"", "empty"),
    "cut in a layer": (GOOD[:30], f"at least {len(GOOD)} bytes, found 30"),
    "cut in a tag": (GOOD + b"\xa2", "truncated"),
    "web page": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "gunzip"),
    "zip": (b"PK\x03\x04rest", "zip archive"),
    "tar": (b"w.caffemodel".ljust(257, b"\0") + b"ustar\x0000", "tar xf"),
    "pickle": (b"\x80\x02}q\x00.", "pickles are never read"),
    "prototxt": (b'name: "x"\nlayer { name: "a" }\n', "prototxt"),
    "solverstate": (SOLVERSTATE.SerializeToString(), "snap_5.caffemodel"),
    "mean image": (SCHEMA.BlobProto(num=1, channels=1, height=1, width=1, data=[1]).SerializeToString(), "mean image"),
    "no layers": (field(1, 2, b"net"), "without layers"),
    "both generations": (GOOD + field(2, 2, field(4, 2, b"a")), "either"),
    "noise": (bytes(range(7, 256)), "damaged"),
    "too few numbers": (net_with(SHAPE_2_3 + field(5, 2, SIX[0])), "6 for its shape"),
    "no numbers": (net_with(SHAPE_2_3), "no numbers"),
    "half a number": (net_with(SHAPE_2_3 + field(5, 2, b"abcde")), "multiple of 4"),
    "negative axis": (net_with(field(1, 0, b"\xff" * 9 + b"\x01") + field(5, 2, SIX[0])), r"\(-1, 0, 0, 0\)"),
    "huge axes": (net_with(field(1, 0, b"\xff\xff\xff\x07") + field(5, 2, SIX[0]) + field(7, 2, b"")), "numbers"),
    "endless number": (net_with(SHAPE_2_3) + b"\x08" + b"\xff" * 11, "more than 10 bytes"),
    "blob runs over its layer": (field(100, 2, field(1, 2, b"ip") + b"\x3a\x7f"), "past the end"),
    "raw integers": (net_with(SHAPE_2_3 + field(10, 0, b"\x03") + field(12, 2, bytes(24))), "type 3"),
    "name is a number": (field(100, 2, b"\x08\x01"), "wire type 0"),
    "group": (b"\x0b\x0c\x00", "damaged"),
}


@pytest.mark.parametrize(("content", "says"), WRONG.values(), ids=WRONG)
def test_wrong_files(content: bytes, says: str, tmp_path: Path) -> None:
    path = save(tmp_path, content)
    with pytest.raises(FormatError, match=says) as caught:
        open_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=80), start=st.integers(0, len(GOOD)), end=st.integers(0, len(GOOD)))
def test_no_bytes_make_it_crash(noise: bytes, start: int, end: int, tmp_path: Path) -> None:
    path = save(tmp_path, GOOD[:start] + noise + GOOD[end:])
    with suppress(FormatError, WeightsError):
        open_weights(path).state_dict()


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    save(tmp_path, GOOD)
    with pytest.raises(FileError, match=r"the folder holds w\.caffemodel"):
        open_weights(tmp_path / "v.caffemodel")
    with pytest.raises(FileError, match="directory"):
        open_weights(tmp_path)
