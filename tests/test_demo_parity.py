"""The comparison with the fork that every clone can make: what it makes, that it can fail, what its material is."""

from __future__ import annotations

import shutil
from pathlib import Path

import embed_demo
import numpy as np
import pytest
from PIL import Image
from reference import EMBEDDED, needs_shared
from slim import narrow

from caffe_port.formats import open_weights
from caffe_port.tools import demo_parity as demo
from caffe_port.tools.replay import Reference

DEMO_DATA = EMBEDDED / "demo"


def call(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        demo.main(argv)
    return ended.value.code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_demo(here: Path, capsys: pytest.CaptureFixture) -> None:
    for _ in range(2):  # the second run replaces what the first wrote
        assert call() == 0
    said = capsys.readouterr().out
    assert "all within their bounds" in said
    assert "python -m caffe_port.tools.parity net.prototxt model.caffemodel net.npz" in said
    output = here / "demo_parity"
    assert sorted(p.name for p in output.iterdir()) == ["decouplednet.safetensors", "parity.html", "seg.png"]
    ours, theirs = (
        open_weights(p).state_dict() for p in (output / "decouplednet.safetensors", DEMO_DATA / "weights.caffemodel")
    )
    assert list(ours) == list(theirs)
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    with Image.open(output / "seg.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert pixels.shape == (344, 1008)
    assert len(np.unique(pixels[12:332, 344:664])) > 50, "a map, not one grey"


def test_a_number_that_is_not_the_forks(here: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    shutil.copytree(DEMO_DATA, here / "material")
    monkeypatch.setattr(demo, "DEMO_DATA", here / "material")
    arrays = dict(np.load(DEMO_DATA / "reference.npz"))
    arrays["out/fc6-seg"] = arrays["out/fc6-seg"] * 1.001
    np.savez(here / "material" / "reference.npz", **arrays)
    assert call() == 1
    said = capsys.readouterr().out
    assert "1 of 90 arrays over their bounds, first at layer fc6-seg .. relu6-seg" in said


def test_wrong_input(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    Path("file").touch()
    assert call("-o", "file") == 2
    assert (
        capsys.readouterr().err
        == "caffe-port demo-parity: error: file: expected a folder, found a file; choose another\n"
    )
    monkeypatch.setattr(demo, "DEMO_DATA", here)
    assert call() == 2
    assert "run the demo in a clone of the repository" in capsys.readouterr().err


# -- the material ------------------------------------------------------------------------------------------------------


def test_the_input_is_the_picture() -> None:
    with Image.open(DEMO_DATA / "picture.png") as picture:
        assert np.array_equal(demo.blob_of(picture), Reference(DEMO_DATA / "reference.npz")["in/data"])
        assert np.abs(np.asarray(picture, int) - np.asarray(embed_demo.draw(), int)).max() <= 1


def test_the_net_is_the_builders() -> None:
    assert (DEMO_DATA / "net.prototxt").read_text(encoding="utf-8") == str(narrow(embed_demo.NET, embed_demo.WIDTH))


@needs_shared("reference/noh_inference")
def test_the_weights_are_the_references() -> None:
    ours, theirs = (open_weights(p) for p in (DEMO_DATA / "weights.caffemodel", embed_demo.WEIGHTS))
    assert [(a.name, a.type) for a in ours.layers] == [(b.name, b.type) for b in theirs.layers]
    expected = theirs.state_dict()
    assert all(np.array_equal(array, expected[key]) for key, array in ours.state_dict().items())
