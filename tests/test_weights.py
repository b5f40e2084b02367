"""weights/published.json agrees with our definitions, and weights/README.md with published.json."""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatch
from math import prod
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_port.definitions.shapes import infer
from caffe_port.tools.build import definitions

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = json.loads((ROOT / "weights" / "published.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry["file"])
def test_parameters_are_counted_from_the_definition(entry):
    """``only`` names the layers that the net takes from the file, ``besides`` what else the file is known to hold."""
    params = infer(definitions()[entry["net"].removeprefix("prototxt/")]).params
    taken = [name for name in params if any(fnmatch(name, only) for only in entry.get("only", ["*"]))]
    count = sum(prod(shape) for name in taken for shape in params[name]) + sum(entry.get("besides", {}).values())
    assert count == entry["parameters"]
    assert 4 * count == entry["bytes_at_least"]
    assert entry["url"].endswith("/" + entry["file"])


def test_readme_has_the_same_table():
    rows = [
        line for line in (ROOT / "weights" / "README.md").read_text(encoding="utf-8").splitlines() if "](http" in line
    ]
    rows = [row for row in rows if row.startswith("| [")]
    assert len(rows) == len(PUBLISHED)
    for row, entry in zip(rows, PUBLISHED, strict=True):
        for said in (
            f"[{entry['file']}]({entry['url']})",
            f"(../{entry['net']})",
            entry["holds"],
            f"| {entry['parameters']:,} | {entry['bytes_at_least']:,} |",
        ):
            assert said in row


def test_vgg16_has_its_well_known_count():
    (vgg,) = (entry for entry in PUBLISHED if entry["file"] == "VGG_ILSVRC_16_layers.caffemodel")
    assert vgg["parameters"] == 138_357_544
