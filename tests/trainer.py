"""Trains in processes that may be killed, and compares what they leave (see killing.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENDS = [".caffemodel", ".solverstate"]


class Trainer:
    """A process that trains in forked processes, in a separate folder."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "killing.py"), str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOG_minloglevel": "1"},
        )

    def train(self, net: str, folder: str, how: dict[str, Any] | None = None, **more: Any) -> bool:
        """Train; whether it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"net": net, "folder": folder, "more": more, **(how or {})}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        end = json.loads(self._process.stdout.readline())
        assert not end["failed"]
        return end["killed"]

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0


def same(place: Path, ours: str, whole: str, iterations: int = 16) -> None:
    """The last snapshots are equal to the last byte, and the logs do not differ."""
    same_files(place, ours, whole, iterations)
    logged = [{*(place / folder / "diary").read_text().splitlines()} for folder in (ours, whole)]
    assert logged[0] == logged[1]


def same_files(place: Path, ours: str, whole: str, iterations: int = 16) -> None:
    """Weights and states of the snapshots at ``iterations`` are equal to the last byte."""
    assert len(ours) == len(whole)
    for end in ENDS:
        state, expected = ((place / folder / f"snap_iter_{iterations}{end}").read_bytes() for folder in (ours, whole))
        assert state.replace(ours.encode(), whole.encode()) == expected  # a state names its weights
