"""Scores of masks: counted by hand, and the command around them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from segment_nets import picture, save

from caffe_port.errors import CaffeError
from caffe_port.segmentation.evaluate import Scores, confusion, markdown
from caffe_port.segmentation.voc import write_labels
from caffe_port.tools import evaluate

nan = float("nan")


def mask(text: str) -> np.ndarray:
    """A mask from rows of digits; x is 255."""
    rows = [[255 if c == "x" else int(c) for c in row] for row in text.split()]
    return np.array(rows, np.uint8)


CASES = [  # truth, result, each class's score, the share of right pixels, why
    ("0011", "0011", [1, 1, nan], 1, "all right; a class that nobody has does not count"),
    ("0011", "1100", [0, 0, nan], 0, "all wrong"),
    ("0011", "0111", [1 / 2, 2 / 3, nan], 3 / 4, "one too many"),
    ("0011", "0012", [1, 1 / 2, 0], 3 / 4, "a class that only the result has: 0"),
    ("0x1x", "0111", [1, 1, nan], 1, "ignored pixels count for nobody, whatever they are given"),
    ("xx", "12", [nan, nan, nan], nan, "nothing but ignored pixels"),
    ("012 012", "012 210", [2 / 4 - 1 / 6, 1, 1 / 3], 4 / 6, "rows of pixels"),
]


@pytest.mark.parametrize(("truth", "result", "iou", "accuracy", "why"), CASES, ids=[c[-1] for c in CASES])
def test_by_hand(truth: str, result: str, iou: list[float], accuracy: float, why: str) -> None:
    scores = Scores(confusion(mask(result), mask(truth), 3))
    assert scores.iou == pytest.approx(iou, nan_ok=True)
    assert scores.mean == pytest.approx(np.nanmean(iou) if not all(np.isnan(iou)) else nan, nan_ok=True)
    assert scores.accuracy == pytest.approx(accuracy, nan_ok=True)


def test_counts_have_the_truth_along_the_rows() -> None:
    counts = confusion(mask("0121 2200"), mask("0001 22x0"), 3)
    assert counts.tolist() == [[2, 1, 1], [0, 1, 0], [0, 0, 2]]
    assert Scores(counts).shares.tolist() == [[0.5, 0.25, 0.25], [0, 1, 0], [0, 0, 1]]


def test_pixels_of_all_pictures_count_together() -> None:
    """A small picture that is all wrong weighs as little as it has pixels."""
    counts = confusion(mask("11111111"), mask("11111111"), 2) + confusion(mask("0"), mask("1"), 2)
    assert Scores(counts).iou.tolist() == [0, 8 / 9]


def test_random_masks_against_sets_of_pixels() -> None:
    rng = np.random.RandomState(0)
    truth, result = rng.choice([*range(21), 255], (60, 47)).astype(np.uint8), rng.randint(0, 21, (60, 47), np.uint8)
    scores = Scores(confusion(result, truth, 21))
    for label in range(21):
        true, given = ({*zip(*np.nonzero((m == label) & (truth != 255)), strict=True)} for m in (truth, result))
        assert scores.iou[label] == pytest.approx(len(true & given) / len(true | given))


@pytest.mark.parametrize(
    ("truth", "result", "says"),
    [
        ("012", "01", "x.png: expected 3 x 1 as the true mask, found a mask of 2 x 1"),
        ("012", "013", "x.png: expected 0 to 2, found a label 3"),
        ("012", "01x", "x.png: expected 0 to 2, found a label 255"),
        ("013", "012", "x.png: expected 0 to 2, found a true label 3"),
    ],
)
def test_masks_that_do_not_fit(truth: str, result: str, says: str) -> None:
    with pytest.raises(CaffeError) as error:
        confusion(mask(result), mask(truth), 3, "x.png")
    assert str(error.value) == says


def test_markdown() -> None:
    rows = [("one", Scores(np.diag([3, 1]))), ("two", Scores(np.array([[3, 1], [0, 0]])))]
    assert markdown(rows, ("background", "cat")) == (
        "| Models | bkg | cat | mean |\n|---|---:|---:|---:|\n"
        "| one | 100.0 | 100.0 | 100.0 |\n| two | 75.0 | 0.0 | 37.5 |\n"
    )
    head = markdown([]).splitlines()[0]
    assert head.startswith("| Models | bkg | aero | bike | bird |")
    assert head.endswith("| mbk | prsn | plnt | sheep | sofa | train | tv | mean |")


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of true masks, two systems' results and pictures; and the same in VOC's layout."""
    monkeypatch.chdir(tmp_path)
    for folder in ("truth", "good", "bad", "pictures", "voc/SegmentationClass", "voc/JPEGImages", "voc/ImageSets"):
        Path(folder).mkdir(parents=True)
    for i in range(5):
        truth = np.zeros((20, 30), np.uint8)
        truth[5 : 8 + i, 4:20] = 1 + i % 2
        good, bad = truth.copy(), truth.copy()
        truth[4] = 255
        good[:, i] = 0
        bad[bad > 0] = 3
        for folder, labels in (("truth", truth), ("good", good), ("bad", bad), ("voc/SegmentationClass", truth)):
            write_labels(f"{folder}/p{i}.png", labels)
        save(Path(f"pictures/p{i}.png"), picture(20, 30, i))
        save(Path(f"voc/JPEGImages/p{i}.png"), picture(20, 30, i))
    Path("some.txt").write_text("p1\n\np3 and more\n")
    Path("voc/ImageSets/val.txt").write_text("p0\np2\n")
    Path("voc/classes.txt").write_text("disc\nring\nbar\n")
    return tmp_path


def call(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        evaluate.main(argv)
    return ended.value.code


def test_one_system(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("good", "--truth", "truth", "--names", "disc,ring,bar") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split() for line in said[:5]] == [
        ["class", "IoU", "%"],
        ["bkg", "99.7"],  # 2450 / 2457
        ["disc", "97.1"],  # 233 / 240
        ["ring", "100.0"],
        ["bar", "-"],
    ]
    assert said[6] == "5 pictures, 99.8 % of the pixels correct"


def test_several_systems(here: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["ours=good", "bad", "--truth", "truth", "--names", "disc,ring,bar", "--markdown", "table.md"]
    assert call(*arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split() for line in said] == [
        ["bkg", "disc", "ring", "bar", "mean"],
        ["ours", "99.7", "97.1", "100.0", "-", "98.9"],
        ["bad", "100.0", "0.0", "0.0", "0.0", "25.0"],
        ["wrote", "table.md"],
    ]
    assert Path("table.md").read_text().splitlines()[2] == "| ours | 99.7 | 97.1 | 100.0 | - | 98.9 |"


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["--truth", "truth", "--list", "some.txt"], 2),
        (["--truth", "voc"], 5),
        (["--truth", "voc", "--list", "val"], 2),
        (["--truth", "voc", "--list", "some.txt"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_which_pictures(arguments: list[str], count: int, here: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("good", *arguments) == 0
    said = capsys.readouterr().out
    assert f"{count} pictures" in said
    assert ("ring" in said) == ("voc" in arguments)


def test_confusion_as_csv(here: Path) -> None:
    assert call("bad", "--truth", "voc", "--confusion", "counts.csv", "-q") == 0
    lines = [line.split(",") for line in Path("counts.csv").read_text().splitlines()]
    assert lines[0] == ["", "background", "disc", "ring", "bar"]
    assert [line[0] for line in lines[1:]] == lines[0][1:]
    assert [line[4] for line in lines[1:]] == ["0", str(16 * (3 + 5 + 7)), str(16 * (4 + 6)), "0"]


@pytest.mark.parametrize("pictures", [[], ["--pictures", "pictures"]], ids=["without pictures", "pictures"])
def test_the_page(pictures: list[str], here: Path) -> None:
    assert call("good", "--truth", "truth", *pictures, "--html", "page.html", "--show", "2", "-q") == 0
    page = Path("page.html").read_text()
    shown = re.findall(r"<figcaption>(p\d): ", page)
    assert len(shown) == len({*shown}) == 4
    assert page.index("<h2>Worst") < page.index(f"<figcaption>{shown[0]}") < page.index("<h2>Best")
    assert page.count("data:image/jpeg;base64,") == 12
    assert not re.findall(r"(?:src|href)=.(?!data:)", page), "it needs nothing else"
    sizes = re.findall(r'title="picture" src="([^"]+)"', page)
    assert (len({*sizes}) == 1) == (not pictures)


def test_a_page_of_few_pictures_shows_each_once(here: Path) -> None:
    Path("one.txt").write_text("p0\n")
    assert call("good", "--truth", "truth", "--list", "one.txt", "--html", "page.html", "-q") == 0
    page = Path("page.html").read_text()
    assert page.count("<figcaption>") == 1
    assert "<h2>Best" not in page


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["none", "--truth", "truth"], "none: no such folder"),
        (["good", "--truth", "none"], "none: no such folder"),
        (["good"], "required: --truth"),
        (["good", "--truth", "truth", "--list", "none.txt"], "none.txt: no such file"),
        (["good", "--truth", "pictures/.."], "expected NAME.png, found no masks"),
        (
            ["few", "--truth", "truth"],
            "few: 4 of 5 masks missing, the first p1.png; name the pictures to score with --list",
        ),
        (["good", "--truth", "few", "--list", "some.txt"], "few: 2 of 2 masks missing, the first p1.png"),
        (["good", "--truth", "truth", "--names", "disc"], "expected 0 to 1, found a label 2"),
        (["good", "--truth", "pictures"], "p0.png: expected a mask: a PNG with a palette, or grey"),
        (["good", "bad", "--truth", "truth", "--html", "x.html"], "expected one, found 2 folders of results"),
        (["good", "--truth", "truth", "--markdown", "some.txt"], "some.txt: exists already; pass -f"),
        (["good", "--truth", "truth", "--html", "none/x.html"], "there is no folder none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(argv: list[str], says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    Path("few").mkdir()
    write_labels("few/p0.png", np.zeros((20, 30), np.uint8))
    assert call(*argv) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.startswith("caffe-port evaluate: error: ")
    assert said.count("\n") == 1
    assert not Path("x.html").exists()
