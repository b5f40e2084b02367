"""Signals that make a training stop or write a snapshot. Source: signal_handler.cpp, tools/caffe.cpp."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

__all__ = ["EFFECTS", "Signals"]

EFFECTS = ("stop", "snapshot", "none")


class Signals:
    """Turns signals into what the solver asks for after every iteration, while used in a ``with`` statement.

    "stop" writes a snapshot and ends the training; a second signal of the kind ends it at once. SIGTERM, which batch
    systems send before they kill, stops as well.

    Args:
        sigint, sighup: "stop", "snapshot" or "none".
    """

    def __init__(self, sigint: str = "stop", sighup: str = "snapshot") -> None:
        effects = {"SIGINT": sigint, "SIGHUP": sighup, "SIGTERM": "stop"}
        self._effects = {getattr(signal, name): effect for name, effect in effects.items() if hasattr(signal, name)}
        self._received: list[str] = []
        self._stopping = False
        self._before: dict[int, Any] = {}

    def requested(self) -> str:
        """The effect of a signal that has come since the last call, "none" if none has."""
        return self._received.pop(0) if self._received else "none"

    def _take(self, number: int, frame: FrameType | None) -> None:
        effect = self._effects[signal.Signals(number)]
        if effect == "stop":
            if self._stopping:
                raise KeyboardInterrupt
            self._stopping = True
            if sys.stderr.isatty():  # not through Python's own buffers, which may be in use at this moment
                os.write(2, b"\nstopping after this iteration; the same again stops at once\n")
        if effect != "none":
            self._received.append(effect)

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._take) for number in self._effects}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
