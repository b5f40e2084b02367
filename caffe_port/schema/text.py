"""Reading and writing prototxt: protobuf parses, and its errors become errors with a place and a remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from caffe_port.errors import CaffeError, DefinitionError, FileError, FormatError, nearest
from caffe_port.schema import scan
from caffe_port.schema.layer_types import V1_TO_V2, V2_TO_V1, known_names, v2_type

__all__ = ["field_lines", "parse_text", "read_text", "to_text"]

_UNKNOWN_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "([^"]*)"')
_UNKNOWN_VALUE = re.compile(r'Enum type "([\w.]+)" has no value (?:named|with number) (.*?)\.?$')
_TWICE = re.compile(r'Message type "[\w.]+" should not have multiple "([^"]*)" fields')
_ANOTHER_CAFFE = (
    "pass --proto their_caffe.proto for another Caffe's fields and types, "
    'its layers by @layer("{type}") in a Python file given by --plugin'
)
_MARKS = re.compile(
    r"""\#[^\n]* | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' | (?P<word>[A-Za-z_]\w*) | (?P<brace>[{}<>])""", re.VERBOSE
)


def read_text(path: str | Path) -> str:
    """The text of a prototxt file (UTF-8, else Latin-1, which accepts any comment).

    Raises:
        FileError: the file is missing or cannot be read.
        FormatError: it is empty, not a text, a web page or a Git LFS pointer.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        near = nearest(Path(path).name, (p.name for p in Path(path).parent.glob("*.prototxt")))
        raise FileError(str(path), "no such file", remedy=f"did you mean {near}?" if near else "") from None
    except OSError as error:
        raise FileError(str(path), f"cannot be read ({error.strerror})") from None
    head = data[:512].lstrip().lower()
    if not data.strip():
        raise FormatError(str(path), "an empty file", expected="a prototxt")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise FormatError(str(path), "a web page", expected="a prototxt", remedy="download the raw file")
    if head.startswith(b"version https://git-lfs"):
        raise FormatError(
            str(path), "a Git LFS pointer", expected="a prototxt", remedy="fetch the file with git lfs pull"
        )
    if b"\0" in data:
        raise FormatError(str(path), "a binary file", expected="a prototxt", remedy="weights are a separate argument")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def parse_text(text: str, message_class: Any, path: str) -> Any:
    """A message from its text form.

    Args:
        text: prototxt.
        message_class: what to parse, such as ``NetParameter``.
        path: the file's name for messages.

    Raises:
        DefinitionError: a syntax error, an unknown field or value, a field twice, or a required field missing.
    """
    message = message_class()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise scan.template_error(text, path) or _explain(error, text, message_class.DESCRIPTOR, path) from None
    if not message.IsInitialized():
        raise DefinitionError(path, f"no {message.FindInitializationErrors()[0]}, a required field", remedy="set it")
    return message


def to_text(message: Any) -> str:
    """A message as prototxt."""
    return text_format.MessageToString(message, as_utf8=True)


def field_lines(text: str) -> dict[str, list[int]]:
    """The 1-based lines of the top-level fields of a valid prototxt, by name, in order."""
    lines: dict[str, list[int]] = {}
    depth, name, line, at, named = 0, "", 1, 0, False
    for mark in _MARKS.finditer(text):
        line, at = line + text.count("\n", at, mark.start()), mark.start()
        if mark["word"] and depth == 0:
            name, named = mark["word"], True
            lines.setdefault(name, []).append(line)
        elif mark["brace"] in ("{", "<"):
            if depth == 0 and not named:  # a further element of a list: layer: [{...}, {...}]
                lines[name].append(line)
            depth, named = depth + 1, False
        elif mark["brace"]:
            depth -= 1
    return lines


def _explain(error: text_format.ParseError, text: str, root: Any, path: str) -> CaffeError:
    """Protobuf's error as an error of ours, with similar names and a remedy."""
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    where = f"{path}:{line}:{column}"
    rows = text.split("\n")
    row = rows[line - 1] if line <= len(rows) else ""
    plain = re.sub(r"^\d+:\d+ : ", "", str(error)).removeprefix(f"'{row}': ").rstrip(".")
    if match := _UNKNOWN_FIELD.search(plain):
        return _with_others(_unknown_field(where, root, *match.groups()), text, root)
    if match := _UNKNOWN_VALUE.search(plain):
        return _with_others(_unknown_value(where, root, *match.groups()), text, root)
    if match := _TWICE.search(plain):
        return DefinitionError(where, f"{match[1]} a second time", expected="one", remedy="remove one")
    if match := re.fullmatch(r"Expected string but found: '(\w+)'", plain):
        string = V1_TO_V2.get(match[1], match[1])
        return DefinitionError(where, match[1], expected=f'"{string}"', remedy="put the string in quotes")
    if match := re.fullmatch(r"Expected (.+?)(?:(?:, got| but found:) (.+))?", plain):
        rest = row[column - 1 :].split() or ["the end of the line"]
        return DefinitionError(where, match[2] or rest[0], expected=match[1])
    remedy = f"in: {row.strip()[:60]}"
    if scan.WINDOWS_PATH.search(row):
        remedy = f"{scan.WINDOWS}; {remedy}"
    return DefinitionError(where, plain[:1].lower() + plain[1:], remedy=remedy)


def _with_others(error: DefinitionError, text: str, root: Any) -> DefinitionError:
    """The error about the first unknown name, followed by all others of the text, by their fork."""
    try:
        found = scan.fields(text)
    except DefinitionError:
        return error
    names = scan.unknown(found, root, known_names())
    if not names:
        return error
    listed = scan.listed(names, text, error.where)
    return DefinitionError(error.where, error.found + listed, expected=error.expected, remedy=error.remedy)


def _unknown_field(where: str, root: Any, message_name: str, field: str) -> DefinitionError:
    message = root.file.pool.FindMessageTypeByName(message_name)
    found = f"unknown field {field!r} of {message.name}"
    inside = [f.name for f in message.fields if f.message_type and field in f.message_type.fields_by_name]
    near = nearest(field, (f.name for f in message.fields))
    if message is root:
        for other in ("NetParameter", "SolverParameter"):
            if other != message.name and field in root.file.message_types_by_name[other].fields_by_name:
                return DefinitionError(where, found, remedy=f"the file looks like a {other[:-9].lower()}'s definition")
    if inside:
        found += f" (it belongs inside {', '.join(inside[:3])})"
    elif near:
        found += f" (near: {near})"
    return DefinitionError(where, found, remedy=_ANOTHER_CAFFE.format(type="TheirType"))


def _unknown_value(where: str, root: Any, enum_name: str, value: str) -> DefinitionError:
    pool = root.file.pool
    enum = pool.FindEnumTypeByName(enum_name)
    if enum.name != "LayerType":
        return DefinitionError(where, value, expected=f"one of {', '.join(v.name for v in enum.values)}")
    bare = value.strip("\"'")
    if bare in V2_TO_V1:
        return DefinitionError(
            where, value, expected=V2_TO_V1[bare], remedy="layers {} takes a bare name, layer {} a string"
        )
    near = nearest(value, (v.name for v in enum.values))
    return DefinitionError(
        where,
        f"unknown layer type {value}" + (f" (near: {near})" if near else ""),
        remedy=_ANOTHER_CAFFE.format(type=v2_type(bare)),
    )
