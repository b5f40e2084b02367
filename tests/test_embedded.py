"""The numbers that a clone carries are those of ../shared/reference, and few enough to carry."""

from __future__ import annotations

from pathlib import Path

import embed
import pytest
from google.protobuf import text_format
from reference import SHARED, needs_shared
from slim import with_inputs

from caffe_port.schema import SCHEMA

BUILT = [(suite, name, *order) for suite, chosen in embed.BUILT.items() for name, order in chosen.items()]


@needs_shared("reference")
def test_embedded_numbers_are_the_shared_ones() -> None:
    assert not embed.differing(embed.embedded()), "run python tests/embed.py"


@needs_shared("reference")
@pytest.mark.parametrize(("suite", "name", "path", "batch"), BUILT, ids=[row[1] for row in BUILT])
def test_built_definition_is_the_one_that_real_caffe_ran(suite: str, name: str, path: str, batch: int) -> None:
    phase = embed.read(suite, "manifest")[name]["phase"]
    theirs = (SHARED / "reference" / suite / f"{name}.prototxt").read_text(encoding="utf-8")
    ours, theirs = (
        text_format.Parse(text, SCHEMA.NetParameter())
        for text in (with_inputs(path, embed.WIDTH, batch, phase, name), theirs)
    )
    assert ours == theirs


def test_the_tests_stay_small() -> None:
    here = Path(__file__).parent
    size = sum(path.stat().st_size for path in here.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert size < 20e6
