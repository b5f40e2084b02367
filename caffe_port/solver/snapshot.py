"""Snapshots that real Caffe resumes from, with what an exact resume needs beside them.

A snapshot is ``PREFIX_iter_N.caffemodel`` (the weights), ``PREFIX_iter_N.solverstate`` (iteration and histories), both
Caffe's own formats (with ``.h5`` if ``snapshot_format: HDF5``), and ``PREFIX_iter_N.resume``, which is ours: the
checksums of the two, and for each process where its random stream, its data layers (of the training net and of the test
nets), its recurrent states and its average of the loss stood. With that a resumed run is the run that was never
stopped, bit for bit; without it (real Caffe's snapshots have none) data and random numbers start anew, as in Caffe.

Nothing that happens while one is written can make a wrong one look right. Weights and state are first written under
other names and synced. Then the resume file is put in place, and then they are: until the last is there, what it says
of the other files is not true, and they are refused. An earlier snapshot of the same name is replaced that way; others
are never touched. What a killed process left half-written, the next snapshot of the same prefix removes.

Source: solver.cpp, sgd_solver.cpp (both programs) for names and contents.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caffe_port import random
from caffe_port.data.position import unpack
from caffe_port.errors import CaffeError, FileError, FormatError, WeightsError
from caffe_port.formats.atomic import atomic_write
from caffe_port.formats.solverstate import SolverHistory, read_solverstate, write_solverstate
from caffe_port.layers.blobs import legacy
from caffe_port.solver.param_groups import slots
from caffe_port.solver.train_state import TrainState

if TYPE_CHECKING:
    from caffe_port.solver.solver import Solver

__all__ = ["check_prefix", "latest", "read", "write"]

_NEW = ".new-"
"""What the name of a file starts with while it is being written."""


def check_prefix(param: Any, where: str) -> None:
    """Refuse a ``snapshot_prefix`` that nothing could be written to, before a training rather than after it.

    Raises:
        CaffeError: none is set. FileError: its folder is missing or not writable.
    """
    if not (param.snapshot or (param.snapshot_after_train and param.snapshot_prefix)):
        return
    folder = Path(param.snapshot_prefix).parent
    if not param.snapshot_prefix:
        raise CaffeError(where, "snapshot without snapshot_prefix", expected="where to write snapshots")
    if not folder.is_dir():
        raise FileError(where, f"snapshot_prefix {param.snapshot_prefix}, no folder {folder}", remedy="make the folder")
    if not os.access(folder, os.W_OK):
        raise FileError(where, f"snapshot_prefix {param.snapshot_prefix}, and {folder} is not writable")


def write(solver: Solver, stem: str) -> Path:
    """Write a snapshot named ``stem`` + extensions; the state's path. Of several processes all take part, one writes.

    Raises:
        FileError: it cannot be written (a full disk); an earlier one of the same name is then as it was.
    """
    hdf5 = solver.param.snapshot_format == solver.param.HDF5
    end = ".h5" if hdf5 else ""
    kind = f"{'HDF5' if hdf5 else 'binary proto'} file " if solver.dialect.logs_kind_of_snapshot else ""
    weights, state, resume = (Path(f"{stem}{e}") for e in (f".caffemodel{end}", f".solverstate{end}", ".resume"))
    positions = solver.group.gather((solver.train_state or TrainState(solver)).facts())
    if not solver.group.first:
        return state
    _sweep(Path(f"{solver.param.snapshot_prefix}_iter_"))
    staged = {path: path.with_name(_NEW + path.name) for path in (weights, state)}
    try:
        solver.log.line(f"Snapshotting to {kind}{weights}")
        solver.net.save(staged[weights], diffs=solver.param.snapshot_diff, durable=True)
        solver.log.line(f"Snapshotting solver state to {kind}{state}", "sgd_solver.cpp")
        _write_state(solver, staged[state], int(stem.rpartition("_")[2]), weights)
        facts = {
            "iter": solver.iter,
            "written": time.time(),
            "files": {path.name: _checksum(new) for path, new in staged.items()},
            "positions": positions,
        }
        with atomic_write(resume, overwrite=True, durable=True) as file:
            file.write(json.dumps(facts, indent=1).encode())
        for path, new in staged.items():
            new.replace(path)
    except BaseException:
        for new in staged.values():
            new.unlink(missing_ok=True)
        raise
    _sync(resume.parent)
    return state


def _write_state(solver: Solver, path: Path, iteration: int, weights: Path) -> None:
    shaped = legacy if solver.dialect.legacy_shapes else tuple
    places, history = list(slots(solver.net, solver.learned)), []
    for histories in solver.history:
        arrays = [h.detach().cpu().numpy() for h in histories]
        arrays = [a.reshape(shaped(a.shape)) for a in arrays]
        history += [arrays[i] if first else np.zeros_like(arrays[i]) for i, first in places]
    facts = SolverHistory(iteration, str(weights), solver.current_step, history)
    write_solverstate(path, facts, legacy=solver.dialect.legacy_shapes, overwrite=True)


def _sweep(prefix: Path) -> None:
    """Remove what processes that were killed have left of snapshots whose names start so."""
    name = glob.escape(_NEW + prefix.name)
    for pattern in (f"{name}*", f".{name}*.tmp", f".{glob.escape(prefix.name)}*.resume.*.tmp"):
        for path in prefix.parent.glob(pattern):
            path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Return when the disk has the folder's names."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(solver: Solver, path: str | Path) -> None:
    """Go on from a state of ours or of real Caffe's; exactly, if its resume file is there.

    Raises:
        FileError: the state or its weights are missing. FormatError: a file is damaged, or its checksum is another.
        WeightsError: the state is another net's or another solver type's.
        CaffeError: the net or its data are not what they were.
    """
    path = Path(path)
    try:
        facts = _checked(path)
        state = read_solverstate(path)
        if state.learned_net:
            solver.net.load(_weights(path, state.learned_net))
    except (FileError, FormatError) as error:
        good = latest(path, but=path)
        if good is None and isinstance(error, FileError):
            raise
        offer = f"the last whole snapshot is {good}" if good else "no other whole snapshot lies beside it"
        raise error.advised(offer) from error
    if path.suffix != ".h5":
        solver.log.line("SGDSolver: restoring history", "sgd_solver.cpp")  # whatever the type, as in Caffe
    _restore_history(solver, state, path)
    solver.iter, solver.current_step = state.iter, state.current_step
    if facts:
        try:
            _restore_position(solver, facts)
        except (CaffeError, KeyError) as error:
            found = f"positions in data that do not fit: {error}"
            remedy = "without that file data and random numbers start anew, as in Caffe"
            raise CaffeError(str(_resume_file(path)), found, remedy=remedy) from error


def _resume_file(state: Path) -> Path:
    return state.with_name(re.sub(r"(\.solverstate(\.h5)?)?$", ".resume", state.name, count=1))


def _checked(state: Path) -> dict[str, Any] | None:
    """What the resume file of a state says, if there is one.

    Raises:
        FormatError: it is damaged, or a file of the snapshot is missing or not as it was written.
    """
    resume = _resume_file(state)
    if not resume.exists():
        return None
    facts = _facts(resume)
    for name, checksum in facts["files"].items():
        file = state.with_name(name)
        if not file.exists() or _checksum(file) != checksum:
            found = "other bytes than were written" if file.exists() else "missing"
            raise FormatError(str(file), found, expected=f"what {resume.name} says")
    return facts


def _facts(resume: Path) -> dict[str, Any]:
    """What a resume file says. Raises FormatError if it is damaged."""
    try:
        facts: dict[str, Any] = json.loads(resume.read_text())
        if all(isinstance(facts[key], kind) for key, kind in _KINDS.items()):
            return facts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(str(resume), f"a damaged resume file: {error}") from error
    raise FormatError(str(resume), "a resume file of another kind")


_KINDS: dict[str, Any] = {"iter": int, "written": (int, float), "files": dict, "positions": list}


def latest(path: str | Path, *, but: Path | None = None) -> Path | None:
    """The state of the whole snapshot beside ``path`` (a snapshot, or a snapshot_prefix) written last, or None.

    That is not always the one of the highest iteration: a run that was begun anew leaves the earlier one's snapshots.
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
        if state != but and all(file.exists() and _checksum(file) == checksum for file, checksum in files.items()):
            return state
    return None


def _weights(state: Path, named: str) -> Path:
    """The weights that a state names: as written, or beside the state if it has been moved."""
    for path in (Path(named), state.with_name(Path(named).name)):
        if path.exists():
            return path
    raise FileError(str(state), f"its weights {named} are missing", remedy=f"put them beside it, as {Path(named).name}")


@torch.no_grad()
def _restore_history(solver: Solver, state: SolverHistory, path: Path) -> None:
    places = list(slots(solver.net, solver.learned))
    mine = [(solver.learned[i].name, h[i], first) for h in solver.history for i, first in places]
    if len(state.history) != len(mine):
        raise WeightsError(
            str(path),
            f"{len(state.history)} histories",
            expected=f"{len(mine)} ({solver.param.type}, {len(solver.learned)} parameters)",
            remedy="resume with the net and the solver type it was trained with",
        )
    for (name, target, first), array in zip(mine, state.history, strict=True):
        if legacy(array.shape) != legacy(target.shape):
            raise WeightsError(f"{path}: history of {name}", f"shape {array.shape}", expected=str(tuple(target.shape)))
        there = torch.from_numpy(np.ascontiguousarray(array)).view(target.shape).to(target.device)
        target.copy_(there if first else target + there)


def _restore_position(solver: Solver, facts: dict[str, Any]) -> None:
    solver.iter, positions, group = facts["iter"], facts["positions"], solver.group
    if len(positions) != group.count:
        solver.log.line(f"{len(positions)} processes trained, now {group.count} do: data and random numbers start anew")
        return
    mine, nets = positions[group.rank], _nets(solver)
    if len(mine["nets"]) != len(nets):
        raise CaffeError(solver.path, f"{len(nets) - 1} test nets", expected=f"{len(mine['nets']) - 1}")
    for net, states in zip(nets, mine["nets"], strict=True):
        layers = {node.key: layer for node, layer in net.nodes if hasattr(layer, "state")}
        if layers.keys() != states.keys():
            raise CaffeError(
                net.definition.path, f"layers {', '.join(layers)} with a position", expected=", ".join(states)
            )
        for key, state in states.items():
            layers[key].restore(state)
    random.default_stream().set_state(unpack(mine["stream"])["key"])
    solver.smoothed_loss.set_state(mine["average"])


def _nets(solver: Solver) -> list[Any]:
    return [solver.net, *solver.test_nets]


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
