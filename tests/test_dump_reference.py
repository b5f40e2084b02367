"""dump_reference.py inside many a pycaffe: parity understands what it writes, wrong input is refused."""

from __future__ import annotations

import ast
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from reference import Case, cases

import caffe_port
from caffe_port.tools import parity

SCRIPT = Path(__file__).resolve().parents[1] / "converters" / "dump_reference.py"


def load() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("dump_reference", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dump = load()


class Phased:
    """Whose phase belongs to the process, as until 2014: a net has the one that was set before it was built."""

    def __init__(self) -> None:
        self.phase, self.built = "TRAIN", list[str]()

    def set_phase_test(self) -> None:
        self.phase = "TEST"

    def set_phase_train(self) -> None:
        self.phase = "TRAIN"

    def set_mode_cpu(self) -> None:
        pass

    def net(self, prototxt: str, weights: str | None = None) -> caffe_port.Net:
        self.built.append(self.phase)
        return caffe_port.Net(prototxt, phase=self.phase, weights=weights)


def newest() -> types.SimpleNamespace:
    """BVLC Caffe 1.0 and everything since 2015."""
    phases = {"TEST": caffe_port.TEST, "TRAIN": caffe_port.TRAIN}
    return types.SimpleNamespace(Net=caffe_port.Net, set_mode_cpu=lambda: None, **phases)


def between() -> types.SimpleNamespace:
    """Late 2014: the module has the phase."""
    phased = Phased()
    setters = {name: getattr(phased, name) for name in ("set_phase_test", "set_phase_train", "set_mode_cpu")}
    return types.SimpleNamespace(Net=phased.net, phased=phased, **setters)


def oldest() -> types.SimpleNamespace:
    """The fork: any net has the phase, which is the process's."""
    phased = Phased()

    def net(prototxt: str, weights: str | None = None) -> caffe_port.Net:
        made = phased.net(prototxt, weights)
        for name in ("set_phase_test", "set_phase_train", "set_mode_cpu"):
            object.__setattr__(made, name, getattr(phased, name))
        return made

    return types.SimpleNamespace(Net=net, phased=phased)


PYCAFFES: list[Callable[[], types.SimpleNamespace]] = [newest, between, oldest]


def run(monkeypatch: pytest.MonkeyPatch, pycaffe: types.SimpleNamespace | None, argv: Sequence[str]) -> int:
    monkeypatch.setitem(sys.modules, "caffe", pycaffe)
    return dump.main([str(a) for a in argv])


def judged(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        parity.main(argv)
    return ended.value.code


NET = """
name: "both phases"
force_backward: true
input: "data" input_dim: 2 input_dim: 3 input_dim: 9 input_dim: 11
layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layers { name: "norm" type: BN bottom: "conv" top: "conv"
  bn_param { scale_filler { type: "constant" value: 1 } } include { phase: TRAIN } }
layers { name: "relu" type: RELU bottom: "conv" top: "conv" top: "positive" }
layers { name: "pool" type: POOLING bottom: "conv" top: "pool" top: "mask" pooling_param { kernel_size: 2 stride: 2 } }
layers { name: "score" type: INNER_PRODUCT bottom: "pool" top: "score"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    return tmp_path


@pytest.mark.parametrize("phase", ["TEST", "TRAIN"])
@pytest.mark.parametrize("pycaffe", PYCAFFES)
def test_every_pycaffe(pycaffe, phase: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    caffe = pycaffe()
    assert run(monkeypatch, caffe, ["net.prototxt", "--phase", phase, "--params", "--backward"]) == 0
    assert f"parity --phase {phase} net.prototxt" in capsys.readouterr().out
    if caffe.__dict__.get("phased"):
        assert caffe.phased.built[-1] == phase
    with np.load("net.npz") as arrays:
        keys = {key.split("/")[0] for key in arrays.files}
        assert ("param/norm/0" in arrays) == (phase == "TRAIN")
        assert {"switch/mask", "out/positive", "seed/score", "diff/data"} <= set(arrays.files)
        assert "switch/positive" not in arrays
        assert "out/data" not in arrays, "it is as it was put in"
    assert keys == {"in", "param", "out", "switch", "seed", "diff", "pdiff"}
    assert judged("net.prototxt", "net.npz", "--phase", phase) == 0


@pytest.mark.parametrize("case", [c for c in cases("noh_nets", "noh") if c.name == "deconvnet_deploy"], ids=str)
def test_the_references_own_numbers(case: Case, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes of a net with a reference is what the reference holds: the keys, and each of them close."""
    reference = case.reference
    Path("net.prototxt").write_text(case.prototxt if "\n" in case.prototxt else Path(case.prototxt).read_text())
    net = caffe_port.Net("net.prototxt")
    for key in reference.keys("param"):
        layer, _, i = key.removeprefix("param/").rpartition("/")
        net.params[layer][int(i)].data[...] = reference[key]
    net.save("net.caffemodel")
    np.save("data.npy", reference["in/data"])
    argv = ["net.prototxt", "net.caffemodel", "--input", "data=data.npy", "--whole", "30000"]
    assert run(monkeypatch, newest(), argv) == 0
    with np.load("net.npz") as ours:
        shared = [key for key in reference.keys("out", "sample", "moments", "switch") if key in ours.files]
        assert len(shared) > 0.9 * len(ours.files)
        for key in shared:
            scale = np.abs(reference[key]).max() or 1
            assert np.mean(np.abs(ours[key] - reference[key].astype(float)) > 1e-5 * scale) <= 1e-3, key


def test_large_blobs_are_sampled(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, newest(), ["net.prototxt", "--params", "--whole", "100"]) == 0
    with np.load("net.npz") as arrays:
        assert arrays["sample/conv"].shape == (4096,)
        assert arrays["moments/conv"].shape == (4,)
        assert "out/conv" not in arrays
        assert "out/score" in arrays
    assert judged("net.prototxt", "net.npz") == 0


def test_statistics_that_forward_changes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("net.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }\n'
        'layer { name: "norm" type: "BatchNorm" bottom: "x" top: "y" }'
    )
    assert run(monkeypatch, newest(), ["net.prototxt", "--params", "--phase", "TRAIN"]) == 0
    with np.load("net.npz") as arrays:
        assert [key for key in arrays.files if key.startswith("after/")] == [f"after/norm/{i}" for i in range(3)]
    assert judged("net.prototxt", "net.npz", "--phase", "TRAIN") == 0


def test_given_inputs_may_have_another_batch(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("data.npy", np.random.default_rng(0).standard_normal((5, 3, 9, 11)))
    assert run(monkeypatch, newest(), ["net.prototxt", "--params", "--input", "data=data.npy"]) == 0
    with np.load("net.npz") as arrays:
        assert arrays["out/score"].shape[0] == 5
    assert judged("net.prototxt", "net.npz") == 0


@pytest.mark.parametrize("width", [2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("ceil", [True, False])
def test_switches_are_found_in_planes_of_any_width(width: int, ceil: bool) -> None:
    rng = np.random.default_rng(width)
    h, w = 6, width
    ph, pw = -(-h // 2), -(-w // 2) if ceil else w // 2
    y = np.minimum(2 * np.arange(ph)[:, None] + rng.integers(0, 2, (3, 2, ph, pw)), h - 1)
    x = np.minimum(2 * np.arange(pw) + rng.integers(0, 2, (3, 2, ph, pw)), w - 1)
    found = dump.window_switches((y * w + x).astype(np.float32))
    expected = 2 * (y - 2 * np.arange(ph)[:, None]) + x - 2 * np.arange(pw)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "data",
    [
        np.ones((2, 3, 4, 5)),
        np.arange(120.0).reshape(2, 3, 4, 5),
        np.full((1, 1, 2, 2), np.nan),
        np.zeros((2, 3, 1, 1)),
    ],
    ids=["ones", "counting", "not numbers", "one window"],
)
def test_what_is_not_a_switch(data: np.ndarray) -> None:
    assert dump.window_switches(data) is None


# -- the file itself ---------------------------------------------------------------------------------------------------


def test_one_file_that_needs_numpy_and_pycaffe_only() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    names = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "argparse", "os", "re", "sys", "tempfile", "numpy", "caffe"}


def test_syntax_of_python_2() -> None:
    """What Python 2.7 cannot parse does not occur (it was run there, too)."""
    text = SCRIPT.read_text(encoding="utf-8")
    assert text.isascii(), "2.7 wants a declaration otherwise"
    tree = ast.parse(text, feature_version=(3, 4))
    new = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Nonlocal, ast.YieldFrom, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        assert not isinstance(node, new), ast.dump(node)
        if isinstance(node, ast.FunctionDef):
            assert not node.args.kwonlyargs
            assert node.returns is None
            assert not any(argument.annotation for argument in node.args.args)
        if isinstance(node, ast.Call):
            assert not any(isinstance(argument, ast.Starred) for argument in node.args[:-1])
            assert sum(keyword.arg is None for keyword in node.keywords) <= 1
        if isinstance(node, (ast.List, ast.Tuple, ast.Dict)):
            assert not any(isinstance(e, ast.Starred) for e in getattr(node, "elts", ()))
            assert None not in getattr(node, "keys", ())
        if isinstance(node, ast.Raise):
            assert node.cause is None


# -- wrong input -------------------------------------------------------------------------------------------------------

WRONG = [
    (["none.prototxt"], "none.prototxt: no such file"),
    (["net.prototxt", "none.caffemodel"], "none.caffemodel: no such file"),
    (["net.prototxt", "-o", "there.npz"], "there.npz: exists already; pass -f to overwrite it"),
    (["net.prototxt", "-o", "none/out.npz"], "there is no folder"),
    (["net.prototxt", "--input", "data"], "--input data: expected BLOB=FILE.npy"),
    (["net.prototxt", "--input", "data=none.npy"], "none.npy: not an array that numpy saved"),
    (["net.prototxt", "--input", "data=net.prototxt"], "net.prototxt: not an array that numpy saved"),
    (["net.prototxt", "--input", "data=text.npy"], "text.npy: expected one array of numbers"),
    (["net.prototxt", "--input", "data=there.npz"], "there.npz: expected one array of numbers"),
    (["net.prototxt", "--input", "dat=flat.npy"], "no input dat; this net's are: data"),
    (["net.prototxt", "--input", "data=flat.npy"], "input data: the array's shape is (3,), the net's (2, 3, 9, 11)"),
    (["still.prototxt", "--backward"], "backward changed nothing: add `force_backward: true` to the prototxt"),
]


@pytest.mark.parametrize(("argv", "says"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_wrong_input(argv: list[str], says: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    Path("still.prototxt").write_text(NET.replace("force_backward: true", ""))
    np.save("flat.npy", np.ones(3))
    np.save("text.npy", np.array(["a"]))
    np.savez("there.npz", a=np.ones(3))
    before = sorted(here.iterdir())
    assert run(monkeypatch, newest(), argv) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.startswith("dump_reference.py: error: ") or ": error: " in said.err
    assert said.err.count("\n") == 1
    assert sorted(here.iterdir()) == before


def test_no_pycaffe(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(monkeypatch, None, ["net.prototxt"]) == 2
    assert "no pycaffe: " in capsys.readouterr().err


def test_interrupted_while_writing_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dump.np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, newest(), ["net.prototxt"])
    assert [p.name for p in here.iterdir()] == ["net.prototxt"]
