"""Runs baselines alternately: each in a separate process, one run after the other, round by round."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["environment", "report", "serve", "take_turns"]

FEWEST = 3
"""Rounds that are timed in any case."""


def serve(run: Callable[[], object], clock: str = "perf_counter", repeat: int = 1) -> None:
    """Answer each line on stdin with the milliseconds of one run and the process's peak memory in MB.

    Args:
        clock: of the module ``time``. repeat: runs of which the mean is taken.
    """
    now = getattr(time, clock)
    for _ in sys.stdin:
        start = now()
        for _ in range(repeat):
            run()
        print((now() - start) * 1e3 / repeat, _peak(), flush=True)


def _peak() -> float:
    """VmHWM in MB; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1e3


def environment(threads: int) -> dict[str, str]:
    """This environment with the number of threads set for all baselines and the logs of all Caffes off."""
    return {
        **os.environ,
        "GLOG_minloglevel": "2",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
    }


def take_turns(
    commands: Mapping[str, list[str]],
    *,
    rounds: int,
    warm: int,
    threads: int,
    cwd: Path,
    pause: float = 0,
    seconds: float = math.inf,
    may_stop: bool = False,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of each baseline in each round after ``warm`` untimed ones, and the peak memory of each in MB.

    A command is a process that answers lines as :func:`serve` does (the memory may be missing).

    Args:
        pause: seconds before each run. seconds: after so many no round begins, from the fourth on.
        may_stop: a process that stops is left out, else it is an error.
    """
    running = {
        name: subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(threads), cwd=cwd
        )
        for name, command in commands.items()
    }
    times: dict[str, list[float]] = {name: [] for name in running}
    peaks: dict[str, float] = {}
    start = 0.0
    try:
        for i in range(rounds + warm):
            start = time.perf_counter() if i <= warm else start
            if i >= warm + FEWEST and time.perf_counter() - start > seconds:
                break
            for name, process in [*running.items()]:
                assert process.stdin and process.stdout
                time.sleep(pause)
                with suppress(BrokenPipeError):
                    process.stdin.write("\n")
                    process.stdin.flush()
                answer = process.stdout.readline().split()
                if not answer:
                    said = f"{name} stopped with status {process.wait()}"
                    if not may_stop:
                        raise SystemExit(said)
                    print(said, file=sys.stderr, flush=True)
                    del running[name], times[name]
                    continue
                line = f"round {i + 1 - warm} of {rounds}: {name} {float(answer[0]):.0f} ms"
                print(line, file=sys.stderr, flush=True)
                if i >= warm:
                    times[name].append(float(answer[0]))
                if len(answer) > 1:
                    peaks[name] = float(answer[1])
    finally:
        for process in running.values():
            process.kill()
    return times, peaks


def report(times: Mapping[str, list[float]], peaks: Mapping[str, float], ours: str) -> None:
    """Print medians, minima, ratios to ``ours`` (median of the rounds' ratios, ratio of minima) and memory."""
    print(f"{'':16}{'median ms':>10}{'min ms':>9}{'times ours: median':>20}{'minima':>8}{'peak GB':>9}")
    for name, t in times.items():
        ratio = statistics.median(a / b for a, b in zip(t, times[ours], strict=True))
        memory = f"{peaks[name] / 1e3:9.2f}" if peaks.get(name) else f"{'':9}"
        print(
            f"{name:16}{statistics.median(t):10.0f}{min(t):9.0f}{ratio:20.2f}{min(t) / min(times[ours]):8.2f}{memory}"
        )
