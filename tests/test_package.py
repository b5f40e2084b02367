"""The package installed from a wheel in a separate environment, outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from caffe_port.tools.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
NAMES = [command.name for group in COMMANDS.values() for command in group]
KINDS = ["py", "proto", "html", "css", "js"]
"""Endings of the package's own files."""
NEEDED = [
    "README.md",
    "LICENSE",
    "pyproject.toml",
    "setup.py",
    "caffe_port",
    "prototxt",
    "converters",
    "tests/reference/demo",
    "weights/demo",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of what it is made of, by the setuptools that is installed."""
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in NEEDED:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(ROOT / name), str(source / name)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=source, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment with the wheel, which finds the dependencies where these tests found them."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    packages = next(home.glob("lib/python*/site-packages"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(home / "bin" / "python"),
        "install",
        "-q",
        "--no-deps",
        str(wheel),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # A plain path: the .pth files there, an editable caffe_port's among them, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def run(installed: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "GLOG"))}
    environment["PATH"] = f"{installed}{os.pathsep}{environment['PATH']}"
    return subprocess.run(words, check=False, capture_output=True, text=True, cwd=cwd, env=environment, timeout=240)


def test_the_wheel_holds_code_data_and_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    published = {p.relative_to(ROOT / "prototxt").as_posix() for p in (ROOT / "prototxt").glob("*/*.prototxt")}
    assert {f"caffe_port/definitions/published/{path}" for path in published} <= names
    sources = {p.relative_to(ROOT).as_posix() for kind in KINDS for p in ROOT.glob(f"caffe_port/**/*.{kind}")}
    assert sources <= names
    assert {
        "caffe_port/py.typed",
        "caffe_port/view/vendor/LICENSE",
        "caffe_port/demo_data/weights.caffemodel",
        "caffe_port/demo_weights/shapes.npz",
        "caffe_port/scripts/dump_reference.py",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "prototxt/", "converters/", "weights/"))]
    assert "\nRequires-Dist: torch<3,>=2.4\n" in metadata
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert not [line for line in needs if "safetensors" in line or "matplotlib" in line]


def test_it_is_the_wheel_that_is_imported(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "python", "-c", "import caffe_port; print(caffe_port.__file__)", cwd=tmp_path)
    assert done.stdout.startswith(str(installed.parent)), done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_there(name: str, installed: Path, tmp_path: Path) -> None:
    done = run(installed, "caffe-port", name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: caffe-port {name} ")


def test_from_any_folder(installed: Path, tmp_path: Path) -> None:
    """The commands that read files of the package, and what the tutorial does with them."""
    for words in (
        ["caffe-port", "build", "--check"],
        ["caffe-port", "build", "-o", "nets", "--width", "1/32", "--input-size", "64", "fcn8s", "decouplednet"],
        ["caffe-port", "info", "--json", "nets/fcn8s/fcn-8s-pascal-deploy.prototxt"],
        ["caffe-port", "dump-reference"],
        ["caffe-port", "make-shapes", "-o", "mine", "--images", "4", "--val", "1", "--classes", "2", "--size", "48"],
        ["python", "-m", "caffe_port.tools.prepare", "mine", "-o", "lists", "--levels", "Full", "--crops", "1", "-q"],
        ["caffe-port", "demo-parity"],
        ["caffe-port", "caffe2torch", "demo_parity/decouplednet.safetensors", "--list"],
        ["caffe-port", "experiment", "--quick", "--plan"],
    ):
        done = run(installed, *words, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert (tmp_path / "dump_reference.py").read_bytes() == (ROOT / "converters" / "dump_reference.py").read_bytes()
