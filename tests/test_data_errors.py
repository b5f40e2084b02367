"""Every way that data can be wrong is one clear error."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from data_runs import definition, passes

from caffe_port.data.database_writer import DatabaseWriter
from caffe_port.errors import CaffeError, FileError, FormatError, LayerError, ShapeError
from caffe_port.net import Net
from caffe_port.random import set_random_seed
from caffe_port.schema import SCHEMA

MEMORY = definition("MemoryData", "memory_data_param { batch_size: 2 channels: 1 height: 2 width: 3 }")
IMAGES = 'image_data_param { source: "list" batch_size: 2 NEW }'
SEG = 'top: "data" top: "a" top: "b"'
WINDOW = 'window_data_param { source: "list" batch_size: 2 } transform_param { crop_size: 6 }'
ROWS = 'hdf5_data_param { source: "list" batch_size: 2 }'
BOX = "# 0\np.png\n3\n9\n8\n"


def image_data(new: str = "", transform: str = "") -> str:
    return definition("ImageData", IMAGES.replace("NEW", new), f"transform_param {{ {transform} }}")


def seg_data(type_name: str = "WindowSegData", new: str = "label_type: PIXEL", more: str = "") -> str:
    return definition(type_name, IMAGES.replace("NEW", new), more, SEG)


WRONG = [  # definition, list, error, what it says
    (image_data(), None, FileError, "layer d: no list 'list' (looked for "),
    (image_data(), "", FormatError, "list: expected a line for each item, found an empty list"),
    (image_data(), "\n \n", FormatError, "an empty list"),
    (image_data(), "p.png 1\nq.png\n", FormatError, "list:2: expected FILE LABEL"),
    (image_data(), "p.png 1\nq.png cat\n", FormatError, "list:2: expected FILE LABEL, the label a whole number of"),
    (image_data(), "p.png 1\nno.png 2\n", FileError, "list:2: no picture 'no.png' (looked for "),
    (image_data(), "list 1\n", FormatError, "which OpenCV cannot read"),
    (image_data(), "p.png 1\nq.png 2\n", ShapeError, "list:2: expected 8 x 9 pixels in 3 channels as the first of the"),
    (image_data("new_height: 5"), "p.png 1\n", LayerError, "new_height 5 and new_width 0"),
    (image_data("rand_skip: 1000000"), "p.png 1\n", LayerError, "items to skip (rand_skip) of 1"),
    (
        image_data("", "crop_size: 9"),
        "p.png 1\n",
        ShapeError,
        "list:1: expected at least the crop_size, 9, found 8 x 9",
    ),
    (
        image_data("", "mean_value: 1 mean_value: 2"),
        "p.png 1\n",
        CaffeError,
        "list:1: expected 1 or 3, one for each ch",
    ),
    (
        image_data("", "mean_value: 1 mean_file: 'm'"),
        "p.png 1\n",
        LayerError,
        "expected one of them, found mean_file and",
    ),
    (image_data("", "mean_file: 'm'"), "p.png 1\n", FileError, "no mean file 'm'"),
    (
        image_data("", "mean_file: 'mean'"),
        "p.png 1\n",
        ShapeError,
        "list:1: expected 3x2x2, as the mean_file has it, fo",
    ),
    (image_data("").replace("batch_size: 2", "batch_size: 0"), "p.png 1\n", LayerError, "batch_size 0"),
    (seg_data(), "p.png\n", FormatError, "list:1: expected PICTURE MASK X1 Y1 X2 Y2, whole numbers of 32 bits, f"),
    (seg_data(), "p.png m.png 1 2 3\n", FormatError, "list:1: expected PICTURE MASK X1 Y1 X2 Y2"),
    (seg_data(), "p.png m.png 1 2 3 x\n", FormatError, "list:1: expected PICTURE MASK X1 Y1 X2 Y2"),
    (
        seg_data(),
        "p.png m.png 0 0 7 8\np.png m.png 5 2 3 4\n",
        FormatError,
        "list:2: expected X1 Y1 X2 Y2 with X1 <= X2",
    ),
    (seg_data(), "p.png m.png 0 0 99999 8\n", FormatError, "found the box 0 0 99999 8"),
    (seg_data(), "p.png m.png 0 0 7 8\np.png no.png 0 0 7 8\n", FileError, "list:2: no picture 'no.png'"),
    (seg_data(), "p.png n.png 0 0 7 8\n", ShapeError, "list:1: expected 8 x 9 as the picture, found n.png of 5 x 6"),
    (seg_data(), "p.png list 0 0 7 8\n", FormatError, "list, which OpenCV cannot read"),
    (seg_data(), "p.png m.png 0 0 3 3\n", ShapeError, "list:1: expected 8 x 9 as the first, found a picture of 4 x 4"),
    (
        seg_data(new=""),
        "p.png cat 0 0 7 8\n",
        FormatError,
        "list:1: expected a whole number from 0 to 255, found the la",
    ),
    (seg_data("ImageSegData"), "p.png n.png\n", ShapeError, "list:1: expected 8 x 9 as the picture, found n.png of 5"),
    (
        seg_data("WindowInstSegData"),
        "p.png m.png 1 2 3 4 5\n",
        FormatError,
        "PICTURE MASK INSTANCES X1 Y1 X2 Y2 1 numb",
    ),
    (seg_data("SelectSegBinary"), "p.png m.png 0 0 7 8\n", FormatError, "PICTURE MASK X1 Y1 X2 Y2 1 numbers"),
    (
        seg_data("WindowClsData"),
        "p.png m.png 0 0 7 8\n",
        CaffeError,
        "list:1: expected classes up to label_dim, 1, found",
    ),
    (seg_data(more="transform_param { mean_file: 'mean' }"), "p.png m.png 0 0 7 8\n", LayerError, "takes no mean_file"),
    (definition("WindowData", WINDOW), "p.png\n", FormatError, "list:1: expected # 0, found 'p.png'"),
    (definition("WindowData", WINDOW), BOX, FormatError, "list: expected a number of boxes, found the end of the file"),
    (definition("WindowData", WINDOW), BOX + "1\n", FormatError, "expected a box, found the end"),
    (definition("WindowData", WINDOW), BOX + "x\n", FormatError, "list:6: expected a number of boxes, found 'x'"),
    (definition("WindowData", WINDOW), BOX + "1\n1 2 3\n", FormatError, "list:7: expected CLASS OVERLAP X1 Y1 X2 Y2"),
    (
        definition("WindowData", WINDOW),
        BOX.replace("3", "1") + "0\n",
        FormatError,
        "list:3: expected 3: pictures are read in",
    ),
    (definition("WindowData", WINDOW), BOX + "1\n1 0.9 0 0 1 1\n", FormatError, "no box of background"),
    (definition("WindowData", WINDOW), BOX + "1\n0 0.9 0 0 1 1\n", FormatError, "class 0"),
    (
        definition("WindowData", WINDOW),
        BOX + "2\n1 0.9 0 0 1 1\n1 0 0 0 8 8\n",
        FormatError,
        "expected one inside 8 x 9 pix",
    ),
    (definition("WindowData", WINDOW.replace("6", "0")), BOX, LayerError, "crop_size 0"),
    (definition("Data", 'data_param { source: "no" batch_size: 2 }'), None, FileError, "no database 'no'"),
    (definition("Data", 'data_param { source: "lmdb" batch_size: 2 }'), None, FormatError, "backend: LMDB"),
    (definition("HDF5Data", ROWS), "no.h5", FileError, "list:1: no HDF5 file 'no.h5'"),
    (definition("HDF5Data", ROWS), "list", FormatError, "an HDF5 file that cannot be read"),
    (definition("HDF5Data", ROWS), "a.h5", FormatError, "no such 'label'; data sets are named as the tops are"),
    (definition("HDF5Data", ROWS), "b.h5", ShapeError, "2 of 'data', 3 of 'label'"),
    (definition("HDF5Data", ROWS), "c.h5 d.h5", ShapeError, "as the first file has them"),
    (definition("HDF5Data", ROWS, "transform_param { scale: 2 }"), "c.h5", LayerError, "found a transform_param"),
    (MEMORY.replace("height: 2", ""), None, LayerError, "expected all above 0"),
]


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wrong definitions are about."""
    import h5py

    from caffe_port.formats.meanfile import write_mean

    folder = tmp_path_factory.mktemp("faulty")
    for name, shape in (("p", (9, 8, 3)), ("q", (4, 4, 3)), ("m", (9, 8)), ("n", (6, 5))):
        cv2.imwrite(str(folder / f"{name}.png"), np.full(shape, 2, np.uint8))
    write_mean(folder / "mean", np.zeros((3, 2, 2), np.float32))
    (folder / "lmdb").mkdir()
    (folder / "lmdb" / "data.mdb").touch()
    for name, data, label in (("b", (2, 3), 3), ("c", (2, 3), 2), ("d", (2, 4), 2)):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["data"], file["label"] = np.zeros(data), np.zeros(label)
    with h5py.File(folder / "a.h5", "w") as file:
        file["data"] = np.zeros((2, 3))
    return folder


@pytest.mark.parametrize(("text", "listed", "error", "said"), WRONG, ids=[row[3][:40] for row in WRONG])
def test_one_clear_error(text: str, listed: str | None, error: type[CaffeError], said: str, faulty: Path) -> None:
    (faulty / "list").unlink(missing_ok=True)
    if listed is not None:
        (faulty / "list").write_text(listed)
    (faulty / "net.prototxt").write_text(text)
    dialect = "noh" if "Seg" in text or "WindowCls" in text else "bvlc"
    set_random_seed(1)
    with pytest.raises(error) as found:
        list(passes(Net(faulty / "net.prototxt", dialect=dialect), 6))
    assert said in str(found.value)
    assert "\n" not in str(found.value)


def lmdb_of(folder: Path, *records: bytes) -> str:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder / "db"), map_size=1 << 20) as db, db.begin(write=True) as write:
        for i, record in enumerate(records):
            write.put(f"{i}".encode(), record)
    return str(folder / "db")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "an empty database"),
        (b"\xff\xff", "record 0: a record that is not a Datum"),
        (SCHEMA.Datum(data=b"abc", channels=1, height=2, width=2), "record 0: expected 1x2x2, found a Datum of 3 numb"),
        (SCHEMA.Datum(channels=0, height=2, width=2), "a Datum of 0 numbers"),
        (SCHEMA.Datum(data=b"abc", encoded=True), "data that OpenCV cannot decode"),
        (SCHEMA.Datum(encoded=True), "data that OpenCV cannot decode"),
        (
            SCHEMA.Datum(data=cv2.imencode(".png", np.zeros((2, 2), np.uint16))[1].tobytes(), encoded=True),
            "expected 8 bits a channel, found a picture of uint16",
        ),
    ],
)
def test_records_that_are_wrong(record: Any, said: str, tmp_path: Path) -> None:
    data = [] if record is None else [record if isinstance(record, bytes) else record.SerializeToString()]
    path = lmdb_of(tmp_path, *data)
    with pytest.raises(FormatError, match=re.escape(said)):
        Net(definition("Data", f'data_param {{ source: "{path}" batch_size: 2 backend: LMDB }}'))


def test_two_nets_read_one_database(tmp_path: Path) -> None:
    record = SCHEMA.Datum(data=b"abcd", channels=1, height=2, width=2).SerializeToString()
    path = lmdb_of(tmp_path, record)
    text = definition("Data", f'data_param {{ source: "{path}" batch_size: 2 backend: LMDB }}')
    nets = [Net(text), Net(text, phase="TRAIN")]
    assert all(next(passes(net, 1))["data"].shape == (2, 1, 2, 2) for net in nets)


@pytest.mark.parametrize(("backend", "package"), [("lmdb", "lmdb"), ("leveldb", "plyvel")])
def test_a_missing_package_names_itself(
    backend: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = f"no Python package {package}, which writes it; pip install {package}"
    with pytest.raises(CaffeError, match=said), DatabaseWriter(tmp_path / "db", backend):
        pass


def test_both_force_color_and_force_gray(tmp_path: Path) -> None:
    record = SCHEMA.Datum(data=b"abcd", channels=1, height=2, width=2).SerializeToString()
    block = f'data_param {{ source: "{lmdb_of(tmp_path, record)}" batch_size: 2 backend: LMDB }}'
    with pytest.raises(LayerError, match="force_color and force_gray"):
        Net(definition("Data", block, "transform_param { force_color: true force_gray: true }"))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("${ROOT}/train", r"\$\{ROOT\} is a template's placeholder: fill it in first"),
        ("lists/{{ name }}.txt", r"\{\{ name \}\} is a template's placeholder: fill it in first"),
        ("$ENV{HOME}/train", "a template's placeholder"),
        (r"C:\\voc\\train.txt", r"a Windows path\? write /"),
        (r"lists\train.txt", r"a Windows path\? write /"),  # \t is a tab
        ("C:/voc/train.txt", r"a Windows path\? write /"),
        ("lists/train.txt", "names are relative to the working directory"),
    ],
)
def test_names_that_are_no_files(name: str, remedy: str) -> None:
    data = f'image_data_param {{ source: "{name}" batch_size: 1 }}'
    with pytest.raises(CaffeError, match=remedy), torch.no_grad():
        Net(f'layer {{ name: "d" type: "ImageData" top: "x" top: "y" {data} }}')()
