"""Files of weights as four programs wrote them (tests/saved): ours of the same net and numbers have their bytes.

Each .caffemodel was written by BVLC Caffe (commit 9b891540), HyeonwooNoh/caffe, SSD's (commit 4817bf8b) or PSPNet's
(commit 798bdc9), as its folder says, for the prototxt beside it, by pycaffe's ``save`` in TEST, in TRAIN (``*_train``)
or as a snapshot of ``train.prototxt`` (``snap_*``; ``diff``: with snapshot_diff).
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from caffe_port.formats import open_weights, write_caffemodel
from caffe_port.net import Net
from caffe_port.schema import SCHEMA, upgrade_net
from caffe_port.tools import caffe2torch, torch2caffe

SAVED = Path(__file__).parent / "saved"
FILES = sorted(path for path in SAVED.glob("*/*.caffemodel") if path.stem != "v1")
HDF5 = sorted(SAVED.glob("*/*.caffemodel.h5"))


def ids(paths: list[Path]) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in paths]


def prototxt(path: Path) -> Path:
    return path.with_name(f"{'train' if path.name.startswith('snap') else path.name.partition('.')[0]}.prototxt")


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data that train.prototxt names, in the working directory; its numbers do not matter here."""
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("t.h5")
    with h5py.File("t.h5", "w") as file:
        file["data"], file["label"] = np.zeros((12, 4), np.float32), np.zeros(12, np.float32)


def net_of(path: Path) -> Net:
    phase = "TRAIN" if "train" in path.name or path.name.startswith("snap") else "TEST"
    return Net(prototxt(path), path, phase, dialect=path.parent.name)


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_a_net_saves_their_bytes(path: Path, tmp_path: Path) -> None:
    net, diffs = net_of(path), "diff" in path.stem
    if diffs:
        stored = {layer.name: layer.diffs for layer in open_weights(path).layers if layer.diffs}
        for _, layer in net.nodes:
            for name, diff in zip(layer.blob_names, stored.get(layer.name, ()), strict=True):
                layer.diff(name).copy_(torch.from_numpy(np.array(diff)).view_as(layer.diff(name)))
    net.save(tmp_path / "w.caffemodel", diffs=diffs)
    assert (tmp_path / "w.caffemodel").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_what_is_read_is_written_again(path: Path, tmp_path: Path) -> None:
    w = open_weights(path)
    write_caffemodel(tmp_path / "w", w.layers, name=w.name, generation=w.generation, definition=w.definition)
    assert (tmp_path / "w").read_bytes() == path.read_bytes()


TEST_PHASE = [path for path in FILES if "train" not in path.name and not path.name.startswith("snap")]


@pytest.mark.parametrize("path", TEST_PHASE, ids=ids(TEST_PHASE))
def test_there_and_back_by_the_commands(path: Path, tmp_path: Path) -> None:
    state, back, net = tmp_path / "w.safetensors", tmp_path / "w.caffemodel", str(prototxt(path))
    for command, arguments in (
        (caffe2torch, [str(path), "-o", str(state), "--prototxt", net]),
        (torch2caffe, [str(state), "-o", str(back), "--prototxt", net]),
    ):
        with pytest.raises(SystemExit) as e:
            command.main([*arguments, "-q", "--dialect", path.parent.name])
        assert not e.value.code
    assert back.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", HDF5, ids=ids(HDF5))
def test_hdf5_holds_what_theirs_holds(path: Path, tmp_path: Path) -> None:
    net_of(path).save(tmp_path / "w.caffemodel.h5")
    with h5py.File(path) as theirs, h5py.File(tmp_path / "w.caffemodel.h5") as ours:
        listed: list[dict] = [{}, {}]
        for file, into in ((theirs, listed[0]), (ours, listed[1])):
            file.visititems(lambda name, item, into=into: into.update({name: item}))
        assert listed[0].keys() == listed[1].keys()
        for name, item in listed[0].items():
            if isinstance(item, h5py.Dataset):
                mine = listed[1][name]
                assert (mine.shape, mine.dtype) == (item.shape, item.dtype)
                assert np.array_equal(mine[()], item[()])
            else:
                assert isinstance(listed[1][name], h5py.Group)


def test_a_definition_of_layers_keeps_its_form(tmp_path: Path) -> None:
    """BVLC's own is `layer`, which the fork does not read; ours has the same in `layers`."""
    path = SAVED / "bvlc" / "v1.caffemodel"
    net_of(path).save(tmp_path / "w.caffemodel")
    ours, theirs = SCHEMA.NetParameter(), SCHEMA.NetParameter()
    ours.ParseFromString((tmp_path / "w.caffemodel").read_bytes())
    theirs.ParseFromString(path.read_bytes())
    assert [len(ours.layers), len(ours.layer)] == [2, 0]
    upgraded = upgrade_net(ours).net
    for mine, their in zip(upgraded.layer, theirs.layer[1:], strict=True):
        their.ClearField("phase")
        for blob in (*mine.blobs, *their.blobs):
            for field in ("num", "channels", "height", "width", "shape"):
                blob.ClearField(field)
        assert mine == their
