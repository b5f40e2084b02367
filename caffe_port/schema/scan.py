"""A lenient prototxt parser: finds all unknown names at once, and parses the text without them.

Protobuf's parser stops at the first unknown field. This one has only the grammar of the language (fields, messages,
lists, strings) and compares every name with the messages, so that one run lists everything that a definition of
another Caffe needs.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.text_encoding import CUnescape

from caffe_port.errors import DefinitionError, nearest
from caffe_port.schema.forks import fork_of

__all__ = [
    "Field",
    "Unknown",
    "bare",
    "build",
    "fields",
    "line_of",
    "listed",
    "mistaken",
    "placeholders",
    "read_into",
    "template_error",
    "unknown",
]

_S = r"\s*(?:\#[^\n]*(?:\n|\Z)\s*)*"
_STRING = r""""(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'"""
_NEXT = re.compile(
    rf"""[\s,;]*(?:\#[^\n]*(?:\n|\Z)[\s,;]*)*(?:
        ([A-Za-z_][\w.]*){_S}:{_S}({_STRING}|[-+]?[\w.][\w.+-]*|-[ ]\w+)  # 1, 2: a field and its value
      | ([A-Za-z_][\w.]*){_S}:?{_S}[{{<]                                  # 3: a field that is a message
      | ([}}>])                                                           # 4: its end
      | ([A-Za-z_][\w.]*){_S}:{_S}\[                                      # 5: a list
      | ({_STRING}|[-+]?[\w.][\w.+-]*)                                    # 6: more of a string, a value in a list
      | ([{{<])                                                           # 7: a message in a list
      | (\])                                                              # 8: a list's end
      | ([^\s,;\#])                                                       # 9: nothing of these
      | \Z)""",
    re.VERBOSE | re.DOTALL,
)
# Bounded, so that a text of braces takes no longer than others.
_TEMPLATE = re.compile(
    r"\$\{[^{}\n]{0,99}\}|\{\{[^{}\n]{0,99}\}\}|\{%[^\n]{0,99}?%\}|<%[^\n]{0,99}?%>|\$\(\w{1,99}\)|\$[A-Z_]{2,99}"
)
_QUOTED = re.compile(r"""\#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'""")


class Field(NamedTuple):
    """A field of the text: its start, and its value: a token, or the fields inside it."""

    name: str
    start: int
    value: str | list[Field]


class Unknown(NamedTuple):
    """An unknown name.

    Attributes:
        kind: "type", "field" or "value". name: the type's name, ``Message.field`` or ``Enum.VALUE``.
        at: its places in the text. near: similar known names. fork: a Caffe that has it, if one is known.
    """

    kind: str
    name: str
    at: list[int]
    near: str
    fork: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


_DEEPEST = 100
"""Protobuf's limit of nested messages."""


def fields(text: str, path: str = "<text>") -> list[Field]:
    """The text as fields.

    Raises:
        DefinitionError: an unclosed bracket, a missing value; with file:line:column.
    """
    top: list[Field] = []
    read_into(top, text, path)
    return top


def read_into(top: list[Field], text: str, path: str = "<text>") -> None:
    """Appends the fields of the text to ``top``; those before a syntax error are in it when that is raised.

    Raises:
        DefinitionError: as :func:`fields`.
    """
    inside, make = top, partial(tuple.__new__, Field)  # the current fields; faster than Field itself
    stack: list[
        tuple[list[Field], str, int, bool]
    ] = []  # the enclosing levels: the fields, the name, its start, whether a list
    listed, name, start = False, "", 0
    for m in _NEXT.finditer(text):
        kind = m.lastindex
        if kind == 2 and not listed:
            named, value = m.group(1, 2)
            inside.append(make((named, m.start(1), value)))
        elif (kind == 3 and not listed) or (kind == 7 and listed):
            if len(stack) >= _DEEPEST:
                raise _syntax(text, path, m.end(), f"more than {_DEEPEST} messages inside one another", "fewer")
            stack.append((inside, name if listed else m[3], start if listed else m.start(3), listed))
            inside, listed = [], False
        elif kind == 4 and stack and not listed:
            outer, name, start, listed = stack.pop()
            outer.append(make((name, start, inside)))
            inside = outer
        elif kind == 5 and not listed:
            listed, name, start = True, m[5], m.start(5)
        elif kind == 8 and listed:
            listed = False
        elif kind == 6 and listed:
            inside.append(make((name, start, m[6])))
        elif kind == 6 and m[6][0] in "\"'" and inside and str(inside[-1].value)[:1] in "\"'":
            last = inside[-1]
            inside[-1] = make((last.name, last.start, f"{last.value}{m[6]}"))
        elif kind is not None:
            wanted = (
                "a value or ]" if listed else "a field, such as name: value or name { }" + (" or }" if stack else "")
            )
            raise _syntax(text, path, m.start(kind if kind != 2 else 1), repr(m[0].strip()[:40]), wanted)
    if stack or listed:
        raise _syntax(text, path, stack[-1][2] if stack else start, "an unclosed bracket", "] or }")


def _syntax(text: str, path: str, at: int, found: str, expected: str) -> DefinitionError:
    return template_error(text, path) or DefinitionError(place(text, path, at), found, expected=expected)


def unknown(found: list[Field], root: Any, known: Mapping[str, Callable[[str], bool]] | None = None) -> list[Unknown]:
    """Every name that the messages below ``root`` (a descriptor) do not have, in the order of the text, each once.

    Args:
        known: by ``Message.field`` a function that checks names in strings, such as a layer's type.
    """
    names: dict[tuple[str, str], Unknown] = {}

    def add(kind: str, owner: str, name: str, at: int, near: Callable[[], str]) -> None:
        whole = f"{owner}.{name}" if owner else name
        if (kind, whole) not in names:
            names[kind, whole] = Unknown(kind, whole, [], near(), fork_of(whole if kind == "field" else name))
        names[kind, whole].at.append(at)

    def look(fields: list[Field], message: Any) -> None:
        of, checks = _table(message), known or {}
        for name, start, value in fields:
            row = of.get(name)
            if row is None:
                add("field", message.name, name, start, partial(_near_field, name, message))
            elif isinstance(value, list):
                if row.message is not None:
                    look(value, row.message)
            elif row.enum is not None:
                if value not in row.enum and not value.lstrip("-").isdigit():
                    enum = row.field.enum_type.name
                    layer_type = enum == "LayerType"
                    near = partial(nearest, value, row.enum)
                    add("type" if layer_type else "value", "" if layer_type else enum, bare(value), start, near)
            elif row.path in checks and not checks[row.path](bare(value)):
                owner = "" if row.path == "LayerParameter.type" else row.path
                add("value" if owner else "type", owner, bare(value), start, str)

    look(found, root)
    return list(names.values())


def bare(value: str) -> str:
    """A value of the text without quotes."""
    return value.strip("\"'")


def _near_field(name: str, message: Any) -> str:
    """Suggestions for the field: messages that have it, or similar names."""
    inside = [f.name for f in message.fields if f.message_type and name in f.message_type.fields_by_name]
    return f"inside {', '.join(inside[:3])}" if inside else nearest(name, message.fields_by_name)


def build(found: list[Field], message: Any) -> None:
    """Sets the fields of ``message`` from the text's, skipping unknown ones.

    The result equals that of protobuf's parser, in a fifth of the time.

    Raises:
        ValueError: an invalid value, or a field twice; protobuf's parser gives the better message.
    """
    try:
        message.MergeFrom(type(message)(**_values(found, message.DESCRIPTOR)))
    except TypeError as error:
        raise ValueError(str(error)) from None


class _Row(NamedTuple):
    """A field of a message: the path Message.field, the message or the numbers of the enum that its values are."""

    field: Any
    path: str
    many: bool
    message: Any
    enum: dict[str, int] | None
    type: int


@cache
def _table(message: Any) -> dict[str, _Row]:
    """The fields of a message's descriptor by name."""
    rows = {}
    for field in message.fields:
        enum = (
            {name: value.number for name, value in field.enum_type.values_by_name.items()} if field.enum_type else None
        )
        many = isinstance(field.default_value, list)
        rows[field.name] = _Row(field, f"{message.name}.{field.name}", many, field.message_type, enum, field.type)
    return rows


def _values(found: list[Field], message: Any) -> dict[str, Any]:
    """The known fields as the arguments of a message's constructor."""
    of, values = _table(message), dict[str, Any]()
    for name, _, given in found:
        row = of.get(name)
        if row is None:
            continue
        _, _, many, inner, enum, kind = row
        value: Any
        if isinstance(given, list):
            if inner is None:
                raise ValueError(f"{name} is no message")
            value = _values(given, inner)
        elif inner is not None:
            raise ValueError(f"{name} is a message")
        elif enum is not None:
            value = enum.get(given)
            if value is None:
                if not given.lstrip("-").isdigit():
                    continue
                value = int(given, 0)
        elif (
            kind == _STRING_TYPE
            and given[0] in "\"'"
            and given.find(given[0], 1) == len(given) - 1
            and "\\" not in given
        ):
            value = given[1:-1]
        else:
            value = (_scalar if len(given) < 32 else _scalar.__wrapped__)(kind, given)
        if many:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise ValueError(f"{name} a second time")
        else:
            values[name] = value
    return values


_STRING_TYPE: int = FieldDescriptor.TYPE_STRING


@lru_cache(4096)
def _scalar(type: int, text: str) -> Any:
    """A value in one of protobuf's types."""
    if type in (_STRING_TYPE, FieldDescriptor.TYPE_BYTES):
        pieces = [piece[1:-1] for piece in re.findall(_STRING, text)]
        if not pieces or text[0] not in "\"'":
            raise ValueError(f"{text} without quotes")
        raw = b"".join(piece.encode() if "\\" not in piece else CUnescape(piece) for piece in pieces)
        return raw.decode() if type == _STRING_TYPE else raw
    if type == FieldDescriptor.TYPE_BOOL:
        return _BOOLS[text] if text in _BOOLS else _refuse(text)
    if type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        if _NUMBER.fullmatch(text):
            return float(text.rstrip("fF"))
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}.get(text.lower()) or _refuse(text)
    base = next((base for base, form in _WHOLE.items() if form.fullmatch(text)), 0)
    return int(text, base) if base else _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)


_BOOLS = {"true": True, "false": False, "True": True, "False": False, "t": True, "f": False, "1": True, "0": False}
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?")
_WHOLE = {10: re.compile(r"-?(?:0|[1-9]\d*)"), 16: re.compile(r"-?0[xX][\da-fA-F]+"), 8: re.compile(r"-?0[0-7]+")}


def listed(names: Sequence[Unknown], text: str, where: str) -> str:
    """The text after an error about one unknown name: its fork, and all other unknown names by theirs.

    Args:
        where: ``file:line:column`` of the error.
    """
    line, column = map(int, where.rsplit(":", 2)[1:])
    ends = [m.start() for m in re.finditer("\n", text)]
    at = (ends[line - 2] if line > 1 else -1) + column
    here = [one for one in names if line in (bisect_left(ends, place) + 1 for place in one.at)]
    first = next((one for one in here if at in one.at), (here or names)[0])
    groups: dict[str, list[str]] = {}
    for one in names:
        if one is not first:
            groups.setdefault(one.fork, []).append(f"{one} (line {bisect_left(ends, one.at[0]) + 1})")
    text = f", of {first.fork}" if first.fork else ""
    for fork, others in groups.items():
        shown = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
        text += f"; also unknown{f', of {fork}' if fork else ''}: {shown}"
    return text if len(text) < _LONGEST else f"{text[:_LONGEST]} ..."


_SHOWN, _LONGEST = 8, 600


def template_error(text: str, path: str) -> DefinitionError | None:
    """The error for a text that does not parse because it is a template, if it is one."""
    holder = template(text)
    if holder is None:
        return None
    return DefinitionError(
        place(text, path, holder[1]),
        f"{holder[0]}, a template's placeholder",
        expected="a prototxt",
        remedy="fill the template in first, with the script that belongs to it",
    )


def template(text: str) -> tuple[str, int] | None:
    """The first placeholder (``${X}``, ``{{x}}``) outside strings and comments, and its place."""
    blanked = _QUOTED.sub(lambda m: " " * len(m[0]), text)
    match = _TEMPLATE.search(blanked)
    return (match[0], match.start()) if match else None


def placeholders(text: str) -> list[tuple[str, int]]:
    """Placeholders within strings, with their places."""
    if "$" not in text and "{{" not in text and "{%" not in text and "<%" not in text:
        return []
    strings = (match for match in _QUOTED.finditer(text) if match[0][0] != "#")
    return [(found[0], match.start()) for match in strings if (found := _TEMPLATE.search(match[0]))]


def mistaken(name: str) -> str:
    """Why a string of a definition names no file, as a remedy: it holds a placeholder or what escapes made of a Windows
    path; "" for others."""
    match = _TEMPLATE.search(name)
    if match:
        return f"{match[0]} is a template's placeholder: fill it in first"
    return WINDOWS if _WINDOWS.search(name) else ""


WINDOWS = "a Windows path? write / (in prototxt \\ begins an escape, as in real Caffe)"
WINDOWS_PATH = re.compile(r"""["'](?:[A-Za-z]:\\[^\\]|\\\\\w)""")
"""Such a path in a prototxt's text."""
_WINDOWS = re.compile(r"[\\\0-\x1f]|^[A-Za-z]:")


def line_of(text: str, at: int) -> int:
    """The 1-based line of a place in the text."""
    return text.count("\n", 0, at) + 1


def place(text: str, path: str, at: int) -> str:
    """``file:line:column``."""
    return f"{path}:{line_of(text, at)}:{at - text.rfind(chr(10), 0, at)}"
