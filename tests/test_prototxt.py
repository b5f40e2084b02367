"""The definitions in prototxt/ are those that the builder writes, and equal the released ones, layer for layer.

Oracles, from the strongest to the one that every clone has:
- checkouts of the released repositories, named by DECOUPLEDNET_REPO and DECONVNET_REPO: every file, every field;
- the slim definitions of ../shared/reference, which real Caffe ran: every layer, every field, every parameter's shape;
- digests of both, in prototxt_digests.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from math import prod
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from reference import SHARED, needs_shared
from slim import narrow

from caffe_port.schema import SCHEMA, V1_TO_V2, read_net, read_solver

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_port.definitions import shapes
from caffe_port.definitions.definition import Layer, Net, Setting, Solver
from caffe_port.errors import CaffeError
from caffe_port.tools import build

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = SHARED / "reference"
DIGESTS = json.loads(Path(__file__).with_name("prototxt_digests.json").read_text(encoding="utf-8"))
PUBLISHED = build.definitions()
NETS = {path: it for path, it in PUBLISHED.items() if isinstance(it, Net)}

FULL = "decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt"
TRAIN = "decouplednet/002_train_seg_Full_anno.prototxt"
FP_BP = "decouplednet/fp_bp_network.prototxt"
DECONVNET = "deconvnet/DeconvNet_inference_deploy.prototxt"

needs_reference = needs_shared("reference")


# ---- what is compared: messages, as plain lists


def parse(text: str, kind: str = "NetParameter"):
    return text_format.Parse(text, getattr(SCHEMA, kind)())


def plain(message) -> list:
    """A message as sorted ``[field, value]`` pairs; numbers to the precision of a float."""

    def value_of(field, value):
        if field.message_type:
            return plain(value)
        if field.enum_type:
            return field.enum_type.values_by_number[value].name
        return f"{value:.6g}" if isinstance(value, float) else value

    pairs = []
    for field, value in message.ListFields():
        many = hasattr(value, "append") or hasattr(value, "add")
        pairs.append([field.name, [value_of(field, one) for one in value] if many else value_of(field, value)])
    return sorted(pairs)


def digest(message) -> dict:
    text = json.dumps(plain(message), separators=(",", ":"))
    count = {"layers": len(message.layers)} if hasattr(message, "layers") else {}
    return count | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def assert_equal_layers(ours, theirs) -> None:
    for our, their in zip(ours, theirs, strict=False):
        assert plain(our) == plain(their)
    assert len(ours) == len(theirs)


# ---- (a) the files are the builder's


@pytest.mark.parametrize("path", PUBLISHED)
def test_file_is_what_the_builder_writes(path):
    assert (ROOT / "prototxt" / path).read_text(encoding="utf-8") == str(PUBLISHED[path])


def test_no_file_is_left_over():
    folder = ROOT / "prototxt"
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.prototxt")} == set(PUBLISHED)


# ---- (b) equal to the slim definitions that real Caffe ran

SLIM = [  # name in reference/, our file, width, batch of the slim net (its inputs stand in for the data layer)
    ("noh_nets/decouplednet_train", TRAIN, "1/32", 2, "TRAIN"),
    ("noh_nets/decouplednet_test", TRAIN, "1/32", 2, "TEST"),
    ("noh_nets/decouplednet_make_inference", TRAIN.replace(".", "_make_inference."), "1/32", 2, "TEST"),
    ("noh_nets/decouplednet_deploy", FULL, "1/32", 0, "TEST"),
    ("noh_nets/decouplednet_fp_bp", FP_BP, "1/32", 0, "TEST"),
    ("noh_nets/deconvnet_stage_1", "deconvnet/stage_1_train.prototxt", "1/32", 6, "TRAIN"),
    ("noh_nets/deconvnet_make_bn_testable", "deconvnet/DeconvNet_make_bn_layer_testable.prototxt", "1/32", 6, "TEST"),
    ("noh_nets/deconvnet_deploy", DECONVNET, "1/32", 0, "TEST"),
    ("noh_nets/fcn8s_deploy", "fcn8s/fcn-8s-pascal-deploy.prototxt", "1/32", 0, "TEST"),
    ("noh_inference/net", FULL, "1/32", 0, "TEST"),
    ("noh_solver/net", TRAIN, "1/64", 2, "TRAIN"),
]
slim_rows = pytest.mark.parametrize(("name", "path", "width", "batch", "phase"), SLIM, ids=[row[0] for row in SLIM])


def without_data(net):
    """A copy without data layers, inputs, and the name, none of which the slim definitions keep."""
    bare = parse(str(net))
    layers = [layer for layer in bare.layers if not layer.HasField("image_data_param")]
    del bare.layers[:], bare.input[:], bare.input_dim[:]
    bare.layers.extend(layers)
    bare.ClearField("name")
    return bare


@slim_rows
def test_digest_of_the_slim_definition(name, path, width, batch, phase):
    assert digest(without_data(narrow(path, width, batch))) == DIGESTS["slim"][name]


@needs_reference
@slim_rows
def test_slim_definition(name, path, width, batch, phase):
    text = (REFERENCE / f"{name}.prototxt").read_text(encoding="utf-8")
    theirs, net = parse(text), narrow(path, width, batch)
    ours = without_data(net)
    assert_equal_layers(ours.layers, without_data(text).layers)
    assert ours.force_backward == theirs.force_backward
    assert digest(without_data(text)) == DIGESTS["slim"][name]
    blobs = shapes.infer(net, phase).blobs
    assert [n for blob in theirs.input for n in blobs[blob]] == list(theirs.input_dim)
    our_data = [layer for layer in parse(str(net)).layers if layer.HasField("image_data_param")]
    for our, their in zip(our_data, theirs.layers, strict=False):
        if their.HasField("image_data_param"):  # noh_solver: the data layers too, but for where its data lie
            for layer in (our, their):
                layer.image_data_param.ClearField("source")
                layer.image_data_param.ClearField("root_folder")
            assert plain(our) == plain(their)


@needs_reference
@pytest.mark.parametrize(("name", "path", "width", "batch", "phase"), SLIM[:9], ids=[row[0] for row in SLIM[:9]])
def test_slim_shapes(name, path, width, batch, phase):
    """Every parameter, and every blob that is stored whole, has the shape it has in real Caffe."""
    found = shapes.infer(narrow(path, width, batch), phase)
    with np.load(REFERENCE / f"{name}.npz") as stored:
        params = {key: stored[key].shape for key in stored.files if key.startswith("param/")}
        blobs = {key[4:]: stored[key].shape for key in stored.files if key.startswith("out/")}
    ours = {f"param/{name}/{i}": shape for name in found.params for i, shape in enumerate(found.params[name])}
    assert {key: legacy(shape) for key, shape in ours.items()} == params
    assert {blob: found.blobs[blob] for blob in blobs if blob in found.blobs} == {
        blob: shape for blob, shape in blobs.items() if "_split_" not in blob
    }


def legacy(shape: shapes.Shape) -> shapes.Shape:
    return (1,) * (4 - len(shape)) + shape


# ---- (c) the numbers of the full-width nets


@needs_reference
@pytest.mark.parametrize("path", [FULL, DECONVNET])
def test_full_width_shapes(path):
    found = shapes.infer(NETS[path])
    name = path.split("/")[0]
    with np.load(REFERENCE / "noh_full" / f"{name}_deploy_full.npz") as stored:
        keys = [key.split("/", 1) for key in stored.files if "_split_" not in key]
        whole = {blob: stored[f"{kind}/{blob}"].shape for kind, blob in keys if kind in ("out", "switch")}
    assert {blob for _, blob in keys} == set(found.blobs) - set(NETS[path].inputs)
    assert {blob: found.blobs[blob] for blob in whole} == whole
    sampled = {blob for kind, blob in keys if kind == "sample"}
    stored_whole = {blob for kind, blob in keys if kind == "out"}
    assert min(prod(found.blobs[blob]) for blob in sampled) > max(prod(found.blobs[blob]) for blob in stored_whole)


def test_decouplednet_has_the_parameters_of_the_original():
    """427,078,678 is what real Caffe counts (../shared/reference/README.md)."""
    assert shapes.infer(NETS[FULL]).total == 427_078_678


# ---- (d) equal to the released files


def released_path(path: str) -> str:
    """Our file's name for a released one: the six files called solver.prototxt are named after their net."""
    folder, name = Path(path).parts[-2:]
    family = "fcn8s" if folder == "FCN" else "decouplednet" if "anno" in path or "fp_bp" in path else "deconvnet"
    if name == "solver.prototxt":
        name = {"001_stage_1": "stage_1", "002_stage_2": "stage_2"}.get(folder, folder) + "_solver.prototxt"
    return f"{family}/{name}"


@pytest.mark.parametrize("path", DIGESTS["released"])
def test_digest_of_the_released_file(path):
    kind = "SolverParameter" if isinstance(PUBLISHED[path], Solver) else "NetParameter"
    assert digest(parse(str(PUBLISHED[path]), kind)) == DIGESTS["released"][path]


@pytest.mark.parametrize("variable", ["DECOUPLEDNET_REPO", "DECONVNET_REPO"])
def test_released_files(variable):
    if variable not in os.environ:
        pytest.skip(f"needs {variable}, a checkout of the released repository")
    released = sorted(Path(os.environ[variable]).rglob("*.prototxt"))
    assert released
    for file in released:
        path = released_path(str(file))
        kind = "SolverParameter" if file.name == "solver.prototxt" else "NetParameter"
        ours, theirs = parse(str(PUBLISHED[path]), kind), parse(file.read_text(encoding="utf-8"), kind)
        if kind == "NetParameter":
            assert_equal_layers(ours.layers, theirs.layers)
        assert ours == theirs, path
        assert digest(theirs) == DIGESTS["released"][path]


def test_what_was_never_released_for_these_programs():
    assert {path for path in PUBLISHED if path not in DIGESTS["released"] and not path.startswith("wssl/")} == {
        f"classification/{name}.prototxt" for name in ("train_cls_voc", "train_cls_voc_solver", "cls_voc_deploy")
    }


# ---- as caffe_port reads them


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("path", NETS)
def test_read_net(path, phase):
    read = read_net(ROOT / "prototxt" / path, phase=phase)
    ours = list(NETS[path].layers(phase))
    kept = [layer for i, layer in enumerate(read.net.layer) if i not in (*read.synthetic, *read.inserted)]
    assert [layer.name for layer in kept] == [layer.name for layer in ours]
    assert [layer.type for layer in kept] == [V1_TO_V2[layer.type] for layer in ours]
    assert read.generation == 1
    bvlc = path == "classification/cls_voc_deploy.prototxt" or path.endswith("fov_deploy.prototxt")
    assert read.dialect.name == ("bvlc" if bvlc else "noh")


@pytest.mark.parametrize("path", [path for path in PUBLISHED if path not in NETS])
def test_read_solver(path):
    """A solver's net is in the same folder."""
    solver = read_solver(ROOT / "prototxt" / path)
    assert (ROOT / "prototxt" / path).parent.joinpath(solver.net).is_file()
    assert (solver.type, solver.base_lr * solver.momentum > 0) == ("SGD", True)


# ---- nets that belong together, and nets of other widths and sizes

HANDED_ON = [  # weights of the first net are copied into the second by layer name
    ("classification/train_cls_voc.prototxt", FP_BP),
    ("classification/train_cls_voc.prototxt", "classification/cls_voc_deploy.prototxt"),
    (FP_BP, TRAIN),
    (TRAIN, TRAIN.replace(".", "_make_inference.")),
    (TRAIN.replace(".", "_make_inference."), FULL),
    ("deconvnet/stage_1_train.prototxt", "deconvnet/stage_2_train.prototxt"),
    ("deconvnet/stage_2_train.prototxt", "deconvnet/DeconvNet_make_bn_layer_testable.prototxt"),
    ("deconvnet/DeconvNet_make_bn_layer_testable.prototxt", DECONVNET),
    ("wssl/train_small_fov_semi.prototxt", "wssl/small_fov_deploy.prototxt"),
    ("wssl/train_large_fov_strong.prototxt", "wssl/large_fov_deploy.prototxt"),
]


@pytest.mark.parametrize(("source", "target"), HANDED_ON)
def test_weights_fit_the_next_net(source, target):
    given, taken = shapes.infer(NETS[source]).params, shapes.infer(NETS[target]).params
    assert {layer: taken[layer] for layer in given} == given


@pytest.mark.parametrize("path", [FULL, DECONVNET])
@pytest.mark.parametrize(("width", "size"), [("1/64", 64), ("1/16", 160), ("1/7", 256), ("1", 384), ("3/2", 512)])
def test_other_widths_and_sizes(path, width, size):
    net = build.definitions(Setting(width=Fraction(width), size=size), [path])[path]
    blobs = shapes.infer(net).blobs
    classes = NETS[path].layers()
    classes = next(layer.param["num_output"] for layer in classes if layer.name == "seg-score-voc")
    assert blobs["seg-score"] == (1, classes, size, size)
    for layer in net.layers():
        if len(layer.bottoms) == 2 and layer.type in ("UNPOOLING", "ELTWISE"):
            below, switches = (blobs[name] for name in layer.bottoms)
            assert below == switches, layer.name


def test_width_keeps_at_least_two_features_and_all_classes():
    setting = Setting(width=Fraction(1, 64))
    assert [setting.features(n) for n in (64, 128, 256, 4096)] == [2, 2, 4, 64]


def test_classes_reach_every_net():
    for path, net in build.definitions(Setting(classes=7)).items():
        numbers = {layer.param.get("num_output") for layer in net.layers()} if isinstance(net, Net) else set()
        assert not numbers & {20, 21}, path
        dims = [layer.param["label_dim"] for layer in net.layers() if "label_dim" in layer.param] if numbers else []
        assert set(dims) <= {7}, path


def test_a_level_has_lists_of_its_own():
    nets = build.definitions(Setting(level="10"), ["classification", "deconvnet"]).values()
    sources = [
        layer.param["source"] for net in nets if isinstance(net, Net) for layer in net.layers() if not layer.bottoms
    ]
    assert {Path(source).parent.name for source in sources} == {
        *("cls_imgset_10", "stage_1_train_imgset_10", "stage_2_train_imgset_10"),
    }


def test_norm_follows_every_convolution_of_the_classification_net():
    nets = build.definitions(Setting(norm=True), ["classification"])
    train, measured = (nets[f"classification/train_cls_voc{end}.prototxt"] for end in ("", "_make_inference"))
    for net, tops in ((train, 1), (measured, 3)):
        kinds = [layer.type for layer in net.layers()]
        assert kinds.count("BN") == kinds.count("CONVOLUTION") - 1 == 15
        assert {len(layer.tops) for layer in net.layers() if layer.type == "BN"} == {tops}
    assert "BN" not in str(nets["classification/cls_voc_deploy.prototxt"])


def test_the_rate_of_the_class_scores():
    path = "classification/train_cls_voc.prototxt"
    for setting, rates in ((Setting(), (10, 20)), (Setting(score_rate=1), (1, 2))):
        layer = next(it for it in build.definitions(setting, [path])[path].layers() if it.name == "cls-score-voc")
        assert tuple(layer.learn.rates) == rates


def test_batch_and_data_root_reach_every_data_layer():
    changed = build.definitions(Setting(batch=3, data_root="/data"))
    data = [layer for net in changed.values() if isinstance(net, Net) for layer in net.layers() if not layer.bottoms]
    assert len(data) == 30
    for layer in data:
        assert layer.param["batch_size"] == 3
        assert layer.param["root_folder"] == "/data/VOC2012"
        assert re.fullmatch(r"/data/\w+/(train|val)\.txt", layer.param["source"])


def test_an_unknown_type_has_no_shape():
    with pytest.raises(CaffeError, match="ODD"):
        shapes.infer(Net("x", [Layer("ODD", "odd", ["data"], ["top"])], inputs={"data": (1, 3, 8, 8)}))


# ---- the command


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "prototxt" / "build.py"), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        build.main(arguments)
    return int(end.value.code or 0)


def test_command_checks_the_repository_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_command_writes_checks_and_lists(tmp_path, capsys):
    wish = ["-o", str(tmp_path), "--width", "1/32", "fcn8s", DECONVNET]
    assert call(*wish) == 0
    written = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert written == [DECONVNET, "fcn8s/fcn-8s-pascal-deploy.prototxt"]
    assert call(*wish, "--check") == 0
    (tmp_path / DECONVNET).write_text("name: 'mine'\n", encoding="utf-8")
    assert call(*wish, "--check") == 1
    assert f"{tmp_path / DECONVNET}: differs from what the builder writes" in capsys.readouterr().err
    assert call(*wish) == 2
    assert "exists with other contents (one of 1 such files); pass -f" in capsys.readouterr().err
    assert (tmp_path / DECONVNET).read_text(encoding="utf-8") == "name: 'mine'\n"
    assert call(*wish, "-f") == call(*wish, "--check") == 0
    assert call("--list", "decouplednet") == 0
    assert re.search(rf"{re.escape(FULL)} +103 +427,078,678\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--width 0", "--width: expected a positive fraction such as 1/32, found 0"),
        ("--width 1/0", "--width: expected a positive fraction such as 1/32, found '1/0'"),
        ("--width wide", "--width: expected a positive fraction such as 1/32, found 'wide'"),
        ("--batch -1", "--batch: expected a positive number, found -1"),
        ("--input-size 300", "--input-size: expected a multiple of 32, at least 64, for this net, found 300"),
        ("--input-size 32 deconvnet", "at least 64, for this net, found 32"),
        ("decouplednets", "decouplednets: no such net; did you mean decouplednet"),
        ("fcn8s/fcn-8s-pascal.prototxt", "no such net; did you mean fcn8s/fcn-8s-pascal-deploy.prototxt?"),
        ("alexnet", "alexnet: no such net; --list shows all"),
        ("--width 1/2", "prototxt: holds the published definitions; give -o DIR for changed ones"),
        ("-o {file}", "file: expected a folder, found a file; choose another"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(arguments, message, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    assert call(*arguments.format(file=file).split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.rglob("*")] == ["file"]


def test_norm_gives_deconvnet_fillers() -> None:
    """Without any, what no weights are copied to is constant 0, and learns nothing."""
    path = "deconvnet/stage_1_train.prototxt"
    published, fresh = (build.definitions(Setting(norm=norm), [path])[path] for norm in (False, True))
    filled = [
        [layer.name for layer in net.layers() if layer.type.endswith("CONVOLUTION") and "weight_filler" in layer.param]
        for net in (published, fresh)
        if isinstance(net, Net)
    ]
    assert len(filled[0]) == 15
    assert len(filled[1]) == len([layer for layer in fresh.layers() if layer.type.endswith("CONVOLUTION")]) == 30
