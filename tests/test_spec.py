"""The records of layers: shapes as real Caffe has them, without torch; names and numbers that the converters use."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference import EMBEDDED, Case, cases, folder
from slim import with_inputs

from caffe_port import spec
from caffe_port.errors import DefinitionError, LayerError, ShapeError
from caffe_port.schema import read_net
from caffe_port.spec.unknown import UNKNOWN

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("bvlc", "bvlc_layers"), ("bvlc", "bvlc_corners"), ("noh", "noh_layers"), ("noh", "noh_corners")
SUITES += ("noh", "noh_nets"), ("segnet", "segnet"), ("segnet", "segnet_nets")
SUITES += ("deeplab2", "deeplab2"), ("deeplab2", "deeplab2_nets"), ("ssd", "ssd"), ("ssd", "ssd_nets"), ("rcnn", "rcnn")
SUITES += ("ssd", "ssd"), ("ssd", "ssd_more"), ("ssd", "ssd_nets")
ALL = [case for dialect, suite in SUITES for case in cases(suite, dialect)]

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { %s } } }\n'


def net(text: str, *dims: int, dialect: str = "bvlc", phase: str = "TEST") -> spec.Inferred:
    """The shapes of a net of these layers, after an input ``x`` of shape ``dims``."""
    given = INPUT % " ".join(f"dim: {d}" for d in dims) if dims else ""
    return spec.infer(read_net(given + text, dialect=dialect, phase=phase))


# -- shapes ------------------------------------------------------------------------------------------------------------


def four(shape: tuple[int, ...], dialect: str) -> tuple[int, ...]:
    return (1,) * (4 - len(shape)) + tuple(shape) if dialect == "noh" else tuple(shape)


OF_VALUES = {
    *("DetectionEvaluate", "DetectionOutput", "Filter", "Python", "YoloDetectionOutput", "Yolov3DetectionOutput"),
    *("Data", "ImageData", "AnnotatedData", "VideoData", "DenseImageData", "SelectSegBinary"),
    *("ImageSegData", "WindowClsData", "WindowInstSegData", "WindowSegBinary", "WindowSegData"),
}
"""Layers whose tops' shapes depend on values: the records give the largest."""


@pytest.mark.parametrize("case", ALL, ids=str)
def test_shapes_of_real_caffe(case: Case) -> None:
    """Every blob and parameter that the reference stores has the shape that is inferred, as far as that is known."""
    found = spec.infer(read_net(case.prototxt, phase=case.phase, dialect=case.dialect))
    assert not set(found.unknown) - {"Python"}
    params = {
        f"{layer.message.name}/{i}": shape for layer in found.layers for i, shape in enumerate(layer.params.values())
    }
    with np.load(case.npz) as stored:
        compared = 0
        for key in stored.files:
            kind, _, name = key.partition("/")
            if kind in ("out", "diff") and name in found.blobs:
                largest = any(layer.message.type in OF_VALUES for layer in found.layers)
                theirs = tuple(map(max, found.blobs[name], stored[key].shape)) if largest else stored[key].shape
                assert found.blobs[name] == theirs, key
                compared += 1
            elif kind in ("param", "pdiff", "after") and name in params:
                assert four(params[name], case.dialect) == four(stored[key].shape, case.dialect), key
                compared += 1
    assert compared or "Python" in found.unknown or not found.blobs


def test_a_trainings_net_without_its_data() -> None:
    """Shapes that depend on data files are unknown, the others are not."""
    found = net(
        """
        layer { name: "d" type: "Data" top: "d" top: "l" data_param { source: "none" batch_size: 5 } }
        layer { name: "c" type: "Convolution" bottom: "d" top: "c" convolution_param { num_output: 6 kernel_size: 3 } }
        layer { name: "g" type: "Convolution" bottom: "c" top: "g"
                convolution_param { num_output: 4 group: 2 kernel_h: 3 kernel_w: 5 } }
        layer { name: "p" type: "Pooling" bottom: "g" top: "p" pooling_param { kernel_size: 2 stride: 2 } }
        layer { name: "f" type: "InnerProduct" bottom: "p" top: "f" inner_product_param { num_output: 7 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "f" bottom: "l" top: "loss" }
        """
    )
    params = {layer.message.name: layer.params for layer in found.layers if layer.params}
    assert str(params["c"]) == "{'weight': (6, ?, 3, 3), 'bias': (6,)}"
    assert params["g"] == {"weight": (4, 3, 3, 5), "bias": (4,)}
    assert all(map(spec.is_known, params["g"].values()))
    assert str(params["f"]["weight"]) == "(7, ?)"
    assert str(found.blobs["p"]) == "(5, 4, ?, ?)"
    assert found.blobs["loss"] == ()


TOLD = [  # a data layer, its tops' shapes as Caffe's source has them
    ('type: "Data" top: "a" data_param { batch_size: 2 } transform_param { crop_size: 9 }', ["(2, ?, 9, 9)"]),
    ('type: "ImageData" top: "a" top: "b" image_data_param { batch_size: 2 new_height: 5 new_width: 7 }',
     ["(2, 3, 5, 7)", "(2,)"]),
    ('type: "ImageData" top: "a" top: "b" image_data_param { batch_size: 2 is_color: false }',
     ["(2, 1, ?, ?)", "(2,)"]),
    ('type: "WindowData" top: "a" top: "b" window_data_param { batch_size: 2 } transform_param { crop_size: 9 }',
     ["(2, 3, 9, 9)", "(2,)"]),
    ('type: "HDF5Data" top: "a" top: "b" hdf5_data_param { batch_size: 2 }', ["(2, ?, ?, ?)"] * 2),
    ('type: "MemoryData" top: "a" top: "b" memory_data_param { batch_size: 2 channels: 4 height: 5 width: 6 }',
     ["(2, 4, 5, 6)", "(2,)"]),
    ('type: "DummyData" top: "a" dummy_data_param { num: 2 channels: 3 height: 4 width: 5 }', ["(2, 3, 4, 5)"]),
]  # fmt: skip
FORK = [
    ("WindowSegData", "", ["(2, 3, 9, 9)", "(2, 1, 9, 9)", "(2, 1, 1, 2)"]),
    ("WindowClsData", "window_cls_data_param { label_dim: 6 }", ["(2, 3, 9, 9)", "(2, 6, 1, 1)", "(2, 1, 1, 2)"]),
    ("SelectSegBinary", "window_cls_data_param { label_dim: 6 }", ["(2, 3, 9, 9)", "(2, 1, 9, 9)", "(2, 6, 1, 1)"]),
]
TOLD_BY_FORK = [
    (f'type: "{name}" top: "a" top: "b" top: "c" {more} image_data_param {{ batch_size: 2 }}'
     " transform_param { crop_size: 9 }", shapes) for name, more, shapes in FORK
]  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "shapes", "dialect"),
    [(*row, "bvlc") for row in TOLD] + [(*row, "noh") for row in TOLD_BY_FORK],
    ids=lambda v: v.split('"')[1] if isinstance(v, str) and '"' in v else None,
)
def test_what_a_definition_determines_of_data(layer: str, shapes: list[str], dialect: str) -> None:
    found = net(f'layer {{ name: "d" {layer} }}', dialect=dialect)
    assert [str(shape) for shape in found.blobs.values()] == shapes


def test_invalid_shapes_are_refused_as_by_the_layers() -> None:
    window = 'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 1 %s } }'
    with pytest.raises(ShapeError, match=r"c \(Convolution\): expected at least 1 .* found an output of \(0, 2\)"):
        net(window % "kernel_h: 9 kernel_w: 3", 1, 3, 4, 4)
    with pytest.raises(LayerError, match="a divisor of both"):
        net(window % "kernel_size: 1 group: 2", 1, 3, 4, 4)
    assert spec.infer(read_net(INPUT % "dim: 1 dim: 3 dim: 4 dim: 4" + window % "kernel_size: 9"), check=False).layers[
        1
    ].params["weight"] == (1, 3, 9, 9)


def test_unknown_types_are_named() -> None:
    found = net('layer { name: "u" type: "Odd" bottom: "x" top: "u" }', 1, 2)
    assert found.unknown == ["Odd"]
    assert str(found.blobs["u"]) == "(?, ?, ?, ?)"


def test_an_unknown_number_stays_unknown() -> None:
    for value in (UNKNOWN + 1, 3 * UNKNOWN, (UNKNOWN - 2) // 3, -UNKNOWN, max(UNKNOWN, 5), 7 // UNKNOWN):
        assert value is UNKNOWN
    assert UNKNOWN == 8
    assert not UNKNOWN < 1
    assert UNKNOWN % 3 == 0
    assert not spec.is_known((2, UNKNOWN))


# -- multiply-adds -----------------------------------------------------------------------------------------------------

MACS = [  # layer, its bottom, multiply-adds worked by hand
    ('type: "Convolution" convolution_param { num_output: 8 kernel_size: 3 pad: 1 stride: 2 group: 2 }', (2, 4, 5, 7),
     2 * (3 * 4) * 8 * (4 // 2) * 9),
    ('type: "Deconvolution" convolution_param { num_output: 6 kernel_size: 2 stride: 2 }', (2, 4, 5, 7),
     2 * (5 * 7) * 4 * 6 * 4),
    ('type: "InnerProduct" inner_product_param { num_output: 6 }', (2, 4, 5, 7), 2 * 6 * (4 * 5 * 7)),
    ('type: "InnerProduct" inner_product_param { num_output: 6 axis: -1 }', (2, 4, 5, 7), (2 * 4 * 5) * 6 * 7),
    ('type: "ReLU"', (2, 4, 5, 7), 0),
    ('type: "Embed" embed_param { num_output: 6 input_dim: 9 }', (5,), 0),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "dims", "wanted"), MACS, ids=[f"{m[0].split(chr(34))[1]}-{m[2]}" for m in MACS])
def test_multiply_adds(layer: str, dims: tuple[int, ...], wanted: int) -> None:
    definition = read_net(INPUT % " ".join(f"dim: {d}" for d in dims) + f'layer {{ bottom: "x" top: "y" {layer} }}')
    assert spec.macs(definition) == wanted


def test_multiply_adds_of_recurrence() -> None:
    """An LSTM of 5 steps and 2 sequences multiplies with W_xc (4 H x I) and W_hc (4 H x H) once for each."""
    text = INPUT % "dim: 5 dim: 2 dim: 3" + (INPUT % "dim: 5 dim: 2").replace('"x"', '"c"')
    text += 'layer { type: "LSTM" bottom: "x" bottom: "c" top: "y" recurrent_param { num_output: 7 } }'
    assert spec.macs(read_net(text)) == 5 * 2 * (4 * 7 * 3 + 4 * 7 * 7)


# -- one place for each fact -------------------------------------------------------------------------------------------


OWN_RECORDS: set[str] = set()
"""Forks whose layers are their own records: inference has them once their modules, and so torch, are loaded."""


def test_layers_have_their_facts_from_the_records() -> None:
    """The record of every type is free of torch; a layer may only override shapes that depend on files."""
    from caffe_port.layers import REGISTRY

    own = set()
    ours = [(name, *item) for name, of_type in REGISTRY.items() for item in of_type.items()]
    ours = [item for item in ours if item[2].__module__.startswith("caffe_port.")]  # not what other tests registered
    assert len(ours) > 100
    records = ((name, record) for name, of_type in spec.RECORDS.items() for record in of_type.values())
    recorded = {name for name, record in records if record.__module__.startswith("caffe_port.")}
    assert recorded == {name for name, _, _ in ours}
    for name, dialect, cls in ours:
        record = spec.RECORDS[name][dialect]
        if record is cls:
            assert cls.dialects[0] in OWN_RECORDS, f"{name} has no record in caffe_port/spec (docs/development.md)"
            continue
        for fact in spec.Spec.__annotations__:
            assert getattr(cls, fact) == getattr(record, fact), f"{name}.{fact}"
        if inspect.unwrap(cls.reshape) is not record.reshape:
            own.add(name)
    files = {*("Data", "DenseImageData", "HDF5Data", "ImageData", "ImageSegData", "SelectSegBinary", "WindowClsData")}
    files |= {
        "WindowData",
        "WindowInstSegData",
        "WindowSegBinary",
        "WindowSegData",
        "MatRead",
        "Python",
        "AnnotatedData",
        "VideoData",
    }
    assert own == files


def test_inference_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(with_inputs("classification/cls_voc_deploy.prototxt", "1/32", 1, "TEST"))
    code = f"""
import sys
from caffe_port import spec
from caffe_port.schema import read_net
assert spec.shapes(read_net({str(tmp_path / "net.prototxt")!r}))
print("torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


def test_a_second_record_is_refused() -> None:
    with pytest.raises(DefinitionError, match="already registered by ReLU; pass replace=True to replace it"):
        spec.record("ReLU", "relu_param")(type("Other", (spec.Spec,), {}))
    with pytest.raises(DefinitionError, match="dialect 'none'"):
        spec.record("Odd", None, ("none",))(type("Other", (spec.Spec,), {}))


def test_every_type_of_the_reference_has_a_record() -> None:
    types = set()
    for path in EMBEDDED.glob("*/manifest.json"):
        for entry in json.loads(path.read_text()).values():
            types |= set(entry.get("types", ())) if isinstance(entry, dict) else set()
    assert folder("bvlc_layers")
    assert types <= set(spec.RECORDS)
