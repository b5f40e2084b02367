"""Layers in Python: what they are given, when they are called, and that nothing runs unasked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffe_port
from caffe_port import TEST, TRAIN, CaffeError
from caffe_port.errors import LayerError
from caffe_port.tools import parity


def layer(cls: str, bottoms: str, tops: str, param_str: str = "", more: str = "", module: str = "python_layers") -> str:
    names = [*(f'bottom: "{b}"' for b in bottoms.split()), *(f'top: "{t}"' for t in tops.split())]
    python = f'python_param {{ module: "{module}" layer: "{cls}" param_str: "{param_str}" }}'
    return f'layer {{ name: "{cls}" type: "Python" {" ".join(names)} {python} {more} }}\n'


def definition(*layers: str, force: bool = True) -> str:
    head = f"force_backward: {str(force).lower()}\n"
    return (
        head + 'input: "x" input_shape { dim: 4 dim: 3 }\ninput: "t" input_shape { dim: 4 dim: 3 }\n' + "".join(layers)
    )


def net(*layers: str, phase: int = TRAIN, force: bool = True) -> Any:
    return caffe_port.Net(definition(*layers, force=force), phase, allow_python=True)


X = np.random.RandomState(0).standard_normal((4, 3)).astype(np.float32)
T = np.random.RandomState(1).standard_normal((4, 3)).astype(np.float32)


def test_data_and_diffs_pass_through() -> None:
    n = net(layer("Affine", "x", "y", "1"))
    out = n.forward(x=X, t=T)["y"]
    np.testing.assert_allclose(out, 3 * X + 1, rtol=1e-6)
    n.backward(y=T, t=T)
    np.testing.assert_allclose(n.blobs["x"].diff, 3 * T, rtol=1e-6)
    np.testing.assert_allclose(n.params["Affine"][0].diff, (T * X).sum(0), rtol=1e-5)


def test_calls_are_caffes() -> None:
    n = net(layer("Affine", "x", "y"))
    calls = n.layers[-1].calls
    assert calls == ["setup", "reshape"]
    n.forward()
    n.forward()
    assert [c for c in calls if c != "reshape"] == ["setup", "forward", "forward"]
    assert calls[-2:] == ["reshape", "forward"]
    n.backward()
    n.backward()
    assert calls[-2:] == ["backward [True]"] * 2


def test_the_users_object_is_the_layer() -> None:
    n = net(layer("Affine", "x", "y", "2.5"))
    user = n.layer_dict["Affine"]
    assert (type(user).__name__, user.type, user.param_str, user.shift) == ("Affine", "Python", "2.5", 2.5)
    assert user is n.layers[-1]
    assert "Python" in caffe_port.layer_type_list()


def test_parameters_are_saved_loaded_and_learned(tmp_path: Path) -> None:
    n = net(layer("Affine", "x", "y"))
    assert (n.params["Affine"][0].data == 3).all()
    assert list(n.state_dict()) == ["Affine.blob0"]
    n.layers[-1].blobs[0].data[...] = [1, 2, 4]
    n.save(tmp_path / "w.caffemodel")
    again = caffe_port.Net(
        definition(layer("Affine", "x", "y")), str(tmp_path / "w.caffemodel"), TEST, allow_python=True
    )
    assert again.params["Affine"][0].data.tolist() == [1, 2, 4]
    np.testing.assert_allclose(again.forward(x=X, t=T)["y"], X * [1, 2, 4], rtol=1e-6)
    again.params["Affine"][0].data[...] = 0
    again.copy_from(tmp_path / "w.caffemodel")
    assert again.layers[-1].blobs[0].data.tolist() == [1, 2, 4]


def test_a_loss_of_ones_own() -> None:
    n = net(layer("Affine", "x", "y"), layer("Distance", "y t", "d", more="loss_weight: 2"), force=False)
    n.forward(x=X, t=T)
    value = ((3 * X - T) ** 2).sum() / 8
    assert n.blobs["d"].data.shape == (1,)
    np.testing.assert_allclose(n.blobs["d"].data, value, rtol=1e-5)
    n.backward()
    np.testing.assert_allclose(n.params["Affine"][0].diff, ((3 * X - T) / 2 * X).sum(0), rtol=1e-4)
    assert n.layer_dict["Affine"].calls[-1] == "backward [False]"


def test_as_a_module_of_pytorch() -> None:
    n = net(layer("Affine", "x", "y", "1"), layer("Distance", "y t", "d", more="loss_weight: 2"))
    x, t = torch.from_numpy(X.copy()).requires_grad_(), torch.from_numpy(T.copy()).requires_grad_()
    n(x=x, t=t)["d"].sum().backward()
    difference = 3 * X + 1 - T
    np.testing.assert_allclose(x.grad, 3 * difference / 4, rtol=1e-4)
    np.testing.assert_allclose(t.grad, -difference / 4, rtol=1e-4)
    np.testing.assert_allclose(n.get_parameter("Affine.blob0").grad, (difference / 4 * X).sum(0), rtol=1e-4)
    n.double()
    assert n(x=x.detach().double(), t=t.detach().double())["d"].dtype == torch.float64


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_a_source_whose_shape_changes(phase: int) -> None:
    n = net(
        layer("Source", "", "n phase"),
        'layer { name: "p" type: "Power" bottom: "n" top: "p" power_param { scale: 2 } }',
        phase=phase,
    )
    for passes in (1, 2, 3):
        out = n.forward()
        assert out["p"].tolist() == [2 * i for i in range(passes)]
        assert n.blobs["n"].shape == (passes,)
        assert out["phase"] == phase
        assert out["phase"].shape == ()


def test_in_place_and_without_tops() -> None:
    n = net(
        'layer { name: "p" type: "Power" bottom: "x" top: "y" power_param { scale: 5 } }',
        layer("InPlace", "y", "y"),
        layer("Watcher", "y", ""),
    )
    given = X.copy()
    n.forward(x=given, t=T)
    np.testing.assert_allclose(n.blobs["y"].data, 5 * X + 1, rtol=1e-5)
    assert np.array_equal(n.blobs["x"].data, X)
    assert n.layer_dict["Watcher"].seen == [pytest.approx(float((5 * X + 1).sum()), rel=1e-5)]
    n.blobs["y"].diff[...] = 1
    n.backward(start="InPlace", end="p")
    assert (n.blobs["x"].diff == 10).all()


def test_shapes_follow_the_input() -> None:
    n = net(layer("Affine", "x", "y"))
    n.blobs["x"].reshape(2, 5, 3)
    n.reshape()
    assert n.blobs["y"].shape == (2, 5, 3)
    assert n.forward()["y"].shape == (2, 5, 3)


@pytest.mark.parametrize("where", ["setup", "reshape", "forward", "backward"])
def test_the_users_exceptions_are_passed_on(where: str) -> None:
    def run() -> None:
        n = net(layer("Faulty", "x", "y", where))
        n.forward()
        n.backward()

    with pytest.raises(ZeroDivisionError, match=where):
        run()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (layer("Half", "x", "y"), r":\d+: layer Half \(Python\): .*class Half without forward"),
        (layer("Foreign", "x", "y"), r"derived from caffe.Layer, found python_layers.Foreign"),
        (layer("Missing", "x", "y"), r"found python_layers.Missing: None"),
        (
            layer("Affine", "x", "y", module="no_such_module"),
            r"no Python module 'no_such_module'; put its folder on PYTHONPATH",
        ),
    ],
)
def test_what_is_not_a_layer(text: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        net(text)


@pytest.mark.parametrize(
    ("files", "module", "message"),
    [
        ({}, "lacking.inner.mine", "no Python module 'lacking'; put its folder on PYTHONPATH"),
        ({"lacks/__init__.py": ""}, "lacks.inner.mine", "no Python module 'lacks.inner'; put its folder"),
        ({"asks.py": "import caffe\n"}, "asks", "Python module 'asks', which imports caffe; .*install_as_caffe"),
        ({"older.py": "x = 1\nprint x\n"}, "older", r"'older', which is no Python 3 \(.*older.py:2: .*; bring it to"),
        (
            {"asks2.py": "import cPickle\n"},
            "asks2",
            "'asks2', which imports cPickle, a module that is not installed; inst",
        ),
        ({"leaves.py": "x = 1\nexit(3)\n"}, "leaves", r"'leaves', which fails \(.*: SystemExit: 3\); correct it"),
        ({"fails.py": "x = 1\ny = 1 / 0\n"}, "fails", r"which fails \(.*fails.py:2: ZeroDivisionError: division by ze"),
        ({}, "", "Python module '', which fails"),
    ],
)
def test_modules_that_cannot_be_imported(
    files: dict[str, str], module: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "caffe", raising=False)
    with pytest.raises(LayerError, match=message):
        net(layer("Affine", "x", "y", module=module))


def test_a_missing_gradient() -> None:
    n = net(layer("OneWay", "x", "y"))
    n.forward()
    with pytest.raises(LayerError, match="class OneWay without backward"):
        n.backward()
    with pytest.raises(LayerError, match="add_blob on a layer of type Power"):
        net('layer { name: "p" type: "Power" bottom: "x" top: "y" }').layers[-1].blobs.add_blob(3)


# -- nothing runs unasked ----------------------------------------------------------------------------------------------


def test_refused_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "harm.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("CAFFE_PORT_PYTHON_LAYERS", raising=False)
    text = definition(layer("Harm", "x", "y", module="harm"))
    for options in ({}, {"allow_python": False}):
        with pytest.raises(
            CaffeError, match=r"the code of Python module 'harm'; .*allow_python=True, --python-layers"
        ) as e:
            caffe_port.Net(text, TEST, **options)
        assert "\n" not in str(e.value)
    with pytest.raises(LayerError, match=r"which fails .*: it ran"):
        caffe_port.Net(text, TEST, allow_python=True)


def test_allowed_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFFE_PORT_PYTHON_LAYERS", "0")
    text = definition(layer("Affine", "x", "y"))
    with pytest.raises(CaffeError):
        caffe_port.Net(text)
    caffe_port.allow_python_layers()
    assert caffe_port.Net(text).forward()
    caffe_port.allow_python_layers(False)
    with pytest.raises(CaffeError):
        caffe_port.Net(text)


@pytest.mark.parametrize("allowed", [False, True])
def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], allowed: bool) -> None:
    prototxt, reference = tmp_path / "net.prototxt", tmp_path / "net.npz"
    prototxt.write_text(definition(layer("Affine", "x", "y", "1")))
    arrays = {"in/x": X, "in/t": T, "param/Affine/0": np.full(3, 3, np.float32), "out/y": 3 * X + 1}
    np.savez(reference, **arrays)
    with pytest.raises(SystemExit) as end:
        parity.main([str(prototxt), str(reference), *["--python-layers"] * allowed])
    assert end.value.code == (0 if allowed else 2)
    assert allowed or "--python-layers" in capsys.readouterr().err
