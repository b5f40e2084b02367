"""Packages import only packages above them, without cycles, and importing them loads no more than needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "caffe_port"

PACKAGES = [  # each imports only those above it
    "errors",
    "paths",
    "console",
    "pages",
    "dialects",
    "spec",
    "schema",
    "formats",
    "definitions",
    "random",
    "data",
    "graph",
    "native",
    "layers",
    "execution",
    "weight_loading",
    "net",
    "pycaffe",
    "export",
    "detection",
    "solver",
    "segmentation",
    "view",
    "tools",
]
HEAVY = ["torch", "h5py", "cv2", "lmdb", "scipy", "matplotlib", "PIL", "tqdm", "safetensors"]
"""Distributions that are imported where they are used, torch by the packages that compute."""
WITHOUT_TORCH = ["errors", "dialects", "spec", "schema", "formats", "random", "data", "graph"]
NUMBER_MOVERS = [
    "tools.cli",
    "tools.commands",
    "tools.progress",
    "tools.caffe2torch",
    "tools.torch2caffe",
    "tools.fp_bp",
]
"""Tools that move numbers from file to file."""

PYCAFFE_NAMES = ["classifier", "coord_map", "detector", "draw", "io", "net_spec", "proto"]
"""Aliases of modules of ``pycaffe`` and ``schema``, under the names that scripts import."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    """ "schema" for a file in that folder, "net" for net.py, "" for the package itself; a __main__ is a command."""
    if path.name == "__main__.py":
        return "tools"
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else "pycaffe" if first in PYCAFFE_NAMES else first


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that the code imports anywhere: at the top, inside a function, or for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are written in full here"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def packages_of(path: Path) -> set[str]:
    """The packages of caffe_port that a file imports from."""
    names = (name.split(".") for name in imports(ast.parse(path.read_text(encoding="utf-8"))))
    return {name[1] for name in names if name[0] == "caffe_port" and len(name) > 1} - {"__version__"}


def loaded(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after running ``code``."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*{{m.split('.')[0] for m in sys.modules}})"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return set(done.stdout.splitlines()[-1].split())


def test_every_module_is_in_a_listed_package() -> None:
    assert {package_of(path) for path in MODULES} <= {"", *PACKAGES}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_package_imports_only_packages_above_it(path: Path) -> None:
    package = package_of(path)
    allowed = {*PACKAGES[: PACKAGES.index(package) + 1]} if package else set()
    assert packages_of(path) <= allowed


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_cycles() -> None:
    """Among all modules and imports; a package's ``__init__`` is one of them where names are imported from it."""
    modules = {name_of(path): path for path in MODULES}
    needs: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = [name.split(".", 1) for name in imports(ast.parse(path.read_text(encoding="utf-8")))]
        found = {name[1] for name in names if name[0] == "caffe_port" and len(name) > 1}
        needs[module] = {name if name in modules else name.rpartition(".")[0] for name in found} & modules.keys()

    def reached(module: str) -> set[str]:
        seen: set[str] = set()
        todo = [*needs[module]]
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += needs[one]
        return seen

    assert len(modules) > 250
    assert not [m for m in modules if m in reached(m)]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_package_stands_without_its_scripts(path: Path) -> None:
    outside = {"converters", "prototxt", "tests", "benchmarks"}
    assert not outside & {name.split(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")))}


def test_the_documentation_shows_the_packages_in_this_order() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "development.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`(\w+)(?:\.py|/)`", row)] == PACKAGES


def test_no_file_is_long() -> None:
    """Modules, tests, scripts and benchmarks."""
    others = [
        path for folder in ("tests", "benchmarks", "converters", "prototxt") for path in (ROOT / folder).glob("*.py")
    ]
    lengths = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in MODULES + others
    }
    assert len(lengths) > 400
    assert not {path: length for path, length in lengths.items() if length >= 450}


def test_the_package_alone_loads_nothing() -> None:
    assert not loaded("import caffe_port; caffe_port.CaffeError, caffe_port.NOH") & {"numpy", "google", *HEAVY}


def test_packages_that_move_numbers_need_no_torch() -> None:
    below = [path for path in MODULES if package_of(path) in WITHOUT_TORCH]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in below]
    names += [f"caffe_port.{tool}" for tool in NUMBER_MOVERS if (PACKAGE / f"{tool.replace('.', '/')}.py").exists()]
    assert len(names) > 30
    assert not loaded("import " + ", ".join(names)) & {*HEAVY}


def test_the_net_loads_torch_and_little_else() -> None:
    """Importing it may cost 0.3 s more than importing torch: so none of these, however fast each is on this machine."""
    more = loaded("import caffe_port; caffe_port.Net") - loaded("import torch")
    assert not more & {*HEAVY}


def test_listing_a_file_loads_no_torch(tmp_path: Path) -> None:
    weights = tmp_path / "w.npz"
    loaded(f"import numpy; numpy.savez({str(weights)!r}, **{{'c.weight': numpy.zeros((2, 3, 1, 1), numpy.float32)}})")
    run = f"sys.argv[1:] = [{str(weights)!r}, '--list']"
    script = "import sys, runpy; " + run + "\ntry: runpy.run_path('converters/caffe2torch.py', run_name='__main__')\n"
    after = loaded(script + "except SystemExit as end: assert not end.code, end.code")
    assert "numpy" in after
    assert not after & {*HEAVY}
