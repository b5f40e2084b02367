"""The page that evaluate writes: one self-contained file with its pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.pages import document
from caffe_port.segmentation import voc
from caffe_port.segmentation.evaluate import Scored, Scores, short_names

__all__ = ["System", "Truth", "page"]

Array = np.ndarray[Any, np.dtype[Any]]

_SIDE = 320
"""Length in pixels to which the longer side of a picture is reduced."""

_STYLE = """
.classes { columns: 3 18rem } .class { display: grid; grid-template-columns: 7rem 1fr 3.2rem; gap: .6rem;
  align-items: center; break-inside: avoid } .class span:last-child { text-align: right }
figure { margin: 0 0 1.4rem; border-top: 1px solid var(--line); padding-top: .6rem }
figcaption { margin-bottom: .4rem } figure div { display: grid; grid-template-columns: repeat(3, 1fr); gap: .6rem }
img { width: 100%; border-radius: 3px; display: block } .chip { display: inline-block; width: .8rem; height: .8rem;
  border-radius: 2px; margin: 0 .3rem 0 .8rem; vertical-align: -.1rem }
@media (max-width: 40rem) { figure div { grid-template-columns: 1fr } }
"""


@dataclass(frozen=True)
class Truth:
    """What results are scored against.

    Attributes:
        masks: the folder of the true ones. names: those that are scored. classes: names from label 0.
        pictures: the folder of the pictures, if there is one.
    """

    masks: Path
    names: list[str]
    classes: tuple[str, ...]
    pictures: Path | None


@dataclass(frozen=True)
class System:
    """A folder of results with its scores: of all pictures together, and of each."""

    name: str
    folder: Path
    total: Scores
    scored: list[Scored]


def page(system: System, truth: Truth, show: int) -> str:
    """The page, with the ``show`` worst and the ``show`` best pictures; no picture twice."""
    order = sorted((one for one in system.scored if not isnan(one.scores.mean)), key=lambda one: one.scores.mean)
    worst = order[: min(show, (len(order) + 1) // 2)]
    best = order[max(len(worst), len(order) - show) :][::-1]
    figures = "".join(
        f"<h2>{title}</h2>{''.join(_figure(one, system, truth) for one in group)}"
        for title, group in (("Worst", worst), ("Best", best))
        if group
    )
    body = f"""<h1>{escape(system.name)}: mean IoU {_percent(system.total.mean)} %</h1>
<p class="faint">{len(system.scored)} pictures, {_percent(system.total.accuracy)} % of the pixels correct. A class's
score is intersection over union, over the pixels of all pictures together, without those whose true label is 255.</p>
<h2>Classes</h2><div class="classes">{_classes(system.total, truth)}</div>
<h2>Predicted labels of each class's pixels, in percent</h2>
<p class="faint">True classes by row, predicted ones by column; cells below 0.5 % are empty.</p>
<div class="wide"><table class="heat">{_confusion(system.total, truth)}</table></div>{figures}"""
    return document(system.name, body, _STYLE)


def _classes(total: Scores, truth: Truth) -> str:
    return "".join(
        f'<div class="class"><span>{escape(name)}</span><span class="bar"><i style="--width:{width:.0f}%"></i></span>'
        f"<span>{_percent(iou)}</span></div>"
        for name, iou, width in zip(truth.classes, total.iou, 100 * np.nan_to_num(total.iou), strict=True)
    )


def _confusion(total: Scores, truth: Truth) -> str:
    names = [escape(name) for name in short_names(truth.classes)]
    rows = ["<tr><th>" + "".join(f"<th>{name}" for name in names)]
    for name, shares in zip(names, total.shares, strict=True):
        cells = "".join(f'<td style="--share:{share:.2f}">{_cell(share)}' for share in shares)
        rows.append(f"<tr><th>{name}{cells}")
    return "\n".join(rows)


def _figure(one: Scored, system: System, truth: Truth) -> str:
    """A picture, the same with its true labels drawn over it, and with its predicted ones."""
    true, given = (voc.read_labels(folder / f"{one.name}.png") for folder in (truth.masks, system.folder))
    picture, colours = _picture(truth.pictures, one.name, true.shape), voc.palette()
    views = {"picture": picture}
    views |= {what: voc.overlaid(picture, labels, colours) for what, labels in (("truth", true), ("result", given))}
    images = "".join(f'<img alt="{what}" title="{what}" src="{_data(pixels)}">' for what, pixels in views.items())
    labels = (label for label in np.union1d(true, given) if 0 < label < len(truth.classes))
    chips = "".join(
        f'<i class="chip" style="background:#{bytes(colours[label]).hex()}"></i>{escape(truth.classes[label])}'
        for label in labels
    )
    return (
        f"<figure><figcaption>{escape(one.name)}: {_percent(one.scores.mean)} %{chips}</figcaption>"
        f"<div>{images}</div></figure>\n"
    )


def _picture(folder: Path | None, name: str, size: tuple[int, ...]) -> Array:
    """The picture; plain grey if none has that name and size."""
    paths = [folder / f"{name}{ending}" for ending in voc.PICTURES] if folder else []
    found = next((path for path in paths if path.is_file()), None)
    picture = voc.read_picture(found) if found else np.empty(0)
    return picture if picture.shape[:2] == size else np.full((*size, 3), 128, np.uint8)


def _cell(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.005 else ""


def _percent(share: float) -> str:
    return "-" if isnan(share) else f"{100 * share:.1f}"


def _data(pixels: Array) -> str:
    """A picture as a data URL."""
    from PIL import Image

    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_SIDE, _SIDE))
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
