"""Snapshots that real Caffe resumes from, with what an exact resume needs beside them.

A snapshot is ``PREFIX_iter_N.caffemodel`` (the weights), ``PREFIX_iter_N.solverstate`` (iteration and histories), both
Caffe's own formats (with ``.h5`` if ``snapshot_format: HDF5``), and ``PREFIX_iter_N.resume``: the checksums of the two,
the random stream, and where every data layer stands. Weights are written before the state and the resume file last,
each to a temporary file that is synced and renamed, so that a snapshot whose resume file is there is whole.

Source: solver.cpp, sgd_solver.cpp (both programs) for names and contents.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caffe_port import random
from caffe_port.errors import FileError, FormatError, WeightsError
from caffe_port.formats.atomic import atomic_write
from caffe_port.formats.solverstate import SolverHistory, read_solverstate, write_solverstate
from caffe_port.layers.blobs import legacy

if TYPE_CHECKING:
    from caffe_port.solver.solver import Solver

__all__ = ["latest", "read", "write"]


def write(solver: Solver, stem: str) -> Path:
    """Write a snapshot named ``stem`` + extensions; the state's path."""
    hdf5 = solver.param.snapshot_format == solver.param.HDF5
    end = ".h5" if hdf5 else ""
    weights, state = Path(f"{stem}.caffemodel{end}"), Path(f"{stem}.solverstate{end}")
    solver.log.line(f"Snapshotting to {'HDF5' if hdf5 else 'binary proto'} file {weights}")
    resume = Path(f"{stem}.resume")
    resume.unlink(missing_ok=True)
    solver.net.save(weights, diffs=solver.param.snapshot_diff, durable=True)
    source = "sgd_solver.cpp"
    solver.log.line(f"Snapshotting solver state to {'HDF5' if hdf5 else 'binary proto'} file {state}", source)
    shaped = legacy if solver.dialect.legacy_shapes else tuple
    history = [h.detach().cpu().numpy() for histories in solver.history for h in histories]
    named = int(re.findall(r"_iter_(\d+)$", stem)[0]) if re.search(r"_iter_\d+$", stem) else solver.iter
    write_solverstate(
        state,
        SolverHistory(named, str(weights), solver.current_step, [h.reshape(shaped(h.shape)) for h in history]),
        legacy=solver.dialect.legacy_shapes,
        overwrite=True,
    )
    facts = {"files": {p.name: _checksum(p) for p in (weights, state)}, **_position(solver)}
    with atomic_write(resume, overwrite=True, durable=True) as file:
        file.write(json.dumps(facts, indent=1).encode())
    return state


def read(solver: Solver, path: str | Path) -> None:
    """Go on from a state of ours or of real Caffe's; exactly, if its resume file is there.

    Raises:
        FileError: the state or its weights are missing. FormatError: a file is damaged, or its checksum is another.
        WeightsError: the state is another net's or another solver type's.
    """
    path = Path(path)
    resume = path.with_name(re.sub(r"\.solverstate(\.h5)?$", ".resume", path.name))
    facts: dict[str, Any] = json.loads(resume.read_text()) if resume != path and resume.exists() else {}
    for name, checksum in facts.get("files", {}).items():
        file = path.with_name(name)
        if not file.exists() or _checksum(file) != checksum:
            good = latest(path, but=path)
            raise FormatError(
                str(file),
                "missing" if not file.exists() else "other bytes than were written",
                expected=f"what {resume.name} says",
                remedy=f"the last whole snapshot is {good}" if good else "no other whole snapshot lies beside it",
            )
    state = read_solverstate(path)
    if state.learned_net:
        solver.net.load(_weights(path, state.learned_net))
    _restore_history(solver, state, path)
    solver.iter, solver.current_step = state.iter, state.current_step
    if facts:
        _restore_position(solver, facts)


def latest(path: str | Path, *, but: Path | None = None) -> Path | None:
    """The state of the newest whole snapshot beside ``path`` (a snapshot, or a snapshot_prefix), or None."""
    path = Path(path)
    prefix = re.sub(r"_iter_\d+\.(solverstate|caffemodel)(\.h5)?$", "", path.name)
    found = []
    for resume in path.parent.glob(f"{prefix}_iter_*.resume"):
        number = re.fullmatch(re.escape(prefix) + r"_iter_(\d+)\.resume", resume.name)
        if number:
            found.append((int(number[1]), resume))
    for _, resume in sorted(found, reverse=True):
        try:
            files = json.loads(resume.read_text())["files"]
            state = next(resume.with_name(n) for n in files if ".solverstate" in n)
            if state != but and all(_checksum(resume.with_name(n)) == c for n, c in files.items()):
                return state
        except (OSError, ValueError, KeyError, StopIteration):
            continue
    return None


def _weights(state: Path, named: str) -> Path:
    """The weights that a state names: as written, or beside the state if it has been moved."""
    for path in (Path(named), state.with_name(Path(named).name)):
        if path.exists():
            return path
    raise FileError(str(state), f"its weights {named} are missing", remedy=f"put them beside it, as {Path(named).name}")


@torch.no_grad()
def _restore_history(solver: Solver, state: SolverHistory, path: Path) -> None:
    mine = [h for histories in solver.history for h in histories]
    if len(state.history) != len(mine):
        raise WeightsError(
            str(path),
            f"{len(state.history)} histories",
            expected=f"{len(mine)} ({solver.param.type}, {len(solver.learned)} parameters)",
            remedy="resume with the net and the solver type it was trained with",
        )
    names = [p.name for p in solver.learned] * len(solver.history)
    for name, target, array in zip(names, mine, state.history, strict=True):
        if legacy(array.shape) != legacy(target.shape):
            raise WeightsError(f"{path}: history of {name}", f"shape {array.shape}", expected=str(tuple(target.shape)))
        target.copy_(torch.from_numpy(np.ascontiguousarray(array)).view(target.shape))


def _position(solver: Solver) -> dict[str, Any]:
    """The random stream and where every data layer stands, as JSON."""
    return {
        "iter": solver.iter,
        "losses": [solver._losses, solver._smoothed],
        "stream": _text(random.default_stream().get_state()),
        "data": [
            {n.key: layer.state() for n, layer in net.nodes if hasattr(layer, "state")}
            for net in (solver.net, *solver.test_nets)
        ],
    }


def _restore_position(solver: Solver, facts: dict[str, Any]) -> None:
    solver.iter = facts["iter"]
    random.default_stream().set_state(_array(facts["stream"]))
    for net, states in zip((solver.net, *solver.test_nets), facts["data"], strict=True):
        for node, layer in net.nodes:
            if node.key in states:
                layer.restore(states[node.key])


def _text(words: np.ndarray) -> str:
    return base64.b64encode(words.astype("<u4").tobytes()).decode()


def _array(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u4").astype(np.uint32)


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
