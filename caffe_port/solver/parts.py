"""What learning-rate policies and update rules have in common, and the registries that plugins add theirs to."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from caffe_port.dialects import Dialect
from caffe_port.errors import CaffeError, nearest

__all__ = ["Part", "Registry"]


class Part:
    """A policy or a rule: reads the solver's fields, checks them once, keeps a state that snapshots hold.

    Attributes:
        param: the SolverParameter; fields are read when they are needed, so that a change takes effect at once.
        dialect, where: of the training net; the solver's file, for messages.
        state: what changes during a training, as JSON values by name.
    """

    name: ClassVar[str]
    """What the solver's field calls it."""
    dialects: ClassVar[tuple[str, ...]] = ()
    """The dialects that have it, with those in whose lineage they are; none named: all."""
    initial: ClassVar[dict[str, Any]] = {}
    """The state of a training that begins."""

    def __init__(self, param: Any, dialect: Dialect, where: str) -> None:
        self.param, self.dialect, self.where = param, dialect, where
        self.state = copy.deepcopy(self.initial)
        self.check()

    def check(self) -> None:
        """Refuse fields that it cannot work with, by ``raise self.error(found, expected=...)``."""

    def error(self, found: str, *, expected: str = "", remedy: str = "") -> CaffeError:
        """The error for a field of the solver."""
        return CaffeError(self.where, found, expected=expected, remedy=remedy)

    def get_state(self) -> dict[str, Any]:
        """The name and the state, as JSON.

        Raises:
            CaffeError: the state holds something that JSON does not.
        """
        try:
            return {"name": self.name, "state": json.loads(json.dumps(self.state))}
        except (TypeError, ValueError) as error:
            found = f"a state that is not JSON: {error}"
            raise self.error(f"{self.name}: {found}", expected="numbers, texts, lists and dicts") from error

    def set_state(self, saved: dict[str, Any]) -> None:
        """Continue from a :meth:`get_state` of the same name.

        Raises:
            CaffeError: the state has other names than this class's.
        """
        state = saved["state"]
        if state.keys() != self.state.keys():
            names = ", ".join(self.state) or "nothing"
            raise self.error(f"a state of {saved['name']} with {', '.join(state) or 'nothing'}", expected=names)
        self.state = copy.deepcopy(state)


P = TypeVar("P", bound=Part)


class Registry(Generic[P]):
    """The classes that a solver's field chooses from; used as a decorator it adds one.

    Args:
        field: the field of SolverParameter. base: what the classes derive from.

    Attributes:
        classes: by name.
    """

    def __init__(self, field: str, base: type[P]) -> None:
        self.field, self.base = field, base
        self.classes: dict[str, type[P]] = {}

    def __call__(
        self, name: str, *, dialects: tuple[str, ...] = (), replace: bool = False
    ) -> Callable[[type[P]], type[P]]:
        """Register the class that follows under ``name``.

        Args:
            dialects: the dialects that have it; none: all. replace: whether it may take the place of another.

        Raises:
            CaffeError: the name is taken, or the class derives from something else.
        """

        def register(cls: type[P]) -> type[P]:
            where = f"{cls.__module__}.{cls.__qualname__}"
            if not issubclass(cls, self.base):
                raise CaffeError(where, "another base class", expected=f"a subclass of {self.base.__name__}")
            if name in self.classes and not replace:
                raise CaffeError(where, f"a second {self.field} {name!r}", remedy="replace=True replaces the first")
            cls.name, cls.dialects = name, dialects
            self.classes[name] = cls
            return cls

        return register

    def make(self, param: Any, dialect: Dialect, where: str) -> P:
        """What the solver's field names.

        Raises:
            CaffeError: nothing of this name is registered, the dialect's Caffe does not have it, or fields are wrong.
        """
        name = getattr(param, self.field)
        if name not in self.classes:
            near = nearest(name, self.classes)
            own = f"@{self.base.__name__.lower()}({name!r}) in a --plugin file adds one (docs/extending.md)"
            remedy = f"did you mean {near}?" if near else own
            raise CaffeError(where, f"{self.field} {name!r}", expected=", ".join(self.classes), remedy=remedy)
        cls = self.classes[name]
        if cls.dialects and not {*cls.dialects} & {*dialect.lineage}:
            found = f"{self.field} {name!r}, which {dialect.name} does not have"
            raise CaffeError(where, found, remedy=f"--dialect {cls.dialects[0]}")
        return cls(param, dialect, where)
