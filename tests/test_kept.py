"""Convolutions that stay fixed: widths of a net's parts, what keep-features writes, and trainings that read it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from caffe_port.definitions import shapes
from caffe_port.definitions.definition import Net as Definition
from caffe_port.errors import WeightsError
from caffe_port.formats import LayerWeights, open_weights, write_caffemodel
from caffe_port.formats.adding import add_layers
from caffe_port.formats.hdf5_access import open_hdf5
from caffe_port.net import Net
from caffe_port.random import set_random_seed
from caffe_port.segmentation.experiment import RECIPES, Recipe, Runner, plan, report
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.lists import Level, Plan, prepare
from caffe_port.segmentation.shapes import ShapeSet, make_shapes
from caffe_port.tools import build, keep_features
from caffe_port.tools.commands import main

CONVOLUTIONS = [f"conv{stage}_{step}" for stage, depth in enumerate((2, 2, 3, 3, 3), 1) for step in range(1, depth + 1)]
DEPLOY = "decouplednet/DecoupledNet_5_anno_inference_deploy.prototxt"


def call(*words: object) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


# -- the definitions


def test_each_part_has_its_width() -> None:
    """Channels of VGG-16 as published (Simonyan and Zisserman, table 1, D) times each part's width."""
    setting = build.Setting(build.fraction("", "1/2"), 64, fc_width=build.fraction("", "1/4"))
    setting = build.Setting(setting.width, 64, fc_width=setting.fc_width, decoder_width=build.fraction("", "1/8"))
    net = build.definitions(setting, [DEPLOY])[DEPLOY]
    assert isinstance(net, Definition)
    params = shapes.infer(net).params
    wide = {"conv1_1": (32, 3, 3, 3), "conv3_1": (128, 64, 3, 3), "conv5_3": (256, 256, 3, 3)}
    fc = {"fc6": (1024, 256, 2, 2), "fc7": (1024, 1024, 1, 1), "fc6-bp": (1024, 256, 2, 2)}
    narrow = {"fc6-seg": (256, 512, 2, 2), "fc7-seg": (256, 256, 1, 1), "fc6-deconv": (256, 64, 2, 2)}
    narrow |= {"deconv5_3": (64, 64, 3, 3), "deconv4_3": (64, 32, 3, 3), "deconv2_2": (16, 8, 3, 3)}
    for name, shape in (wide | fc | narrow).items():
        assert params[name][0] == shape, name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--width", "1/8", "--decoder-width", "1/4"], "--decoder-width: expected at most --width, 1/8"),
        (["--fc-width", "0"], "--fc-width: expected a positive fraction"),
        (["--decoder-width", "x"], "--decoder-width: expected a positive fraction"),
        (["--kept", "k", "--norm"], "--kept: expected one"),
    ],
)
def test_widths_that_cannot_be(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("build", "-o", tmp_path / "nets", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "nets").exists()


# -- keep-features


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures, their lists, narrow nets in ``nets``, and a "VGG-16" of their width in ``vgg.caffemodel``."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_shapes(Path("mine"), ShapeSet(10, 3, 2, 64))
        prepare(Folder(Path("mine")), Path("lists"), Plan(levels=(Level("5"),), crops=2, deconvnet=False))
        widths = ["--width", "1/16", "--fc-width", "1/64", "--decoder-width", "1/32", "--input-size", "64"]
        words = ["-o", "nets", *widths, "--batch", "2", "--classes", "2", "--data-root", "lists", "--kept", "."]
        assert call("build", *words, "-q") == 0
        set_random_seed(5)
        torch.manual_seed(5)
        net = Net("nets/classification/keep_cls_voc.prototxt", phase="TRAIN")
        with torch.no_grad():
            for name in CONVOLUTIONS:
                layer = net.get_submodule(name)
                layer.weight.normal_(0, (2 / layer.weight[0].numel()) ** 0.5)
                layer.bias.normal_(0, 0.1)
        net.save("vgg.caffemodel")
    return folder


def kept(data: Path, *words: object) -> int | str | None:
    net = "nets/decouplednet/005_keep_seg_5_anno.prototxt"
    return call("keep-features", net, "vgg.caffemodel", "--items", 10, "--rows", 4, "-q", *words)


def rows_of(folder: Path) -> list[dict[str, np.ndarray]]:
    rows = []
    for path in sorted(folder.glob("*.h5")):
        with open_hdf5(str(path)) as file:
            rows.append({name: file[name][()] for name in file})
    return rows


def test_rows_are_what_torch_makes_of_the_pictures(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG-16 by torch's own functions: ``pool5``, and the first channels' positions of the maxima of each pooling."""
    monkeypatch.chdir(data)
    assert kept(data, "-o", "rows") == 0
    assert (data / "rows" / "list.txt").read_text().split() == [f"rows/{n:06}.h5" for n in range(3)]
    files = rows_of(data / "rows")
    assert [len(rows["pool5"]) for rows in files] == [4, 4, 2]
    assert {files[0][name].dtype for name in ("pool1_switch", "seg-label")} == {np.dtype(np.int16), np.dtype(np.uint8)}
    set_random_seed(1)
    net = Net("nets/decouplednet/005_keep_seg_5_anno.prototxt", "vgg.caffemodel", "TRAIN")
    weights = {name: blob.reshape(-1, *blob.shape[-3:]) for name, blob in stored("vgg.caffemodel").items()}
    for start in (0, 2):
        blobs = net(blobs=["data"])
        x = blobs["data"]
        for stage, depth in enumerate((2, 2, 3, 3, 3), 1):
            for step in range(1, depth + 1):
                name = f"conv{stage}_{step}"
                x = F.relu(F.conv2d(x, weights[f"{name}.0"], weights[f"{name}.1"].flatten(), padding=1))
            x, switches = F.max_pool2d(x, 2, return_indices=True)
            found = files[0][f"pool{stage}_switch"][start : start + 2]
            same = switches[:, : found.shape[1]].numpy() == found
            assert same.mean() > 0.999, f"stage {stage}, but for ties that rounding decides"
        torch.testing.assert_close(torch.from_numpy(files[0]["pool5"][start : start + 2]), x, rtol=1e-4, atol=1e-4)
        for name in ("seg-label", "cls-label"):
            assert (files[0][name][start : start + 2] == blobs[name].numpy()).all()


def stored(path: str) -> dict[str, torch.Tensor]:
    return {
        f"{layer.name}.{i}": torch.from_numpy(np.array(blob))
        for layer in open_weights(path).layers
        for i, blob in enumerate(layer.blobs)
        if blob is not None
    }


def test_an_interrupted_run_goes_on(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(data)
    assert kept(data, "-o", "whole") == 0
    shutil.copytree("whole", "part")
    for name in ("list.txt", "000001.h5"):
        Path("part", name).unlink()
    before = Path("part/000002.h5").stat().st_mtime_ns
    assert kept(data, "-o", "part") == 0
    assert Path("part/000002.h5").stat().st_mtime_ns == before
    for whole, part in zip(rows_of(data / "whole"), rows_of(data / "part"), strict=True):
        for name, values in whole.items():
            np.testing.assert_array_equal(values, part[name], strict=True)
    assert kept(data, "-o", "part") == 2
    assert "exists already" in capsys.readouterr().err
    Path("part/list.txt").unlink()
    assert kept(data, "-o", "part", "--seed", "2") == 2
    assert "part/000000.h5: of another net, weights, seed or number of rows" in capsys.readouterr().err
    assert kept(data, "-o", "part", "--seed", "2", "-f") == 0
    assert (rows_of(data / "part")[0]["pool5"] != rows_of(data / "whole")[0]["pool5"]).any()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 255], np.uint8),
        ([0, 256], np.int16),
        ([-1, 2], np.int16),
        ([32768], np.float32),
        ([0.5], np.float32),
        ([np.nan], np.float32),
        ([], np.uint8),
    ],
)
def test_numbers_stay_what_they_are(values: list[float], kind: type) -> None:
    given = np.array(values, np.float32)
    made = keep_features.smallest(given)
    assert made.dtype == kind
    np.testing.assert_array_equal(made.astype(np.float32), given)


# -- layers added to a file


def test_layers_that_a_file_lacks(tmp_path: Path) -> None:
    def layer(name: str, value: float) -> LayerWeights:
        return LayerWeights(name, "Convolution", [np.full((1, 1, 1, 2), value, np.float32)])

    path = tmp_path / "w.caffemodel"
    write_caffemodel(path, [layer("b", 1)], name="net", generation=1)
    assert add_layers(path, [layer("a", 2), layer("b", 3)]) == ["a"]
    assert [(it.name, float(it.blobs[0].flat[0])) for it in open_weights(path).layers] == [("a", 2), ("b", 1)]  # type: ignore[union-attr]
    before = path.read_bytes()
    assert add_layers(path, [layer("a", 5), LayerWeights("c")]) == []
    assert path.read_bytes() == before
    other = tmp_path / "w.npz"
    np.savez(other, **{"b.weight": np.zeros(2, np.float32)})
    with pytest.raises(WeightsError, match="not a caffemodel, so without a"):
        add_layers(other, [layer("a", 2)])


# -- trained


def test_init_must_hold_the_convolutions(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    layers = [it for it in open_weights(data / "vgg.caffemodel").layers if it.name != "conv4_2"]
    write_caffemodel(tmp_path / "part.caffemodel", layers, generation=1)
    solver = data / "nets" / "classification" / "train_cls_voc_solver.prototxt"
    output = tmp_path / "out.caffemodel"
    assert call("train-classifier", solver, "-o", output, "--init", tmp_path / "part.caffemodel") == 2
    assert (
        "part.caffemodel: expected the 13 convolutions of a VGG-16, found no layer conv4_2" in capsys.readouterr().err
    )
    weights = data / "vgg.caffemodel"
    assert call("train-classifier", solver, "-o", output, "--init", weights, "--weights", weights) == 2
    assert "--init and --weights" in capsys.readouterr().err


def test_a_cell_that_starts_from_given_convolutions(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the net for inference, unchanged; the second seed shares pictures, crops and what is kept."""
    monkeypatch.chdir(data)
    brief = {name: replace(it, iterations=4) for name, it in RECIPES["init"].trainings.items()}
    recipe = Recipe(
        "1/16", 64, 2, 2, 3, 2, brief, "1/64", "1/32", {"classifier": 8, "classifier-str": 1, "decouplednet": 6}
    )
    made = plan(
        Path("mine"),
        Path("out"),
        recipe,
        classes=2,
        levels=["5"],
        systems=["decouplednet-str"],
        init="vgg.caffemodel",
        repeats=[2],
    )
    assert [cell.seed for cell in made.cells] == [0, 2]
    one, other = ({step.name for step in cell.step.chain} for cell in made.cells)
    assert one & other == {"lists", "nets", "nets-5", "kept-cls_5", "kept-seg_5"}
    assert {name.replace("-seed2", "") for name in other - one} == one - other
    assert all("-seed2" in name for name in other - one)
    runner = Runner(data / "out", jobs=2)
    runner.run(made.cells[0].step.chain)
    final = stored("out/decouplednet-str-5-folded/inference.caffemodel")
    for name, blob in stored("vgg.caffemodel").items():
        torch.testing.assert_close(final[name], blob, rtol=0, atol=0)
    table = report(made, runner, [])
    assert "| 5 a class | " in table


def test_wssl_from_given_convolutions(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures are segmented with them and with what was trained."""
    monkeypatch.chdir(data)
    brief = {name: replace(it, iterations=4) for name, it in RECIPES["init"].trainings.items()}
    numbers = {"wssl": 6, "wssl-strong": 1, "wssl-weak": 4}
    recipe = Recipe("1/16", 64, 2, 2, 3, 2, brief, "1/64", "1/32", numbers)
    wanted = {"levels": ["Full", "1"], "systems": ["wssl"], "init": "vgg.caffemodel", "classes": 2}
    made = plan(Path("mine"), Path("wssl"), recipe, **wanted)
    runner = Runner(data / "wssl", jobs=2)
    for cell in made.cells:
        runner.run(cell.step.chain)
    assert "| 1 a class | " in report(made, runner, [])
    masks = next(step for step in made.steps if step.name == "wssl-1-masks")
    with pytest.raises(SystemExit) as ended:
        main([word.replace("vgg.caffemodel,", "") for word in masks.words[2:]])
    assert ended.value.code == 2  # without the convolutions
