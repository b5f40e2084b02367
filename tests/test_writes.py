"""What a definition makes layers write is written only where that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import caffe_port
from caffe_port.errors import CaffeError
from caffe_port.net import Net
from caffe_port.schema.plugins import load_plugin
from caffe_port.solver import Solver
from caffe_port.tools import caffe

INPUT = 'layer { name: "x" type: "DummyData" top: "x" top: "t" dummy_data_param { shape { dim: 2 } } }'
WRITERS = {
    "HDF5Output": 'layer { name: "o" type: "HDF5Output" bottom: "x" bottom: "t"'
    ' hdf5_output_param { file_name: "out" } }',
    "MatWrite": 'layer { name: "o" type: "MatWrite" bottom: "x" bottom: "t" mat_write_param { prefix: "out" } }',
}
DIALECTS = {"HDF5Output": "bvlc", "MatWrite": "deeplab2"}


def solver_of(net: str) -> str:
    Path("net.prototxt").write_text(net)
    return 'net: "net.prototxt" base_lr: 1 lr_policy: "fixed" max_iter: 1 solver_mode: CPU'


WAYS: dict[str, Callable[[str, str], object]] = {
    "Net": lambda net, dialect: Net(net, dialect=dialect)(),
    "pycaffe's Net": lambda net, dialect: caffe_port.Net(net, dialect=dialect).forward(),
    "the solver": lambda net, dialect: Solver(solver_of(net), dialect=dialect),
}


@pytest.mark.parametrize("type", WRITERS)
@pytest.mark.parametrize("way", WAYS)
def test_refused_unless_allowed(type: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAFFE_PORT_ALLOW_WRITES", raising=False)
    with pytest.raises(CaffeError, match=r"it writes 'out'; .*allow_writes=True, --allow-writes, or CAFFE_PORT_") as e:
        WAYS[way](INPUT + WRITERS[type], DIALECTS[type])
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("out*"))
    monkeypatch.setenv("CAFFE_PORT_ALLOW_WRITES", "0")
    caffe_port.allow_writes()
    if way != "the solver":
        WAYS[way](INPUT + WRITERS[type], DIALECTS[type])
        assert list(tmp_path.glob("out*"))
    caffe_port.allow_writes(False)


def test_an_argument_overrides_the_process_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAFFE_PORT_ALLOW_WRITES", "1")
    with pytest.raises(CaffeError, match="it writes"):
        Net(INPUT + WRITERS["HDF5Output"], allow_writes=False)
    monkeypatch.delenv("CAFFE_PORT_ALLOW_WRITES")
    net = caffe_port.Net(INPUT + WRITERS["HDF5Output"], allow_writes=True)
    with torch.no_grad():
        net()
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_command(
    allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAFFE_PORT_ALLOW_WRITES", "")
    Path("net.prototxt").write_text(INPUT + WRITERS["HDF5Output"])
    with pytest.raises(SystemExit) as e:
        caffe.main(["time", "--model", "net.prototxt", "--iterations", "1", *["--allow-writes"] * allowed])
    error = capsys.readouterr().err
    assert ("--allow-writes" in error) == (not allowed), error
    assert (e.value.code == 2) or allowed


def test_a_plugin_that_leaves(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("import sys\n\nsys.exit(3)\n")
    with pytest.raises(CaffeError, match=r"p\.py:3: SystemExit: 3"):
        load_plugin(tmp_path / "p.py")
