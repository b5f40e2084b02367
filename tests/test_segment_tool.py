"""The command: what it writes where, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from killing import port
from PIL import Image
from segment_nets import TINY, picture, save, tiny

import caffe_port
from caffe_port.errors import FormatError
from caffe_port.formats import LayerWeights, write_caffemodel
from caffe_port.net import Net
from caffe_port.segmentation import voc
from caffe_port.segmentation.inference import Segmenter
from caffe_port.tools import segment

ROOT = Path(__file__).resolve().parents[1]
NET = ["--prototxt", "net.prototxt", "--weights", "net.caffemodel"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny net and three pictures, two of them in a folder."""
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(TINY)
    tiny().save("net.caffemodel")
    Path("pictures").mkdir()
    save(Path("a.png"), picture(12, 17, 1))
    save(Path("pictures", "b.png"), picture(9, 5, 2))
    save(Path("pictures", "c.PNG"), picture(30, 30, 3)[:, :, 0])
    Path("pictures", "list.txt").write_text("no picture")
    return tmp_path


def call(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        segment.main(argv)
    return ended.value.code


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_masks_are_the_segmenters(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("a.png", "pictures", *NET, "-o", "out") == 0
    assert names("out") == ["a.png", "b.png", "c.png"]
    said = capsys.readouterr().out.splitlines()
    segmenter = Segmenter(tiny())
    for path, line in zip((Path("a.png"), Path("pictures/b.png"), Path("pictures/c.PNG")), said, strict=True):
        found = segmenter(voc.read_picture(path))
        with Image.open(Path("out", f"{path.stem}.png")) as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
            assert (np.asarray(mask) == found.pixels).all()
        words = [f"{label} {found.scores[label - 1]:.2f}" for label in found.labels[1:]]
        assert line.split(None, 1) == [path.name, ", ".join(words)]


def test_overlays_and_maps(here: Path) -> None:
    assert call("a.png", *NET, "-o", "out", "--overlay", "--maps", "-q") == 0
    assert names("out") == ["a.npz", "a.png", "a_overlay.png"]
    pixels = voc.read_picture("a.png")
    found = Segmenter(tiny())(pixels)
    with np.load("out/a.npz") as maps:
        assert sorted(maps) == ["labels", "maps", "scores"]
        assert (maps["maps"] == found.maps).all()
        assert tuple(maps["labels"]) == found.labels
        assert (maps["scores"] == found.scores).all()
    shown, mask = voc.read_picture("out/a_overlay.png"), voc.read_labels("out/a.png")
    assert (shown[mask == 0] == pixels[mask == 0]).all()
    mixed = 0.4 * pixels[mask > 0] + 0.6 * voc.palette()[mask[mask > 0]]
    assert np.abs(shown[mask > 0] - mixed).max() <= 0.5 + 1e-9


def test_pass_by_pass(here: Path) -> None:
    assert call("pictures", *NET, "-o", "one") == 0
    assert call("pictures", *NET, "-o", "two", "--pass-by-pass") == 0
    assert all(Path("one", name).read_bytes() == Path("two", name).read_bytes() for name in names("one"))


def test_threshold(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("a.png", *NET, "-o", "out", "--threshold", "1") == 0
    assert capsys.readouterr().out == "a.png  no class found\n"
    assert not voc.read_labels("out/a.png").any()


def test_palette(here: Path) -> None:
    mask = Image.fromarray(np.zeros((2, 2), np.uint8))
    mask.putpalette([1, 2, 3, 40, 50, 60])
    mask.save("colours.png")
    assert call("a.png", *NET, "-o", "out", "--palette", "colours.png") == 0
    with Image.open("out/a.png") as written:
        assert written.getpalette()[:9] == [1, 2, 3, 40, 50, 60, 0, 0, 0]


def test_existing_results_stay_unless_forced(here: Path, capsys: pytest.CaptureFixture) -> None:
    Path("out").mkdir()
    Path("out/b.png").write_text("mine")
    assert call("a.png", "pictures", *NET, "-o", "out") == 2
    assert "out/b.png: exists already; pass -f" in capsys.readouterr().err
    assert names("out") == ["b.png"]
    assert call("a.png", "pictures", *NET, "-o", "out", "-f") == 0
    assert names("out") == ["a.png", "b.png", "c.png"]


def test_as_a_module(here: Path) -> None:
    command = [sys.executable, "-m", "caffe_port.tools.segment", "a.png", *NET, "-o", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("a.png  ")
    assert names("out") == ["a.png"]


def damaged() -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(40, 40)).save(file, "JPEG")
    return file.getvalue()[:-300]


def deep() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "x.jpg: expected a picture (JPEG, PNG, ...), found a file, which cannot be read"),
        (b"<html>", "x.jpg: expected a picture"),
        (damaged(), "x.jpg: expected a picture"),
        (deep(), "x.jpg: expected 8 bits a channel, found a picture of mode I;16"),
    ],
    ids=["empty", "web page", "truncated", "16 bits"],
)
def test_wrong_picture(content: bytes, says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    """What comes before it is segmented, and whole."""
    Path("x.jpg").write_bytes(content)
    assert call("a.png", "x.jpg", *NET, "-o", "out", "--maps", "--overlay") == 2
    refused(capsys, says)
    assert names("out") == ["a.npz", "a.png", "a_overlay.png"]


def refused(capsys: pytest.CaptureFixture, says: str) -> None:
    said = capsys.readouterr().err
    assert says in said
    assert said.startswith("caffe-port segment: error: ")
    assert said.count("\n") == 1


def write_other_net() -> None:
    Path("other.prototxt").write_text(TINY.replace('"cls-score-masked"', '"label"'))


def write_half() -> None:
    net = Net(TINY.replace('name: "seg" ', 'name: "other" '))
    net.save("half.caffemodel")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (
            ["a.png", "-o", "out"],
            "--prototxt: expected a deploy net and its weights, found missing; nets are",
        ),
        (["a.png", "-o", "out", *NET[:2]], "--weights: expected a deploy net"),
        (["a.png", *NET], "the following arguments are required: -o/--output"),
        ([*NET, "-o", "out"], "required: PICTURE"),
        (["none.png", *NET, "-o", "out"], "none.png: no such file or folder"),
        (["empty", *NET, "-o", "out"], "empty: expected files .jpg, .jpeg, .png, .bmp"),
        (["a.png", "again/a.png", *NET, "-o", "out"], "out/a.png: the result of both a.png and again/a.png"),
        (["a.png", "a_overlay.png", *NET, "-o", "out", "--overlay"], "out/a_overlay.png: the result of both a.png and"),
        (["a.png", *NET, "-o", "."], "a.png: is also an input picture; choose another folder with -o"),
        (["a.png", *NET, "-o", "net.prototxt"], "net.prototxt: expected a folder, found a file"),
        (["a.png", *NET, "-o", "out", "--threshold", "2"], "'2', expected a number from 0 to 1"),
        (["a.png", *NET, "-o", "out", "--palette", "a.png"], "a.png: expected a PNG with a palette"),
        (["a.png", *NET, "-o", "out", "--palette", "none.png"], "none.png: no such file"),
        (
            ["a.png", *NET, "-o", "out", "--device", "gpu"],
            "--device: expected cpu, cuda, cuda:N or auto, found gpu",
        ),
        (["a.png", *NET, "-o", "out", "--device", "cuda:77"], "--device cuda:77: "),
        (["a.png", "--prototxt", "other.prototxt", *NET[2:], "-o", "out"], "found inputs data, label"),
        (["a.png", *NET[:3], "half.caffemodel", "-o", "out"], "half.caffemodel: expected all 4 blobs of net.prototxt"),
        (["a.png", *NET[:3], "none.caffemodel", "-o", "out"], "none.caffemodel: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(argv: list[str], says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in ("empty", "again"):
        Path(folder).mkdir()
    for name in ("again/a.png", "a_overlay.png"):
        save(Path(name), picture(4, 4))
    write_other_net()
    write_half()
    assert call(*argv) == 2
    refused(capsys, says)
    assert not Path("out").exists()


def test_colours_of_voc() -> None:
    colours = voc.palette()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {label: tuple(colours[label]) for label in known} == known
    assert len(np.unique(colours, axis=0)) == 256


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_a_picture_of_any_mode_is_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.fromarray(picture(6, 9)).convert(mode).save(path)
    pixels = voc.read_picture(path)
    assert pixels.shape == (6, 9, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("mode", ["P", "L"])
def test_masks_are_indices_or_grey_values(mode: str, tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    if mode == "P":
        voc.write_labels(tmp_path / "x.png", labels)
    else:
        save(tmp_path / "x.png", labels)
    assert (voc.read_labels(tmp_path / "x.png") == labels).all()


def test_masks_in_vocs_colours_are_labels(tmp_path: Path) -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(voc.palette()[labels]).save(tmp_path / "x.png")
    assert (voc.read_labels(tmp_path / "x.png") == labels).all()
    pixels = voc.palette()[labels]
    pixels[3, 5] = 1, 2, 3
    Image.fromarray(pixels).save(tmp_path / "x.png")
    with pytest.raises(FormatError, match=r"found the colour \(1, 2, 3\) at x 5, y 3; save it with its palette"):
        voc.read_labels(tmp_path / "x.png")


def test_large_masks_in_colours_take_little_more_than_themselves(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).integers(0, 256, (900, 1500), np.uint8)
    Image.fromarray(np.tile(voc.palette()[labels], (4, 1, 1))).save(tmp_path / "x.png", compress_level=1)
    tracemalloc.start()
    try:
        found = voc.read_labels(tmp_path / "x.png")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found == np.tile(labels, (4, 1))).all()
    assert most < 12 * found.size


def test_class_names_may_be_given(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("a.png", *NET, "-o", "one", "--threshold", "0", "--json") == 0
    first = json.loads(capsys.readouterr().out)["classes"]
    given = [f"n{i}" for i in range(1, len(first) + 1)]
    Path("names.txt").write_text("\n".join(given))
    for i, classes in enumerate((",".join(given), "names.txt")):
        assert call("a.png", *NET, "-o", f"two{i}", "--threshold", "0", "--json", "--classes", classes) == 0
        found = json.loads(capsys.readouterr().out)["classes"]
        assert [*found] == given
        assert [*found.values()] == [*first.values()]
    assert call("a.png", *NET, "-o", "three", "--classes", "one") == 2
    assert "--classes: expected" in capsys.readouterr().err


def test_weights_that_are_not_folded_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bn = 'layers { name: "bn" type: BN bottom: "data" top: "bn" bn_param { bn_mode: INFERENCE } }'
    net = caffe_port.Net('input: "data" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 4 ' + bn)
    blobs = [np.ones((1, 3, 1, 1), np.float32)] * 2
    layers = [LayerWeights("bn", "BN", blobs), LayerWeights("loss", "SoftmaxWithLoss", [])]
    for name, written, warned in (("trained", layers, True), ("folded", layers[:1], False)):
        path = str(tmp_path / f"{name}.caffemodel")
        write_caffemodel(path, written, generation=1)
        segment._warn_unfolded(net, [path])
        assert ("whose BN layers are not folded" in capsys.readouterr().err) is warned


def test_an_error_comes_in_its_place(here: Path) -> None:
    Path("many").mkdir()
    for i in range(7):
        Image.fromarray(picture(20, 20, i)).save(f"many/{i}.png")
    Path("many/5.png").write_bytes(b"")
    assert call("many", *NET, "-o", "out") == 2
    assert names("out") == [f"{i}.png" for i in range(5)]
    Image.fromarray(picture(20, 20, 5)).save("many/5.png")
    before = {name: Path("out", name).stat().st_mtime_ns for name in names("out")}
    assert call("many", *NET, "-o", "out", "--resume") == 0
    assert names("out") == [f"{i}.png" for i in range(7)]
    assert all(Path("out", name).stat().st_mtime_ns == time for name, time in before.items())
    assert call("many", *NET, "-o", "out", "--resume") == 0


def test_processes_under_torchrun_share_a_folder(here: Path) -> None:
    Path("many/JPEGImages").mkdir(parents=True)
    Path("many/SegmentationClass").mkdir()
    for i in range(5):
        Image.fromarray(picture(20, 20, i)).save(f"many/JPEGImages/{i}.png")
        voc.write_labels(Path(f"many/SegmentationClass/{i}.png"), np.full((20, 20), i % 3, np.uint8))
    assert call("many/JPEGImages", *NET, "-o", "one") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    torchrun += [f"--master_port={port()}", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def printed(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout

    lines = printed(*torchrun, "caffe_port.tools.segment", "many/JPEGImages", *NET, "-o", "two").splitlines()
    assert sorted(line.split()[0] for line in lines) == [f"{i}.png" for i in range(5)]
    assert {name: Path("two", name).read_bytes() for name in names("two")} == {
        name: Path("one", name).read_bytes() for name in names("one")
    }
    scored = ["caffe_port.tools.evaluate", "two", "--truth", "many", "--names", "a,b,c,d", "--json", "--quiet"]
    assert printed(*torchrun, *scored) == printed(sys.executable, "-m", *scored)
