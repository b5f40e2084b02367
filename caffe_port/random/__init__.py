"""The random numbers real Caffe draws: streams, distributions and fillers, equal to the last bit. Needs numpy alone.

Caffe has one stream that everything draws from in turn: the layers' parameters when a net is built, in the order of the
layers, then dropout masks and data. Here it is :func:`default_stream`. As in Caffe every thread has its own.
"""

from __future__ import annotations

import threading

from caffe_port.random.crand import CRand
from caffe_port.random.fillers import FILLERS, check_filler, fill
from caffe_port.random.stream import Stream

__all__ = ["FILLERS", "CRand", "Stream", "c_rand", "check_filler", "default_stream", "fill", "set_random_seed"]

_thread = threading.local()
_c_rand = CRand()


def default_stream() -> Stream:
    """This thread's stream; until :func:`set_random_seed` it starts from a seed of the operating system's."""
    if not hasattr(_thread, "stream"):
        _thread.stream = Stream()
    return _thread.stream


def set_random_seed(seed: int) -> None:
    """Seed this thread's stream (Caffe::set_random_seed)."""
    default_stream().seed(seed)


def c_rand() -> CRand:
    """The process's rand(), which Caffe never seeds; HDF5Data shuffles with it."""
    return _c_rand
