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
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from data_cases import BATCHES, CASES, PHASES, SEED, Case, draw
from data_runs import Blobs, definition, passes, settle
from google.protobuf import text_format
from PIL import Image
from reference import EMBEDDED, SHARED, needs_shared

from caffe_port.errors import FileError, LayerError
from caffe_port.net import Net
from caffe_port.random import CRand, c_rand, default_stream, set_random_seed
from caffe_port.schema import SCHEMA

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_port.definitions.definition import Setting
from caffe_port.tools import build

SHUFFLED_ROWS = "image_data_param { source: 'labels.txt' batch_size: 3 shuffle: true new_height: 9 new_width: 8 }"


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the cases read."""
    folder = tmp_path_factory.mktemp("data")
    draw(folder)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is empty: files are found next to the definition."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def build_net(case: Case, phase: str, folder: Path) -> Net:
    pytest.importorskip(case.needs) if case.needs else None
    path = folder / f"{case}.prototxt"
    path.write_text(case.text)
    set_random_seed(SEED)
    c_rand().set_state(CRand().get_state())
    return Net(path, phase=phase, dialect=case.dialect)


def differing(ours: Iterable[Blobs], theirs: Any, prefix: str, blobs: Iterable[str]) -> list[str]:
    """The recorded blobs that are not equal to the last bit."""
    return [
        f"{name}/{i}"
        for i, batch in enumerate(ours)
        for name in blobs
        if not np.array_equal(batch[name], theirs[f"{prefix}/{name}/{i}"])
    ]


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
    """Five passes are two, a snapshot, and three of another net; the prefetched batch is not used yet."""
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
    first, second = (
        build_net(Case("bvlc", "x", definition("ImageData", b), ()), "TEST", drawn) for b in (before, after)
    )
    with pytest.raises(LayerError, match=re.escape(said)):
        restore(second, snapshot(first))


@pytest.mark.parametrize("damage", [{}, {"at": "<i8 ????"}, {"at": 3}])
def test_a_damaged_position_is_refused(damage: dict, drawn: Path) -> None:
    data = build_net(Case("bvlc", "x", definition("ImageData", SHUFFLED_ROWS), ()), "TEST", drawn).nodes[0][1]
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
from caffe_port.data import Prefetcher, Places, Transformer
from caffe_port.data.batches import Cursor
from caffe_port.data.pictures import Labelled, PictureBatches, Reader

reader, as_it_is = Reader(Places("")), Transformer(scale=1, mirror=False, crop=0, mean=None, train=False)
prefetcher = Prefetcher(PictureBatches("list", [Labelled(1, "large.png", 0)], Cursor(1), reader, as_it_is, 12))
prefetcher.start()
"""


@pytest.mark.parametrize("last", ["", "raise KeyboardInterrupt"])
def test_exit_while_a_batch_is_made(last: str) -> None:
    """Large pictures take a while: the process waits for them, and ends as its script does."""
    assert cv2.imwrite("large.png", np.zeros((1500, 1500, 3), np.uint8))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-c", LEAVING + last]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == (-2 if last else 0)
    assert done.stderr.splitlines()[-1:] == (["KeyboardInterrupt"] if last else [])


def test_a_deleted_picture_is_an_error_when_its_batch_is_due(tmp_path: Path) -> None:
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((4, 4, 3), i, np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i}\n" for i in range(5)))
    (tmp_path / "net.prototxt").write_text(
        definition(
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
    (tmp_path / "net.prototxt").write_text(definition("ImageSegData", block, tops='top: "data" top: "map" top: "size"'))
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
    (tmp_path / "net.prototxt").write_text(definition("ImageData", 'image_data_param { source: "list.txt" }'))
    batch = next(passes(Net(tmp_path / "net.prototxt"), 1))
    assert batch["data"].max() == batch["label"][0] == 2


MEMORY = definition("MemoryData", "memory_data_param { batch_size: 2 channels: 1 height: 2 width: 3 }")


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("more", ["", "transform_param { scale: 2 crop_size: 1 mean_value: 9 mirror: true }"])
def test_memory_data_wraps_around(more: str, phase: str) -> None:
    """Arrays are not transformed, as in Caffe (Reset)."""
    net = Net(MEMORY.replace("memory_data_param", f"{more} memory_data_param"), phase=phase)
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
        f'layer {{ name: "o" type: "HDF5Output" bottom: "x" bottom: "t" hdf5_output_param {{ file_name: "{path}" }} }}',
        allow_writes=True,
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
