"""Lines for the user on stderr; GLOG_minloglevel above 0 silences them, as in Caffe.

Not named log: ``caffe_port.log`` is pycaffe's function of that name.
"""

from __future__ import annotations

import os
import sys

__all__ = ["info", "number", "quiet"]


def quiet() -> bool:
    """Whether GLOG_minloglevel is above 0."""
    return int(os.environ.get("GLOG_minloglevel") or 0) > 0


def info(remark: object) -> None:
    """Print a line on stderr, unless :func:`quiet`."""
    if not quiet():
        sys.stderr.write(f"{remark}\n")  # in one write, so that lines of several processes do not mix
        sys.stderr.flush()


def number(x: float, form: str = "g") -> str:
    """A number as text for people and logs, in a format of Python's; what would be -0, -0.00 ... has no sign."""
    text = f"{x:{form}}"
    return text[1:] if text.startswith("-") and float(text) == 0 else text
