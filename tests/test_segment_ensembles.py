"""caffe-port segment with every kind of net: masks, choices, wrong arguments, wrong nets."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from segment_nets import TINY, tiny
from test_ensembles import DECONVNET, FCN, POOLED, deconvnet, fcn, narrow_text, scores_of  # noqa: F401

from caffe_port.errors import CaffeError, DefinitionError, FileError, ShapeError
from caffe_port.net import Net
from caffe_port.segmentation import voc
from caffe_port.segmentation.crf import SETTINGS
from caffe_port.segmentation.deconvnet import ProposalSegmenter
from caffe_port.segmentation.ensembles import KINDS, Product, Refined, Scoring, System
from caffe_port.segmentation.fcn import FITS, FullyConvolutional
from caffe_port.tools import make_shapes, segment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, deconvnet: Net, fcn: Net) -> Path:
    """Drawn pictures in VOC's layout, a slim DeconvNet, a slim FCN-8s, the tiny DecoupledNet."""
    folder = tmp_path_factory.mktemp("systems")
    with pytest.raises(SystemExit):
        make_shapes.main(["-o", str(folder / "shapes"), "--images", "4", "--classes", "3", "--size", "48", "-q"])
    texts = {"deconvnet": narrow_text(DECONVNET), "fcn": narrow_text(FCN), "tiny": TINY}
    for (name, text), net in zip(texts.items(), (deconvnet, fcn, tiny()), strict=True):
        (folder / f"{name}.prototxt").write_text(text)
        net.save(folder / f"{name}.caffemodel")
    (folder / "chosen.txt").write_text("train_000001\ntrain_000003 a remark\n")
    (folder / "wrong.txt").write_text("train_000001\nnobody\nnoone\n")
    return folder


def net_of(name: str) -> list[str]:
    return ["--prototxt", f"{name}.prototxt", "--weights", f"{name}.caffemodel"]


def call(folder: Path, monkeypatch: pytest.MonkeyPatch, *argv: str) -> int | str | None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        segment.main(argv)
    return ended.value.code


def system_of(argv: list[str]) -> System:
    """What the command's options mean."""
    deconvnet, fcn = (Net(f"{name}.prototxt", f"{name}.caffemodel") for name in ("deconvnet", "fcn"))
    first: Scoring = (
        FullyConvolutional(fcn) if "fcn" in argv[1] else ProposalSegmenter(deconvnet, proposals=4, smallest=10)
    )
    made = Product(first, FullyConvolutional(fcn)) if "--with" in argv else first
    return Refined(made, SETTINGS[argv[argv.index("--crf") + 1]]) if "--crf" in argv else made


OVER = ["--proposals", "4", "--smallest", "10"]


@pytest.mark.parametrize(
    "argv",
    [
        net_of("fcn"),
        [*net_of("deconvnet"), *OVER],
        [*net_of("fcn"), "--crf", "deeplab"],
        [*net_of("deconvnet"), *OVER, "--with", "fcn.prototxt", "fcn.caffemodel", "--crf", "deconvnet"],
    ],
    ids=["plain", "deconvnet", "crf", "ensemble"],
)
def test_the_commands_masks(
    argv: list[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert call(folder, monkeypatch, "shapes", "--list", "val", *argv, "-o", str(tmp_path / "out"), "--maps") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["val_000000.npz", "val_000000.png"]
    found = system_of(argv)(voc.read_picture("shapes/JPEGImages/val_000000.jpg"))
    assert (voc.read_labels(tmp_path / "out" / "val_000000.png") == found.pixels).all()
    with np.load(tmp_path / "out" / "val_000000.npz") as maps:
        assert (maps["maps"] == found.maps).all()
        assert maps["labels"].tolist() == list(range(21))
    names = [f"{voc.CLASSES[label - 1]} {found.scores[label - 1]:.2f}" for label in np.unique(found.pixels) if label]
    assert capsys.readouterr().out.splitlines()[-1] == f"val_000000.jpg  {', '.join(names)}"


@pytest.mark.parametrize("given", ["shapes", "shapes/JPEGImages"])
def test_a_list_in_a_file(given: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [given, "--list", "chosen.txt", *net_of("fcn"), "-o", str(tmp_path / "out"), "-q"]
    assert call(folder, monkeypatch, *argv) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train_000001.png", "train_000003.png"]


def test_a_folder_in_vocs_layout_is_its_pictures(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(folder, monkeypatch, "shapes", *net_of("tiny"), "-o", str(tmp_path / "out"), "-q") == 0
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_choices_are_those_of_the_systems() -> None:
    assert (segment.KINDS, segment.CRFS, segment.FITS) == (KINDS, tuple(SETTINGS), FITS)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["shapes", "--list", "nolist", *net_of("fcn")], "nolist: expected one of shapes/ImageSets/nolist.txt, "),
        (
            ["shapes/JPEGImages", "--list", "val", *net_of("fcn")],
            "val: expected a file with one name a line, found no such",
        ),
        (
            ["shapes", "--list", "wrong.txt", *net_of("fcn")],
            "shapes/JPEGImages: expected all of wrong.txt, found no picture nobody (nor 1 more of 3)",
        ),
        (
            ["shapes", "shapes", "--list", "val", *net_of("fcn")],
            "--list: expected one folder that contains the list's pictures, found 2",
        ),
        (["shapes", *net_of("fcn"), "--proposals", "3"], "--proposals: expected deconvnet, found a net for plain"),
        (["shapes", *net_of("fcn"), "--pass-by-pass"], "--pass-by-pass: expected decouplednet, found a net for plain"),
        (["shapes", *net_of("deconvnet"), "--fit", "pad"], "--fit: expected plain, found a net for deconvnet"),
        (
            ["shapes", *net_of("tiny"), "--smallest", "3"],
            "--smallest: expected deconvnet, found a net for decouplednet",
        ),
        (["shapes", *net_of("deconvnet"), "--proposals", "0"], "'0', expected a whole number above 0"),
        (["shapes", *net_of("deconvnet"), "--model", "no.yml.gz"], "no.yml.gz: no such file"),
        (["shapes", *net_of("tiny"), "--with", "fcn.prototxt", "fcn.caffemodel"], "--with: expected nets that score"),
        (["shapes", *net_of("fcn"), "--with", "tiny.prototxt", "tiny.caffemodel"], "--with: expected nets that score"),
        (
            ["shapes", *net_of("fcn"), "--system", "decouplednet"],
            "fcn.prototxt: expected a deploy net from data (1 x 3",
        ),
        (["shapes", *net_of("tiny"), "--system", "plain"], "tiny.prototxt: expected a deploy net from data (1 x 3 x"),
        (["shapes", *net_of("fcn"), "--crf", "none"], "argument --crf: invalid choice: 'none'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(
    argv: list[str],
    says: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert call(folder, monkeypatch, *argv, "-o", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: FullyConvolutional(tiny()), DefinitionError, "found inputs data, cls-score-masked"),
        (lambda: FullyConvolutional(scores_of(8, channels=1)), DefinitionError, "a channel for each label"),
        (lambda: FullyConvolutional(scores_of(8), fit="crop"), CaffeError, "expected pad or resize, found 'crop'"),
        (
            lambda: FullyConvolutional(Net(SHARES)),
            DefinitionError,
            "expected scores, found the softmax shares; remove it",
        ),
        (lambda: FullyConvolutional(Net(OBLONG), fit="resize"), DefinitionError, "expected a square one, to resize to"),
        (
            lambda: ProposalSegmenter(scores_of(16, POOLED.format(kernel=8, stride=8), "pool")),
            DefinitionError,
            "found scores (2, 2) of an input (16, 16)",
        ),
        (lambda: ProposalSegmenter(scores_of(8), proposals=0), CaffeError, "0 proposals in batches of 8"),
        (lambda: ProposalSegmenter(scores_of(8), model="none.yml.gz"), FileError, "none.yml.gz: "),
        (lambda: ProposalSegmenter(scores_of(8))(np.zeros((4, 4), np.uint8)), ShapeError, "found shape (4, 4)"),
        (lambda: FullyConvolutional(scores_of(8))(np.zeros((0, 4, 3), np.uint8)), ShapeError, "found shape (0, 4, 3)"),
        (
            lambda: Product(FullyConvolutional(scores_of(8)), FullyConvolutional(scores_of(8, channels=6))),
            CaffeError,
            "expected the same classes in both, found nets of 3 and of 5 classes",
        ),
    ],
)
def test_wrong_nets_and_pictures(make, kind: type[CaffeError], says: str) -> None:
    with pytest.raises(kind) as error:
        make()
    assert says in str(error.value)


OBLONG = """input: "data"  input_dim: [1, 3, 8, 6]
layers { name: "score"  type: CONVOLUTION  bottom: "data"  top: "score"
         convolution_param { num_output: 4  kernel_size: 1 } }"""
SHARES = OBLONG + """ layers { name: "shares"  type: SOFTMAX  bottom: "score"  top: "shares" }"""
