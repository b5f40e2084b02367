"""Data layers: the batches of the two real programs to the last bit, resuming, and every way that data can be wrong."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from data_cases import BATCHES, CASES, PHASES, SEED, Case, draw
from google.protobuf import text_format
from PIL import Image
from reference import EMBEDDED, SHARED, needs_shared

from caffe_port.errors import CaffeError, FileError, FormatError, LayerError, ShapeError
from caffe_port.net import Net
from caffe_port.random import CRand, c_rand, default_stream, set_random_seed
from caffe_port.schema import SCHEMA

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prototxt import build
from prototxt.definition import Setting

Blobs = dict[str, np.ndarray]
SHUFFLED_ROWS = "image_data_param { source: 'labels.txt' batch_size: 3 shuffle: true new_height: 9 new_width: 8 }"


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the cases read."""
    folder = tmp_path_factory.mktemp("data")
    draw(folder)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory holds nothing: what is found lies beside the definition."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def build_net(case: Case, phase: str, folder: Path) -> Net:
    pytest.importorskip(case.needs) if case.needs else None
    path = folder / f"{case}.prototxt"
    path.write_text(case.text)
    set_random_seed(SEED)
    c_rand().set_state(CRand().get_state())
    return Net(path, phase=phase, dialect=case.dialect)


def passes(net: Net, count: int) -> Iterator[Blobs]:
    """All blobs of ``count`` passes, copied: batches may be views of what the next pass overwrites."""
    for _ in range(count):
        blobs: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for node, layer in net.nodes:
                net.run_layer(node, layer, blobs)
        yield {name: tensor.numpy().copy() for name, tensor in blobs.items()}


def settle() -> None:
    """Wait for the batches that are being made."""
    for thread in threading.enumerate():
        if thread.name == "caffe_port data":
            thread.join(10)


def differing(ours: Iterable[Blobs], theirs: Any, prefix: str, blobs: Iterable[str]) -> list[str]:
    """The recorded blobs that are not equal to the last bit."""
    return [
        f"{name}/{i}"
        for i, batch in enumerate(ours)
        for name in blobs
        if not np.array_equal(batch[name], theirs[f"{prefix}/{name}/{i}"])
    ]


def layer(type_name: str, block: str, more: str = "", tops: str = 'top: "data" top: "label"') -> str:
    return f'layer {{ name: "d" type: "{type_name}" {tops} {block} {more} }}'


# -- against the real programs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_batches_of_drawn_pictures_are_real_caffes(case: Case, phase: str, drawn: Path) -> None:
    with np.load(EMBEDDED / "data_layers" / f"{case.dialect}.npz") as theirs:
        ours = passes(build_net(case, phase, drawn), BATCHES)
        assert not differing(ours, theirs, f"{case.name}/{phase}", case.blobs)


NOH_DATA = SHARED / "reference" / "noh_data"
NOH_NETS = sorted(path.stem for path in NOH_DATA.glob("*.prototxt")) or ["image_seg"]


@needs_shared("reference/noh_data")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", NOH_NETS)
def test_batches_of_photographs_are_the_forks(name: str, phase: str) -> None:
    set_random_seed(42)
    net = Net(NOH_DATA / f"{name}.prototxt", phase=phase, dialect="noh")
    with np.load(NOH_DATA / "batches.npz") as theirs:
        assert not differing(passes(net, 5), theirs, f"{name}/{phase}", [t for node, _ in net.nodes for t in node.tops])


@needs_shared("reference/noh_solver")
@pytest.mark.parametrize("phase", PHASES)
def test_the_training_nets_batches_are_the_forks(phase: str) -> None:
    """The first is drawn before the parameters are filled, the others after."""
    folder = SHARED / "reference" / "noh_solver"
    set_random_seed(42)
    net = Net(folder / "net.prototxt", phase=phase)
    data = net.nodes[0][1]
    with np.load(folder / "batches.npz") as theirs:
        for i in range(3):
            pixels, labels, classes = (t.numpy() for t in data())
            assert np.array_equal(pixels[..., ::8, ::8], theirs[f"{phase}/data/{i}"])
            assert np.array_equal(labels, theirs[f"{phase}/seg-label/{i}"])
            assert np.array_equal(classes.reshape(2, 20), theirs[f"{phase}/cls-label/{i}"])


@needs_shared("reference/bvlc_random")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("name", "count"), [("imagedata", 4), ("lmdb", 3)])
def test_batches_of_lists_and_databases_are_bvlcs(name: str, count: int, phase: str) -> None:
    pytest.importorskip("lmdb")
    folder = SHARED / "reference" / "bvlc_random"
    set_random_seed(json.loads((folder / "seed.json").read_text())["seed"])
    net = Net(folder / f"{name}.prototxt", phase=phase)
    with np.load(folder / "draws.npz") as theirs:
        assert not differing(passes(net, count), theirs, f"{name}_{phase}", ("x", "t"))


@needs_shared("reference/bvlc_solvers")
def test_rows_of_the_solvers_data() -> None:
    import h5py

    folder = SHARED / "reference" / "bvlc_solvers"
    net = Net(folder / "net.prototxt", phase="TRAIN")
    with h5py.File(folder / "data.h5") as file:
        rows = {name: file[name][()] for name in ("data", "label")}
    for i, batch in enumerate(passes(net, 7)):
        at = np.arange(6 * i, 6 * i + 6) % len(rows["data"])
        assert all(np.array_equal(batch[name], rows[name][at]) for name in rows)


@pytest.mark.parametrize("seed", [1, 2, 31, 1 << 20])
def test_rand_is_the_c_librarys(seed: int) -> None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        pytest.skip("needs glibc")
    library.srand(seed)
    ours = CRand(seed)
    assert [ours.rand() for _ in range(500)] == [library.rand() for _ in range(500)]
    library.srand(1)


# -- positions ---------------------------------------------------------------------------------------------------------


def snapshot(net: Net) -> str:
    states = {node.key: layer.state() for node, layer in net.nodes if hasattr(layer, "state")}
    return json.dumps({"stream": default_stream().get_state().tolist(), "data": states})


def restore(net: Net, saved: str) -> None:
    facts = json.loads(saved)
    default_stream().set_state(np.array(facts["stream"], np.uint32))
    for node, lay in net.nodes:
        if node.key in facts["data"]:
            lay.restore(facts["data"][node.key])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resuming_is_exact(case: Case, drawn: Path) -> None:
    """Five passes are two, a snapshot, and three of another net; the batch made ahead is nobody's yet."""
    net = build_net(case, "TRAIN", drawn)
    list(passes(net, 2))
    saved = snapshot(net)
    expected = list(passes(net, 3))
    other = build_net(case, "TRAIN", drawn)
    list(passes(other, 1))
    restore(other, saved)
    for ours, theirs in zip(passes(other, 3), expected, strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in case.blobs)


def test_a_state_is_the_same_whenever_it_is_asked_for(drawn: Path) -> None:
    net = build_net(CASES[0], "TRAIN", drawn)
    early = snapshot(net)
    settle()
    assert snapshot(net) == early


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (SHUFFLED_ROWS, SHUFFLED_ROWS.replace("labels", "equal"), "one among 7 shuffled items"),
        (SHUFFLED_ROWS, SHUFFLED_ROWS.replace("shuffle: true", ""), "expected one among 7 items"),
        (SHUFFLED_ROWS, SHUFFLED_ROWS + " transform_param { mirror: true }", "the same transform_param"),
    ],
)
def test_a_position_of_other_data_is_refused(before: str, after: str, said: str, drawn: Path) -> None:
    first, second = (build_net(Case("bvlc", "x", layer("ImageData", b), ()), "TEST", drawn) for b in (before, after))
    with pytest.raises(LayerError, match=re.escape(said)):
        restore(second, snapshot(first))


@pytest.mark.parametrize("damage", [{}, {"at": "<i8 ????"}, {"at": 3}])
def test_a_damaged_position_is_refused(damage: dict, drawn: Path) -> None:
    data = build_net(Case("bvlc", "x", layer("ImageData", SHUFFLED_ROWS), ()), "TEST", drawn).nodes[0][1]
    with pytest.raises(LayerError, match="position"):
        data.restore(damage)


# -- the thread --------------------------------------------------------------------------------------------------------


def test_a_dropped_net_leaves_no_thread(drawn: Path) -> None:
    net = build_net(CASES[0], "TRAIN", drawn)
    next(passes(net, 1))
    del net
    gc.collect()
    settle()
    assert not [thread for thread in threading.enumerate() if thread.name == "caffe_port data"]


LEAVING = """
from caffe_port.data import Ahead, Places, Transformer
from caffe_port.data.batches import Cursor
from caffe_port.data.pictures import Labelled, PictureBatches, Reader

reader, as_it_is = Reader(Places("")), Transformer(scale=1, mirror=False, crop=0, mean=None, train=False)
ahead = Ahead(PictureBatches("list", [Labelled(1, "large.png", 0)], Cursor(1), reader, as_it_is, 12))
ahead.start()
"""


@pytest.mark.parametrize("last", ["", "raise KeyboardInterrupt"])
def test_leaving_python_while_a_batch_is_made(last: str) -> None:
    """Large pictures take a while: the process waits for them, and ends as its script does."""
    assert cv2.imwrite("large.png", np.zeros((1500, 1500, 3), np.uint8))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-c", LEAVING + last]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == (-2 if last else 0)
    assert done.stderr.splitlines()[-1:] == (["KeyboardInterrupt"] if last else [])


def test_a_picture_that_vanishes_is_missed_when_its_batch_is_due(tmp_path: Path) -> None:
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((4, 4, 3), i, np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i}\n" for i in range(5)))
    (tmp_path / "net.prototxt").write_text(
        layer(
            "ImageData",
            'image_data_param { source: "list.txt" batch_size: 1 root_folder: "../' + tmp_path.name + '/" }',
        )
    )
    (tmp_path / "2.png").unlink()
    net = Net(tmp_path / "net.prototxt")
    assert [float(batch["data"].max()) for batch in passes(net, 2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(FileError, match=r"list\.txt:3: no picture '\.\./.*2\.png' \(looked for .*2\.png and for "):
            next(passes(net, 1))


# -- masks, names, arrays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_masks_with_a_palette_are_labels(
    bits: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOG_minloglevel")
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) + (0 if bits == 4 else 240)
    cv2.imwrite(str(tmp_path / "p.png"), np.zeros((3, 4, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "grey.png"), labels)
    palette = Image.fromarray(labels)
    palette.putpalette(np.random.RandomState(1).randint(0, 256, 768).astype(np.uint8).tobytes())
    palette.save(tmp_path / "palette.png", bits=bits)
    assert (tmp_path / "palette.png").read_bytes()[24:26] == bytes([bits, 3])
    (tmp_path / "list.txt").write_text("p.png grey.png\np.png palette.png\np.png palette.png\n")
    block = 'image_data_param { source: "list.txt" batch_size: 3 label_type: PIXEL }'
    (tmp_path / "net.prototxt").write_text(layer("ImageSegData", block, tops='top: "data" top: "map" top: "size"'))
    batch = next(passes(Net(tmp_path / "net.prototxt", dialect="noh"), 1))
    assert np.array_equal(batch["map"][:, 0], [labels] * 3)
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "layer d: masks are read as grey: labels are its values",
        "layer d: masks are PNGs with a palette: labels are its indices",
    ]


def test_the_working_directory_comes_first(tmp_path: Path) -> None:
    for folder, value in ((tmp_path, 1), (Path.cwd(), 2)):
        cv2.imwrite(str(folder / "p.png"), np.full((2, 2, 3), value, np.uint8))
        (folder / "list.txt").write_text(f"p.png {value}\n")
    (tmp_path / "net.prototxt").write_text(layer("ImageData", 'image_data_param { source: "list.txt" }'))
    batch = next(passes(Net(tmp_path / "net.prototxt"), 1))
    assert batch["data"].max() == batch["label"][0] == 2


MEMORY = layer("MemoryData", "memory_data_param { batch_size: 2 channels: 1 height: 2 width: 3 }")


def test_memory_data_goes_round() -> None:
    net = Net(MEMORY)
    data = np.arange(36, dtype=np.float32).reshape(6, 1, 2, 3)
    net.nodes[0][1].set_input_arrays(data, np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1))
    for i, batch in enumerate(passes(net, 4)):
        assert np.array_equal(batch["data"], data[2 * (i % 3) :][:2])
        assert batch["label"].tolist() == [2 * (i % 3), 2 * (i % 3) + 1]


@pytest.mark.parametrize(
    ("data", "labels", "said"),
    [
        ((6, 1, 3, 2), 6, "expected (n, 1, 2, 3) and n labels, n a multiple of the batch size 2"),
        ((5, 1, 2, 3), 5, "multiple of the batch size"),
        ((6, 1, 2, 3), 4, "4 labels"),
        ((0, 1, 2, 3), 0, "data of shape (0,"),
    ],
)
def test_memory_data_refuses(data: tuple[int, ...], labels: int, said: str) -> None:
    memory = Net(MEMORY).nodes[0][1]
    with pytest.raises(LayerError, match=re.escape(said)):
        memory.set_input_arrays(np.zeros(data, np.float32), np.zeros(labels, np.float32))
    with pytest.raises(LayerError, match="float32"):
        memory.set_input_arrays(np.zeros((2, 1, 2, 3)), np.zeros(2))
    with pytest.raises(LayerError, match="set_input_arrays"):
        memory()


def test_hdf5_output_holds_one_pass(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "out.h5"
    shapes = "input_param { shape { dim: 2 dim: 3 } shape { dim: 2 } }"
    net = Net(
        f'layer {{ name: "i" type: "Input" top: "x" top: "t" {shapes} }}'
        f'layer {{ name: "o" type: "HDF5Output" bottom: "x" bottom: "t" hdf5_output_param {{ file_name: "{path}" }} }}'
    )
    x, t = torch.arange(6.0).view(2, 3), torch.tensor([4.0, 5.0])
    net(x=x, t=t)
    with h5py.File(path) as file:
        assert sorted(file) == ["data", "label"]
        assert np.array_equal(file["data"][()], x.view(2, 3, 1, 1).numpy())
        assert np.array_equal(file["label"][()], t.view(2, 1, 1, 1).numpy())
    with pytest.raises(LayerError, match="a second pass"):
        net(x=x, t=t)


def test_blobs_follow_the_pictures_sizes(drawn: Path) -> None:
    case = next(c for c in CASES if c.name == "images_of_all_sizes")
    net = build_net(case, "TEST", drawn)
    seen = {batch["data"].shape for batch in passes(net, 5)}
    assert len(seen) > 1


def test_double_precision(drawn: Path) -> None:
    net = build_net(CASES[0], "TEST", drawn).double()
    assert net.nodes[0][1]()[0].dtype == torch.float64


# -- the published definitions -----------------------------------------------------------------------------------------

TRAINED = {
    path: text
    for path, it in build.definitions(Setting(width=Fraction(1, 64), batch=1)).items()
    if "image_data_param" in (text := str(it))
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("path", TRAINED, ids=lambda p: p.split("/")[1].removesuffix(".prototxt"))
def test_published_definitions_train_on_a_list(path: str, phase: str, tmp_path: Path) -> None:
    net = text_format.Parse(TRAINED[path], SCHEMA.NetParameter())
    (tmp_path / "VOC2012").mkdir()
    picture = np.random.RandomState(2).randint(0, 255, (60, 70, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "VOC2012" / "picture.png"), picture)
    cv2.imwrite(str(tmp_path / "VOC2012" / "mask.png"), np.full((60, 70), 15, np.uint8))
    for lay in net.layers:
        if lay.image_data_param.source:
            vector = " ".join("1" if c == 15 else "0" for c in range(1, 21))
            source = tmp_path / lay.image_data_param.source
            source.parent.mkdir(exist_ok=True)
            source.write_text(f"/picture.png /mask.png -3 4 40 63 {vector}\n")
    (tmp_path / "net.prototxt").write_text(TRAINED[path])
    built = Net(tmp_path / "net.prototxt", phase=phase)
    batch = next(passes(built, 1))
    assert all(np.isfinite(batch[name]).all() for name in built.graph.outputs)


# -- what can be wrong -------------------------------------------------------------------------------------------------

IMAGES = 'image_data_param { source: "list" batch_size: 2 NEW }'
SEG = 'top: "data" top: "a" top: "b"'
WINDOW = 'window_data_param { source: "list" batch_size: 2 } transform_param { crop_size: 6 }'
ROWS = 'hdf5_data_param { source: "list" batch_size: 2 }'
BOX = "# 0\np.png\n3\n9\n8\n"


def image_data(new: str = "", transform: str = "") -> str:
    return layer("ImageData", IMAGES.replace("NEW", new), f"transform_param {{ {transform} }}")


def seg_data(type_name: str = "WindowSegData", new: str = "label_type: PIXEL", more: str = "") -> str:
    return layer(type_name, IMAGES.replace("NEW", new), more, SEG)


WRONG = [  # definition, list, error, what it says
    (image_data(), None, FileError, "layer d: no list 'list' (looked for "),
    (image_data(), "", FormatError, "list: expected a line for each item, found an empty list"),
    (image_data(), "\n \n", FormatError, "an empty list"),
    (image_data(), "p.png 1\nq.png\n", FormatError, "list:2: expected FILE LABEL"),
    (image_data(), "p.png 1\nq.png cat\n", FormatError, "list:2: expected FILE LABEL, the label a whole number, found"),
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
    (seg_data(), "p.png\n", FormatError, "list:1: expected PICTURE MASK X1 Y1 X2 Y2, found 'p.png'"),
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
    (seg_data(), "p.png list 0 0 7 8\n", FormatError, "which cannot be read"),
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
    (layer("WindowData", WINDOW), "p.png\n", FormatError, "list:1: expected # 0, found 'p.png'"),
    (layer("WindowData", WINDOW), BOX, FormatError, "list: expected a number of boxes, found the end of the file"),
    (layer("WindowData", WINDOW), BOX + "1\n", FormatError, "expected a box, found the end"),
    (layer("WindowData", WINDOW), BOX + "x\n", FormatError, "list:6: expected a number of boxes, found 'x'"),
    (layer("WindowData", WINDOW), BOX + "1\n1 2 3\n", FormatError, "list:7: expected CLASS OVERLAP X1 Y1 X2 Y2"),
    (
        layer("WindowData", WINDOW),
        BOX.replace("3", "1") + "0\n",
        FormatError,
        "list:3: expected 3: pictures are read in",
    ),
    (layer("WindowData", WINDOW), BOX + "1\n1 0.9 0 0 1 1\n", FormatError, "no box of background"),
    (layer("WindowData", WINDOW), BOX + "1\n0 0.9 0 0 1 1\n", FormatError, "class 0"),
    (
        layer("WindowData", WINDOW),
        BOX + "2\n1 0.9 0 0 1 1\n1 0 0 0 8 8\n",
        FormatError,
        "expected one inside 8 x 9 pix",
    ),
    (layer("WindowData", WINDOW.replace("6", "0")), BOX, LayerError, "crop_size 0"),
    (layer("Data", 'data_param { source: "no" batch_size: 2 }'), None, FileError, "no database 'no'"),
    (layer("Data", 'data_param { source: "lmdb" batch_size: 2 }'), None, FormatError, "backend: LMDB"),
    (layer("HDF5Data", ROWS), "no.h5", FileError, "list:1: no HDF5 file 'no.h5'"),
    (layer("HDF5Data", ROWS), "list", FormatError, "an HDF5 file that cannot be read"),
    (layer("HDF5Data", ROWS), "a.h5", FormatError, "no such 'label'; data sets are named as the tops are"),
    (layer("HDF5Data", ROWS), "b.h5", ShapeError, "2 of 'data', 3 of 'label'"),
    (layer("HDF5Data", ROWS), "c.h5 d.h5", ShapeError, "as the first file has them"),
    (layer("HDF5Data", ROWS, "transform_param { scale: 2 }"), "c.h5", LayerError, "found a transform_param"),
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
        (b"\xff\xff", "record 0: a record that is no Datum"),
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
        Net(layer("Data", f'data_param {{ source: "{path}" batch_size: 2 backend: LMDB }}'))


def test_a_database_is_shared_and_closed(tmp_path: Path) -> None:
    """LMDB may be opened only once in a process: a second net reads what the first has opened."""
    record = SCHEMA.Datum(data=b"abcd", channels=1, height=2, width=2).SerializeToString()
    path = lmdb_of(tmp_path, record)
    text = layer("Data", f'data_param {{ source: "{path}" batch_size: 2 backend: LMDB }}')
    nets = [Net(text), Net(text, phase="TRAIN")]
    assert all(next(passes(net, 1))["data"].shape == (2, 1, 2, 2) for net in nets)
    nets.clear()
    settle()
    gc.collect()
    lmdb_of(tmp_path, record)  # opens it anew


@pytest.mark.parametrize(("backend", "package"), [("LMDB", "lmdb"), ("LEVELDB", "plyvel")])
def test_a_missing_package_names_itself(
    backend: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CaffeError, match=f"no Python package {package}, which reads it; pip install {package}"):
        Net(layer("Data", f'data_param {{ source: "{tmp_path}" batch_size: 2 backend: {backend} }}'))


def test_both_force_color_and_force_gray(tmp_path: Path) -> None:
    record = SCHEMA.Datum(data=b"abcd", channels=1, height=2, width=2).SerializeToString()
    block = f'data_param {{ source: "{lmdb_of(tmp_path, record)}" batch_size: 2 backend: LMDB }}'
    with pytest.raises(LayerError, match="force_color and force_gray"):
        Net(layer("Data", block, "transform_param { force_color: true force_gray: true }"))
