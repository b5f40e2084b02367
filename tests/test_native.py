"""Kernels compiled on first use: where they are kept, and that nothing depends on a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from caffe_port import native
from caffe_port.execution import packing


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    return tmp_path / "caffe_port"


needs_compiler = pytest.mark.skipif(native.library("winograd") is None, reason="needs a C compiler")


@needs_compiler
def test_compiles_once(fresh: Path) -> None:
    assert native.library("winograd").winograd_forward
    (made,) = fresh.iterdir()
    assert made.suffix == ".so"
    before = made.stat()
    assert native.library("winograd") is not None
    assert (made.stat().st_ino, made.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@needs_compiler
def test_another_source_is_another_library(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.library("winograd")
    monkeypatch.setattr(native, "_FLAGS", ("-O1", *native._FLAGS[1:]))
    native.library("winograd")
    assert len([*fresh.iterdir()]) == 2


@pytest.mark.parametrize("name", ["CAFFE_PORT_NATIVE", "CC"])
def test_without_a_compiler_there_is_none(name: str, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0")
    assert native.library("winograd") is None
    assert not fresh.exists()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(native, "info", lines.append)
    return lines


def test_a_compiler_that_fails_is_none_and_told(fresh: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    assert native.library("winograd") is None
    assert not [*fresh.iterdir()]
    assert "did not compile winograd.c" in said[0]


def test_a_folder_that_others_can_write_to_is_not_used(fresh: Path, said: list[str]) -> None:
    fresh.mkdir(mode=0o777)
    fresh.chmod(0o777)
    assert native.library("winograd") is None
    assert not [*fresh.iterdir()]
    assert str(fresh) in said[0]


@needs_compiler
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 7, 5), (17, 4099, 130), (48, 260, 1040), (5, 2048, 3)])
def test_products_of_few_rows(rows: int, inputs: int, outputs: int, columns: bool) -> None:
    torch.manual_seed(0)
    x, scale, bias = torch.randn(rows, inputs), torch.randn(outputs), torch.randn(outputs)
    matrix = torch.randn(inputs, outputs).t() if columns else torch.randn(outputs, inputs)
    plain = x.double() @ matrix.double().t()
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(packing._by_kernel(matrix, scale, bias, True, x))
        results.append(packing._by_kernel(matrix, None, None, False, x))
    torch.set_num_threads(before)
    expected = ((plain * scale + bias).relu(), plain)
    for found, true in zip(results[:2], expected, strict=True):
        assert (found - true).abs().max() < 1e-6 * true.abs().max()
    assert all(torch.equal(results[i], results[i % 2]) for i in range(2, 6))


@pytest.mark.parametrize(
    ("first", "given", "expected"),
    [
        ("sys", {}, "10000"),
        ("sys", {"GOMP_SPINCOUNT": "5"}, "5"),
        ("sys", {"OMP_WAIT_POLICY": "active"}, "None"),
        ("torch", {}, "None"),
    ],
)
def test_waiting_threads_sleep_unless_the_user_or_torch_has_decided(
    first: str, given: dict[str, str], expected: str
) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = f"import {first}, caffe_port, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept | given)
    assert done.stdout.split() == [expected]
