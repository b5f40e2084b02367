"""benchmarks/checks.py: the classification net's precision, and what segmentation would be with the true classes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_nets import tiny

from caffe_port.net import Net
from caffe_port.segmentation.evaluate import Scores, confusion
from caffe_port.segmentation.fcn import FullyConvolutional
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.inference import Segmenter
from caffe_port.segmentation.shapes import ShapeSet, make_shapes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import checks


def test_precision_and_recall() -> None:
    """By hand: the first class is ranked right, wrong, right; the second in no picture."""
    scores = np.array([[0.9, 0.1], [0.8, 0.6], [0.4, 0.2], [0.1, 0.2]], np.float32)
    shown = np.array([[True, False], [False, False], [True, False], [False, False]])
    found = checks.Checked(scores, shown, {})
    first, second = found.precisions
    assert first == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(second)
    assert found.found(0.5) == pytest.approx((1 / 3, 1 / 2))
    assert found.found(0.3) == pytest.approx((2 / 4, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("checks") / "shapes"
    make_shapes(root, ShapeSet(1, 5, 4, 48, seed=3))
    return Folder(root)


def test_each_threshold_gives_the_segmenters_masks(folder: Folder) -> None:
    net, thresholds = tiny(2), [0.3, 0.55]
    found = checks.check(folder, net, "val", thresholds)
    names = folder.names("val")
    for threshold in thresholds:
        segmenter = Segmenter(net, threshold=threshold)
        results = [segmenter(folder.picture(name)) for name in names]
        counts = sum(confusion(it.pixels, folder.labels(name), 5) for it, name in zip(results, names, strict=True))
        assert (found.segmented[str(threshold)].counts == counts).all()
        np.testing.assert_array_equal(found.scores, [it.scores for it in results])
    assert found.segmented["0.3"].mean != found.segmented["0.55"].mean
    assert [[*np.flatnonzero(row) + 1] for row in found.shown] == [[*folder.labelled[name]] for name in names]


def test_told_the_true_classes_it_finds_no_others(folder: Folder, tmp_path: Path) -> None:
    for name in folder.names("val"):
        (tmp_path / "one.txt").write_text(name)
        counts = checks.check(folder, tiny(2), str(tmp_path / "one.txt"), [0.5]).segmented[checks.TOLD].counts
        others = [label for label in range(1, 5) if label not in folder.labelled[name]]
        assert counts.sum() == (folder.labels(name) != 255).sum()
        assert not counts[:, others].sum()
        assert counts[:, folder.labelled[name]].sum()


def test_the_command_prints_them(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = tiny(2)
    net.save(tmp_path / "w.caffemodel")
    monkeypatch.setattr(checks, "Net", lambda *given: net)
    checks.main([str(folder.root), "net.prototxt", "w.caffemodel", "--thresholds", "0.5"])
    said = capsys.readouterr().out
    found = checks.check(folder, net, "val", [0.5])
    for name, precision in zip(folder.classes, found.precisions, strict=True):
        assert any(line.split() == [name, f"{100 * precision:.1f}"] for line in said.splitlines())
    scores: Scores = found.segmented[checks.TOLD]
    assert f"{100 * scores.mean:.1f}" in said.splitlines()[-1]
    assert f"{100 * scores.accuracy:.1f}" in said.splitlines()[-1]


def test_a_net_of_scores_told_the_true_classes_shows_no_others(folder: Folder) -> None:
    torch.manual_seed(1)
    net = Net(
        "layer { name: 'x' type: 'Input' top: 'data' input_param { shape { dim: 1 dim: 3 dim: 48 dim: 48 } } }"
        "layer { name: 'c' type: 'Convolution' bottom: 'data' top: 'c' "
        "convolution_param { num_output: 5 kernel_size: 1 } }"
    )
    torch.nn.init.normal_(net.c.weight)
    ways = checks.check_scores(folder, net)
    counts = np.zeros((5, 5), np.int64)
    system = FullyConvolutional(net)
    for name in folder.names("val"):
        counts += confusion(system(folder.picture(name)).pixels, folder.labels(name), 5, name)
    np.testing.assert_array_equal(ways["as it is"].counts, counts)
    told = ways[checks.TOLD].counts
    assert told.sum() == counts.sum()
    assert np.trace(told) > np.trace(counts)
