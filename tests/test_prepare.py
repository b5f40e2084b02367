"""The lists for training: crops as section 5 of the paper has them, read by the published definitions' data layers."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import caffe_port
from caffe_port.errors import CaffeError, FileError, FormatError, ShapeError
from caffe_port.schema import parse_text
from caffe_port.schema.messages import NetParameter
from caffe_port.segmentation import inference
from caffe_port.segmentation.crops import around, choose, combinatorial, dominant, objects, present, subsets
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.lists import Level, Plan, Prepared, pattern, prepare
from caffe_port.segmentation.proposals import edge_boxes, enlarged, random_boxes
from caffe_port.segmentation.shapes import ShapeSet, make_shapes
from caffe_port.segmentation.voc import IGNORED, read_labels, write_labels
from caffe_port.tools import prepare as command

PROTOTXT = Path(__file__).resolve().parents[1] / "prototxt"
PLAN = Plan(levels=(Level("Full"), Level("2"), Level("10"), Level("mine", "mine")), crops=9, proposals=5, label_dim=20)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn set of four classes, which has a list of its own."""
    path = tmp_path_factory.mktemp("prepare") / "set"
    make_shapes(path, ShapeSet(images=16, val=4, classes=4, size=64, seed=4))
    (path / "ImageSets" / "mine.txt").write_text("train_000001\ntrain_000003\n")
    return path


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    path = tmp_path_factory.mktemp("prepare") / "lists"
    return path, prepare(Folder(source), path, PLAN)


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    """The set, to be spoilt."""
    return Path(shutil.copytree(source, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]


# -- crops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [(), (4,), (2, 5), (1, 2, 9), (1, 3, 4, 8, 20)], ids=str)
def test_every_subset_but_the_empty_one(classes: tuple[int, ...]) -> None:
    found = subsets(classes)
    assert len(found) == len({*found}) == 2 ** len(classes) - 1
    assert all(chosen and {*chosen} <= {*classes} for chosen in found)


def test_too_many_classes_are_refused() -> None:
    with pytest.raises(CaffeError, match="13 classes in a picture"):
        subsets(range(1, 14))


def test_crops_enclose_what_they_select() -> None:
    labels = np.zeros((40, 50), np.uint8)
    labels[5:9, 30:44], labels[20:31, 3:11], labels[0, 0] = 3, 7, IGNORED
    proposals = np.array([[25, 2, 49, 20], [0, 0, 49, 39], [1, 15, 20, 35], [31, 5, 40, 9], [0, 18, 11, 31]])
    found = dict(combinatorial(labels, proposals, 8, np.random.default_rng(0)))
    assert list(found) == [(3,), (7,), (3, 7)]
    for chosen, boxes in found.items():
        assert boxes.shape == (8, 4)
        for x1, y1, x2, y2 in boxes:
            assert 0 <= x1 <= x2 < 50
            assert 0 <= y1 <= y2 < 40
            outside = np.isin(labels, chosen)
            outside[y1 : y2 + 1, x1 : x2 + 1] = False
            assert not outside.any()
    assert found[3,][:2].tolist() == proposals[:2].tolist()
    assert found[7,][:3].tolist() == proposals[[1, 2, 4]].tolist()
    assert found[3, 7][:1].tolist() == proposals[[1]].tolist()


def test_random_boxes_take_every_place_they_can() -> None:
    found = random_boxes(np.random.default_rng(0), np.array([1, 2, 3, 3]), (5, 6), 3000)
    assert [sorted({*side}) for side in found.T.tolist()] == [[0, 1], [0, 1, 2], [3, 4, 5], [3, 4]]


def test_an_object_is_alone_in_its_crop() -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[10:30, 10:30], labels[40:50, 60:75], labels[28:31, 28:33], labels[0:5, 70:75] = 4, 4, 9, IGNORED
    found = list(objects(labels))
    assert Counter(it.label for it, _ in found) == {4: 2, 9: 1}
    for it, alone in found:
        x1, y1, x2, y2 = it.box
        assert alone.shape == (y2 - y1 + 1, x2 - x1 + 1)
        assert {*np.unique(alone)} <= {0, it.label, IGNORED}
    assert found[0][0].box.tolist() == [8, 8, 31, 31]


def test_a_proposal_belongs_to_the_class_it_shows_most_of() -> None:
    labels = np.zeros((50, 50), np.uint8)
    labels[10:20, 10:20], labels[10:20, 20:24], labels[40:, 40:] = 1, 2, IGNORED
    boxes = np.array([[41, 41, 49, 49], [10, 10, 23, 19], [20, 10, 23, 19], [8, 8, 30, 30]])
    found = dominant(labels, boxes, 2)
    assert [it.label for it in found] == [1, 2]
    np.testing.assert_array_equal([it.box for it in found], enlarged(boxes[1:3], 1.2, (50, 50)))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_choice_for_fewer_is_part_of_the_choice_for_more(seed: int) -> None:
    rng = np.random.default_rng(9)
    shown = {f"p{i}": tuple(sorted({int(c) for c in rng.integers(1, 5, 2)})) for i in range(60)}
    choices = [choose(shown, count, 4, seed) for count in (1, 3, 6)]
    for (names, short), count in zip(choices, (1, 3, 6), strict=True):
        assert not short
        assert len(names) == 4 * count
        counts = Counter(label for name in names for label in shown[name])
        assert min(counts.values()) >= count
    assert {*choices[0][0]} < {*choices[1][0]} < {*choices[2][0]}


def test_a_rare_class_is_reported() -> None:
    names, short = choose({"a": (1,), "b": (1, 2), "c": (1,)}, 2, 3, 0)
    assert (sorted(names), short) == (["a", "b", "c"], {2: 1, 3: 0})


# -- proposals ---------------------------------------------------------------------------------------------------------


def test_edge_boxes_find_a_rectangle() -> None:
    picture = np.full((120, 160, 3), 110, np.uint8)
    picture[30:80, 50:110] = (20, 200, 60)
    picture = (picture + np.random.default_rng(0).normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)
    boxes, scores = edge_boxes(picture, 40)
    np.testing.assert_allclose(boxes[0], [50, 30, 109, 79], atol=5)
    assert (np.diff(scores) <= 0).all()
    assert (boxes >= 0).all()
    assert (boxes[:, 2] < 160).all()
    assert (boxes[:, 3] < 120).all()
    np.testing.assert_array_equal(edge_boxes(picture, 40)[0], boxes)


def test_a_picture_without_edges_has_no_proposals() -> None:
    boxes, scores = edge_boxes(np.full((30, 40, 3), 9, np.uint8), 10)
    assert (boxes.shape, scores.shape) == ((0, 4), (0,))


@pytest.mark.parametrize(
    ("text", "kind"), [(None, FileError), ("no yaml", FormatError), ("%YAML:1.0\na: 1\n", FormatError)]
)
def test_a_wrong_forest_is_refused(text: str | None, kind: type[CaffeError], tmp_path: Path) -> None:
    path = tmp_path / "model.yml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(kind, match=r"model\.yml"):
        edge_boxes(np.zeros((8, 8, 3), np.uint8), 1, path)


# -- lists -------------------------------------------------------------------------------------------------------------


def test_as_many_crops_as_the_paper_says(source: Path, made: tuple[Path, Prepared]) -> None:
    """N_s + N_p times the sum of 2^|L| - 1."""
    folder, (path, report) = Folder(source), made
    for level, names in (("Full", folder.names("train")), ("mine", folder.names("mine"))):
        wanted = len(names) + 9 * sum(2 ** len(folder.labelled[name]) - 1 for name in names)
        assert report.lines[f"seg_imgset_{level}/train.txt"] == wanted
        assert len(lines(path / f"seg_imgset_{level}" / "train.txt")) == wanted


def test_lines_list_the_classes_of_the_crop(source: Path, made: tuple[Path, Prepared]) -> None:
    for picture, mask, *numbers in lines(made[0] / "seg_imgset_Full" / "train.txt"):
        assert (made[0] / "VOC2012" / picture[1:]).is_file()
        labels = read_labels(made[0] / "VOC2012" / mask[1:])
        x1, y1, x2, y2, *vector = map(int, numbers)
        chosen = [label for label, number in enumerate(vector, 1) if number]
        assert len(vector) == 20
        assert {*chosen} <= {*present(labels)}
        inner = around(labels, chosen)
        assert x1 <= inner[0] <= inner[2] <= x2 < labels.shape[1]
        assert y1 <= inner[1] <= inner[3] <= y2 < labels.shape[0]


def test_levels_are_chosen_and_reported(source: Path, made: tuple[Path, Prepared]) -> None:
    path, report = made
    two, ten = ([line[0] for line in lines(path / f"strong_{n}.txt")] for n in ("2", "10"))
    assert len(two) == 8
    assert {*two} <= {*ten}
    used = {Path(line[0]).stem for line in lines(path / "seg_imgset_2" / "train.txt")}
    assert used == {*two}
    assert "classes with fewer pictures than the 10 asked for: 4 (disc " in "\n".join(report.warnings())
    strong_only = {Path(line[0]).stem for line in lines(path / "cls_imgset_2" / "train.txt")}
    assert strong_only == {*two}


def test_stages_are_balanced(made: tuple[Path, Prepared]) -> None:
    path = made[0]
    shown: Counter[int] = Counter()
    for picture, mask in lines(path / "stage_1_train_imgset" / "train.txt"):
        labels = read_labels(path / "VOC2012" / mask[1:])
        assert Image.open(path / "VOC2012" / picture[1:]).size == labels.shape[::-1]
        (label,) = present(labels)
        shown[label] += 1
    assert len(shown) == 4
    assert len({*shown.values()}) == 1
    assert all(len(line) == 6 for line in lines(path / "stage_2_train_imgset" / "train.txt"))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_plan_makes_the_same_files(
    workers: int, source: Path, made: tuple[Path, Prepared], tmp_path: Path
) -> None:
    prepare(Folder(source), tmp_path / "again", PLAN, workers=workers)
    assert contents(tmp_path / "again") == contents(made[0])


def test_another_seed_makes_others(source: Path, made: tuple[Path, Prepared], tmp_path: Path) -> None:
    prepare(Folder(source), tmp_path, Plan(**{**PLAN.__dict__, "seed": 1}))
    assert (tmp_path / "strong_2.txt").read_bytes() != (made[0] / "strong_2.txt").read_bytes()


@pytest.mark.parametrize("labels", [(), (3,), (1, 4), (1, 2, 3, 5, 8)], ids=str)
@pytest.mark.parametrize("step", [1.0, 0.45, 2.0, 3.7])
def test_any_crop_of_a_pattern_shows_its_labels(labels: tuple[int, ...], step: float) -> None:
    whole = pattern(labels, 120, 100)
    assert whole.shape == (120, 100)
    y, x = (np.arange(0, n, step).astype(int) for n in whole.shape)
    resized = whole[y][:, x]
    assert present(resized[:20, :20]) == labels


READERS = {
    "classification/train_cls_voc": "cls-label",
    "decouplednet/002_train_seg_Full_anno": "cls-label",
    "deconvnet/stage_1_train": "",
    "deconvnet/stage_2_train": "",
}


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("name", READERS)
def test_published_definitions_read_the_lists(
    name: str, phase: str, source: Path, made: tuple[Path, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unchanged, in the folder of the lists; only their data layers run."""
    path = PROTOTXT / f"{name}.prototxt"
    definition = parse_text(path.read_text(), NetParameter, str(path))
    del definition.layers[2:]
    monkeypatch.chdir(made[0])
    tops = caffe_port.Net(definition, phase=phase)()
    assert float(tops["data"].std()) > 5
    if "seg-label" in tops:
        assert {*np.unique(tops["seg-label"])} <= {0, 1, 2, 3, 4, 255}
    if READERS[name]:
        vectors = tops[READERS[name]][:, :, 0, 0]
        assert vectors.shape[1] == 20
        assert (vectors.sum(1) >= 1).all()
        assert not vectors[:, 4:].any()


def test_weak_labels_are_those_of_the_list_not_of_the_mask(copy: Path, tmp_path: Path) -> None:
    """Masks are not looked at: one list's pictures have none."""
    folder = Folder(copy)
    for name in folder.names("train")[5:]:
        folder.mask(name).unlink()
    report = prepare(folder, tmp_path / "lists", Plan(levels=(Level("Full"),), crops=2, deconvnet=False))
    assert "pictures without a mask, so not in level Full: 11 (train_" in "\n".join(report.warnings())
    found = lines(tmp_path / "lists" / "cls_imgset" / "train.txt")
    assert len(found) == 16
    for picture, mask, *box in found:
        labels = read_labels(tmp_path / "lists" / "VOC2012" / mask[1:])
        assert present(labels) == folder.labelled[Path(picture).stem]
        assert box == ["0", "0", str(labels.shape[1] - 1), str(labels.shape[0] - 1)]


SQUARE = """layers {
  name: "data"  type: WINDOW_CLS_DATA  top: "data"  top: "cls-label"
  image_data_param {
    root_folder: "VOC2012"  source: "cls_imgset/train.txt"  label_type: PIXEL  batch_size: 16
    new_width: 64  new_height: 64
  }
  transform_param { mean_value: 104.00698793 mean_value: 116.66876762 mean_value: 122.67891434 }
  window_cls_data_param { label_dim: 4 }
}"""


def test_square_pictures_are_those_of_inference(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """preprocess_image.m: zeros on the right or below, here at the pictures' own 64 pixels."""
    folder = Folder(source)
    prepare(folder, tmp_path, Plan(levels=(Level("Full"),), crops=2, deconvnet=False, square=True))
    monkeypatch.chdir(tmp_path)
    tops = caffe_port.Net(parse_text(SQUARE, NetParameter, "square"), phase="TRAIN")()
    names = [Path(line[0]).stem for line in lines(tmp_path / "cls_imgset" / "train.txt")]
    assert len({folder.size(name) for name in names}) > 2
    for name, data, labels in zip(names, tops["data"], tops["cls-label"], strict=True):
        np.testing.assert_allclose(data, inference.prepare(folder.picture(name), 64)[0], atol=1e-3)
        assert tuple(np.flatnonzero(labels) + 1) == folder.labelled[name]


# -- wrong input -------------------------------------------------------------------------------------------------------


def _relabel(folder: Folder) -> None:
    labels = folder.labels("train_000002").copy()
    labels[3, 3] = 7
    write_labels(folder.mask("train_000002"), labels, overwrite=True)


def _shrink(folder: Folder) -> None:
    write_labels(folder.mask("train_000002"), folder.labels("train_000002")[:-1].copy(), overwrite=True)


def _write(place: str, text: str) -> Callable[[Folder], object]:
    return lambda folder: (folder.root / place).write_text(text)


def _remove(place: str) -> Callable[[Folder], None]:
    return lambda folder: (folder.root / place).unlink()


def _colour(folder: Folder) -> None:
    Image.new("RGB", (48, 64), (1, 2, 3)).save(folder.mask("val_000001"))


def _no_masks(folder: Folder) -> None:
    for name in folder.names("train"):
        folder.mask(name).unlink()


LISTS = "ImageSets"
WRONG: dict[str, tuple[Callable[[Folder], object], type[CaffeError], str]] = {
    "label beyond the classes": (_relabel, CaffeError, "train_000002.png: expected 0 to 4, or 255, found the label 7"),
    "mask of another size": (_shrink, ShapeError, "train_000002.png: expected .* as its picture"),
    "mask in colours": (_colour, FormatError, "val_000001.png: expected a mask.*the colour"),
    "no picture": (_remove("JPEGImages/train_000002.jpg"), FileError, "no such picture"),
    "broken picture": (_write("JPEGImages/val_000003.jpg", "x"), FormatError, "val_000003.jpg.*cannot be read"),
    "no list": (_remove(f"{LISTS}/val.txt"), FileError, "val: expected one of .*no such list"),
    "empty list": (_write(f"{LISTS}/train.txt", "\n"), FormatError, "an empty list"),
    "a picture twice": (
        _write(f"{LISTS}/val.txt", "val_000001\nval_000001\n"),
        FormatError,
        "val_000001 a second time",
    ),
    "unknown class": (_write(f"{LISTS}/labels.txt", "val_000001 rinng\n"), FormatError, "did you mean ring"),
    "strong picture that is none of train": (
        _write(f"{LISTS}/mine.txt", "val_000001\n"),
        CaffeError,
        "pictures of train",
    ),
    "strong picture without mask": (
        _remove("SegmentationClass/train_000003.png"),
        FileError,
        "for every picture of mine",
    ),
    "no masks at all": (_no_masks, FileError, "for every picture of mine|no mask of a picture"),
    "no classes": (_write("classes.txt", "a\na\n"), FormatError, "different names"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_and_leaves_nothing(case: str, copy: Path, tmp_path: Path) -> None:
    spoil, kind, message = WRONG[case]
    spoil(Folder(copy))
    with pytest.raises(kind, match=message) as error:
        prepare(Folder(copy), tmp_path / "lists", PLAN)
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "lists").rglob("*") if path.is_file()]


def test_no_mask_and_no_label_is_refused(copy: Path, tmp_path: Path) -> None:
    folder = Folder(copy)
    (copy / LISTS / "labels.txt").unlink()
    folder.mask("train_000004").unlink()
    with pytest.raises(FileError, match=r"train_000004\.png: expected either"):
        prepare(folder, tmp_path / "lists", PLAN)


def test_pictures_without_a_class_are_counted(copy: Path, tmp_path: Path) -> None:
    folder = Folder(copy)
    name = "train_000002"
    write_labels(folder.mask(name), np.zeros_like(folder.labels(name)), overwrite=True)
    report = "\n".join(prepare(folder, tmp_path / "lists", PLAN).warnings())
    assert f"pictures whose masks have other classes than ImageSets/labels.txt: 1 ({name})" in report
    assert f"pictures of level Full that show no class, so have no crops: 1 ({name})" in report


def test_an_error_comes_out_of_another_process(copy: Path, tmp_path: Path) -> None:
    _relabel(Folder(copy))
    with pytest.raises(CaffeError, match="the label 7"):
        prepare(Folder(copy), tmp_path / "lists", PLAN, workers=2)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = [str(source), "-o", str(tmp_path / "lists"), "--levels", "Full", "1", "mine:mine", "--crops", "3"]
    for more, status, said in (
        (["--workers", "1"], 0, "seg_imgset_mine/train.txt"),
        ([], 2, "exists already; pass -f"),
        (["-f", "-q", "--seed", "4", "--workers", "1"], 0, ""),
        (["--levels", "0"], 2, "a number from 1, or NAME:LIST"),
        (["-f", "--label-dim", "3"], 2, "at least the 4 classes"),
    ):
        with pytest.raises(SystemExit) as done:
            command.main([*order, *more])
        printed = capsys.readouterr()
        assert (done.value.code or 0) == status, printed
        assert said in printed.out + printed.err


@pytest.mark.parametrize("ending", [".jpg", ".JPG", ".Png".upper()])
def test_pictures_are_found_whatever_the_case_of_their_ending(ending: str, tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages" / f"a{ending}").write_bytes(b"x")
    assert Folder(tmp_path).photograph("a").name == f"a{ending}"
