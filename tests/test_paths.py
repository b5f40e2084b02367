"""Paths that may not be looked at: one line that names the path, from the interface in Python as from commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import caffe_port
from caffe_port.data.databases import open_records
from caffe_port.detection.objects import read_labels
from caffe_port.errors import FileError
from caffe_port.formats import open_weights, save_state_dict
from caffe_port.formats.atomic import check_input, check_output
from caffe_port.schema.plugins import load_plugin
from caffe_port.solver import Solver

NET = 'name: "n" layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 dim: 2 } } }'
LONG = "n" * 300
CLOSED = "closed/name"
CALLS: dict[str, Callable[[str], object]] = {
    "a definition": caffe_port.Net,
    "weights": lambda path: caffe_port.Net("net.prototxt", path),
    "weights, arrays": open_weights,
    "a .proto": lambda path: caffe_port.Net("net.prototxt", proto=path),
    "a plugin": load_plugin,
    "an input": check_input,
    "an output": lambda path: check_output(path, overwrite=True),
    "saving": lambda path: save_state_dict(path, {}, format="npz"),
    "a database": lambda path: open_records(path, "LMDB"),
    "names of classes": read_labels,
    "a solver": Solver,
    "a solver's net": lambda path: Solver(f'net: "{path}" base_lr: 1 lr_policy: "fixed"'),
}


@pytest.mark.parametrize("path", [LONG, CLOSED])
@pytest.mark.parametrize("what", CALLS)
def test_one_line_that_names_the_path(
    what: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    Path("closed").mkdir(mode=0)
    request.addfinalizer(lambda: (tmp_path / "closed").chmod(0o700))
    if path == CLOSED and os.access("closed", os.X_OK):
        pytest.skip("this user may enter every folder")
    with pytest.raises(FileError) as error:
        CALLS[what](path)
    assert path[:100] in str(error.value)
    assert "\n" not in str(error.value)
