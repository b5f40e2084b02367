"""benchmarks/mutants.py: its mutants are changes of what they name, and it finds tests for them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("kind", "least"), [("flags", 70), ("facts", 400), ("constants", 80)])
def test_every_mutant_is_one_change(kind: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sys.modules.pop("mutants", None)
    import mutants

    made = list(mutants.KINDS[kind]())
    assert len(made) >= least
    for mutant in made:
        whole = (ROOT / mutant.path).read_bytes()
        end = mutant.start + len(mutant.old.encode())
        assert whole[mutant.start : end].decode() == mutant.old != mutant.new
        ast.parse(whole[: mutant.start] + mutant.new.encode() + whole[end:])
        if kind != "flags":
            assert mutants.types_of(mutant.owner), mutant
