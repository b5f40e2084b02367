"""What py-faster-rcnn keeps outside its prototxts: its ``cfg``, and the YAML of ``param_str`` and of its cfg files.

In use::

    from caffe_port.data import rcnn_settings

    rcnn_settings.change({"TRAIN.RPN_BATCHSIZE": 64})
    rcnn_settings.read("experiments/cfgs/faster_rcnn_end2end.yml")

A net takes the settings that hold when it is built; keys of ``param_str`` in capitals hold for that layer alone.
Source: lib/fast_rcnn/config.py (781a917).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caffe_port.errors import DefinitionError, FileError, nearest

__all__ = ["SETTINGS", "change", "of_phase", "parse_yaml", "read"]

_BOX = (1.0, 1.0, 1.0, 1.0)
SETTINGS: dict[str, Any] = {
    "TRAIN.SCALES": (600,),
    "TRAIN.MAX_SIZE": 1000,
    "TRAIN.IMS_PER_BATCH": 2,
    "TRAIN.BATCH_SIZE": 128,  # -1: all, of R-FCN
    "TRAIN.FG_FRACTION": 0.25,
    "TRAIN.FG_THRESH": 0.5,
    "TRAIN.BG_THRESH_HI": 0.5,
    "TRAIN.BG_THRESH_LO": 0.1,
    "TRAIN.BBOX_REG": True,
    "TRAIN.AGNOSTIC": False,
    "TRAIN.BBOX_INSIDE_WEIGHTS": _BOX,
    "TRAIN.BBOX_NORMALIZE_TARGETS_PRECOMPUTED": False,
    "TRAIN.BBOX_NORMALIZE_MEANS": (0.0, 0.0, 0.0, 0.0),
    "TRAIN.BBOX_NORMALIZE_STDS": (0.1, 0.1, 0.2, 0.2),
    "TRAIN.ASPECT_GROUPING": True,
    "TRAIN.HAS_RPN": False,
    "TRAIN.RPN_POSITIVE_OVERLAP": 0.7,
    "TRAIN.RPN_NEGATIVE_OVERLAP": 0.3,
    "TRAIN.RPN_CLOBBER_POSITIVES": False,
    "TRAIN.RPN_FG_FRACTION": 0.5,
    "TRAIN.RPN_BATCHSIZE": 256,
    "TRAIN.RPN_NMS_THRESH": 0.7,
    "TRAIN.RPN_PRE_NMS_TOP_N": 12000,
    "TRAIN.RPN_POST_NMS_TOP_N": 2000,
    "TRAIN.RPN_MIN_SIZE": 16,
    "TRAIN.RPN_BBOX_INSIDE_WEIGHTS": _BOX,
    "TRAIN.RPN_POSITIVE_WEIGHT": -1.0,
    "TEST.SCALES": (600,),
    "TEST.MAX_SIZE": 1000,
    "TEST.NMS": 0.3,
    "TEST.RPN_NMS_THRESH": 0.7,
    "TEST.RPN_PRE_NMS_TOP_N": 6000,
    "TEST.RPN_POST_NMS_TOP_N": 300,
    "TEST.RPN_MIN_SIZE": 16,
    "PIXEL_MEANS": (102.9801, 115.9465, 122.7717),
}
"""The settings that matter here, with the original's defaults."""

_OTHERS = frozenset(
    (
        *("EXP_DIR", "DEDUP_BOXES", "RNG_SEED", "EPS", "ROOT_DIR", "DATA_DIR", "MODELS_DIR", "MATLAB", "USE_GPU_NMS"),
        *("GPU_ID", "TRAIN.USE_FLIPPED", "TRAIN.BBOX_THRESH", "TRAIN.SNAPSHOT_ITERS", "TRAIN.SNAPSHOT_INFIX"),
        *("TRAIN.USE_PREFETCH", "TRAIN.BBOX_NORMALIZE_TARGETS", "TRAIN.PROPOSAL_METHOD", "TEST.SVM", "TEST.BBOX_REG"),
        *("TEST.HAS_RPN", "TEST.PROPOSAL_METHOD", "TEST.AGNOSTIC"),
    )
)
"""What belongs to the original's own scripts."""

_GIVEN: set[str] = set()
"""Names whose value a user has set."""


def change(values: Mapping[str, Any]) -> None:
    """Set some settings for all nets built from now on.

    Raises:
        DefinitionError: a name that py-faster-rcnn does not have.
    """
    for name, value in values.items():
        if name in _OTHERS:
            continue
        if name not in SETTINGS:
            near = nearest(name, SETTINGS)
            raise DefinitionError(
                "rcnn settings", name, expected="a name of py-faster-rcnn's cfg", remedy=f"near: {near}"
            )
        SETTINGS[name] = tuple(value) if isinstance(value, list) else value
        _GIVEN.add(name)


def read(path: str | Path) -> None:
    """Set what a cfg file of py-faster-rcnn (YAML) sets.

    Raises:
        FileError, DefinitionError: the file cannot be read, or is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(str(path), error.strerror or "cannot be read", expected="a .yml file") from None
    change(dict(_flat(parse_yaml(text, str(path)))))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class _Phase(dict[str, Any]):
    """The settings of a phase by their short names."""

    given: frozenset[str] = frozenset()

    def __getattr__(self, name: str) -> Any:
        return self[name]


def of_phase(phase: str, own: Mapping[str, Any] | None = None) -> _Phase:
    """The settings for TRAIN or TEST, by their names without it; ``own`` ones come first, ``given`` names all set."""
    found = _Phase({name.rpartition(".")[2]: v for name, v in SETTINGS.items() if name.startswith((phase, "PIXEL"))})
    mine = {name: tuple(v) if isinstance(v, list) else v for name, v in (own or {}).items() if name in found}
    found.update(mine)
    found.given = frozenset((*mine, *(name.rpartition(".")[2] for name in _GIVEN if name.startswith(phase))))
    return found


# -- the YAML that such files hold -----------------------------------------------------------------------------------

_TOKEN = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^']|'')*)'|([\[\]{}(),:])|([^\s\[\]{}(),:][^\[\]{}(),:\n]*))""")
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "null": None, "none": None, "~": None}


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A mapping of names to numbers, words, lists and mappings, by lines with indents or in braces; no objects.

    Raises:
        DefinitionError: it is more than that.
    """
    text = re.sub(r"!!\S+", "", re.sub(r"(?m)(^|\s)#.*$", "", text))
    if text.strip().startswith("{"):
        value, rest = _flow(text, 0, where)
        if text[rest:].strip() or not isinstance(value, dict):
            raise _wrong(where, text[rest:])
        return value
    lines = [line.expandtabs().rstrip() for line in text.split("\n") if line.strip()]
    value, rest = _block(lines, 0, where)
    if rest < len(lines):
        raise _wrong(where, lines[rest])
    return value


def _block(lines: list[str], i: int, where: str) -> tuple[dict[str, Any], int]:
    """The mapping that begins at line ``i``, and the line behind it."""
    found: dict[str, Any] = {}
    indent = len(lines[i]) - len(lines[i].lstrip()) if lines else 0
    while i < len(lines) and len(lines[i]) - len(lines[i].lstrip()) == indent:
        match = re.match(r"""\s*(?:'([^']*)'|"([^"]*)"|([\w.]+))\s*:\s*(.*)$""", lines[i])
        if match is None:
            raise _wrong(where, lines[i])
        name, rest = match[1] or match[2] or match[3] or "", match[4]
        i += 1
        deeper = i < len(lines) and len(lines[i]) - len(lines[i].lstrip()) > indent
        if rest:
            value, end = _flow(rest, 0, where)
            if rest[end:].strip():
                raise _wrong(where, rest[end:])
            found[name] = value
        elif i < len(lines) and lines[i].lstrip().startswith("- "):
            items = []
            while i < len(lines) and lines[i].lstrip().startswith("- "):
                items.append(_flow(lines[i].lstrip()[2:], 0, where)[0])
                i += 1
            found[name] = items
        elif deeper:
            found[name], i = _block(lines, i, where)
        else:
            found[name] = None
    return found, i


def _flow(text: str, at: int, where: str) -> tuple[Any, int]:
    """A value in one line, and the place behind it."""
    match = _TOKEN.match(text, at)
    if match is None:
        raise _wrong(where, text[at:])
    at = match.end()
    if match[1] is not None or match[2] is not None:
        return match[1] if match[1] is not None else match[2], at
    if match[4]:
        return _scalar(match[4].strip()), at
    if match[3] not in "[{(":
        raise _wrong(where, match[0])
    items: list[Any] = []
    pairs: dict[str, Any] = {}
    closing = {"[": "]", "{": "}", "(": ")"}[match[3]]
    while True:
        nxt = _TOKEN.match(text, at)
        if nxt is not None and nxt[3] == closing:
            return pairs if closing == "}" else items, nxt.end()
        if nxt is not None and nxt[3] == ",":
            at = nxt.end()
            continue
        value, at = _flow(text, at, where)
        if closing == "}":
            colon = _TOKEN.match(text, at)
            if colon is None or colon[3] != ":":
                raise _wrong(where, text[at:])
            pairs[str(value)], at = _flow(text, colon.end(), where)
        else:
            items.append(value)


def _scalar(word: str) -> Any:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            pass
    return _WORDS.get(word.lower(), word)


def _wrong(where: str, found: str) -> DefinitionError:
    return DefinitionError(where, repr(found.strip()[:40]), expected="YAML of names, numbers and lists")
