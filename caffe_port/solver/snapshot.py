"""Snapshots that real Caffe resumes from, with what an exact resume needs beside them.

A snapshot is ``PREFIX_iter_N.caffemodel`` (the weights), ``PREFIX_iter_N.solverstate`` (iteration and histories), both
Caffe's own formats (with ``.h5`` if ``snapshot_format: HDF5``), and ``PREFIX_iter_N.resume``, which is ours: the
checksums of the two, and for each process the states of its random stream, its data layers (of the training net and of
the test nets), its recurrent layers, its averaged loss, its learning-rate policy and its update rule. With that a
resumed run equals, bit for bit, the run without a break; without it (real Caffe's snapshots have none) data and random
numbers start from the beginning, as in Caffe.

A process killed while it writes one leaves no file that is accepted as a snapshot. Weights and state are first written
under other names and synced, then the resume file is put in place, then they are renamed: between the two renames one
file has its checksum in the resume file and the other does not, and they are refused. An earlier snapshot of the same
name is replaced that way; others are never touched. What a killed process left half-written, the next snapshot of the
same prefix removes.

Source: solver.cpp, sgd_solver.cpp (both programs) for names and contents.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caffe_port.errors import CaffeError, FileError, FormatError, WeightsError
from caffe_port.formats.atomic import atomic_write
from caffe_port.formats.solverstate import POLICY_FIELDS, SolverHistory, read_solverstate, write_solverstate
from caffe_port.layers.blobs import legacy
from caffe_port.paths import exists
from caffe_port.solver.param_groups import slots

if TYPE_CHECKING:
    from caffe_port.net import Net
    from caffe_port.solver.distributed import Group
    from caffe_port.solver.log import Log
    from caffe_port.solver.state import SolverState

__all__ = ["Snapshots", "latest"]

_NEW = ".new-"
"""The prefix of a file's name while it is being written."""


@dataclass(frozen=True)
class Snapshots:
    """Writes and reads the snapshots of a training.

    Attributes:
        param, path: the SolverParameter and its file.
        net: the training net. group: the processes that train together. log: where Caffe's lines go.
    """

    param: Any
    path: str
    net: Net
    group: Group
    log: Log

    def write(self, state: SolverState, iteration: int, *, resume: bool = True) -> Path:
        """Write a snapshot; the path of its state. All processes of a group call this, the first one writes.

        Args:
            iteration: the number in the files' names and in the state.
            resume: whether to write the ``.resume`` file too. Without it an earlier one of the same name is removed.

        Raises:
            FileError: it cannot be written (a full disk); an earlier one of the same name is then as it was.
            CaffeError: the state of a policy or a rule is not JSON.
        """
        hdf5 = self.param.snapshot_format == self.param.HDF5
        end, dialect = ".h5" if hdf5 else "", self.net.dialect
        kind = f"{'HDF5' if hdf5 else 'binary proto'} file " if dialect.logs_kind_of_snapshot else ""
        stem = f"{self.param.snapshot_prefix}_iter_{iteration}"
        ends = (f".caffemodel{end}", f".solverstate{end}", ".resume")
        weights, states, resume_file = (Path(f"{stem}{e}") for e in ends)
        positions = self.group.gather(state.facts()) if resume else []
        if not self.group.first:
            return states
        _remove_temporary(Path(f"{self.param.snapshot_prefix}_iter_"))
        staged = {path: path.with_name(_NEW + path.name) for path in (weights, states)}
        try:
            self.log.line(f"Snapshotting to {kind}{weights}")
            self.net.save(staged[weights], diffs=self.param.snapshot_diff, durable=True)
            self.log.line(f"Snapshotting solver state to {kind}{states}", "sgd_solver.cpp")
            self._write_state(state, staged[states], iteration, weights)
            if resume:
                facts = {
                    "iter": state.iter,
                    "written": time.time(),
                    "files": {path.name: _checksum(new) for path, new in staged.items()},
                    "positions": positions,
                }
                with atomic_write(resume_file, overwrite=True, durable=True) as file:
                    file.write(json.dumps(facts, indent=1).encode())
            for path, new in staged.items():
                new.replace(path)
            if not resume:
                resume_file.unlink(missing_ok=True)  # last: until then it makes a half-replaced snapshot noticeable
        except BaseException:
            for new in staged.values():
                new.unlink(missing_ok=True)
            raise
        _sync(states.parent)
        return states

    def _write_state(self, state: SolverState, path: Path, iteration: int, weights: Path) -> None:
        is_legacy = self.net.dialect.legacy_shapes
        shaped = legacy if is_legacy else tuple
        places, history = list(slots(self.net, state.learnable)), []
        for histories in state.history:
            arrays = [h.detach().cpu().numpy() for h in histories]
            arrays = [a.reshape(shaped(a.shape)) for a in arrays]
            history += [arrays[i] if first else np.zeros_like(arrays[i]) for i, first in places]
        facts = SolverHistory(iteration, str(weights), history)
        for name, value in state.policy.state.items():
            if name in POLICY_FIELDS:
                setattr(facts, name, value)
        write_solverstate(path, facts, legacy=is_legacy, overwrite=True)

    def read(self, path: str | Path, state: SolverState) -> None:
        """Continue from a snapshot's state, ours or real Caffe's; exactly, if its ``.resume`` file belongs to it.

        Raises:
            FileError: the state or its weights are missing. FormatError: a file is damaged, or its checksum is another.
            WeightsError: the state is another net's or another solver type's.
            CaffeError: the net or its data are not what they were.
        """
        path = Path(path)
        try:
            facts = _checked(path, self.log)
            found = read_solverstate(path)
            if found.learned_net:
                self.net.load(_weights(path, found.learned_net))
        except (FileError, FormatError) as error:
            good = latest(path, but=path)
            if good is None and isinstance(error, FileError):
                raise
            advice = f"the last whole snapshot is {good}" if good else "there is no other whole snapshot in its folder"
            raise error.advised(advice) from error
        if path.suffix != ".h5":
            self.log.line("SGDSolver: restoring history", "sgd_solver.cpp")  # whatever the type, as in Caffe
        self._restore_history(state, found, path)
        state.iter, state.position = found.iter, None
        state.policy.state.update((name, value) for name, value in found.policy() if name in state.policy.state)
        if facts:
            try:
                self._restore_position(state, facts)
            except (CaffeError, KeyError) as error:
                what = f"positions in data that do not fit: {error}"
                remedy = "without that file data and random numbers start from the beginning, as in Caffe"
                raise CaffeError(str(_resume_file(path)), what, remedy=remedy) from error

    @torch.no_grad()
    def _restore_history(self, state: SolverState, found: SolverHistory, path: Path) -> None:
        places = list(slots(self.net, state.learnable))
        ours = [(state.learnable[i].name, h[i], first) for h in state.history for i, first in places]
        if len(found.history) != len(ours):
            raise WeightsError(
                str(path),
                f"{len(found.history)} histories",
                expected=f"{len(ours)} ({self.param.type}, {len(state.learnable)} parameters)",
                remedy="resume with the net and the solver type it was trained with",
            )
        for (name, target, _), array in zip(ours, found.history, strict=True):
            if legacy(array.shape) != legacy(target.shape):
                where, shape = f"{path}: history of {name}", tuple(target.shape)
                raise WeightsError(where, f"shape {array.shape}", expected=str(shape))
        for (_, target, first), array in zip(ours, found.history, strict=True):
            there = torch.from_numpy(np.ascontiguousarray(array)).view(target.shape).to(target.device)
            target.copy_(there if first else target + there)

    def _restore_position(self, state: SolverState, facts: dict[str, Any]) -> None:
        state.iter, positions, group = facts["iter"], facts["positions"], self.group
        if len(positions) == group.count:
            state.restore(positions[group.rank], self.log.line)
        else:
            counts = f"{len(positions)} processes trained, now {group.count} do"
            self.log.line(f"{counts}: data and random numbers start from the beginning")


def _remove_temporary(prefix: Path) -> None:
    """Remove the temporary files of killed processes for snapshots of this prefix."""
    name = glob.escape(_NEW + prefix.name)
    for pattern in (f"{name}*", f".{name}*.tmp", f".{glob.escape(prefix.name)}*.resume.*.tmp"):
        for path in prefix.parent.glob(pattern):
            path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Write the folder's directory entries to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _resume_file(state: Path) -> Path:
    return state.with_name(re.sub(r"(\.solverstate(\.h5)?)?$", ".resume", state.name, count=1))


def _checked(state: Path, log: Log) -> dict[str, Any] | None:
    """The contents of a state's resume file, if there is one and it belongs to the files beside it.

    It does not if it names other files, or if none of them has its checksum: a script deleted the snapshot and left
    this file, or another program wrote one of the same name. A line is logged.

    Raises:
        FormatError: it is damaged, or one file of the snapshot is as it was written and another is not.
    """
    resume = _resume_file(state)
    if not exists(resume):
        return None
    facts = _facts(resume)
    files = {state.with_name(name): checksum for name, checksum in facts["files"].items()}
    good = {file: exists(file) and _checksum(file) == checksum for file, checksum in files.items()}
    if state not in good or not any(good.values()):
        then = "no exact resume, data and random numbers start from the beginning"
        log.line(f"{resume.name} belongs to another snapshot: {then}")
        return None
    for file, is_good in good.items():
        if not is_good:
            found = "other bytes than were written" if exists(file) else "missing"
            raise FormatError(str(file), found, expected=f"what {resume.name} lists")
    return facts


def _facts(resume: Path) -> dict[str, Any]:
    """The contents of a resume file. Raises FormatError if it is damaged."""
    try:
        facts: dict[str, Any] = json.loads(resume.read_text())
        if all(isinstance(facts[key], kind) for key, kind in _KINDS.items()):
            return facts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(str(resume), f"a damaged resume file: {error}") from error
    raise FormatError(str(resume), "a resume file of another kind")


_KINDS: dict[str, Any] = {"iter": int, "written": (int, float), "files": dict, "positions": list}


def latest(path: str | Path, *, but: Path | None = None) -> Path | None:
    """The state of the last whole snapshot of the prefix of ``path`` (a snapshot, or a snapshot_prefix), or None.

    The last by time of writing, not by iteration: a run that was started again leaves the earlier one's snapshots.
    """
    path = Path(path)
    prefix = re.sub(r"_iter_\d+\.(solverstate|caffemodel)(\.h5)?$", "", path.name)
    found = []
    for resume in path.parent.glob(f"{glob.escape(prefix)}_iter_*.resume"):
        if re.fullmatch(r"\d+", resume.stem[len(prefix) + len("_iter_") :]):
            try:
                found.append((_facts(resume), resume))
            except FormatError:
                continue
    for facts, resume in sorted(found, key=lambda it: (it[0]["written"], it[0]["iter"]), reverse=True):
        files = {resume.with_name(name): checksum for name, checksum in facts["files"].items()}
        state = next((file for file in files if ".solverstate" in file.name), but)
        if state != but and all(exists(file) and _checksum(file) == checksum for file, checksum in files.items()):
            return state
    return None


def _weights(state: Path, named: str) -> Path:
    """The weights that a state names, at that path or in the state's folder if it has been moved."""
    for path in (Path(named), state.with_name(Path(named).name)):
        if exists(path):
            return path
    raise FileError(
        str(state), f"its weights {named} are missing", remedy=f"put them into its folder as {Path(named).name}"
    )


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
