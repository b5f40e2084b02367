"""The code of a PyTorch module under construction: modules, steps of its forward pass, names, lines.

A step's text names blobs by tokens (``str`` of a :class:`Var`); names are given when all steps are known, so that a
value which only the next step reads can be ``x``, or stand inside that step.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_port.dialects import Dialect

if TYPE_CHECKING:
    from caffe_port.layers.base import Layer

__all__ = [
    "WRITERS",
    "Code",
    "Unpacked",
    "Var",
    "arguments",
    "is_call",
    "number",
    "pair",
    "python_name",
    "spaced",
    "unique",
    "wrapped",
    "writer",
    "writer_of",
]

Writer = Callable[..., Any]
"""(code, layer, *bottoms) to the expression of the top: a text; a list of texts for several tops, or of pairs (top,
text) in the order in which they must run; or :class:`Unpacked` for one expression that gives all of them."""

WRITERS: dict[str, dict[str, Writer]] = {}
"""By layer type and dialect, "" for all dialects."""

_TOKEN = re.compile("\x02(\\d+)\x03")
_TAKEN = frozenset((*keyword.kwlist, *keyword.softkwlist, *dir(builtins), "torch", "nn", "F", "Tensor", "Path", "self"))
LINE = 120
"""The longest line."""


def writer(*types: str, dialect: str = "") -> Callable[[Writer], Writer]:
    """Register the function that writes a layer type as Python."""

    def register(function: Writer) -> Writer:
        for type_name in types:
            WRITERS.setdefault(type_name, {})[dialect] = function
        return function

    return register


def writer_of(layer: Layer, dialect: Dialect) -> Writer | None:
    """The function that writes a layer: its method ``source(code, *bottoms)`` (a plugin's), or the registered one."""
    own = getattr(type(layer), "source", None)
    if own is not None:
        return lambda code, layer, *bottoms: own(layer, code, *bottoms)
    of_type = WRITERS.get(layer.type, {})
    return next((of_type[name] for name in (*dialect.lineage, "") if name in of_type), None)


class Unpacked(str):
    """An expression that gives a tuple of all tops."""


@dataclass(eq=False)
class Var:
    """A version of a blob.

    Attributes:
        blob: its name. shape: the definition's. wanted: whether it is an output. readers: the layers that read it, as
            (type, position among the bottoms). integer: whether it holds int64.
    """

    index: int
    blob: str
    shape: tuple[int, ...]
    wanted: bool = False
    integer: bool = False
    readers: list[tuple[str, int]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"\x02{self.index}\x03"

    def __format__(self, spec: str) -> str:
        return str(self)

    def only_read_as(self, reads: Sequence[tuple[str, int]]) -> bool:
        """Whether there are readers, all of them of ``reads``, and it is no output."""
        return bool(self.readers) and not self.wanted and all(read in reads for read in self.readers)


@dataclass
class Step:
    """An assignment.

    Attributes:
        targets: what it assigns; several are unpacked. text: the expression. group: steps of one group stand together.
        wraps: whether the expression of the bottom may stand inside it.
    """

    targets: list[Var]
    text: str
    group: Any = None
    wraps: bool = False

    def reads(self) -> list[int]:
        return [int(n) for n in _TOKEN.findall(self.text)]


class Code:
    """The module to which the writers write.

    Attributes:
        modules: the lines of ``__init__``, each with its group. arrays: the weights, by key of the state_dict.
        helpers: the names of the functions and classes of ``source_helpers`` that it needs.
        label, tops: the name and the tops of the layer being written.
    """

    def __init__(self) -> None:
        self.modules: list[tuple[Any, str]] = []
        self.arrays: dict[str, Any] = {}
        self.helpers: dict[str, None] = {}
        self.steps: list[Step] = []
        self.vars: list[Var] = []
        self.label, self.tops, self.wraps = "", list[Var](), False
        self.group: str | None = None
        self._same: dict[int, Var] = {}
        self._attributes: set[str] = set()
        self._owners: dict[int, str] = {}

    def begin(self, name: str, tops: Sequence[Var], *, wraps: bool) -> None:
        """Turn to a layer; ``wraps``: its bottom's expression may stand inside its own."""
        self.label, self.tops, self.wraps = name, list(tops), wraps
        self.group = name.partition("/")[0] if "/" in name else None

    def new(self, blob: str, shape: Sequence[int]) -> Var:
        var = Var(len(self.vars), blob, tuple(int(n) for n in shape))
        self.vars.append(var)
        return var

    # -- for writers ---------------------------------------------------------------------------------------------------

    def module(self, text: str, more: str = "", /, **blobs: Any) -> str:
        """A module with its parameters and buffers, named after the layer; gives ``self.NAME``.

        Args:
            text: what makes it. more: appended to the layer's name.
            blobs: tensors or arrays by name; None: it has none.
        """
        name = self._attribute(f"{self.label}{more}")
        self.modules.append((self.group, f"self.{name} = {text}"))
        for key, blob in blobs.items():
            if blob is not None:
                self.arrays[f"{name}.{key}"] = _array(blob)
                self._share(f"{name}.{key}", blob)
        return f"self.{name}"

    def parameter(self, blob: Any, more: str = "") -> str:
        """A parameter of the net's own, named after the layer; gives ``self.NAME``."""
        name = self._attribute(f"{self.label}{more}")
        array = _array(blob)
        self.modules.append((self.group, f"self.{name} = nn.Parameter(torch.empty({_shape(array.shape)}))"))
        self.arrays[name] = array
        self._share(name, blob)
        return f"self.{name}"

    def helper(self, name: str) -> str:
        """A function or class of ``source_helpers``, which the file then has; gives its name."""
        self.helpers[name] = None
        return name

    def assign(self, text: str, *targets: Var) -> None:
        """A step; a text that is a blob makes its target the same value."""
        if len(targets) == 1 and (found := _TOKEN.fullmatch(text)):
            self._same[targets[0].index] = self.vars[int(found[1])]
            return
        group = self.group or targets[0].shape[2:]
        self.steps.append(Step(list(targets), text, group, self.wraps and len(targets) == 1))

    def _share(self, key: str, blob: Any) -> None:
        """The line for a parameter that is another layer's too."""
        from torch import nn

        owner = self._owners.setdefault(id(blob), key) if isinstance(blob, nn.Parameter) else key
        if owner != key:
            self.modules.append((self.group, f"self.{key} = self.{owner}"))

    def _attribute(self, name: str) -> str:
        name = unique(python_name(name, "layer"), lambda n: n in self._attributes or n in _of_modules())
        self._attributes.add(name)
        return name

    # -- the forward pass ----------------------------------------------------------------------------------------------

    def forward(self, inputs: Sequence[Var], outputs: Sequence[Var]) -> tuple[list[str], list[str], str]:
        """The names of the inputs, the lines of the body, and what it returns."""
        outputs = [self._own(var) for var in outputs]
        for var in outputs:
            var.wanted = True
        for step in self.steps:
            step.text = _TOKEN.sub(lambda found: str(self._own(self.vars[int(found[1])])), step.text)
        steps = _inlined(_without_dead(self.steps, outputs), outputs)
        last: dict[int, int] = {}
        for i, step in enumerate(steps):
            last.update(dict.fromkeys(step.reads(), i))
        last.update({var.index: len(steps) for var in outputs})
        names, holders = dict[int, str](), dict[str, int]()
        taken = _TAKEN.union(self.helpers)

        def held(name: str, at: int) -> bool:
            """Whether a value has the name that is read after step ``at``."""
            return name in holders and last.get(holders[name], -1) > at

        def give(var: Var, at: int) -> None:
            passing = last.get(var.index) == at + 1 and not var.wanted and at >= 0 and not held("x", at)
            wanted = "x" if passing else python_name(var.blob, "blob").lower()
            name = unique(wanted, lambda n: n in taken or held(n, at)) if var.index in last or at < 0 else "_"
            names[var.index], holders[name] = name, var.index

        for var in inputs:
            give(var, -1)
            last.setdefault(var.index, 0)
        arguments = [names[var.index] for var in inputs]
        lines = list[tuple[Any, str]]()
        returned = ""
        for i, step in enumerate(steps):
            text = _TOKEN.sub(lambda found: names[int(found[1])], step.text)
            if i == len(steps) - 1 and list(outputs) == step.targets and len(outputs) == 1:
                returned = text
                break
            for var in step.targets:
                give(var, i)
            lines.append((step.group, f"{', '.join(names[var.index] for var in step.targets)} = {text}"))
        returned = returned or ", ".join(names[var.index] for var in outputs)
        return arguments, spaced(lines), returned

    def _own(self, var: Var) -> Var:
        """The variable that holds the value: another one's, where a layer passes it on."""
        while var.index in self._same:
            var = self._same[var.index]
        return var


def _without_dead(steps: Sequence[Step], outputs: Sequence[Var]) -> list[Step]:
    """The steps on whose results the outputs depend; unread results of several are called ``_``."""
    read, kept = {var.index for var in outputs}, list[Step]()
    for step in reversed(steps):
        if read.intersection(var.index for var in step.targets):
            read.update(step.reads())
            kept.append(step)
    return kept[::-1]


def spaced(lines: Sequence[tuple[Any, str]]) -> list[str]:
    """The lines, with an empty one between groups; a single line stands with the next group."""
    found, alone = list[str](), False
    for run in ([line for _, line in run] for _, run in groupby(lines, key=lambda pair: pair[0])):
        if found and not alone:
            found.append("")
        found += run
        alone = len(run) == 1
    return found


def _inlined(steps: Sequence[Step], outputs: Sequence[Var]) -> list[Step]:
    """Steps inside the next one, where that is their only reader and wraps."""
    counts: dict[int, int] = {var.index: 1 for var in outputs}
    for step in steps:
        for i in step.reads():
            counts[i] = counts.get(i, 0) + 1
    found: list[Step] = []
    for step in steps:
        inner = found[-1] if found else None
        if inner is not None and step.wraps and len(inner.targets) == 1 and is_call(inner.text):
            (var,) = inner.targets
            text = step.text.replace(str(var), inner.text)
            if counts[var.index] == 1 and str(var) in step.text and len(_TOKEN.sub("x", text)) < 80:
                found[-1] = Step(step.targets, text, inner.group, step.wraps)
                continue
        found.append(step)
    return found


def is_call(text: str) -> bool:
    """Whether an expression is one call, so that it can stand anywhere: ``f(...)``, ``self.a(...)``."""
    head = re.match(r"[\w.\x02\x03]+\(", text)
    if head is None:
        return False
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 and c == ")":
            return i == len(text) - 1
    return False


# -- names and numbers -------------------------------------------------------------------------------------------------


@cache
def _of_modules() -> frozenset[str]:
    """The attributes of every module of torch."""
    from torch import nn

    return frozenset(dir(nn.Module()))


def python_name(name: str, kind: str) -> str:
    """A layer's or blob's name as an identifier; ``kind`` precedes what is none without it."""
    name = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    if not name or name[0].isdigit():
        name = f"{kind}_{name}".strip("_")
    return f"{name}_" if keyword.iskeyword(name) else name


def unique(name: str, taken: Callable[[str], bool]) -> str:
    """The name, with a number appended if it is taken."""
    found, n = name, 1
    while taken(found):
        n += 1
        found = f"{name}_{n}"
    return found


def number(value: float) -> str:
    """A single-precision number as the shortest text that means it."""
    single = np.float32(value)
    if not np.isfinite(single):
        return f'float("{single}")'
    return str(int(single)) if single == int(single) and abs(single) < 1e6 else repr(float(str(single)))


def _array(blob: Any) -> Any:
    return blob if isinstance(blob, np.ndarray) else blob.detach().cpu().numpy()


def _shape(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape)) or "()"


def pair(values: Sequence[int]) -> str:
    """One number where all are equal, else a tuple."""
    return str(values[0]) if len(set(values)) == 1 else str(tuple(values))


def arguments(*positional: Any, **named: tuple[Any, Any]) -> str:
    """The text of arguments; ``named`` are (value, default), omitted where equal."""
    parts = [str(p) for p in positional]
    for key, (value, default) in named.items():
        if value != default:
            parts.append(f"{key}={value}")
    return ", ".join(parts)


# -- lines -------------------------------------------------------------------------------------------------------------


def wrapped(line: str, indent: int) -> Iterator[str]:
    """A line with its indent; a long one is broken inside its longest outer bracket, as the common formatters do."""
    blank = " " * indent
    start, end = _longest_bracket(line)
    target, equals, value = line.partition(" = ")
    if indent + len(line) <= LINE or start < 0:
        yield (blank + line).rstrip()
    elif equals and indent + start + 1 > LINE:
        yield f"{blank}{target} = ("
        yield from wrapped(value, indent + 4)
        yield f"{blank})"
    else:
        inside = line[start + 1 : end]
        yield f"{blank}{line[: start + 1]}"
        if indent + 4 + len(inside) <= LINE:
            yield f"{blank}    {inside}"
        else:
            for part in _parts(inside):
                yield from wrapped(f"{part},", indent + 4)
        yield f"{blank}{line[end:]}"


def _outer(text: str) -> Iterator[tuple[int, str]]:
    """The places of outer brackets and commas, none inside strings."""
    depth, quote = 0, ""
    for found in re.finditer(r"""\\.|["'()\[\]{},]""", text):
        c = found[0]
        if c in "\"'":
            quote = "" if c == quote else quote or c
        elif not quote and len(c) == 1:
            depth -= c in ")]}"
            if depth == 0:
                yield found.start(), c
            depth += c in "([{"


def _longest_bracket(line: str) -> tuple[int, int]:
    places = [i for i, c in _outer(line) if c != ","]
    return max(zip(places[::2], places[1::2], strict=False), key=lambda pair: pair[1] - pair[0], default=(-1, -1))


def _parts(text: str) -> list[str]:
    """The text cut at its outer commas."""
    cuts = [-1, *(i for i, c in _outer(text) if c == ","), len(text)]
    return [part for a, b in pairwise(cuts) if (part := text[a + 1 : b].strip())]
