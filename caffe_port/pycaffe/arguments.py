"""The arguments of pycaffe's Net, in the older and the newer order.

Source: python/caffe/_caffe.cpp (both programs).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caffe_port.errors import CaffeError
from caffe_port.schema.messages import PHASES

__all__ = ["arguments"]

_PHASES: dict[Any, str] = {**PHASES, **{name: name for name in PHASES.values()}}
"""A phase's name by the values that callers may pass."""


def arguments(args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments after the prototxt by name: BVLC's order, or the older one where weights come first.

    Returns:
        Those that are not None; a phase as "TRAIN" or "TEST".

    Raises:
        CaffeError: one is unknown or given twice, or the phase is invalid.
    """
    older = bool(args) and isinstance(args[0], (str, Path)) and args[0] not in _PHASES
    order = ("weights", "phase") if older else ("phase", "level", "stages", "weights")
    unknown = [name for name in named if name not in ("weights", "phase", "level", "stages")]
    twice = [name for name in order[: len(args)] if name in named]
    if unknown or twice or len(args) > len(order):
        found = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in named.items())])
        raise CaffeError("Net", f"arguments {found}", expected="prototxt, phase, level, stages, weights")
    given = {**dict(zip(order, args, strict=False)), **named}
    given = {name: value for name, value in given.items() if value is not None}
    if "phase" in given:
        phase = given["phase"]
        if not isinstance(phase, (int, str)) or phase not in _PHASES:
            raise CaffeError("Net", f"phase {phase!r}", expected="TRAIN or TEST")
        given["phase"] = _PHASES[phase]
    return given
