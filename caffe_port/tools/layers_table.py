"""layers_table: the supported layers as a Markdown table, from the registry."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from caffe_port.errors import FormatError
from caffe_port.tools.cli import FOLDER, Parser, run

if TYPE_CHECKING:
    from caffe_port.layers import Layer

__all__ = ["main", "table"]

_HEAD = """\
# Layers

Written from the registry; after a change:
`.venv/bin/python -m caffe_port.tools.layers_table --cases tests/reference > docs/layers.md`

*forward* and *backward* say whether the pass is compared with real Caffe's numbers, *cases* in which suites of
`tests/reference`, or "from source": known from the fork's code and tests of our own. "none" means that the layer has
no gradient. *onnx*, *pt2* and *py* say to which formats a net with the layer is exported in TEST: ONNX
([onnx.md](onnx.md)), a program of torch.export, a readable PyTorch file ([pytorch.md](pytorch.md)). The tests of the
exports compare them with the same numbers. *pt2* is tried with the cases: "no" means that torch.export refuses, nothing
that no case has the layer. *bvlc* is BVLC Caffe 1.0, with what several forks add and nothing clashes with; *noh* the
fork of DecoupledNet and DeconvNet. `AdaptiveBiasChannel`, `BiasChannel` and `UniqueLabel` are DeepLab's, in both.

"""
_SINGLE = ("bvlc_layers", "bvlc_corners", "noh_layers", "noh_corners", "segnet", "deeplab2", "ssd", "rcnn", "pspnet_bn")
"""Suites of nets around one layer."""

_COLUMNS = (
    *("layer", "dialects", "bottoms", "tops", "forward", "backward", "onnx", "pt2", "py", "cases", "what it does"),
)
_INPUTS = ("Input", "Parameter")
"""Layers that every format has as inputs or weights."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command; exits with 0, or 2 after an error."""
    parser = Parser("layers-table", "Print the supported layers as a Markdown page.", example="")
    parser.add_argument("--cases", type=Path, metavar="DIR", help="suites of reference cases to name")
    parser.reads("cases", kind=FOLDER)
    run(lambda arguments: print(table(arguments.cases), end=""), parser, argv)


def table(cases: Path | None = None) -> str:
    """The page: a row for each registered layer.

    Args:
        cases: a folder of suites, each with a manifest.json that gives for every case its ``types`` of layers and
            whether it ran ``backward``.

    Raises:
        FormatError: a manifest is not JSON of that form.
    """
    from caffe_port.layers import REGISTRY

    forward, backward = suites(cases) if cases else ({}, {})
    programs = traced(cases) if cases else {}

    def row(name: str, cls: type[Layer], dialects: Sequence[str]) -> Iterator[str]:
        def held(suites: dict[str, set[str]]) -> set[str]:
            """The suites that hold this layer; of one from source, another dialect's do not."""
            every = suites.get(name, set())
            return {suite for suite in every if suite.partition("_")[0] in dialects} if from_source(cls) else every

        yield f"`{name}`"
        yield " ".join(dialects)
        yield span(cls.bottoms)
        yield span(cls.tops)
        yield "yes" if held(forward) else ""
        yield "none" if not differentiable(cls) else "yes" if held(backward) else ""
        in_onnx, in_python = written(cls, dialects[0])
        yield "yes" if in_onnx else ""
        yield {True: "yes", False: "no", None: ""}[name in _INPUTS or programs.get(cls)]
        yield "yes" if in_python else ""
        yield " ".join(sorted(held(forward))) or ("from source" if from_source(cls) else "")
        yield summary(cls.__doc__ or "")

    rows = [
        _COLUMNS,
        ("---",) * len(_COLUMNS),
        *(
            row(name, cls, [d for d, other in REGISTRY[name].items() if other is cls])
            for name in sorted(REGISTRY, key=str.lower)
            for cls in dict.fromkeys(REGISTRY[name].values())
        ),
    ]
    return _HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def from_source(cls: type[Layer]) -> bool:
    """Whether a layer was checked only against its fork's code and by tests of this port."""
    return "rom source" in f"{sys.modules[cls.__module__].__doc__}{cls.__doc__}"


def differentiable(cls: type[Layer]) -> bool:
    """Whether some bottom can get a gradient."""
    fewest, most = cls.bottoms
    return most != 0 and not (fewest and set(range(fewest)) <= set(cls.labels))


def written(cls: type[Layer], dialect: str) -> tuple[bool, bool]:
    """Whether ONNX export and export to Python have a function for the layer in the dialect."""
    from caffe_port.dialects import DIALECTS
    from caffe_port.export import onnx_file, source_file  # noqa: F401
    from caffe_port.export.onnx_graph import OPERATORS
    from caffe_port.export.source_code import WRITERS

    lineage = (*DIALECTS[dialect].lineage, "")
    known = [any(name in table.get(cls.type, {}) for name in lineage) for table in (OPERATORS, WRITERS)]
    given = cls.type in _INPUTS
    return known[0] or given or cls.type == "PriorBox", known[1] or given


def traced(cases: Path) -> dict[type[Layer], bool]:
    """For each layer in the single-layer suites whether ``torch.export`` takes it in TEST, as its first case has it."""
    import logging

    import torch

    from caffe_port.net import Net

    found: dict[type[Layer], bool] = {}
    seen: set[tuple[str, str]] = set()
    logging.disable(logging.CRITICAL)  # torch logs every failed export at length
    try:
        for suite in sorted(p.parent for p in cases.glob("*/manifest.json") if p.parent.name in _SINGLE):
            dialect = suite.name.partition("_")[0]
            for case in json.loads((suite / "manifest.json").read_text(encoding="utf-8")).values():
                pairs = {(dialect, name) for name in case.get("types", ())}
                if "prototxt" not in case or pairs <= seen:
                    continue
                seen |= pairs
                net = Net(case["prototxt"], phase="TEST", dialect=dialect)
                for node, layer in net.nodes:
                    if node.bottoms and type(layer) not in found:
                        bottoms = tuple(torch.ones(net.shapes[b]) for b in node.bottoms)
                        found[type(layer)] = not layer.untraceable and _takes(layer, bottoms)
    finally:
        logging.disable(logging.NOTSET)
    return found


def _takes(layer: Layer, bottoms: tuple[Any, ...]) -> bool:
    import contextlib
    import io

    import torch

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        try:
            torch.export.export(layer, bottoms, strict=False)
        except Exception:  # any error means that torch cannot export it
            return False
    return True


def suites(cases: Path) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The suites with cases that contain each type, forward and backward."""
    forward: dict[str, set[str]] = {}
    backward: dict[str, set[str]] = {}
    for path in sorted(cases.glob("*/manifest.json")):
        try:
            for case in json.loads(path.read_text(encoding="utf-8")).values():
                for name in case["types"]:
                    forward.setdefault(name, set()).add(path.parent.name)
                    if case["backward"]:
                        backward.setdefault(name, set()).add(path.parent.name)
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
    first = re.sub(r":\w+:`(\w+)`", r"`\1`", first)
    return first.replace("``", "`").replace("|", "\\|").replace("*", "\\*").removesuffix(".")


if __name__ == "__main__":
    main()
