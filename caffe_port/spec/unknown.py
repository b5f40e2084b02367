"""Dimensions that a definition does not tell: those of data whose files are not read."""

from __future__ import annotations

from typing import Any

__all__ = ["UNKNOWN", "is_known", "unknown_shape"]


class _Unknown(int):
    """A number that nobody knows; so is what is computed from it. It equals every number and is as large as any."""

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
    """A shape of which only the number of axes is known."""
    return (UNKNOWN,) * axes


def is_known(shape: tuple[int, ...]) -> bool:
    """Whether all of a shape's numbers are known."""
    return not any(n is UNKNOWN for n in shape)
