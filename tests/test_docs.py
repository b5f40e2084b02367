"""The documents are correct: their commands run, their tables are current, their links exist.

A fenced block whose first line ends in ``run`` is run, in a folder with ``net.prototxt``, ``model.caffemodel`` and
``reference.npz``, and with a slim DecoupledNet: ``deploy.prototxt``, ``trained.caffemodel``, ``inference.caffemodel``.
One that ends in ``prints`` is run, too, and the listing behind it shows lines that it prints; one that ends in
``fails`` ends with status 2, and the listing is all that it says. One that names a file of docs/ shows that file.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from reference import EMBEDDED
from segment_nets import DEPLOY, slim
from slim import narrow, with_inputs

import caffe_port
from caffe_port.schema.plugins import load_plugin

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("tests/*/*.md")])
EXAMPLES = ROOT / "docs" / "examples"


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    info: str
    text: str
    listing: str
    """What is indented behind it."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a document."""
    text = page.read_text(encoding="utf-8")
    for fence in re.finditer(r"^```(\w+)? ?(.*)\n((?s:.*?))^```\n((?:\n|    .*\n)*)", text, re.MULTILINE):
        yield Block(page, text.count("\n", 0, fence.start()) + 1, fence[1] or "", *fence.group(2, 3, 4))


BLOCKS = [block for page in PAGES for block in blocks(page)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as the documents suppose: the repository's, with a net, its weights and a reference."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("caffe_port", "converters", "prototxt", "docs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (folder / "bin" / "caffe-port").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m caffe_port "$@"\n')
    for program in (folder / "bin").iterdir():
        program.chmod(0o755)
    (folder / "net.prototxt").write_text(with_inputs("decouplednet/fp_bp_network.prototxt", "1/32", 0, "TEST"))
    (folder / "reference.npz").symlink_to(EMBEDDED / "noh_nets" / "decouplednet_fp_bp.npz")
    net = caffe_port.Net(folder / "net.prototxt")
    with np.load(folder / "reference.npz") as arrays:
        for layer, blobs in net.params.items():
            for i, blob in enumerate(blobs):
                blob.data[...] = arrays[f"param/{layer}/{i}"]
    net.save(folder / "model.caffemodel")
    (folder / "deploy.prototxt").write_text(str(narrow(DEPLOY, "1/32")))
    for name in ("trained.caffemodel", "inference.caffemodel"):
        slim(found=[1, 3]).save(folder / name)
    return folder


def run(block: Block, folder: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    for item in folder.iterdir():  # files are copied: a block may write others of their names
        if item.is_dir():
            (tmp_path / item.name).symlink_to(item)
        else:
            shutil.copyfile(item, tmp_path / item.name)
    command = (
        ["bash", "-euo", "pipefail", "-c", block.text] if block.language == "sh" else [sys.executable, "-c", block.text]
    )
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "0"}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.info == "run"], ids=str)
def test_block_runs(block: Block, folder: Path, tmp_path: Path) -> None:
    done = run(block, folder, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def rounded(text: str) -> list[str]:
    """The lines without their blanks; errors and the worst blob, which depend on the processor, only as such."""
    lines = (" ".join(line.split()) for line in text.splitlines() if line.strip())
    return [
        re.sub(r"worst output \S+,", "worst output BLOB,", re.sub(r"\d\.\de-\d\d", "ERROR", line)) for line in lines
    ]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.info == "prints"], ids=str)
def test_block_prints_its_listing(block: Block, folder: Path, tmp_path: Path) -> None:
    if "export" in block.text:
        pytest.importorskip("onnxruntime")
    done = run(block, folder, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = [line for line in rounded(block.listing) if line != "..."]
    assert shown
    assert [line for line in shown if line not in rounded(done.stdout)] == [], done.stdout


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.info == "fails"], ids=str)
def test_block_says_its_error(block: Block, folder: Path, tmp_path: Path) -> None:
    done = run(block, folder, tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("caffe-port")]  # the others are progress
    expected = re.escape(" ".join(block.listing.split())).replace(r"\.\.\.\ ", ".*")
    assert re.fullmatch(expected, " ".join(" ".join(said).split())), done.stderr


@pytest.mark.parametrize("block", [block for block in BLOCKS if "/" in block.info], ids=str)
def test_block_shows_the_file(block: Block) -> None:
    assert block.text == (block.page.parent / block.info).read_text(encoding="utf-8")


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} <= {"sh", "python"}, "a plain listing is indented, not fenced"
    assert all(
        block.info in ("", "run", "prints", "fails") or (block.page.parent / block.info).is_file() for block in BLOCKS
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!\w+:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_layers_page_is_current() -> None:
    command = "python -m caffe_port.tools.layers_table --cases tests/reference > docs/layers.md"
    # in a process of its own: other tests' layers are registered in this one
    run = [sys.executable, "-m", "caffe_port.tools.layers_table", "--cases", str(EMBEDDED)]
    made = subprocess.run(run, capture_output=True, check=True, cwd=ROOT).stdout.decode()
    assert (ROOT / "docs" / "layers.md").read_text(encoding="utf-8") == made, command


@pytest.fixture(scope="module")
def interp() -> caffe_port.Net:
    load_plugin(EXAMPLES / "interp.py")
    return caffe_port.Net(EXAMPLES / "interp.prototxt", proto=EXAMPLES / "interp.proto", phase="TRAIN")


def test_example_layer_interpolates(interp: caffe_port.Net) -> None:
    """Every output pixel, from the formula of a bilinear surface whose corners are the input's corners."""
    interp.forward(data=np.random.RandomState(0).randn(1, 3, 5, 7))
    given, made = interp.blobs["conv"].data, interp.blobs["zoom"].data
    assert made.shape == (1, 2, 33, 49)
    y, x = np.linspace(0, 4, 33)[:, None], np.linspace(0, 6, 49)
    top, left = np.minimum(y.astype(int), 3), np.minimum(x.astype(int), 5)
    down, right = y - top, x - left
    upper = given[:, :, top, left] * (1 - right) + given[:, :, top, left + 1] * right
    lower = given[:, :, top + 1, left] * (1 - right) + given[:, :, top + 1, left + 1] * right
    np.testing.assert_allclose(made, upper * (1 - down) + lower * down, atol=1e-5)


def test_example_layer_has_its_gradient(interp: caffe_port.Net) -> None:
    """Each output pixel spreads its diff over four input pixels with weights of sum 1."""
    interp.forward(data=np.zeros((1, 3, 5, 7)))
    interp.backward(zoom=np.ones((1, 2, 33, 49)))
    assert interp.blobs["conv"].diff.sum() == pytest.approx(2 * 33 * 49)
    assert interp.params["conv"][1].diff == pytest.approx(np.full(2, 33 * 49))


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ("height: 3 width: 4", (3, 4)),
        ("shrink_factor: 2", (3, 4)),
        ("shrink_factor: 2 zoom_factor: 3", (7, 10)),
        ("pad_beg: -1 pad_end: -1 zoom_factor: 2", (5, 9)),
    ],
)
def test_example_layer_has_the_forks_sizes(interp: caffe_port.Net, fields: str, size: tuple[int, int]) -> None:
    text = f"""layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: [1, 2, 5, 7] }} }} }}
               layer {{ name: "i" type: "Interp" bottom: "x" top: "y" interp_param {{ {fields} }} }}"""
    net = caffe_port.Net(text, proto=EXAMPLES / "interp.proto")
    assert net(x=torch.zeros(1, 2, 5, 7))["y"].shape == (1, 2, *size)
