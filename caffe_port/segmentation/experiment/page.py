"""The results as an HTML page: bars for the main table, each class's score, and the pictures, in one file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from math import isnan
from pathlib import Path

import numpy as np

from caffe_port.pages import document
from caffe_port.segmentation.evaluate import Scores, percents, short_names
from caffe_port.segmentation.experiment.plan import SYSTEMS
from caffe_port.segmentation.lists import FULL

__all__ = ["Counts", "class_rows", "mean_text", "page"]

_STYLE = """
.main td, .main th { padding: .2rem 1.2rem .2rem 0 } .main td { min-width: 9rem }
.main .bar { display: block; margin-top: .1rem }
.facts td { text-align: left; padding: .1rem 1rem .1rem 0; overflow-wrap: anywhere }
img { background: #fff; border-radius: 3px }
"""


Counts = dict[tuple[str, str], dict[int, Scores]]
"""By level and system the scores of the finished seeds."""


def page(
    counts: Counts,
    levels: Sequence[str],
    systems: Sequence[str],
    classes: Sequence[str],
    facts: Sequence[tuple[str, object]],
    pictures: Sequence[tuple[str, Path]],
) -> str:
    """The page.

    Args:
        facts: settings of the whole table. pictures: titles and PNG files.
    """
    head = "".join(f"<th>{escape(SYSTEMS[system])}" for system in systems)
    rows = "".join(
        f"<tr><th>{_level(level)}" + "".join(_bar(counts.get((level, system), {})) for system in systems)
        for level in levels
    )
    settings = "".join(f"<tr><td>{escape(str(name))}<td>{escape(str(value))}" for name, value in facts)
    shown = "".join(
        f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="{_data(path)}">'
        for title, path in pictures
        if path.is_file()
    )
    body = f"""<h1>Table 1, on other data</h1>
<p class="faint">Mean intersection over union in percent, over the background and all classes, of the validation
pictures; of several seeds the mean, and ± their standard deviation; "-" is not done yet. The commands are in
results.md.</p>
<div class="wide"><table class="main"><tr><th>strong annotations{head}{rows}</table></div>
<h2>By class</h2><div class="wide"><table class="heat">{_classes(counts, levels, systems, classes)}</table></div>
{shown}<h2>Settings</h2><table class="facts">{settings}</table>"""
    return document("Table 1, on other data", body, _STYLE)


def mean_text(seeds: dict[int, Scores]) -> str:
    """A cell of the table, in percent."""
    means = [100 * scores.mean for scores in seeds.values()]
    if not means:
        return "-"
    return f"{np.mean(means):.1f}" + (f" ± {np.std(means, ddof=1):.1f} ({len(means)})" if means[1:] else "")


def class_rows(levels: Sequence[str], systems: Sequence[str], counts: Counts) -> list[tuple[str, Scores]]:
    """Each finished seed's name and scores."""
    return [
        (f"{SYSTEMS[system]}, {level}" + (f", seed {seed}" if len(seeds) > 1 else ""), scores)
        for system in systems
        for level in levels
        for seeds in (counts.get((level, system), {}),)
        for seed, scores in seeds.items()
    ]


def _level(level: str) -> str:
    return "all" if level == FULL else f"{escape(level)} a class"


def _bar(seeds: dict[int, Scores]) -> str:
    means = [100 * scores.mean for scores in seeds.values()]
    if not means or any(map(isnan, means)):
        return f"<td>{mean_text(seeds)}"
    width = f"{np.mean(means):.1f}%"
    return f'<td>{mean_text(seeds)}<span class="bar" aria-hidden="true"><i style="--width:{width}"></i></span>'


def _classes(counts: Counts, levels: Sequence[str], systems: Sequence[str], classes: Sequence[str]) -> str:
    rows = ["<tr><th>" + "".join(f"<th>{escape(name)}" for name in (*short_names(classes), "mean"))]
    for name, scores in class_rows(levels, systems, counts):
        shares = (0.0 if isnan(share) else share for share in (*scores.iou, scores.mean))
        cells = zip(shares, percents(scores), strict=True)
        numbers = "".join(f'<td style="--share:{share:.2f}">{text}' for share, text in cells)
        rows.append(f"<tr><th>{escape(name)}{numbers}")
    return "\n".join(rows)


def _data(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
