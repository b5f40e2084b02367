"""prepare that is interrupted, terminated or fails leaves the folders as they were."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import port

from caffe_port.segmentation import lists
from caffe_port.segmentation.atomic_folder import Outputs
from caffe_port.segmentation.folder import Folder
from caffe_port.segmentation.lists import Level, Plan, prepare
from caffe_port.segmentation.shapes import ShapeSet, make_shapes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupted") / "set"
    make_shapes(path, ShapeSet(images=60, val=4, classes=3, size=64, seed=4))
    return path


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def several_objects_are_there(out: Path) -> bool:
    return len(list(out.glob("VOC2012/.VOC_OBJECT_train.*.tmp/*.png"))) > 3


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing(number: int, status: int, workers: int, source: Path, tmp_path: Path) -> None:
    """Sent when pictures of objects are being written, to the command alone, as ``kill`` does."""
    before, out = contents(source), tmp_path / "new" / "lists"
    command = ["prepare", str(source), "-o", str(out), "--levels", "Full", "--workers", str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-m", "caffe_port", *command], stderr=subprocess.PIPE, text=True, env=environment
    )
    end = time.monotonic() + 100
    while not several_objects_are_there(out) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    assert contents(source) == before


def interrupted(at: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A signal when the ``at``-th list is renamed; how many there were."""
    count, real = [0], Path.replace

    def replace(self: Path, target: Path) -> Path:
        count[0] += ".txt" in self.name
        if count[0] == at:
            signal.raise_signal(signal.SIGINT)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    return lambda: count[0]


def test_a_signal_while_lists_are_put_in_place_leaves_all_of_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(levels=(Level("Full"),), crops=2, proposals=2)
    prepare(Folder(source), tmp_path / "a", plan)
    renamed = interrupted(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        prepare(Folder(source), tmp_path / "b", plan)
    assert renamed() > 2
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


def test_an_error_leaves_the_folder_as_it_was(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists and links of an earlier run, of another folder of pictures, are there again."""
    other = tmp_path / "other"
    make_shapes(other, ShapeSet(images=5, val=2, classes=3, size=48, seed=5))
    plan = Plan(levels=(Level("Full"),), crops=2, proposals=2)
    prepare(Folder(other), tmp_path / "out", plan)
    before = contents(tmp_path / "out")

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lists, "_pixels", fails)
    with pytest.raises(KeyboardInterrupt):
        prepare(Folder(source), tmp_path / "out", plan, overwrite=True)
    assert contents(tmp_path / "out") == before


def test_what_others_put_there_stays(tmp_path: Path) -> None:
    def fails() -> None:
        with Outputs(tmp_path / "out", [], overwrite=False):
            (tmp_path / "out" / "mine").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert contents(tmp_path / "out") == {"mine": b"x"}


@pytest.mark.parametrize("spoilt", [False, True])
def test_processes_under_torchrun_share_the_work(spoilt: bool, source: Path, tmp_path: Path) -> None:
    """The same files as from one process; or, with a mask that cannot be read, the same message and none."""
    source = Path(shutil.copytree(source, tmp_path / "set"))
    if spoilt:
        next((source / "SegmentationClass").glob("train_000031*")).write_bytes(b"no mask")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port()}"]
    done = {}
    for name, runner in (("one", ["-m"]), ("two", [*torchrun, "--master_addr=127.0.0.1", "-m"])):
        command = ["caffe_port.tools.prepare", "set", "-o", name, "--levels", "Full", "--crops", "3", "--workers", "1"]
        done[name] = subprocess.run(
            [sys.executable, *runner, *command],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
    one, two = done["one"], done["two"]
    if spoilt:
        assert one.returncode == 2
        assert two.returncode
        assert one.stderr.strip() in two.stderr
        assert not (tmp_path / "one").exists()
        assert not (tmp_path / "two").exists()
    else:
        assert one.returncode == two.returncode == 0, two.stderr
        assert one.stdout == two.stdout
        assert contents(tmp_path / "one") == contents(tmp_path / "two")
