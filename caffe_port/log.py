"""Single remarks on stderr beside the results; GLOG_minloglevel above 0 silences them, as in Caffe."""

from __future__ import annotations

import os
import sys

__all__ = ["info", "quiet"]


def quiet() -> bool:
    """Whether the environment asks for silence."""
    return int(os.environ.get("GLOG_minloglevel") or 0) > 0


def info(remark: object) -> None:
    """Print a remark on stderr, unless :func:`quiet`."""
    if not quiet():
        print(remark, file=sys.stderr, flush=True)
