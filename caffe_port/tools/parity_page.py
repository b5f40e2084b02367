"""The page that parity writes: one self-contained file without scripts."""

from __future__ import annotations

from html import escape
from math import log10

from caffe_port.pages import document
from caffe_port.tools.parity_report import Report, Row

__all__ = ["page"]

_LOWEST = -9
"""The scale's left end, 1e-9; its right end is 1."""

_STYLE = """
.over { color: var(--over); font-weight: 600 }
input { margin: 1.4rem 0 .8rem } label { margin-right: 1.2rem }
ol { list-style: none; margin: 0; padding: 0; display: flex; flex-direction: column }
#worst:checked ~ ol li { order: var(--rank) }
li { border-top: 1px solid var(--line) }
.row, summary { display: grid; grid-template-columns: minmax(9rem, 1.2fr) 8rem 3fr 5rem 6rem; gap: .8rem;
  align-items: center; padding: .25rem 0 } summary:hover { background: var(--track) }
.name { overflow-wrap: anywhere; font-weight: 500 } .number { text-align: right }
.bar b { position: absolute; top: -.2rem; bottom: -.2rem; left: var(--bound); border-left: 2px solid var(--ink) }
.ties .bar i { background: var(--ties) } .over .bar i { background: var(--over) }
.ticks { position: relative; height: 1.2rem; font-size: .8rem; color: var(--faint) }
.ticks span { position: absolute; transform: translateX(-50%) }
table { margin: .2rem 0 .8rem; font-size: .87rem } th, td { padding: .1rem .8rem .1rem 0 }
@media (max-width: 48rem) { .row, summary { grid-template-columns: 7rem 1fr 4rem 3rem; gap: .4rem }
  .type { display: none } table { display: block; overflow-x: auto } }
"""


def page(report: Report) -> str:
    """The report as HTML: a bar for each layer, its worst array, on a scale of powers of ten."""
    layers = report.layers
    worst = [max(rows, key=lambda row: row.severity) for rows in layers]
    ranks = {id(row): rank for rank, row in enumerate(sorted(worst, key=lambda row: row.severity, reverse=True))}
    ticks = "".join(f'<span style="left:{_at(10.0**power)}">1e{power}</span>' for power in range(_LOWEST, 1, 3))
    items = "".join(_layer(rows, row, ranks[id(row)]) for rows, row in zip(layers, worst, strict=True))
    title = f"{report.net} beside {report.reference}"
    body = f"""<h1>{escape(title)}</h1>
<p class="{"over" if report.over else ""}">{escape(report.verdict)}</p>
<p class="faint">{len(report.rows)} arrays of {len(layers)} layers, {escape(report.setting)}. A bar is the layer's worst
array: max |ours - reference| / max |reference|; the mark is its bound. Click a layer for all its arrays.</p>
<input type="radio" name="order" id="network" checked> <label for="network">order of the net</label>
<input type="radio" name="order" id="worst"> <label for="worst">worst first</label>
<div class="row"><span></span><span class="type"></span><div class="ticks">{ticks}</div><span></span><span></span></div>
<ol>{items}</ol>"""
    return document(title, body, _STYLE)


def _at(value: float) -> str:
    """A value's position on the scale."""
    power = log10(value) if value > 0 else _LOWEST
    return f"{100 * min(1.0, max(0.0, 1 - power / _LOWEST)):.1f}%"


def _layer(rows: list[Row], worst: Row, rank: int) -> str:
    c = worst.comparison
    kind = "over" if not c.ok else "ties" if c.outside else ""
    arrays = "".join(_array(row) for row in rows)
    return (
        f'<li class="{kind}" style="--rank:{rank};--width:{_at(c.error)};--bound:{_at(c.bound)}"><details><summary>'
        f'<span class="name">{escape(worst.layer)}</span><span class="faint type">{escape(worst.type)}</span>'
        f'<span class="bar" aria-hidden="true"><i></i><b></b></span><span class="number">{c.error:.1e}</span>'
        f"<span>{escape(worst.verdict)}</span></summary><table><tr><th>array<th>values<th>error<th>rms<th>outside"
        f"<th>bound<th></tr>{arrays}</table></details></li>\n"
    )


def _array(row: Row) -> str:
    c = row.comparison
    cells = (c.key, f"{c.size:,}", f"{c.error:.2e}", f"{c.rms:.2e}", c.outside, f"{c.bound:.1e}", row.verdict)
    return "<tr>" + "".join(f"<td>{escape(str(cell))}" for cell in cells) + "</tr>"
