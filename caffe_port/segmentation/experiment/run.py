"""Runs steps in parallel, each in a process, and records which are done."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from caffe_port.errors import CaffeError, FileError
from caffe_port.formats.atomic import atomic_write
from caffe_port.segmentation.experiment.steps import Step

__all__ = ["Runner"]

_RECORDS = "steps"
_POLL_SECONDS = 0.1


@dataclass
class Runner:
    """Runs the steps that are not done.

    A step's record is a file in the folder ``steps`` with its log. A step whose command, or that of an earlier one,
    differs from the record's is run again after its folder is removed. An interrupted one is run again in its folder.

    Attributes:
        output: the experiment's folder. jobs: steps at a time. quiet: no bar.
        report: called with each finished step and its duration in seconds.
    """

    output: Path
    jobs: int = 1
    quiet: bool = False
    report: Callable[[Step, float], object] = lambda step, seconds: None
    _running: dict[Step, tuple[subprocess.Popen[bytes], float]] = field(default_factory=dict)

    def run(self, steps: Sequence[Step]) -> None:
        """Run all steps, each after those that it needs.

        Raises:
            CaffeError: a step failed; the other running ones are ended first. KeyboardInterrupt: after all have ended.
        """
        from tqdm import tqdm

        waiting = [step for step in steps if not self.done(step)]
        hidden = self.quiet or not sys.stderr.isatty()
        bar = tqdm(total=len(steps), initial=len(steps) - len(waiting), unit="step", dynamic_ncols=True, disable=hidden)
        try:
            with _alone(self.output / _RECORDS), bar:
                while waiting or self._running:
                    self._start(waiting)
                    time.sleep(_POLL_SECONDS)
                    bar.update(self._collect())
                    bar.set_description(", ".join(step.name for step in self._running))
        except BaseException:
            self._end()
            raise

    def done(self, step: Step) -> bool:
        """Whether the step, with its current command, is finished."""
        record = self.record(step)
        return bool(record.get("seconds")) and record["key"] == step.key and step.makes.exists()

    def record(self, step: Step) -> dict[str, Any]:
        """A step's record: ``key`` and ``command``; ``seconds`` once it is done. Empty if it is new."""
        path = self._path(step, "json")
        try:
            known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known

    def said(self, step: Step) -> list[str]:
        """The lines of a step's log."""
        return self._path(step, "log").read_text(encoding="utf-8", errors="replace").splitlines()

    def _path(self, step: Step, ending: str) -> Path:
        return self.output / _RECORDS / f"{step.name}.{ending}"

    def _write(self, step: Step, **facts: object) -> None:
        with atomic_write(self._path(step, "json"), overwrite=True) as file:
            file.write(json.dumps({"key": step.key, "command": step.command, **facts}, indent=1).encode())

    def _start(self, waiting: list[Step]) -> None:
        """Start the steps whose requirements are done."""
        pending = {step.name for step in (*waiting, *self._running)}
        for step in [*waiting]:
            if len(self._running) >= self.jobs:
                return
            if pending & {before.name for before in step.needs}:
                continue
            waiting.remove(step)
            self._running[step] = self._process(step), time.monotonic()

    def _process(self, step: Step) -> subprocess.Popen[bytes]:
        folder, known = self.output / step.name, self.record(step)
        try:
            if known.get("key") != step.key and folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(str(folder), f"cannot be made: {error.strerror}", remedy="choose another with -o") from None
        self._write(step)
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        variables = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        with self._path(step, "log").open("ab") as log:
            # In a new session: only this process gets Ctrl-C, and passes it on once.
            return subprocess.Popen(
                step.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, start_new_session=True
            )

    def _collect(self) -> int:
        """Record the steps that have ended; returns their number.

        Raises:
            CaffeError: one failed.
        """
        ended = [
            (step, process.returncode) for step, (process, _) in self._running.items() if process.poll() is not None
        ]
        for step, status in ended:
            _, start = self._running.pop(step)
            if status or not step.makes.exists():
                last = _last_line(self._path(step, "log"))
                raise CaffeError(
                    f"step {step.name}",
                    last or f"status {status}",
                    remedy=f"its output is in {self._path(step, 'log')}; the same command continues from here",
                )
            seconds = round(time.monotonic() - start, 1)
            self._write(step, seconds=seconds)
            self.report(step, seconds)
        return len(ended)

    def _end(self) -> None:
        """Stop all running steps, which trainings do with a snapshot, and wait.

        By SIGTERM, because a process started in a shell's background, and its children, ignore SIGINT.
        """
        for process, _ in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process, _ in self._running.values():
            with contextlib.suppress(KeyboardInterrupt):
                process.wait()
        self._running.clear()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, so that no other run uses it.

    Raises:
        FileError: another run uses it, or the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise FileError(str(folder), f"cannot be made: {error.strerror}", remedy="choose another with -o") from None
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError:
            raise FileError(str(folder.parent), "another run is active there", remedy="wait for it or end it") from None
        yield


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            return _tail(file)
    except OSError:
        return ""


def _tail(file: IO[bytes]) -> str:
    file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
    lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
