"""Solver states: .solverstate and .solverstate.h5. Source: BVLC's sgd_solver.cpp, the fork's solver.cpp."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

from caffe_port.errors import FormatError
from caffe_port.formats.atomic import atomic_path, atomic_write
from caffe_port.formats.blob import blob_chunks, blob_size, read_blob
from caffe_port.formats.mapping import map_file, write_array
from caffe_port.formats.sniff import kind_of, protobuf_kind, refuse_others
from caffe_port.formats.wire import BYTES, Buffer, Reader, bytes_field, tag, varint, varint_field

__all__ = ["SolverHistory", "read_solverstate", "write_solverstate"]

_ITER, _LEARNED_NET, _HISTORY, _CURRENT_STEP = 1, 2, 3, 4


@dataclass
class SolverHistory:
    """What a solver needs to go on.

    Attributes:
        iter: completed iterations.
        learned_net: the file with the weights of that moment, as it was named when written.
        current_step: how many steps of a "multistep" rate lie behind.
        history: one array a learnable parameter and slot, in the net's order (SGD: the momenta; AdaDelta and Adam: a
            second round of arrays after the first). Shapes as stored: four axes in the fork's files.
    """

    iter: int = 0
    learned_net: str = ""
    current_step: int = 0
    history: list[np.ndarray] = field(default_factory=list)


def read_solverstate(path: str | os.PathLike) -> SolverHistory:
    """The state in a .solverstate or .solverstate.h5 file; its bytes decide which.

    Raises:
        FileError: the file is missing or unreadable.
        FormatError: it is damaged or holds something else.
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
    return _checked(state, name)


_LARGEST = 2**31 - 1  # SolverState's fields are int32


def _checked(state: SolverHistory, path: str) -> SolverHistory:
    for name, value in (("iter", state.iter), ("current_step", state.current_step)):
        if not 0 <= value <= _LARGEST:
            raise FormatError(path, f"{name} {value}", expected=f"0 to {_LARGEST}", remedy="the file is damaged")
    return state


def _read_hdf5(buffer: Buffer, path: str) -> SolverHistory:
    from caffe_port.formats.hdf5 import dataset_array, open_hdf5

    with open_hdf5(path) as file:
        if "history" not in file or "iter" not in file:
            raise FormatError(path, "an HDF5 file without `iter` and `history`", expected="a solverstate")
        history = file["history"]
        missing = [str(i) for i in range(len(history)) if str(i) not in history]
        if missing:
            raise FormatError(
                f"{path}: history", f"no array {missing[0]} among {len(history)}", remedy="fetch it again"
            )
        return SolverHistory(
            iter=int(file["iter"][0]),
            learned_net=file["learned_net"][()].decode() if "learned_net" in file else "",
            current_step=int(file["current_step"][0]) if "current_step" in file else 0,
            history=[dataset_array(history[str(i)], buffer) for i in range(len(history))],
        )


def write_solverstate(path: str | os.PathLike, state: SolverHistory, *, legacy: bool, overwrite: bool = False) -> None:
    """Writes a state that real Caffe resumes from, atomically and durably: HDF5 if the name ends in .h5.

    Args:
        legacy: histories with num, channels, height and width, as the fork reads them, instead of ``shape``.

    Raises:
        FileError: the file exists already or cannot be written.
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


def _write_hdf5(path: str | os.PathLike, state: SolverHistory, overwrite: bool) -> None:
    import h5py

    with atomic_path(path, overwrite=overwrite, durable=True) as temporary, h5py.File(temporary, "x") as file:
        file.create_dataset("iter", data=np.array([state.iter], np.int32))
        name = state.learned_net.encode()
        text = h5py.h5t.C_S1.copy()  # what H5LTmake_dataset_string makes: it ends with a 0, which counts
        text.set_size(len(name) + 1)
        file.create_dataset("learned_net", (), dtype=h5py.Datatype(text))[()] = np.bytes_(name)
        file.create_dataset("current_step", data=np.array([state.current_step], np.int32))
        history = file.create_group("history")
        for i, array in enumerate(state.history):
            history.create_dataset(str(i), data=array)
