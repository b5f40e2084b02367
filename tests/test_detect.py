"""caffe-port detect: a drawn net's objects, files, scores; VOC's scoring by hand; wrong input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import caffe_port
from caffe_port.detection.detector import Detector
from caffe_port.detection.objects import Found, read_labels
from caffe_port.detection.preparation import preparation_of
from caffe_port.detection.voc import Truth, judge, mean_precision, read_annotation
from caffe_port.errors import CaffeError
from caffe_port.tools import detect

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
sys.path.insert(0, str(EXAMPLES))

import spots  # noqa: E402

NET = str(EXAMPLES / "spots.prototxt")
PLAIN = ("--mean", "0,0,0", "--scale", "1")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spots")
    spots.main(folder)
    return folder


def run(here: Path, *arguments: str, status: int = 0) -> None:
    weights = str(here / "spots.caffemodel")
    with pytest.raises(SystemExit) as ended:
        detect.main([str(here / "pictures"), "--prototxt", NET, "--weights", weights, *arguments])
    assert ended.value.code == status


def test_objects_are_where_they_were_drawn(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    labels, annotations = ("--labels", str(here / "labels.txt")), ("--annotations", str(here / "annotations"))
    run(here, *PLAIN, *labels, *annotations, "-o", str(out), "--voc", "--draw", "--batch", "3", "--threshold", "0.5")
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()[-3:]] == [
        [n, "1.0000", "1.0000"] for n in ("red", "blue", "mean")
    ]
    lines = []
    for entry in json.loads((out / "detections.json").read_text()):
        stem = Path(entry["picture"]).stem
        truth = read_annotation(here / "annotations" / f"{stem}.xml")
        wanted = {(n, *(box - [1, 1, 0, 0])) for n, box in zip(truth.names, truth.boxes, strict=True)}
        assert {(o["class"], *np.round(o["box"], 3)) for o in entry["objects"]} == wanted
        lines += [(o["class"], stem, round(o["score"], 6)) for o in entry["objects"]]
        before = np.asarray(Image.open(here / "pictures" / f"{stem}.png"))
        assert (np.asarray(Image.open(out / f"{stem}.png")) != before).any()
    for name in spots.NAMES:
        rows = [line.split() for line in (out / f"comp4_det_test_{name}.txt").read_text().splitlines()]
        assert sorted((name, row[0], float(row[1])) for row in rows) == sorted(x for x in lines if x[0] == name)


def test_json_lines(here: Path, capsys: pytest.CaptureFixture) -> None:
    run(here, *PLAIN, "--json", "--annotations", str(here / "annotations"))
    *pictures, scores = map(json.loads, capsys.readouterr().out.splitlines())
    assert [Path(p["picture"]).name for p in pictures] == ["0.png", "1.png", "2.png", "3.png"]
    assert scores["unknown"] == ["blue", "red"]  # without names, classes are numbers
    assert min(o["score"] for p in pictures for o in p["objects"]) < 0.1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--draw"], "--voc and --draw: expected a folder for the results, found no -o"),
        (["--batch", "0"], "--batch"),
        (["--annotations", "nowhere"], "nowhere: no such folder; check the path"),
        (["--labels", "nowhere"], "nowhere"),
        (["--input-size", "0x9"], "--input-size: expected HEIGHTxWIDTH"),
        (["--input-size", "8x8"], "spots.prototxt"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    run(here, *arguments, status=2)
    printed = capsys.readouterr().err.strip().splitlines()
    assert says in printed[-1]


def test_existing_results_are_kept(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "detections.json").write_text("mine")
    run(here, "-o", str(tmp_path), status=2)
    assert "detections.json" in capsys.readouterr().err
    assert (tmp_path / "detections.json").read_text() == "mine"
    run(here, "-o", str(tmp_path), "-f", "-q")


INPUT = "layer { name: 'd' type: 'Input' top: 'data' input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } } "


@pytest.mark.parametrize(
    ("text", "mean", "scale"),
    [
        (INPUT, (104, 117, 123), 1),
        ("name: 'MobileNet-SSD' " + INPUT, (127.5, 127.5, 127.5), 0.007843),
        (INPUT + "layer { name: 'b' type: 'BatchNorm' bottom: 'data' top: 'b' }", (104, 177, 123), 1),
        (INPUT.replace("input_param", "transform_param { mean_value: 7 scale: 2 } input_param"), (7, 7, 7), 2),
    ],
)
def test_what_a_net_needs(text: str, mean: tuple, scale: float) -> None:
    found = preparation_of(caffe_port.Net(text))
    assert (found.mean, found.scale) == (mean, scale)


def test_a_net_without_detections_is_refused() -> None:
    with pytest.raises(CaffeError, match="0 outputs of DetectionOutput"):
        Detector(caffe_port.Net(INPUT))


def test_labels_of_both_forms(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_text('item { name: "n1" label: 4 display_name: "cat" } item { name: "dog" label: 2 }')
    assert read_labels(path) == {4: "cat", 2: "dog"}
    path.write_text("cat\n\ndog\n")
    assert read_labels(path) == {1: "cat", 2: "dog"}


# -- VOC's scoring by hand ---------------------------------------------------------------------------------------------


def truth(*boxes: tuple[float, ...], difficult: tuple[int, ...] = ()) -> Truth:
    marks = np.isin(np.arange(len(boxes)), difficult)
    return Truth(("x",) * len(boxes), np.array(boxes, float).reshape(-1, 4), marks)


A, B = (1.0, 1.0, 10.0, 10.0), (31.0, 31.0, 40.0, 40.0)
HALF, LESS = (1.0, 1.0, 10.0, 20.0), (1.0, 1.0, 10.0, 21.0)  # 100 of 200 pixels of A; 100 of 210


@pytest.mark.parametrize(
    ("boxes", "objects", "right", "positives"),
    [
        (truth(A), [(0.9, A)], [1], 1),
        (truth(A), [(0.9, HALF)], [1], 1),  # an overlap of half is enough
        (truth(A), [(0.9, LESS)], [0], 1),
        (truth(A), [(0.8, A), (0.9, HALF)], [1, 0], 1),  # the better one has it, though it fits less
        (truth(A, B), [(0.9, A), (0.8, B), (0.7, A)], [1, 1, 0], 2),
        (truth(A, B, difficult=(0,)), [(0.9, A), (0.8, B)], [1], 1),  # neither right nor wrong
        (truth(), [(0.9, A)], [0], 0),
    ],
)
def test_objects_are_judged_as_voc_does(boxes: Truth, objects: list, right: list[int], positives: int) -> None:
    found = [("p", Found(1, score, box)) for score, box in objects]
    scores, judged, count = judge(found, {"p": boxes}, "x")
    assert (judged.tolist(), count) == ([bool(r) for r in right], positives)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_mean_precision_by_hand() -> None:
    """Class x: right, wrong, right of 2 boxes. Class y: its only box is not found. Class z has none."""
    boxes = {"p": truth(A, B), "q": Truth(("y",), np.array([A]), np.array([False]))}
    objects = {"p": [Found(1, 0.9, A), Found(1, 0.8, (60, 60, 70, 70)), Found(1, 0.7, B), Found(3, 0.9, A)], "q": []}
    found = mean_precision(objects, boxes, {1: "x", 2: "y", 3: "z"})
    eleven, area = (6 + 5 * 2 / 3) / 11, 1 / 2 + 1 / 3
    assert found["x"] == {"11-point": pytest.approx(eleven), "area": pytest.approx(area)}
    assert found["y"] == {"11-point": 0, "area": 0}
    assert found["mean"] == {"11-point": pytest.approx(eleven / 2), "area": pytest.approx(area / 2)}
    assert set(found) == {"x", "y", "mean"}


@pytest.mark.parametrize(
    "text", ["", "<annotation>", "<annotation><object><name>x</name></object></annotation>", "<!DOCTYPE a><a/>"]
)
def test_invalid_annotations(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(CaffeError, match=r"a\.xml"):
        read_annotation(path)
