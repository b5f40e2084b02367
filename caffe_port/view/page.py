"""The page itself: one file with its data, its style, its script and the layout library; it loads nothing."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from typing import Any

from caffe_port.pages import head

__all__ = ["page"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser itself blocks everything that the page would load."""


def page(data: dict[str, Any]) -> str:
    """The page that shows ``data`` (:func:`caffe_port.view.net_data`), as HTML.

    The data is one JSON text in which "<" is escaped, so that no name can end its element.
    """
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    layout = "\n".join(line for line in _read("vendor", "dagre.min.js").splitlines() if "sourceMappingURL" not in line)
    licence = _read("vendor", "LICENSE").strip()
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    return f"""{head(data["title"], _read("page.css"), policy)}{_read("page.html")}
<script type="application/json" id="net">{text}</script>
<script>/* dagre
{licence}
*/
{layout}</script>
<script>
{_read("layout.js")}
{_read("panel.js")}
{_read("page.js")}</script></body></html>
"""


def _read(*names: str) -> str:
    return files("caffe_port.view").joinpath(*names).read_text(encoding="utf-8")


def _finite(value: Any) -> Any:
    """The value with None for the numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
