"""A step: one command, its inputs and its result."""

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
        needs: the steps whose results it reads. makes: a file that exists when it is done.
        curve: a training's file of losses, if it is one.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[Step, ...]
    makes: Path
    curve: Path | None = None

    @property
    def command(self) -> str:
        """The command as typed in a shell."""
        return shlex.join(["python", *self.words])

    @property
    def argv(self) -> list[str]:
        """The command as it is run, from any folder."""
        return [sys.executable, *self.words]

    @property
    def key(self) -> str:
        """A digest of the commands of this and all earlier steps."""
        known = json.dumps([self.words, [step.key for step in self.needs]])
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    @property
    def chain(self) -> list[Step]:
        """This step, last, and all that it needs, each once and after its own needs."""
        chain: list[Step] = []
        for before in self.needs:
            chain += [step for step in before.chain if step not in chain]
        return [*chain, self]
