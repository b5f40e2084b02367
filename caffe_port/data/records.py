"""A position in a database of records."""

from __future__ import annotations

from abc import ABC, abstractmethod

__all__ = ["Records"]


class Records(ABC):
    """A position in a database, at a record unless :meth:`next` or :meth:`seek` have moved it.

    All methods raise FormatError if the database is damaged.
    """

    key: bytes

    @property
    @abstractmethod
    def value(self) -> bytes:
        """The current record."""

    @abstractmethod
    def first(self) -> bool:
        """Go to the first record; False if there is none."""

    @abstractmethod
    def next(self) -> bool:
        """Go to the next record; False after the last, and then there is no current one until :meth:`first`."""

    @abstractmethod
    def seek(self, key: bytes) -> bool:
        """Go to the record of this key; False if there is none."""

    def advance(self) -> None:
        """Go to the next record, from the last to the first."""
        if not self.next():
            self.first()
