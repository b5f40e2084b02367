"""Reference cases: numbers that the two real programs computed, and how close ours must come.

Cases lie in ``tests/reference`` (part of the repository) and, all of them, in ``../shared/reference`` where that is.
A case is a prototxt and an .npz whose keys ``caffe_port.tools.replay`` explains.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from slim import with_inputs

from caffe_port.tools.replay import Reference

EMBEDDED = Path(__file__).parent / "reference"
SHARED = Path(__file__).resolve().parents[2] / "shared"


@dataclass(frozen=True)
class Case:
    """One net with its numbers. ``prototxt`` is text or a path, as ``read_net`` takes it."""

    suite: str
    name: str
    prototxt: str
    npz: Path
    phase: str
    dialect: str
    forwards: int = 1
    random_seed: int | None = None

    def __str__(self) -> str:
        return f"{self.suite}/{self.name}"

    @property
    def reference(self) -> Reference:
        return Reference(self.npz, _noise(self.suite).get(self.name))


def folder(suite: str) -> Path | None:
    """The folder of a suite: the complete one if it exists, else its embedded part."""
    for root in (SHARED / "reference", EMBEDDED):
        if (root / suite).is_dir():
            return root / suite
    return None


@cache
def _noise(suite: str) -> dict[str, dict[str, float]]:
    where = folder(suite)
    path = where / "noise.json" if where else None
    return json.loads(path.read_text()) if path and path.exists() else {}


def _definition(where: Path, name: str, entry: dict[str, Any]) -> str:
    """A case's prototxt: a file with its numbers, or embedded as text or as arguments of our builder."""
    if "built" in entry:
        return with_inputs(**entry["built"], phase=entry["phase"], name=name)
    return entry.get("prototxt") or str(where / f"{name}.prototxt")


def definition(path: str) -> str | None:
    """The definition that ``../shared/PATH`` holds, as a path or as text; None where a clone alone lacks it."""
    for root in (SHARED, EMBEDDED.parent):
        if (root / path).exists():
            return str(root / path)
    suite, name = Path(path).parent.name, Path(path).stem
    manifest = EMBEDDED / suite / "manifest.json"
    entries = json.loads(manifest.read_text()) if manifest.exists() else {}
    return _definition(EMBEDDED / suite, name, entries[name]) if name in entries else None


def cases(suite: str, dialect: str) -> list[Case]:
    """The cases of a suite by its manifest; those whose .npz is not here are left out."""
    where = folder(suite)
    if where is None:
        return []
    manifest = json.loads((where / "manifest.json").read_text())
    return [
        Case(
            suite,
            name,
            _definition(where, name, entry),
            where / f"{name}.npz",
            entry["phase"],
            entry.get("dialect", dialect),
            entry.get("forwards", 1),
            entry.get("random_seed"),
        )
        for name, entry in sorted(manifest.items())
        if (where / f"{name}.npz").exists()
    ]


def needs_shared(path: str):
    """Skip, visibly, where ``../shared/PATH`` is not there."""
    suite = "/".join(Path(path).parts[:2])  # skips of one suite are reported in one line
    return pytest.mark.skipif(not (SHARED / path).exists(), reason=f"needs ../shared/{suite}")
