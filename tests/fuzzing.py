"""Fuzzing of readers: one way to make hostile files, used by a short test and by a long run.

A :class:`Reader` is a row: what is called with a file, and how a case of it is made. ``make`` builds a file that passes
the reader's first checks and is wrong further in (a field, a shape, an offset, a member); :func:`write_case` damages
some of these byte by byte on top. All choices come from one ``random.Random``: in the tests it is hypothesis' own, in
the long run (``benchmarks/fuzz.py``) it is seeded by reader, seed and number, so that every case can be made again.

:func:`serve` runs cases in a child process under limits and :func:`run` looks after it. What counts as a fault: an
exception other than CaffeError, a message that is no single line of under 1000 characters, a crash, more than 1 GB of
memory, more than 5 s of processor time.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from caffe_port.errors import CaffeError

__all__ = [
    "INTEGERS",
    "READERS",
    "WORDS",
    "Reader",
    "Report",
    "check",
    "integer",
    "load",
    "pick",
    "register",
    "run",
    "word",
]

GIGABYTE = 10**9
SECONDS = 5
LONGEST_LINE = 1000
STRUCTURED = 0.65
"""How many of the cases are left as ``make`` made them."""

INTEGERS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 65, 255, 256, 1000, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(10**9, 10**12, 2**40, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30),
    *(-1, -2, -5, -(2**31), -(2**31) - 1, -(2**63), -(2**63) - 1),
)
WORDS = (
    *("", "a", "ip", "conv1", "weight", "bias", "a/b", "/", "//", "..", ".", "../../x", "a.b.c", ".weight", "a.", "\0"),
    *("a\0b", "a\nb", "\t", '"', "\\", "%s%n", "{}", "é", "中", "\U0001f600", "x" * 300, "y" * 5000, "NaN", "-1", "0"),
    *("00", "1e999", "0x10", "True", "None", "data", "diff", "history", "iter", "learned_net", "1" * 400),
)


@dataclass(frozen=True)
class Reader:
    """One reader under test.

    Attributes:
        name: on the command line and in the tests.
        read: called with what ``make`` returned; must end well or in a CaffeError. It should use what it reads (sum
            arrays, step through items), so that lazy work is done as well.
        make: writes a case into an empty folder and returns the file or folder to read.
        modules: the source files, relative to ``caffe_port``, whose branches the long run counts.
        damage: whether some cases are to be damaged byte by byte as well.
    """

    name: str
    read: Callable[[Path], object]
    make: Callable[[Random, Path], Path]
    modules: tuple[str, ...] = ()
    damage: bool = True


READERS: dict[str, Reader] = {}


def register(*readers: Reader) -> None:
    """Add rows."""
    READERS.update((reader.name, reader) for reader in readers)


def load() -> None:
    """Import every module of rows: ``fuzz_*.py`` in this folder."""
    for path in sorted(Path(__file__).parent.glob("fuzz_*.py")):
        importlib.import_module(path.stem)


def pick(rng: Random, *ways: Callable[[], Any]) -> Any:
    """The result of one of ``ways``, any with equal chance."""
    return rng.choice(ways)()


def integer(rng: Random, usual: int | None = None) -> int:
    """An integer that readers stumble over; ``usual`` itself or a neighbour half of the time, where given."""
    if usual is not None and rng.random() < 0.5:
        return usual + rng.choice((-1, 0, 0, 0, 1))
    return rng.choice(INTEGERS)


def word(rng: Random, usual: str | None = None) -> str:
    """A text that readers stumble over, or ``usual``."""
    return usual if usual is not None and rng.random() < 0.5 else rng.choice(WORDS)


def write_case(reader: Reader, rng: Random, folder: Path) -> tuple[Path, bool]:
    """Write one case into the empty ``folder``; what to read, and whether it is as ``make`` made it."""
    path = reader.make(rng, folder)
    structured = not reader.damage or rng.random() < STRUCTURED
    if not structured:
        files = sorted(p for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file() and p.stat().st_size)
        if files:
            damage_bytes(rng, rng.choice(files))
    return path, structured


def damage_bytes(rng: Random, path: Path) -> None:
    """Change a few bytes of a file: flip, overwrite, cut off, leave out, repeat."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        at = rng.randrange(len(data))
        end = min(len(data), at + rng.choice((1, 2, 4, 8, 100)))
        way = rng.randrange(6)
        if way == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif way == 2:
            data[at:end] = (rng.choice(INTEGERS) & (2**64 - 1)).to_bytes(8, "little")[: end - at]
        elif way == 3:
            del data[at:end]
        elif way == 4:
            data[at:at] = data[at:end] * rng.choice((1, 1, 1000))
        else:
            del data[at:]
    path.write_bytes(data)


def check(reader: Reader, path: Path) -> str:
    """Read one case: "" if it was accepted, else the message of the CaffeError; anything else is raised.

    Raises:
        AssertionError: the message is not one line, or too long.
    """
    try:
        reader.read(path)
    except CaffeError as error:
        text = str(error)
        assert "\n" not in text, f"a message of several lines: {text!r}"
        assert len(text) < LONGEST_LINE, f"a message of {len(text)} characters: {text[:200]!r}"
        return text or "an error without words"
    return ""


# -- the long run ------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What became of a reader's cases.

    Attributes:
        cases: how many ran. structured: those not damaged byte by byte. accepted: those read without an error.
        most_memory, most_seconds: of one case, in bytes of address space beyond the start's and of processor time.
        faults: case number and what went wrong.
    """

    name: str
    cases: int = 0
    structured: int = 0
    accepted: int = 0
    most_memory: int = 0
    most_seconds: float = 0.0
    faults: list[tuple[int, str]] = field(default_factory=list)


def seeded(name: str, seed: int, number: int) -> Random:
    """The choices of one case of the long run."""
    return Random(f"{name}:{seed}:{number}")


def serve(name: str, seed: int, start: int, stop: int) -> None:
    """Run cases in this process and print a line for each: before it its number, after it what became of it."""
    reader = READERS[name]
    signal.signal(signal.SIGPROF, _too_long)
    os.environ["GLOG_minloglevel"] = "3"
    with tempfile.TemporaryDirectory(prefix="fuzz") as work:
        folder = Path(work) / "case"
        folder.mkdir()
        with suppress(Exception):
            check(reader, reader.make(seeded(name, seed, -1), folder))  # imports what is imported late
        base = _virtual_memory()
        limit = base + 3 * GIGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        for number in range(start, stop):
            shutil.rmtree(folder)
            folder.mkdir()
            path, structured = write_case(reader, seeded(name, seed, number), folder)
            print(number, flush=True)
            fault, message = "", ""
            before = time.process_time()
            # The first timer raises in Python code; where that is not heard, in a library's loop, the second kills.
            signal.setitimer(signal.ITIMER_PROF, SECONDS + 0.5)
            resource.setrlimit(resource.RLIMIT_CPU, (int(before) + SECONDS + 5, resource.RLIM_INFINITY))
            try:
                message = check(reader, path)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                fault = f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            seconds, memory = time.process_time() - before, _virtual_memory() - base
            if not fault and seconds > SECONDS:
                fault = f"{seconds:.1f} s"
            if not fault and memory > GIGABYTE:
                fault = f"{memory / GIGABYTE:.1f} GB"
            print(json.dumps([structured, not fault and not message, memory, round(seconds, 3), fault]), flush=True)
            if memory > GIGABYTE:
                return  # the peak cannot be set back


class _TooLongError(BaseException):
    pass


def _too_long(*_: object) -> None:
    raise _TooLongError(f"more than {SECONDS} s")


def _virtual_memory() -> int:
    """The largest address space that this process has had, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmPeak"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmPeak")


def run(
    name: str, cases: int, seed: int, command: list[str], *, first: int = 0, say: Callable[[str], object] = print
) -> Report:
    """Run cases ``first`` to ``cases`` in child processes, one after the other; a child that dies is replaced.

    Ctrl-C ends with the report of those that ran.

    Args:
        command: starts a child that calls :func:`serve` with the reader, the seed, the first and the last number.
    """
    report, number = Report(name), first
    while number < cases:
        # A file: libraries say so much about damaged files that a pipe nobody reads meanwhile fills up.
        errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        child = subprocess.Popen(
            [*command, name, str(seed), str(number), str(cases)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert child.stdout is not None
        begun: int | None = None
        try:
            for line in child.stdout:
                if line[0] != "[":
                    begun = int(line)
                    continue
                structured, accepted, memory, seconds, fault = json.loads(line)
                assert begun is not None
                report.cases, report.structured = report.cases + 1, report.structured + structured
                report.accepted += accepted
                report.most_memory = max(report.most_memory, memory)
                report.most_seconds = max(report.most_seconds, seconds)
                if fault:
                    report.faults.append((begun, fault))
                    say(f"{name} {begun}: {fault}")
                number, begun = begun + 1, None
        except KeyboardInterrupt:
            child.kill()
            child.wait()
            return report
        status = child.wait()
        with errors:
            errors.seek(0)
            said = errors.read()[-2000:]
        if begun is not None:
            fault = f"the process ended with status {status}"
            report.cases += 1
            report.faults.append((begun, fault))
            say(f"{name} {begun}: {fault}")
            number = begun + 1
        elif status:
            raise RuntimeError(f"{name}: the child could not run: {said}")
    return report


def main(argv: list[str]) -> None:
    """``serve`` from a command line."""
    name, *numbers = argv
    serve(name, *map(int, numbers))


if __name__ == "__main__":
    sys.exit("run benchmarks/fuzz.py")
