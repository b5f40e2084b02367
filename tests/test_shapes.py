"""The drawn data set: reproducible, in VOC's layout, with masks that agree with its labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_port.errors import CaffeError, FileError
from caffe_port.segmentation import shapes
from caffe_port.segmentation.crops import present
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.shapes import SHAPES, ShapeSet, draw, make_shapes
from caffe_port.segmentation.voc import IGNORED, read_palette
from caffe_port.segmentation.voc import palette as voc_palette
from caffe_port.tools import make_shapes as command

SMALL = ShapeSet(images=6, val=3, classes=4, size=48, seed=5)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes") / "set"
    make_shapes(path, SMALL)
    return path


def test_the_same_numbers_draw_the_same_set(drawn: Path, tmp_path: Path) -> None:
    make_shapes(tmp_path / "again", SMALL, workers=2)
    assert contents(tmp_path / "again") == contents(drawn)


def test_another_seed_draws_others() -> None:
    one, other = (draw(SMALL, np.random.default_rng(seed))[0] for seed in (1, 2))
    assert one.shape != other.shape or (one != other).any()


def test_it_is_laid_out_as_voc(drawn: Path) -> None:
    folder = Folder(drawn)
    assert folder.classes == ("disc", "triangle", "star", "ring")
    train, val = folder.names("train"), folder.names("val")
    assert (len(train), len(val)) == (6, 3)
    assert not {*train} & {*val}
    for name in train + val:
        labels = folder.labels(name)
        assert max(labels.shape) == 48
        assert folder.picture(name).shape == (*labels.shape, 3)
        assert present(labels) == folder.labelled[name] != ()
    np.testing.assert_array_equal(read_palette(folder.mask(train[0])), voc_palette())


def test_many_pictures_have_every_documented_property() -> None:
    """All classes, several a picture, objects of many sizes, parts that are hidden, ignored outlines."""
    masks = [draw(ShapeSet(1, 1, classes=12, size=64), np.random.default_rng(seed))[1] for seed in range(60)]
    counts = [len(present(mask)) for mask in masks]
    assert {label for mask in masks for label in present(mask)} == set(range(1, 13))
    assert min(counts) >= 1
    assert sum(count >= 2 for count in counts) > 20
    shares = [np.mean(mask == label) for mask in masks for label in present(mask)]
    assert min(shares) < 0.03
    assert max(shares) > 0.15
    assert all((mask == IGNORED).any() for mask in masks)


def test_every_outline_lies_in_the_unit_circle() -> None:
    for name, outlines in SHAPES.items():
        assert max(np.hypot(*outline.T).max() for outline in outlines) <= 1.5, name


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"images": 0}, "images: expected 1"),
        ({"val": 0}, "val: expected 1"),
        ({"classes": 16}, "classes: expected 1 to 15, found 16"),
        ({"classes": 3, "skip": 13}, "classes: expected 1 to 2, found 3"),
        ({"skip": 15}, "skip: expected 0 to 14, found 15"),
        ({"size": 8}, "size: expected 32"),
    ],
    ids=str,
)
def test_wrong_numbers_are_refused(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(CaffeError, match=message):
        ShapeSet(**{"images": 1, "val": 1, **numbers})


def test_skipped_shapes_and_their_patterns_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the outlines and patterns after the skipped ones; those of the demo are shared by no other shape."""
    used: set[str] = set()
    placed, pattern = shapes._placed, shapes._pattern

    def recorded(rng: np.random.Generator, manner: object, outlines: list[np.ndarray], *size: int) -> object:
        used.add(next(name for name, known in SHAPES.items() if known is outlines))
        return placed(rng, manner, outlines, *size)

    monkeypatch.setattr(shapes, "_placed", recorded)
    monkeypatch.setattr(shapes, "_pattern", lambda name: used.add(f"pattern of {name}") or pattern(name))
    for skip, names in ((3, ("ring", "cross")), (12, ("fish", "flower", "leaf"))):
        used.clear()
        drawn = ShapeSet(1, 1, classes=len(names), size=48, skip=skip)
        assert drawn.names == names
        for seed in range(10):
            draw(drawn, np.random.default_rng(seed))
        assert used == {*names, *(f"pattern of {name}" for name in names)}
    own = {pattern(name) for name in ("fish", "flower", "leaf")}
    assert len(own) == 3
    assert not own & {pattern(name) for name in [*SHAPES][:12]}


def test_easy_pictures_are_square_with_one_to_three_large_objects() -> None:
    pairs = [draw(ShapeSet(1, 1, classes=9, size=64, easy=True), np.random.default_rng(seed)) for seed in range(60)]
    assert {picture.shape for picture, _ in pairs} == {(64, 64, 3)}
    counts = [len(present(mask)) for _, mask in pairs]
    assert {*counts} == {1, 2, 3}
    usual = [draw(ShapeSet(1, 1, classes=9, size=64), np.random.default_rng(seed)) for seed in range(60)]
    areas, greyness = [], []
    for drawn in (pairs, usual):
        areas.append(min(np.mean(mask == label) for _, mask in drawn for label in present(mask)))
        greyness.append(np.mean([picture[mask == 0].std(1).mean() for picture, mask in drawn]))
    assert areas[0] > 2 * areas[1]
    assert greyness[0] < 0.8 * greyness[1]


def test_existing_files_are_kept(drawn: Path) -> None:
    before = contents(drawn)
    with pytest.raises(FileError, match="-f to overwrite"):
        make_shapes(drawn, SMALL)
    assert contents(drawn) == before


def test_an_interrupted_set_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(names: object, what: str) -> list[str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "set", SMALL, watch=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = ["-o", str(tmp_path / "set"), "--images", "4", "--classes", "2", "--size", "32", "--workers", "1"]
    with pytest.raises(SystemExit) as done:
        command.main(order)
    assert done.value.code == 0
    assert "4 + 1 pictures of disc, triangle" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        command.main(order)
    assert done.value.code == 2
    assert "exists already" in capsys.readouterr().err
