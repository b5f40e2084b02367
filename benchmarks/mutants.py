"""Mutation tests: changes one fact at a time in a bare copy of the repository and runs the tests about it.

    python benchmarks/mutants.py                    every mutant; takes about an hour
    python benchmarks/mutants.py flags              only flags of dialects; or: facts, constants
    python benchmarks/mutants.py --sample 50        this number of each kind, evenly chosen

A mutant is a flag of a dialect that is flipped, a fact of a layer's record that is another, or the first constant of a
layer's code that is another. It is caught if a test fails or takes too long. The copy contains the files that git
tracks, so that it equals a clone.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 240
"""The time limit of one mutant's tests in seconds."""

FLAG_TESTS = ["tests/test_dialect_flags.py", "tests/test_dialects.py"]
FACT_TESTS = [
    "tests/test_blob_counts.py",
    "tests/test_spec.py",
    "tests/test_formats_containers.py",
    "tests/test_layers.py",
    "tests/test_pycaffe_spec.py",
    *("tests/test_additions.py", "tests/test_deeplab2.py", "tests/test_rcnn.py", "tests/test_ssd_layers.py"),
]
LAYER_TESTS = [
    *("tests/test_layers.py", "tests/test_overwritten.py", "tests/test_gradcheck.py", "tests/test_segnet.py"),
    *("tests/test_deeplab2.py", "tests/test_rcnn.py", "tests/test_ssd_layers.py", "tests/test_wssl.py"),
    *("tests/test_additions.py", "tests/test_data_layers.py"),
]
FACTS = {
    *("bottoms", "tops", "labels", "in_place", "loss", "blob_specs", "reads", "aligned", "states", "gates"),
    *("transposed", "inferable", "reads_bottoms", "reads_tops", "corrupts_diffs"),
}
"""Facts of a record, without those that only skip a field (``ignores``)."""
SUITES = [
    *("noh_layers", "noh_corners", "bvlc_layers", "bvlc_corners"),
    *("segnet", "deeplab2", "ssd", "ssd_more", "rcnn"),
]
"""Those of tests/reference that test_layers_reference.py runs."""
CASES = 12
"""The largest number of reference cases run for a layer type."""


@dataclass(frozen=True)
class Mutant:
    """One change: ``old`` at an offset of a file becomes ``new``; ``owner`` is the class or type it is about."""

    kind: str
    path: str
    line: int
    start: int
    old: str
    new: str
    owner: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.owner}: {self.old} -> {self.new}"


# -- the mutants -------------------------------------------------------------------------------------------------------


def changed(value: Any) -> str | None:
    """Another value for a constant, as source."""
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int):
        return str(value + 1)
    if isinstance(value, float):
        return repr(value * 1.5 + 0.25)
    if isinstance(value, str) and value and value.replace("_", "a").replace("=", "a").replace("?", "a").isalnum():
        return repr(value.rstrip("?") if value.endswith("?") else value + "_")
    return "1" if value is None else None


class Source:
    """A file and its syntax tree."""

    def __init__(self, path: str) -> None:
        self.path, self.text = path, (ROOT / path).read_text(encoding="utf-8")
        self.starts = [0]
        for line in self.text.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line.encode()))
        self.tree = ast.parse(self.text)

    def mutant(self, kind: str, node: ast.Constant, owner: str) -> Iterator[Mutant]:
        new = changed(node.value)
        if new is None:
            return
        start, end = (
            self.starts[n - 1] + c for n, c in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        )  # type: ignore[operator]
        yield Mutant(kind, self.path, node.lineno, start, self.text.encode()[start:end].decode(), new, owner)


def constants(node: ast.AST) -> Iterator[ast.Constant]:
    return (n for n in ast.walk(node) if isinstance(n, ast.Constant))


def flags() -> Iterator[Mutant]:
    """Every default of a flag, and every other value that a dialect gives it."""
    for path in sorted((ROOT / "caffe_port/dialects").glob("*.py")):
        source = Source(str(path.relative_to(ROOT)))
        for node in ast.walk(source.tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                if ast.unparse(node.annotation) in ("bool", "float | None"):
                    yield from source.mutant("flags", node.value, node.target.id)  # type: ignore[arg-type]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("replace", "Dialect"):
                for keyword in node.keywords:
                    value = keyword.value
                    if isinstance(value, ast.Constant) and isinstance(value.value, (bool, float)):
                        yield from source.mutant("flags", value, keyword.arg or "")


def facts() -> Iterator[Mutant]:
    """Every constant in a fact of a record."""
    for path in sorted((ROOT / "caffe_port/spec").glob("*.py")):
        source = Source(str(path.relative_to(ROOT)))
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                if node.name == "Spec":
                    continue
                for item in node.body:
                    target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
                    if isinstance(target, ast.Name) and target.id in FACTS and getattr(item, "value", None):
                        for constant in constants(item.value):  # type: ignore[union-attr]
                            yield from source.mutant("facts", constant, node.name)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "define":
                first, base, *_ = node.args
                name = first.value if isinstance(first, ast.Constant) else ast.unparse(base)  # in a loop over types
                for keyword in node.keywords:
                    for constant in constants(keyword.value) if keyword.arg in FACTS else ():
                        yield from source.mutant("facts", constant, name)


def first_constants() -> Iterator[Mutant]:
    """The first number other than 0 and 1 in each layer's code, or else the first number."""
    for path in sorted((ROOT / "caffe_port/layers").glob("*.py")):
        source = Source(str(path.relative_to(ROOT)))
        for node in ast.walk(source.tree):
            if not (isinstance(node, ast.ClassDef) and any("layer(" in ast.unparse(d) for d in node.decorator_list)):
                continue
            inside = [n for f in node.body if isinstance(f, ast.FunctionDef) for n in constants(f)]
            numbers = [n for n in inside if type(n.value) in (int, float)]
            numbers.sort(key=lambda n: n.value in (0, 1))
            if numbers:
                yield from source.mutant("constants", numbers[0], node.name)


# -- running the tests -------------------------------------------------------------------------------------------------


def types_of(owner: str) -> set[str]:
    """The layer types of a class and of its subclasses."""
    from caffe_port import layers
    from caffe_port.spec import RECORDS

    found = {owner} & set(RECORDS)
    for table in (RECORDS, layers.REGISTRY):
        for name, of_type in table.items():
            found |= {name for cls in of_type.values() for base in cls.__mro__ if base.__name__ == owner}
    return found


def tests_of(mutant: Mutant, copy: Path) -> list[str]:
    """The tests about a mutant, those most likely to fail first."""
    if mutant.kind == "flags":
        return FLAG_TESTS
    kinds, nodes = types_of(mutant.owner), []
    for suite in SUITES:
        cases = json.loads((copy / "tests/reference" / suite / "manifest.json").read_text(encoding="utf-8"))
        nodes += [f"{suite}/{name}" for name, case in cases.items() if kinds & set(case.get("types", ()))]
    picked = nodes[:: max(1, len(nodes) // CASES)]
    ids = [f"tests/test_layers_reference.py::test_forward_and_backward[{node}]" for node in picked]
    return ids + (FACT_TESTS if mutant.kind == "facts" else LAYER_TESTS)


def run_tests(mutant: Mutant, copy: Path, answer: Any) -> None:
    """In a separate process: the exit status of the tests."""
    import pytest

    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        tests = tests_of(mutant, copy)
    except BaseException:
        answer.put(1)  # the import fails
        return
    answer.put(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests])))


def caught(mutant: Mutant, copy: Path) -> bool:
    """Whether a test fails or exceeds the time limit."""
    path = copy / mutant.path
    whole = path.read_bytes()
    end = mutant.start + len(mutant.old.encode())
    path.write_bytes(whole[: mutant.start] + mutant.new.encode() + whole[end:])
    context = get_context("fork")
    answer = context.Queue()
    process = context.Process(target=run_tests, args=(mutant, copy, answer))
    process.start()
    process.join(LIMIT)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    path.write_bytes(whole)
    return late or answer.empty() or answer.get() != 0


def bare_copy(folder: Path) -> None:
    """The files that git tracks, in their present state."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


KINDS = {"flags": flags, "facts": facts, "constants": first_constants}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--sample", type=int, metavar="N", help="this number of mutants of each kind")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # loaded once, for all processes that are forked from this one
    survivors: list[Mutant] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "clone"
        bare_copy(copy)
        if not caught(Mutant("flags", "README.md", 1, 0, "", "", "nothing"), copy):
            print("unchanged: the tests pass", flush=True)
        else:
            print("the tests fail without any change", file=sys.stderr)
            return 2
        for kind in arguments.kinds or KINDS:
            mutants = list(KINDS[kind]())
            if arguments.sample:
                mutants = mutants[:: max(1, len(mutants) // arguments.sample)]
            start, missed = time.monotonic(), []
            for mutant in mutants:
                if not caught(mutant, copy):
                    missed.append(mutant)
                    print(f"SURVIVES {mutant}", flush=True)
            survivors += missed
            print(
                f"{kind}: {len(mutants) - len(missed)} of {len(mutants)} caught, {time.monotonic() - start:.0f} s",
                flush=True,
            )
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
