"""Dimensions that a definition does not determine: those of data whose files are not read."""

from __future__ import annotations

from typing import Any

__all__ = ["UNKNOWN", "is_known", "unknown_shape"]


class _Unknown(int):
    """An unknown number, and results computed from it. It compares equal to, and not below, every number."""

    def _unknown(self, *_: Any) -> _Unknown:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = _unknown
    __neg__ = _unknown

    def _true(self, _: Any) -> bool:
        return True

    def _false(self, _: Any) -> bool:
        return False

    __eq__ = __gt__ = __ge__ = _true
    __ne__ = __lt__ = __le__ = __mod__ = __rmod__ = _false
    __hash__ = int.__hash__

    def __repr__(self) -> str:
        return "?"

    __str__ = __repr__


UNKNOWN = _Unknown(1)


def unknown_shape(axes: int = 4) -> tuple[int, ...]:
    """A shape with a known number of axes only."""
    return (UNKNOWN,) * axes


def is_known(shape: tuple[int, ...]) -> bool:
    """Whether all of a shape's dimensions are known."""
    return _Unknown not in map(type, shape)
