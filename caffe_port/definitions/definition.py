"""Nets and solvers as Python values, and their text.

A message is a dict of fields, a repeated field a list, an enum value a :class:`Word`. Nets are written in the form
``layers { type: ENUM }``, because the fork of DecoupledNet and DeconvNet reads no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from caffe_port.errors import DefinitionError

__all__ = ["Fields", "Layer", "Layers", "Learn", "Net", "Note", "Setting", "Solver", "Word"]

Fields = Mapping[str, Any]
COLUMNS = 110
_STAMP = "Written by prototxt/build.py: change the builder, not this file."


class Word(str):
    """An enum value: text without quotes."""


@dataclass(frozen=True)
class Setting:
    """What one run of the builder changes in every net. The defaults give the released definitions."""

    width: Fraction = Fraction(1)
    """Factor on the number of features of every layer, except numbers of classes."""
    size: int = 0
    """Height and width of the input in pixels; 0 is each net's own."""
    batch: int = 0
    """Images in a batch of every data layer; 0 is each net's own."""
    data_root: str = "."
    """Folder that holds ``VOC2012`` and the folders of image lists."""
    classes: int = 20
    """Of objects, the background not among them."""
    level: str = ""
    """Strong annotations for each class in the lists of strong pictures, by its name in ``prepare --levels``; "" for
    all. Not for DecoupledNet, which has a definition for each level."""
    norm: bool = False
    """Whether nets are trained from fillers instead of VGG-16's weights: the classification and DeepLab nets then
    have BN, and DeconvNet fillers."""
    score_rate: int = 10
    """Factor on the rate of the classification net's scores: the released 10 suits one layer on trained ones, 1 suits
    Adam where all are new."""
    fc_width: Fraction | None = None
    """The factor for fc6 and fc7, which then have fillers; None: ``width``."""
    decoder_width: Fraction | None = None
    """The factor for the bridge and the segmentation network, at most ``width``; None: ``width``."""
    kept: str = ""
    """Folder of what the 13 convolutions give for the training pictures (``keep-features``), which the nets that
    leave them unchanged then read in place of the pictures; "" for none."""

    def __post_init__(self) -> None:
        widths = {"--width": self.width, "--fc-width": self.fc_width, "--decoder-width": self.decoder_width}
        for option, width in widths.items():
            if width is not None and width <= 0:
                raise DefinitionError(option, str(width), expected="a positive fraction such as 1/32")
        if self.decoder_width is not None and self.decoder_width > self.width:
            raise DefinitionError(
                "--decoder-width",
                str(self.decoder_width),
                expected=f"at most --width, {self.width}: unpooling needs a switch of the first half for each feature",
            )
        if self.kept and self.norm:
            raise DefinitionError("--kept", "also --norm", expected="one: fixed convolutions have no BN to be trained")
        for option, value in (("--input-size", self.size), ("--batch", self.batch), ("--classes", self.classes)):
            if value < 0 or not self.classes:
                raise DefinitionError(option, str(value), expected="a positive number")

    def lists(self, name: str) -> str:
        """The folder of that name of lists of strong pictures."""
        return f"{name}_{self.level}" if self.level else name

    def features(self, released: int) -> int:
        """The number of features in place of ``released``, never less than two."""
        return _scaled(released, self.width)

    def fc_features(self, released: int) -> int:
        """:meth:`features` of fc6 or fc7."""
        return _scaled(released, self.fc_width or self.width)

    def decoder_features(self, released: int) -> int:
        """:meth:`features` of a layer of the bridge or the segmentation network."""
        return _scaled(released, self.decoder_width or self.width)


def _scaled(released: int, width: Fraction) -> int:
    return max(2, round(released * width))


class Learn(NamedTuple):
    """Multipliers of the learning rate and of the weight decay, one of each for every parameter blob."""

    rates: Sequence[float]
    decays: Sequence[float]


NO_MULTIPLIERS = Learn((), ())


@dataclass(frozen=True)
class Note:
    """A comment between layers."""

    text: str

    def __str__(self) -> str:
        return f"\n# {self.text}"


@dataclass(frozen=True)
class Layer:
    """One layer; ``type`` is the V1 enum's name. An empty ``name`` stays unwritten, as in some released files."""

    type: str
    name: str
    bottoms: Sequence[str]
    tops: Sequence[str]
    params: Fields = field(default_factory=dict)
    """The parameter messages: ``{"convolution_param": {"num_output": 64}}``."""
    learn: Learn = NO_MULTIPLIERS
    phase: str = ""
    """"TRAIN" or "TEST" for a layer of that phase only."""

    @property
    def param(self) -> Fields:
        """The fields of all parameter messages together."""
        return {key: value for message in self.params.values() for key, value in message.items()}

    def __str__(self) -> str:
        fields: dict[str, Any] = {"name": self.name} if self.name else {}
        fields |= {"type": Word(self.type), "bottom": list(self.bottoms), "top": list(self.tops)}
        fields |= {"blobs_lr": list(self.learn.rates), "weight_decay": list(self.learn.decays)}
        fields |= self.params
        if self.phase:
            fields["include"] = {"phase": Word(self.phase)}
        return "\n".join(_block("layers", fields))


Layers = Iterable[Layer | Note]


@dataclass(frozen=True)
class Net:
    """A network definition; ``inputs`` maps an input blob to its four dimensions."""

    name: str
    content: Sequence[Layer | Note]
    inputs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    force_backward: bool = False
    about: str = ""
    """The comment at the top of the file."""

    def layers(self, phase: str = "") -> Iterator[Layer]:
        """The layers, or those that exist in ``phase``."""
        layers = (item for item in self.content if isinstance(item, Layer))
        return (layer for layer in layers if not phase or layer.phase in ("", phase))

    def __str__(self) -> str:
        head: dict[str, Any] = {"name": self.name} | ({"force_backward": True} if self.force_backward else {})
        lines = [*_comments(self.about), *_scalars(head, separate=True)]
        for name, shape in self.inputs.items():
            lines += _scalars({"input": name, "input_dim": list(shape)})
        return "\n".join([*lines, *map(str, self.content)]) + "\n"


@dataclass(frozen=True)
class Solver:
    """A solver definition."""

    fields: Fields
    about: str = ""

    def __str__(self) -> str:
        return "\n".join([*_comments(self.about), *_scalars(self.fields, separate=True)]) + "\n"


def _comments(about: str) -> list[str]:
    return [f"# {line}" for line in (*about.splitlines(), _STAMP)]


def _scalar(value: Any) -> str:
    if isinstance(value, (Word, Fraction)):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _tokens(fields: Fields) -> list[tuple[str, str]]:
    """``(field, its text)`` for every value, the repeated ones spelled out."""
    tokens = []
    for key, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            text = f"{key} {{ {_inline(one)} }}" if isinstance(one, Mapping) else f"{key}: {_scalar(one)}"
            tokens.append((key, text))
    return tokens


def _inline(fields: Fields) -> str:
    return "  ".join(text for _, text in _tokens(fields))


def _scalars(fields: Fields, indent: str = "", separate: bool = False) -> list[str]:
    """Fields packed into lines; the multipliers, or with ``separate`` every field, start a new line."""
    lines: list[str] = []
    for key, text in _tokens(fields):
        starts = separate or (key == "blobs_lr" and "blobs_lr" not in lines[-1])
        if lines and not starts and len(lines[-1]) + 2 + len(text) <= COLUMNS:
            lines[-1] += "  " + text
        else:
            lines.append(indent + text)
    return lines


def _block(name: str, fields: Fields, indent: str = "") -> list[str]:
    """A message on one line where it fits; otherwise its scalar fields first, then one message after the other."""
    line = f"{indent}{name} {{ {_inline(fields)} }}"
    if len(line) <= COLUMNS:
        return [line]
    deeper = indent + "  "
    messages = {key: value for key, value in fields.items() if isinstance(value, Mapping)}
    body = _scalars({key: value for key, value in fields.items() if key not in messages}, deeper)
    for key, value in messages.items():
        body += _block(key, value, deeper)
    return [f"{indent}{name} {{", *body, f"{indent}}}"]
