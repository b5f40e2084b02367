"""caffe-port: the list of commands, their shared options, the examples of their help, completion."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from reference import EMBEDDED
from segment_nets import DEPLOY, slim
from slim import narrow, with_inputs

import caffe_port
from caffe_port import dialects
from caffe_port.formats import open_weights, save_state_dict
from caffe_port.segmentation.voc import palette, read_labels, write_labels
from caffe_port.tools import cli, progress
from caffe_port.tools.commands import COMMANDS, find, main
from caffe_port.tools.convert_imageset import main as convert_imageset
from caffe_port.tools.make_shapes import main as make_shapes

ROOT = Path(__file__).resolve().parents[1]
NAMES = [command.name for group in COMMANDS.values() for command in group]
SMALL = ["--resize-height", "32", "--resize-width", "32"]
READS_NETS = [
    *("info", "parity", "caffe2torch", "torch2caffe", "fp-bp", "test", "time", "segment", "train", "fold"),
    *("train-classifier", "train-segmentation", "convert", "upgrade", "draw", "extract-features", "classify", "view"),
    "keep-features",
]
"""Commands whose errors about a definition name --proto and --plugin."""
SLOW = ["demo", "train-segmentation", "detect", "vgg16"]
"""Commands whose example other tests run."""
SOLVER = """
train_net: "train.prototxt" base_lr: 0.001 lr_policy: "fixed" max_iter: 2 snapshot_prefix: "s" solver_mode: CPU
"""
TRAIN = """
layer { name: "data" type: "DummyData" top: "data" top: "zero"
        dummy_data_param { shape { dim: [2, 3] } shape { dim: [2, 2] } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 2 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "fc" bottom: "zero" top: "loss" }
"""
DATA = """
layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: [2, 3, 4, 4] } } }
layer { name: "fc6" type: "InnerProduct" bottom: "data" top: "fc6" inner_product_param { num_output: 2 } }
"""
CLASSIFIER = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [1, 3, 8, 8] } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 7 } }
"""
UNFOLDED = """
layers { name: "data" type: DUMMY_DATA top: "data"
         dummy_data_param { num: 2 channels: 3 height: 4 width: 4 data_filler { type: "gaussian" } } }
layers { name: "bn" type: BN bottom: "data" top: "bn" top: "mean" top: "var"
         bn_param { scale_filler { type: "constant" value: 1 } shift_filler { type: "constant" value: 0.1 } } }
"""


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def example(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The words of the example in a command's help."""
    assert call(name, "--help") == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-2] == "example:"
    words = shlex.split(lines[-1])
    assert words[:2] == ["caffe-port", name]
    return words[2:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    net = caffe_port.Net(with_inputs("decouplednet/fp_bp_network.prototxt", "1/32", 0, "TEST"))
    (folder / "net.prototxt").write_text(with_inputs("decouplednet/fp_bp_network.prototxt", "1/32", 0, "TEST"))
    (folder / "reference.npz").symlink_to(EMBEDDED / "noh_nets" / "decouplednet_fp_bp.npz")
    with np.load(folder / "reference.npz") as arrays:
        for layer, blobs in net.params.items():
            for i, blob in enumerate(blobs):
                blob.data[...] = arrays[f"param/{layer}/{i}"]
    net.save(folder / "model.caffemodel")
    save_state_dict(folder / "model.safetensors", open_weights(folder / "model.caffemodel").state_dict())
    (folder / "classifier.caffemodel").symlink_to("model.caffemodel")
    (folder / "solver.prototxt").write_text(SOLVER)
    (folder / "train.prototxt").write_text(TRAIN)
    (folder / "make_inference.prototxt").write_text(UNFOLDED)
    caffe_port.Net(folder / "make_inference.prototxt").save(folder / "trained.caffemodel")
    (folder / "deploy.prototxt").write_text(str(narrow(DEPLOY, "1/32")))
    slim(found=[1, 3]).save(folder / "inference.caffemodel")
    (folder / "script.py").write_text("import caffe; print(caffe.TRAIN, caffe.__version__)\n")
    with pytest.raises(SystemExit):
        make_shapes(["-o", str(folder / "VOC2012"), "--images", "6", "--val", "2", "--classes", "3", "--size", "64"])
    (folder / "picture.jpg").symlink_to(next((folder / "VOC2012" / "JPEGImages").glob("*.jpg")))
    names = [p.name for p in sorted((folder / "VOC2012" / "JPEGImages").iterdir())]
    (folder / "list.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))
    with pytest.raises(SystemExit):
        convert_imageset(
            [f"{folder}/VOC2012/JPEGImages/", str(folder / "list.txt"), str(folder / "pictures_lmdb"), *SMALL]
        )
    (folder / "data.prototxt").write_text(DATA)
    (folder / "classifier.prototxt").write_text(CLASSIFIER)
    caffe_port.Net(folder / "data.prototxt").save(folder / "features.caffemodel")
    caffe_port.Net(folder / "classifier.prototxt").save(folder / "classifier_1.caffemodel")
    (folder / "masks").mkdir()
    for mask in (folder / "VOC2012" / "SegmentationClass").glob("*.png"):
        labels = np.where((given := read_labels(mask)) == 255, 0, given)
        write_labels(folder / "masks" / mask.name, labels, palette())
    return folder


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_list_has_every_command_in_its_group(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 0
    shown = capsys.readouterr().out
    groups = dict(re.findall(r"^(\w+):\n((?:  .*\n)+)", shown, re.MULTILINE))
    assert [*groups] == [*COMMANDS]
    for group, commands in COMMANDS.items():
        assert re.findall(r"^  (\S+)", groups[group], re.MULTILINE) == [command.name for command in commands]


def test_names_are_distinguished() -> None:
    every = [n for group in COMMANDS.values() for c in group for n in (c.name, *c.aliases)]
    assert len(every) == len(set(every))
    assert all(find(name) and find(name.replace("-", "_")) for name in every)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("caffe", "train"), "train"),
        (("caffe", "device_query"), "device-query"),
        (("convert_imageset",), "convert-imageset"),
        (("draw_net.py",), "draw"),
        (("upgrade_solver_proto_text",), "upgrade"),
    ],
)
def test_a_command_is_found_as_caffe_spells_it(
    words: tuple[str, ...], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: caffe-port {name} ")


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("caffe2torsh") == 2
    assert capsys.readouterr().err == (
        "caffe-port: error: no command 'caffe2torsh' (near: caffe2torch); see caffe-port --help\n"
    )


@pytest.mark.parametrize("name", NAMES)
def test_options_are_not_abbreviated(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(name, "--versio") == 2
    assert capsys.readouterr().err.startswith(f"caffe-port {name}: error: ")


@pytest.mark.parametrize("name", READS_NETS)
def test_what_reads_a_definition_takes_another_caffes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(name, "--help") == 0
    shown = capsys.readouterr().out
    assert all(
        f"  {option} " in shown for option in ("--dialect", "--proto", "--plugin", "--python-layers", "--allow-writes")
    )
    assert f"{{{','.join(dialects.names())}}}" in "".join(shown.split())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SLOW])
def test_the_example_of_the_help_runs(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "completion":
        pytest.importorskip("argcomplete")
    words = example(name, capsys)
    for item in folder.iterdir():
        if item.name in (*words, *(word.split("/")[0] for word in words), "train.prototxt"):
            (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "caffe_port", name, *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "0"},
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_python_m_is_the_command() -> None:
    command = [sys.executable, "-m", "caffe_port", "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == f"caffe_port {caffe_port.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["caffe2torch", "--help"], ["parity", "--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy(argv: list[str]) -> None:
    code = f"from caffe_port.tools.commands import main\ntry: main({argv!r})\nexcept SystemExit: pass\n"
    code += "import sys; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"torch", "scipy", "cv2", "h5py", "tqdm"} & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("caffe-port ca", {"caffe2torch"}),
        ("caffe-port fold --abs", {"--absorb"}),
        ("caffe-port segment --system d", {"decouplednet", "deconvnet", "deeplab"}),
        ("caffe-port train_segmentation --precision b", {"bf16"}),
    ],
)
def test_completion(line: str, expected: set[str], tmp_path: Path) -> None:
    """The answer to a shell by argcomplete's protocol: the line in the environment, words on descriptor 8."""
    pytest.importorskip("argcomplete")
    out = tmp_path / "words"
    environment = {
        **{**os.environ, "PYTHONPATH": str(ROOT), "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))},
        **{"COMP_TYPE": "9", "_ARGCOMPLETE_STDOUT_FILENAME": str(out), "_ARGCOMPLETE_IFS": "\n"},
    }
    subprocess.run([sys.executable, "-m", "caffe_port"], check=False, env=environment, timeout=60)
    assert {word.strip() for word in out.read_text().split("\n")} == expected


@pytest.mark.parametrize(
    ("words", "booleans", "expected"),
    [
        (["-model", "x", "--iter_size=3"], [], ["--model", "x", "--iter-size=3"]),
        (["-gray", "a/", "b"], ["gray"], ["--gray", "a/", "b"]),
        (["--gray=true", "-noshuffle", "--shuffle=false", "x"], ["gray", "shuffle"], ["--gray", "x"]),
        (["-10", "-", "--"], [], ["-10", "-", "--"]),
    ],
)
def test_gflags(words: list[str], booleans: list[str], expected: list[str]) -> None:
    assert cli.as_gflags(words, booleans) == expected


def test_json_has_no_numbers_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    cli.print_json({"a": [float("nan"), 1.5], "b": {"c": float("inf")}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": {"c": None}}


# -- progress where stderr is a file


def test_slow_work_logs_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    assert list(progress.each(range(40), "work")) == [*range(40)]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "work: 2 of 40, 2 s, about 38 s left"
    assert [int(line.split()[1]) for line in lines] == [2, 12, 32]


def test_quick_or_quiet_work_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.each(range(3), "work")) == [0, 1, 2]
    monkeypatch.setattr(progress, "_SLOW_SECONDS", 0.01)
    assert list(progress.each([time.sleep(0.02)] * 3, "work", quiet=True)) == [None] * 3
    with progress.working("work", quiet=True):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
    with progress.working("work"):
        time.sleep(0.05)
    assert re.fullmatch(r"(work \.\.\. 0 s\n)+", capsys.readouterr().err)
