"""Solver states, mean images, and the atomic writer."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from caffe_port.errors import FileError, FormatError, ShapeError
from caffe_port.formats import open_weights
from caffe_port.formats.atomic import atomic_path, atomic_write
from caffe_port.formats.meanfile import read_mean, write_mean
from caffe_port.formats.solverstate import read_solverstate
from caffe_port.schema import SCHEMA

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(pattern: str) -> list:
    """The files of ../shared that match, as test parameters; one that is skipped where there are none."""
    missing = [pytest.param(None, marks=pytest.mark.skip(reason="../shared is not here"), id=pattern)]
    return [pytest.param(p, id=str(p.relative_to(SHARED))) for p in sorted(SHARED.glob(pattern))] or missing


# -- solver states and mean images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", shared("**/*.solverstate"))
def test_solverstate(path: Path) -> None:
    state, oracle = read_solverstate(path), SCHEMA.SolverState()
    oracle.ParseFromString(path.read_bytes())
    assert (state.iter, state.learned_net, state.current_step) == (oracle.iter, oracle.learned_net, oracle.current_step)
    assert len(state.history) == len(oracle.history) > 0
    for array, blob in zip(state.history, oracle.history, strict=True):
        assert array.shape == (tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width))
        np.testing.assert_array_equal(array.ravel(), np.array(blob.data, np.float32))
    with pytest.raises(FormatError, match=oracle.learned_net):
        open_weights(path)


@pytest.mark.parametrize("path", shared("**/*.solverstate.h5"))
def test_solverstate_in_hdf5(path: Path) -> None:
    state = read_solverstate(path)
    with h5py.File(path) as file:
        assert (state.iter, state.current_step) == (file["iter"][0], file["current_step"][0])
        assert state.learned_net.encode() == file["learned_net"][()]
        assert len(state.history) == len(file["history"])
        for i, array in enumerate(state.history):
            np.testing.assert_array_equal(array, file[f"history/{i}"][()])
    with pytest.raises(FormatError, match=state.learned_net):
        open_weights(path)


def test_wrong_solverstates(tmp_path: Path) -> None:
    path = tmp_path / "x"
    cases = [
        (SCHEMA.NetParameter(layer=[SCHEMA.LayerParameter(name="a")]).SerializeToString(), "found a caffemodel"),
        (b"", "empty"),
        (b"<html>", "web page"),
    ]
    for content, says in cases:
        path.write_bytes(content)
        with pytest.raises(FormatError, match=says):
            read_solverstate(path)
    with h5py.File(path, "w") as file:
        file["iter"] = [1]
    with pytest.raises(FormatError, match="history"):
        read_solverstate(path)
    with h5py.File(path, "w") as file:
        file["iter"], file["history/1"] = [1], np.zeros(1)
    with pytest.raises(FormatError, match="no array 0"):
        read_solverstate(path)


def test_mean_image(tmp_path: Path) -> None:
    path, mean = tmp_path / "mean.binaryproto", np.arange(30, dtype=np.float32).reshape(3, 2, 5)
    write_mean(path, mean)
    oracle = SCHEMA.BlobProto()
    oracle.ParseFromString(path.read_bytes())
    assert (oracle.num, oracle.channels, oracle.height, oracle.width) == (1, 3, 2, 5)
    assert list(oracle.data) == list(range(30))
    np.testing.assert_array_equal(read_mean(path), mean)
    modern = SCHEMA.BlobProto(data=range(30), shape=SCHEMA.BlobShape(dim=[3, 2, 5]))
    path.write_bytes(modern.SerializeToString())
    np.testing.assert_array_equal(read_mean(path), mean)
    with pytest.raises(FormatError, match="a mean image"):
        open_weights(path)
    with pytest.raises(ShapeError, match="channels x height x width"):
        write_mean(path, mean[0], overwrite=True)
    flat = SCHEMA.BlobProto(data=range(30), shape=SCHEMA.BlobShape(dim=[30]))
    path.write_bytes(flat.SerializeToString())
    with pytest.raises(FormatError, match=r"\(30,\)"):
        read_mean(path)
    path.write_bytes(SCHEMA.NetParameter(layer=[SCHEMA.LayerParameter(name="a")]).SerializeToString())
    with pytest.raises(FormatError, match="found a caffemodel"):
        read_mean(path)


# -- the atomic writer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_left_of_a_failed_write(error: type[BaseException], there: bool, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if there:
        path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(path, overwrite=True) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([b"old"] if there else [])


def test_a_full_disk_is_a_file_error(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "out") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"x")

    with pytest.raises(FileError, match="No space left"):
        write()
    assert not list(tmp_path.iterdir())


def test_invalid_outputs(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    for path, says in (("there", "-f"), ("none/out", "no folder"), ("", "a folder")):
        with pytest.raises(FileError, match=says), atomic_write(tmp_path / path):
            pass


def test_replacing_keeps_permissions_and_follows_links(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    with atomic_write(link, overwrite=True, durable=True) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o600
