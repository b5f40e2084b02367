"""Solver states: .solverstate and .solverstate.h5.

Source: sgd_solver.cpp (bvlc, and the ssd branch of weiliu89/caffe), solver.cpp (noh).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isnan

import numpy as np

from caffe_port.errors import FormatError
from caffe_port.formats.atomic import atomic_path, atomic_write
from caffe_port.formats.blob import blob_chunks, blob_size, read_blob
from caffe_port.formats.mapping import map_file, write_array
from caffe_port.formats.sniff import kind_of, protobuf_kind, refuse_others
from caffe_port.formats.wire import BYTES, FIXED32, Buffer, Reader, bytes_field, tag, varint, varint_field

__all__ = ["POLICY_FIELDS", "SolverHistory", "read_solverstate", "write_solverstate"]

_ITER, _LEARNED_NET, _HISTORY, _CURRENT_STEP, _MINIMUM_LOSS, _ITER_LAST_EVENT = range(1, 7)

POLICY_FIELDS = {"current_step": 0, "minimum_loss": 1e38, "iter_last_event": 0}
"""The state's fields of the learning-rate policy, with the defaults for files that lack them."""


@dataclass
class SolverHistory:
    """The state from which a solver continues.

    Attributes:
        iter: completed iterations.
        learned_net: the file with the weights of that iteration, by its name when written.
        history: one array for a learnable parameter and slot, in the net's order (SGD: the momenta; AdaDelta, Adam: a
            second round of arrays after the first). Shapes as stored: four axes in the fork's files.
        current_step: how many times a "step", "multistep" or "plateau" rate has dropped.
        minimum_loss, iter_last_event: of "plateau": the smallest averaged loss, and the iteration of the last minimum
            or drop; None where a file lacks them (all but SSD's do).
    """

    iter: int = 0
    learned_net: str = ""
    history: list[np.ndarray] = field(default_factory=list)
    current_step: int = 0
    minimum_loss: float | None = None
    iter_last_event: int | None = None

    def policy(self) -> Iterator[tuple[str, float]]:
        """The policy's fields and values."""
        for name, default in POLICY_FIELDS.items():
            value = getattr(self, name)
            yield name, default if value is None else value


def read_solverstate(path: str | os.PathLike) -> SolverHistory:
    """The state in a .solverstate or .solverstate.h5 file; detected from its bytes.

    Raises:
        FileError: the file is missing or unreadable.
        FormatError: it is damaged or has another format.
    """
    name = os.fspath(path)
    buffer = map_file(path)
    if kind_of(buffer) == "hdf5":
        return _read_hdf5(buffer, name)
    refuse_others(buffer, name, "a solverstate")
    kind = protobuf_kind(buffer, name)
    if kind != "solverstate":
        raise FormatError(name, f"a {kind or 'file of another kind'}", expected="a solverstate")
    state = SolverHistory()
    reader = Reader(buffer, path=name)
    for number, _ in reader:
        if number == _ITER:
            state.iter = reader.integer()
        elif number == _LEARNED_NET:
            state.learned_net = reader.text()
        elif number == _HISTORY:
            state.history.append(read_blob(reader.message(f"history blob {len(state.history)}"))[0])
        elif number == _CURRENT_STEP:
            state.current_step = reader.integer()
        elif number == _MINIMUM_LOSS:
            state.minimum_loss = reader.single()
        elif number == _ITER_LAST_EVENT:
            state.iter_last_event = reader.integer()
    return _checked(state, name)


_LARGEST = 2**31 - 1  # SolverState's fields are int32


def _checked(state: SolverHistory, path: str) -> SolverHistory:
    for name in ("iter", "current_step", "iter_last_event"):
        value = getattr(state, name) or 0
        if not 0 <= value <= _LARGEST:
            raise FormatError(path, f"{name} {value}", expected=f"0 to {_LARGEST}", remedy="the file is damaged")
    if state.minimum_loss is not None and isnan(state.minimum_loss):
        raise FormatError(path, "minimum_loss nan", expected="a number", remedy="the file is damaged")
    return state


def _read_hdf5(buffer: Buffer, path: str) -> SolverHistory:
    import h5py

    from caffe_port.formats.hdf5_access import (
        dataset_array,
        find,
        members,
        open_hdf5,
        single_number,
        text_of,
        whole_number,
    )

    with open_hdf5(path) as file:
        history = find(file, "history")
        if not isinstance(history, h5py.Group) or "iter" not in file:
            raise FormatError(path, "an HDF5 file without `iter` and `history`", expected="a solverstate")
        arrays = dict(members(history))
        for i in range(len(arrays)):
            if not isinstance(arrays.get(str(i)), h5py.Dataset):
                raise FormatError(f"{path}: history", f"no array {i} among {len(arrays)}", remedy="fetch it again")
        state = SolverHistory(
            iter=whole_number(file, "iter"),
            learned_net=text_of(file, "learned_net") if "learned_net" in file else "",
            current_step=whole_number(file, "current_step") if "current_step" in file else 0,
            minimum_loss=single_number(file, "minimum_loss") if "minimum_loss" in file else None,
            iter_last_event=whole_number(file, "iter_last_event") if "iter_last_event" in file else None,
            history=[dataset_array(arrays[str(i)], buffer, floats=True) for i in range(len(arrays))],
        )
        return _checked(state, path)


def write_solverstate(path: str | os.PathLike, state: SolverHistory, *, legacy: bool, overwrite: bool = False) -> None:
    """Writes a state that real Caffe resumes from, atomically and durably: HDF5 if the name ends in .h5.

    Args:
        legacy: histories with num, channels, height and width, as the fork reads them, instead of ``shape``.

    Raises:
        FileError: the file exists or cannot be written.
    """
    if os.fspath(path).endswith(".h5"):
        _write_hdf5(path, state, overwrite)
        return
    with atomic_write(path, overwrite=overwrite, durable=True) as file:
        file.write(varint_field(_ITER, state.iter) + bytes_field(_LEARNED_NET, state.learned_net))
        for array in state.history:
            file.write(tag(_HISTORY, BYTES) + varint(blob_size(array, None, legacy=legacy)))
            for chunk in blob_chunks(array, None, legacy=legacy):
                if isinstance(chunk, bytes):
                    file.write(chunk)
                else:
                    write_array(file, chunk)
        file.write(varint_field(_CURRENT_STEP, state.current_step))
        if state.minimum_loss is not None:
            file.write(tag(_MINIMUM_LOSS, FIXED32) + np.float32(state.minimum_loss).astype("<f4").tobytes())
        if state.iter_last_event is not None:
            file.write(varint_field(_ITER_LAST_EVENT, state.iter_last_event))


def _write_hdf5(path: str | os.PathLike, state: SolverHistory, overwrite: bool) -> None:
    import h5py

    with atomic_path(path, overwrite=overwrite, durable=True) as temporary, h5py.File(temporary, "x") as file:
        file.create_dataset("iter", data=np.array([state.iter], np.int32))
        name = state.learned_net.encode()
        text = h5py.h5t.C_S1.copy()  # as H5LTmake_dataset_string: the terminating 0 is part of the size
        text.set_size(len(name) + 1)
        file.create_dataset("learned_net", (), dtype=h5py.Datatype(text))[()] = np.bytes_(name)
        file.create_dataset("current_step", data=np.array([state.current_step], np.int32))
        if state.iter_last_event is not None:
            file.create_dataset("iter_last_event", data=np.array([state.iter_last_event], np.int32))
        if state.minimum_loss is not None:
            file.create_dataset("minimum_loss", data=np.array([state.minimum_loss], np.float32))
        history = file.create_group("history")
        for i, array in enumerate(state.history):
            history.create_dataset(str(i), data=array)
