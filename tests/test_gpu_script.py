"""benchmarks/gpu.py on the CPU at small sizes, so that it works where a GPU is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_part_runs(tmp_path: Path) -> None:
    small = ["--device", "cpu", "--width", "1/32", "--rounds", "1", "--every", "100", "--batch", "1", "--no-compile"]
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), *small, "-o", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert report["suites"]["float32"]["inside the CPU's bounds"] == report["suites"]["cases"] >= 5
    assert report["resume"]["equal bits"] is True
    assert report["processes"]["largest difference"] < 1e-5
    for precision in ("float32", "bf16"):
        for job in ("deploy pass, ms", "whole inference, ms", "training step, ms"):
            assert all(isinstance(ms, (float, dict)) for ms in report["speed"][precision][job].values()), report
    assert "speed" in (tmp_path / "out/report.md").read_text()
