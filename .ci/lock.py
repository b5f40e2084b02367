"""Writes requirements.lock: the newest versions that pip finds for each Python, none of them installed.

In use, with one interpreter of each minor version (their pip must know --report: 22.2 or newer)::

    python .ci/lock.py python3.10 python3.11 python3.12 python3.13

CUDA's libraries, which torch requires by exact version on some platforms, are left to torch.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Pinned versions of everything the Makefile installs. Written by .ci/lock.py: change pyproject.toml, not this file.
"""
PINNED = {"torch": "2.13.0"}
EXTRA = ["setuptools"]
LEFT_TO_TORCH = re.compile(r"(nvidia|cuda|triton)\b")


def resolve(python: str) -> tuple[tuple[int, int], dict[str, str]]:
    """The interpreter's version, and the version of each distribution that pip would install for it."""
    pins = [f"{name}=={version}" for name, version in PINNED.items()]
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    done = subprocess.run(
        [*command, f"{ROOT}[data,plot,onnx,test,lint]", *pins, *EXTRA], check=True, stdout=subprocess.PIPE
    )
    report = json.loads(done.stdout)
    major, minor = report["environment"]["python_version"].split(".")
    found = {}
    for entry in report["install"]:
        name = re.sub(r"[-_.]+", "-", entry["metadata"]["name"]).lower()
        if name != "caffe-port" and not LEFT_TO_TORCH.match(name):
            found[name] = entry["metadata"]["version"].split("+")[0]
    return (int(major), int(minor)), found


def marker(versions: list[tuple[int, int]], every: list[tuple[int, int]]) -> str:
    """The environment marker for a run of neighbouring Python versions; the last one's pins also serve newer ones."""
    low, high = versions[0], versions[-1]
    bounds = []
    if low != every[0]:
        bounds.append(f'python_version >= "{low[0]}.{low[1]}"')
    if high != every[-1]:
        bounds.append(f'python_version < "{high[0]}.{high[1] + 1}"')
    return " ; " + " and ".join(bounds) if bounds else ""


def lock(resolved: dict[tuple[int, int], dict[str, str]]) -> list[str]:
    """Requirement lines, one for each version of a distribution with the Pythons it is for."""
    every = sorted(resolved)
    lines = []
    for name in sorted({name for found in resolved.values() for name in found}):
        run: list[tuple[int, int]] = []
        for python, following in zip(every, [*every[1:], None], strict=True):
            version = resolved[python].get(name)
            run.append(python)
            if following is None or resolved[following].get(name) != version:
                if version:
                    lines.append(f"{name}=={version}{marker(run, every)}")
                run = []
    return lines


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("lock.py: name the interpreters, such as python3.10 python3.11")
    text = HEAD + "\n".join(lock(dict(map(resolve, sys.argv[1:])))) + "\n"
    (ROOT / "requirements.lock").write_text(text, encoding="utf-8")
