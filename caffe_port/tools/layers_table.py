"""layers_table: the supported layers as a table, from the registry."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from caffe_port.errors import FormatError
from caffe_port.tools.cli import Parser, run

__all__ = ["main", "table"]

_HEAD = """\
# Layers

Written from the registry; after a change:
`.venv/bin/python -m caffe_port.tools.layers_table --cases tests/reference > docs/layers.md`

*forward* and *backward* count the reference cases of real Caffe in `tests/reference` that the layer takes part in;
"none" means that the layer has no gradient. *bvlc* is BVLC Caffe 1.0, *noh* the fork of DecoupledNet and DeconvNet.

"""
_COLUMNS = ("layer", "dialects", "bottoms", "tops", "forward", "backward", "what it does")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser("layers_table", "Print the supported layers as a Markdown page.")
    parser.add_argument("--cases", type=Path, metavar="DIR", help="suites of reference cases to count")
    run(lambda arguments: print(table(arguments.cases), end=""), parser, argv)


def table(cases: Path | None = None) -> str:
    """The page: a row for each registered layer.

    Args:
        cases: a folder of suites, each with a manifest.json that says of every case its ``types`` of layers and whether
            it ran ``backward``.

    Raises:
        FormatError: a manifest is no JSON of that form.
    """
    from caffe_port.layers import REGISTRY, Layer

    forward, backward = count(cases) if cases else (Counter[str](), Counter[str]())

    def row(name: str, cls: type[Layer]) -> Iterator[str]:
        yield f"`{name}`"
        yield " ".join(cls.dialects)
        yield span(cls.bottoms)
        yield span(cls.tops)
        yield str(forward[name])
        yield "none" if set(cls.labels) >= set(range(cls.bottoms[0])) else str(backward[name])
        yield summary(cls.__doc__ or "")

    rows = [
        _COLUMNS,
        ("---",) * len(_COLUMNS),
        *(row(name, REGISTRY[name]) for name in sorted(REGISTRY, key=str.lower)),
    ]
    return _HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def count(cases: Path) -> tuple[Counter[str], Counter[str]]:
    """How many cases each type takes part in, forward and backward."""
    forward, backward = Counter[str](), Counter[str]()
    for path in sorted(cases.glob("*/manifest.json")):
        try:
            for case in json.loads(path.read_text(encoding="utf-8")).values():
                forward.update(case["types"])
                backward.update(case["types"] if case["backward"] else ())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise FormatError(str(path), "something else", expected="cases with their types and backward") from None
    return forward, backward


def span(bounds: tuple[int, int | None]) -> str:
    """ "1", "1-3", or "1+" without an upper bound."""
    low, high = bounds
    return f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"


def summary(docstring: str) -> str:
    """The first sentence, safe inside a table."""
    first = re.split(r"(?<=\.)\s", " ".join(docstring.split()), maxsplit=1)[0]
    return first.replace("``", "`").replace("|", "\\|").replace("*", "\\*").removesuffix(".")


if __name__ == "__main__":
    main()
