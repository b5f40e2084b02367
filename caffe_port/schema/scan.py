"""A prototxt read leniently: every name in it that is not known, all at once, and the text without these.

Protobuf's parser stops at the first unknown field. This one knows only the shape of the language (fields, messages,
lists, strings) and compares every name with the messages, so that a definition of another Caffe shows everything that
it needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from caffe_port.errors import DefinitionError, nearest
from caffe_port.schema.forks import fork_of

__all__ = ["Field", "Unknown", "fields", "line_of", "listed", "strip", "template_error", "unknown"]

_S = r"(?:\s|\#[^\n]*(?:\n|\Z))*"
_STRING = r""""(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'"""
_NEXT = re.compile(
    rf"""(?:[\s,;]+|\#[^\n]*(?:\n|\Z))*(?:
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
_TEMPLATE = re.compile(r"\$\{[^}\n]*\}|\{\{[^}\n]*\}\}|\{%[^\n]*?%\}|<%[^\n]*?%>|\$\(\w+\)|\$[A-Z_]{2,}")
_QUOTED = re.compile(r"""\#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'""")


class Field(NamedTuple):
    """A field of the text: where it begins and ends, and what it is set to: a token, or the fields inside it."""

    name: str
    start: int
    end: int
    value: str | list[Field]


class Unknown(NamedTuple):
    """A name that is not known.

    Attributes:
        kind: "type", "field" or "value". name: the type's name, ``Message.field`` or ``Enum.VALUE``.
        at: its places in the text. near: known names like it. fork: a Caffe that has it, if one is known.
    """

    kind: str
    name: str
    at: list[int]
    near: str
    fork: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


_DEEPEST = 100
"""Messages in messages that protobuf reads."""


def fields(text: str, path: str = "<text>") -> list[Field]:
    """The text as fields.

    Raises:
        DefinitionError: a bracket that nothing closes, a value missing; with file:line:column.
    """
    top: list[Field] = []
    inside = top  # what is being read
    stack: list[tuple[list[Field], str, int, bool]] = []  # around it: the fields, the name, its start, whether a list
    listed, name, start = False, "", 0
    for m in _NEXT.finditer(text):
        kind = m.lastindex
        if kind == 2 and not listed:
            inside.append(Field(m[1], m.start(1), m.end(), m[2]))
        elif (kind == 3 and not listed) or (kind == 7 and listed):
            if len(stack) >= _DEEPEST:
                raise _syntax(text, path, m.end(), f"more than {_DEEPEST} messages inside one another", "fewer")
            stack.append((inside, name if listed else m[3], start if listed else m.start(3), listed))
            inside, listed = [], False
        elif kind == 4 and stack and not listed:
            outer, name, start, listed = stack.pop()
            outer.append(Field(name, start, m.end(), inside))
            inside = outer
        elif kind == 5 and not listed:
            listed, name, start = True, m[5], m.start(5)
        elif kind == 8 and listed:
            listed = False
        elif kind == 6 and listed:
            inside.append(Field(name, start, m.end(), m[6]))
        elif kind == 6 and m[6][0] in "\"'" and inside and str(inside[-1].value)[:1] in "\"'":
            last = inside[-1]
            inside[-1] = Field(last.name, last.start, m.end(), f"{last.value}{m[6]}")
        elif kind is not None:
            wanted = (
                "a value or ]" if listed else "a field, such as name: value or name { }" + (" or }" if stack else "")
            )
            raise _syntax(text, path, m.start(kind if kind != 2 else 1), repr(m[0].strip()[:40]), wanted)
    if stack or listed:
        raise _syntax(text, path, stack[-1][2] if stack else start, "what nothing closes", "] or }")
    return top


def _syntax(text: str, path: str, at: int, found: str, expected: str) -> DefinitionError:
    return template_error(text, path) or DefinitionError(place(text, path, at), found, expected=expected)


def unknown(found: list[Field], root: Any, known_type: Callable[[str], bool] | None = None) -> list[Unknown]:
    """Every name that the messages below ``root`` (a descriptor) do not have, in the order of the text, each once.

    Args:
        known_type: whether a layer type of the V2 form is known; None takes all for known.
    """
    names: dict[tuple[str, str], Unknown] = {}

    def add(kind: str, owner: str, name: str, at: int, near: Callable[[], str]) -> None:
        whole = f"{owner}.{name}" if owner else name
        if (kind, whole) not in names:
            names[kind, whole] = Unknown(kind, whole, [], near(), fork_of(whole if kind == "field" else name))
        names[kind, whole].at.append(at)

    def look(fields: list[Field], message: Any) -> None:
        of = message.fields_by_name
        for field in fields:
            name, value = field.name, field.value
            if name not in of:
                add("field", message.name, name, field.start, lambda n=name: _near_field(n, message))  # type: ignore[misc]
                continue
            known = of[name]
            if known.message_type is not None:
                if isinstance(value, list):
                    look(value, known.message_type)
            elif known.enum_type is not None and isinstance(value, str):
                enum = known.enum_type
                if value in enum.values_by_name or value.lstrip("-").isdigit():
                    continue
                kind, owner = ("type", "") if enum.name == "LayerType" else ("value", enum.name)
                add(kind, owner, value.strip("\"'"), field.start, lambda v=value, e=enum: nearest(v, e.values_by_name))  # type: ignore[misc]
            elif name == "type" and message.name == "LayerParameter" and known_type and isinstance(value, str):
                bare = value.strip("\"'")
                if not known_type(bare):
                    add("type", "", bare, field.start, lambda: "")

    look(found, root)
    return list(names.values())


def _near_field(name: str, message: Any) -> str:
    """Where the field may be meant: inside a message that has it, or under a name like it."""
    inside = [f.name for f in message.fields if f.message_type and name in f.message_type.fields_by_name]
    return f"inside {', '.join(inside[:3])}" if inside else nearest(name, message.fields_by_name)


def strip(text: str, found: list[Field], root: Any) -> str:
    """The text with blanks where a field or an enum's value is not known: what remains, protobuf reads."""
    spans: list[tuple[int, int]] = []

    def look(fields: list[Field], message: Any) -> None:
        for field in fields:
            known = message.fields_by_name.get(field.name)
            if known is None:
                spans.append((field.start, field.end))
            elif known.message_type is not None and isinstance(field.value, list):
                look(field.value, known.message_type)
            elif known.enum_type is not None and isinstance(field.value, str):
                value = field.value
                if value not in known.enum_type.values_by_name and not value.lstrip("-").isdigit():
                    spans.append((field.start, field.end))

    look(found, root)
    for start, end in spans:
        text = text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]
    return text


def listed(names: Sequence[Unknown], text: str, where: str) -> str:
    """What to say of unknown names behind an error about one of them: its fork, and all others by theirs.

    Args:
        where: ``file:line:column`` of the error.
    """
    line = int(where.rsplit(":", 2)[1])
    first = next((one for one in names if line in (line_of(text, at) for at in one.at)), names[0])
    groups: dict[str, list[str]] = {}
    for one in names:
        if one is not first:
            groups.setdefault(one.fork, []).append(f"{one} (line {line_of(text, one.at[0])})")
    told = f", of {first.fork}" if first.fork else ""
    for fork, others in groups.items():
        shown = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
        told += f"; also unknown{f', of {fork}' if fork else ''}: {shown}"
    return told if len(told) < _LONGEST else f"{told[:_LONGEST]} ..."


_SHOWN, _LONGEST = 8, 600


def template_error(text: str, path: str) -> DefinitionError | None:
    """What to say of a text that does not parse because it is a template, if it is one."""
    holder = template(text)
    if holder is None:
        return None
    return DefinitionError(
        place(text, path, holder[1]),
        f"{holder[0]}, a template's placeholder",
        expected="a prototxt",
        remedy="fill the template in first, as the script beside it does",
    )


def template(text: str) -> tuple[str, int] | None:
    """The first placeholder (``${X}``, ``{{x}}``) outside strings and comments, and its place."""
    blanked = _QUOTED.sub(lambda m: " " * len(m[0]), text)
    match = _TEMPLATE.search(blanked)
    return (match[0], match.start()) if match else None


def line_of(text: str, at: int) -> int:
    """The 1-based line of a place in the text."""
    return text.count("\n", 0, at) + 1


def place(text: str, path: str, at: int) -> str:
    """``file:line:column``."""
    return f"{path}:{line_of(text, at)}:{at - text.rfind(chr(10), 0, at)}"
