"""caffe2torch and torch2caffe as commands: what they print, write, refuse, and leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from caffe_port.formats import LayerWeights, open_weights, save_state_dict
from caffe_port.schema import SCHEMA
from caffe_port.tools import caffe2torch, cli, torch2caffe

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

V2 = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 5 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "norm" }
layer { name: "scale" type: "Scale" bottom: "norm" top: "norm" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "norm" top: "norm" }
layer { name: "fc" type: "InnerProduct" bottom: "norm" top: "f" inner_product_param { num_output: 4 bias_term: false } }
"""
V1 = """
name: "old"
input: "data" input_dim: 1 input_dim: 3 input_dim: 5 input_dim: 7
layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" convolution_param { num_output: 2 kernel_size: 3 } }
layers { name: "bn" type: BN bottom: "conv" top: "bn" }
layers { type: RELU bottom: "bn" top: "bn" }
layers { name: "fc" type: INNER_PRODUCT bottom: "bn" top: "fc" inner_product_param { num_output: 4 } }
"""
SHAPES_V2: dict[str, list[tuple[int, ...]]] = {
    "conv": [(2, 3, 3, 3), (2,)],
    "norm": [(2,), (2,), (1,)],
    "scale": [(2,), (2,)],
    "relu": [],
    "fc": [(4, 30)],
}
SHAPES_V1: dict[str, list[tuple[int, ...]]] = {
    "conv": [(2, 3, 3, 3), (1, 1, 1, 2)],
    "bn": [(1, 2, 1, 1)] * 2,
    "": [],
    "fc": [(1, 1, 4, 30), (1, 1, 1, 4)],
}
TYPES_V1 = {"conv": 4, "bn": 43, "": 18, "fc": 14}


def make(path: Path, generation: int) -> Path:
    """A .caffemodel, made by protobuf."""
    rng = np.random.default_rng(5)
    net = SCHEMA.NetParameter(name="made")
    types = {line.split('"')[1]: line.split('"')[3] for line in V2.splitlines() if line.startswith("layer ")}
    for name, shapes in (SHAPES_V2 if generation == 2 else SHAPES_V1).items():
        layer = (
            net.layer.add(name=name, type=types[name])
            if generation == 2
            else net.layers.add(name=name, type=TYPES_V1[name])
        )
        for shape in shapes:
            blob = layer.blobs.add(data=rng.standard_normal(int(np.prod(shape)), np.float32))
            if generation == 2:
                blob.shape.dim.extend(shape)
            else:
                blob.num, blob.channels, blob.height, blob.width = shape
    path.write_bytes(net.SerializeToString())
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with both generations of a net and its weights."""
    monkeypatch.chdir(tmp_path)
    Path("v2.prototxt").write_text(V2)
    Path("v1.prototxt").write_text(V1)
    make(Path("v2.caffemodel"), 2)
    make(Path("v1.caffemodel"), 1)
    return tmp_path


def call(main, *argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    return ended.value.code


def contents(layer: LayerWeights) -> list[tuple]:
    return [(blob.shape, blob.dtype, blob.tobytes()) for blob in layer.blobs if blob is not None]


def equal(one: Path | str, two: Path | str) -> None:
    """Both files hold the same blobs, bit for bit, under the same layer names and types, in the same order."""
    first, second = ([layer for layer in open_weights(p).layers if layer.blobs] for p in (one, two))
    assert [(layer.name, layer.type) for layer in first] == [(layer.name, layer.type) for layer in second]
    for a, b in zip(first, second, strict=True):
        assert contents(a) == contents(b)


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("format", ["safetensors", "pth", "npz", "h5"])
def test_round_trip(generation: int, format: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    source = f"v{generation}.caffemodel"
    assert call(caffe2torch.main, source, "--format", format) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[1].split() == ["conv", "Convolution", "weight", *"2x3x3x3", "float32", "54"]
    assert f"wrote v{generation}.{format}" in said
    assert call(torch2caffe.main, f"v{generation}.{format}", "--prototxt", f"v{generation}.prototxt", "-o", "back") == 0
    equal(source, "back")
    net = SCHEMA.NetParameter()
    net.ParseFromString(Path("back").read_bytes())
    layers = net.layers if generation == 1 else net.layer
    assert bool(net.layers) == (generation == 1)
    assert all(blob.HasField("num") == (generation == 1) for layer in layers for blob in layer.blobs)
    assert list(net.input) == (["data"] if generation == 1 else [])


def pairs() -> list:
    found = sorted(p for p in SHARED.glob("models/*") if (p / "net.prototxt").exists())
    found += sorted(SHARED.glob("reference/noh_nets/*.caffemodel"))
    missing = [pytest.param(None, marks=pytest.mark.skip(reason="../shared is not here"), id="models")]
    return [pytest.param(p, id=p.name) for p in found] or missing


@pytest.mark.parametrize("source", pairs())
def test_published_models_round_trip(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prototxt = source.with_suffix(".prototxt") if source.suffix else source / "net.prototxt"
    model = source if source.suffix else next(source.glob("weights.*"))
    state, back = str(tmp_path / "w.safetensors"), tmp_path / "back.caffemodel"
    assert call(caffe2torch.main, str(model), "-o", state, "--prototxt", str(prototxt)) == 0
    assert call(torch2caffe.main, state, "--prototxt", str(prototxt), "-o", str(back)) == 0
    original = {layer.name: layer for layer in open_weights(model).layers if layer.blobs}
    kept = {layer.name: layer for layer in open_weights(back).layers if layer.blobs}
    left_out = original.keys() - kept.keys()
    printed = capsys.readouterr().out.partition("omitted")[2]
    assert all(name in printed for name in left_out)
    for name, layer in kept.items():
        assert contents(layer) == contents(original[name])


def test_to_caffes_hdf5_and_back(here: Path) -> None:
    assert call(caffe2torch.main, "v2.caffemodel", "-q") == 0
    assert call(torch2caffe.main, "v2.safetensors", "--prototxt", "v2.prototxt", "-o", "v2.caffemodel.h5") == 0
    assert open_weights("v2.caffemodel.h5").kind == "hdf5"
    assert call(caffe2torch.main, "v2.caffemodel.h5", "--prototxt", "v2.prototxt", "-o", "h.safetensors", "-q") == 0
    one, two = safetensors.numpy.load_file("v2.safetensors"), safetensors.numpy.load_file("h.safetensors")
    assert one.keys() == two.keys()
    assert all(one[key].tobytes() == two[key].tobytes() for key in one)


def test_hdf5_without_the_net_has_numbered_blobs(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert call(caffe2torch.main, "v2.caffemodel", "-q") == 0
    assert call(torch2caffe.main, "v2.safetensors", "--prototxt", "v2.prototxt", "--format", "h5") == 0
    capsys.readouterr()
    assert call(caffe2torch.main, "v2.caffemodel.h5", "-f") == 0
    said = capsys.readouterr().out
    assert "blob0" in said
    assert "--prototxt" in said
    assert call(torch2caffe.main, "v2.safetensors", "--prototxt", "v2.prototxt", "-o", "back") == 0
    equal("v2.caffemodel", "back")


def test_shared_parameters_are_taken_from_their_owner(here: Path) -> None:
    one = 'convolution_param { num_output: 3 kernel_size: 1 bias_term: false } param { name: "w" }'
    Path("shared.prototxt").write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 5 dim: 7 } } }\n'
        f'layer {{ name: "a" type: "Convolution" bottom: "data" top: "a" {one} }}\n'
        f'layer {{ name: "b" type: "Convolution" bottom: "a" top: "b" {one} }}\n'
    )
    weight = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    save_state_dict("w.safetensors", {"a.weight": weight})
    assert call(torch2caffe.main, "w.safetensors", "--prototxt", "shared.prototxt") == 0
    both = open_weights("w.caffemodel").layers[1:]
    assert [contents(layer) for layer in both] == [[(weight.shape, weight.dtype, weight.tobytes())]] * 2
    assert call(torch2caffe.main, "w.safetensors", "--prototxt", "shared.prototxt", "--format", "h5") == 0
    held = {layer.name: layer.blobs for layer in open_weights("w.caffemodel.h5").layers}
    assert held["b"] == []
    assert len(held["a"]) == 1


def test_a_blob_that_a_layer_lacks_is_refused(here: Path, capsys: pytest.CaptureFixture) -> None:
    call(caffe2torch.main, "v2.caffemodel", "-q")
    state = safetensors.numpy.load_file("v2.safetensors") | {"conv.running": np.zeros(2, np.float32)}
    save_state_dict("more.safetensors", state)
    assert call(torch2caffe.main, "more.safetensors", "--prototxt", "v2.prototxt") == 2
    assert "conv: expected weight, bias, as a Convolution has, found blobs running" in capsys.readouterr().err


# -- messages ----------------------------------------------------------------------------------------------------------


def test_list_writes_nothing(here: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(here.iterdir())
    assert call(caffe2torch.main, "v1.caffemodel", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "type", "blob", "shape", "dtype", "count"]
    assert lines[3].split() == ["bn", "BN", "scale", "1", "x", "2", "x", "1", "x", "1", "float32", "2"]
    assert lines[-1] == "184 numbers in 6 blobs of 3 layers of made"
    assert sorted(here.iterdir()) == before


def test_quiet(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert call(caffe2torch.main, "v1.caffemodel", "-q") == 0
    assert call(torch2caffe.main, "v1.safetensors", "--prototxt", "v1.prototxt", "-q", "-o", "x") == 0
    assert capsys.readouterr().out == ""


def test_missing_and_unexpected_are_listed(here: Path, capsys: pytest.CaptureFixture) -> None:
    call(caffe2torch.main, "v2.caffemodel", "-q")
    state = safetensors.numpy.load_file("v2.safetensors")
    del state["fc.weight"]
    state["head.weight"] = state["conv.bias"]
    save_state_dict("part.safetensors", state)
    assert call(torch2caffe.main, "part.safetensors", "--prototxt", "v2.prototxt") == 2
    assert "no fc.weight" in capsys.readouterr().err
    assert not Path("part.caffemodel").exists()
    assert call(torch2caffe.main, "part.safetensors", "--prototxt", "v2.prototxt", "--allow-missing") == 0
    said = capsys.readouterr().out
    assert "missing, omitted (1): fc.weight" in said
    assert "not in the net, omitted (1): head.weight" in said


def test_checking_against_the_net(here: Path, capfd: pytest.CaptureFixture) -> None:
    assert call(caffe2torch.main, "v2.caffemodel", "--prototxt", "v2.prototxt") == 0
    Path("wide.prototxt").write_text(V2.replace("num_output: 2", "num_output: 3"))
    assert call(caffe2torch.main, "v2.caffemodel", "--prototxt", "wide.prototxt", "-o", "no.safetensors") == 2
    assert "conv[0]" in capfd.readouterr().err
    assert not Path("no.safetensors").exists()


# -- wrong input -------------------------------------------------------------------------------------------------------

WRONG = [  # arguments of caffe2torch, content of x.caffemodel, what the one line says
    (["none.caffemodel"], b"", "no such file"),
    (["x.caffemodel"], b"", "empty file"),
    (["x.caffemodel"], b"<html><body>404</body></html>", "web page"),
    (["x.caffemodel"], b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (["x.caffemodel"], b"\x08\x05\x12\x03a.b\x1a\x00", "solverstate"),
    (["x.caffemodel"], b"\x0a\x03net\xa2\x06\x05\x0a\x03abc", "no layer with blobs"),
    (["x.caffemodel"], b"\x0a\x03net\xa2\x06\x55\x0a\x03abc", "truncated"),
    (["v2.caffemodel", "-o", "v1.prototxt", "--format", "npz"], b"", "pass -f"),
    (["v2.caffemodel", "-o", "none/w.npz"], b"", "no folder none"),
    (["v2.caffemodel", "-o", "w.bin"], b"", "pass --format"),
    (["v2.caffemodel", "--prototxt", "none.prototxt"], b"", "none.prototxt"),
    (["v2.caffemodel", "--prototxt", "v2.caffemodel"], b"", "v2.caffemodel"),
    (["v2.caffemodel", "--format", "onnx"], b"", "invalid choice"),
    ([], b"", "required"),
]


@pytest.mark.parametrize(("argv", "content", "says"), WRONG, ids=[" ".join(w[0][:3]) + f" {w[2]}" for w in WRONG])
def test_wrong_input(argv: list[str], content: bytes, says: str, here: Path, capfd: pytest.CaptureFixture) -> None:
    Path("x.caffemodel").write_bytes(content)
    before = {p: p.stat().st_mtime_ns for p in here.iterdir()}
    assert call(caffe2torch.main, *argv) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("caffe-port caffe2torch: error: ")
    assert says in said.err
    assert {p: p.stat().st_mtime_ns for p in here.iterdir()} == before


WRONG_BACK = [  # state_dict, arguments, what the line says
    ({"conv.weight": (2, 3, 3, 3)}, [], "conv without conv.bias"),
    ({"other.weight": (2,)}, [], "conv.weight"),
    ({"conv.weights": (2, 3, 3, 3)}, [], "conv: expected weight, bias, as a Convolution has, found blobs weights"),
    ({"conv.weight": (2, 3, 3, 3), "conv.bias": (1, 2)}, [], "1 axes"),
    ({"other.weight": (2,)}, ["--allow-missing"], "every blob of the net"),
    ({"weight": (2,)}, [], "LAYER.BLOB"),
]


@pytest.mark.parametrize(("shapes", "argv", "says"), WRONG_BACK, ids=[w[2] for w in WRONG_BACK])
def test_wrong_state_dicts(shapes: dict, argv: list[str], says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    save_state_dict("s.safetensors", {key: np.zeros(shape, np.float32) for key, shape in shapes.items()})
    assert call(torch2caffe.main, "s.safetensors", "--prototxt", "v2.prototxt", *argv) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert not Path("s.caffemodel").exists()


def test_force_replaces_and_debug_shows_the_traceback(here: Path, capsys: pytest.CaptureFixture) -> None:
    Path("v2.safetensors").write_bytes(b"old")
    assert call(caffe2torch.main, "v2.caffemodel", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err
    assert Path("v2.safetensors").read_bytes() == b"old"
    assert call(caffe2torch.main, "v2.caffemodel", "-f") == 0
    assert safetensors.numpy.load_file("v2.safetensors")


# -- the frame ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "caffe-port p: interrupted\n"),
        (PermissionError(13, "Permission denied", "x"), 2, "caffe-port p: error: x: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "caffe-port p: error: No space left on device\n"),
    ],
)
def test_ends(error: BaseException, status: int, says: str, capsys: pytest.CaptureFixture) -> None:
    def main(arguments: object) -> None:
        raise error

    assert call(lambda argv: cli.run(main, cli.Parser("p", ""), argv)) == status
    assert capsys.readouterr().err == says


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda arguments: 1 // 0, cli.Parser("p", ""), [])


def test_table() -> None:
    assert cli.table(("a", "n"), [("x", 1), ("long", 20)], right=(1,)) == "a      n\nx      1\nlong  20"


def script(name: str, *argv: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-I", str(ROOT / "converters" / name), *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_scripts_run_from_a_clone(here: Path) -> None:
    for name in ("caffe2torch.py", "torch2caffe.py"):
        out, err = script(name, "--version").communicate(timeout=60)
        assert (out.split()[0], err) == ("caffe_port", "")
    process = script("caffe2torch.py", "v2.caffemodel")
    assert "wrote v2.safetensors" in process.communicate(timeout=60)[0]


def test_a_closed_pipe_is_quiet(here: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(ROOT / "converters/caffe2torch.py"), "v2.caffemodel", "--list"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_writing_leaves_nothing(number: int, status: int, here: Path) -> None:
    """The signal comes while the temporary file is open."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv.pop(1));"
        "import caffe_port.formats.safetensors as s;"
        "s.write_array = lambda *a: (print('writing', flush=True), time.sleep(60));"
        "from caffe_port.tools.caffe2torch import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(ROOT), "v2.caffemodel", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert list(here.glob(".v2.safetensors.*.tmp"))
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in err
    assert not list(here.glob("*.safetensors")) + list(here.glob(".*"))
