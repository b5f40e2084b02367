"""A step: one command, what it needs, what it makes."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Step"]


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of the step, and of its folder. words: of the command, after ``python``.
        needs: the steps whose results it reads. makes: a file that is there when it is done.
        curve: where a training writes its losses, if it is one.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[Step, ...]
    makes: Path
    curve: Path | None = None

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join(["python", *self.words])

    @property
    def argv(self) -> list[str]:
        """As it is run, from any folder."""
        return [sys.executable, *self.words]

    @property
    def key(self) -> str:
        """A digest of the command and those of all steps before it."""
        known = json.dumps([self.words, [step.key for step in self.needs]])
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    @property
    def chain(self) -> list[Step]:
        """The steps that lead here, this one last, each once and after what it needs."""
        chain: list[Step] = []
        for before in self.needs:
            chain += [step for step in before.chain if step not in chain]
        return [*chain, self]
