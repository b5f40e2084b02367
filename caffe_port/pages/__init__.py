"""What all HTML pages share: how they begin, and their style, light and dark, readable by the colour-blind."""

from __future__ import annotations

from html import escape
from importlib.resources import files

__all__ = ["document", "head"]


def head(title: str, style: str, meta: str = "") -> str:
    """A page up to its body.

    Args:
        style: CSS of this page, after the common ``style.css``. meta: further elements of the head.
    """
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">{meta}
<title>{escape(title)}</title><style>
{_read("style.css")}{style}</style></head>
"""


def document(title: str, body: str, style: str = "") -> str:
    """A page of text, tables and pictures; ``body`` is HTML."""
    return f"{head(title, _read('document.css') + style)}<body>\n{body}\n</body></html>\n"


def _read(name: str) -> str:
    return files("caffe_port.pages").joinpath(name).read_text(encoding="utf-8")
