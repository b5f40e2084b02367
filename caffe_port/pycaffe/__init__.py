"""pycaffe's interface. Its names are also attributes of ``caffe_port``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from caffe_port.schema.messages import TEST, TRAIN

if TYPE_CHECKING:
    from caffe_port.pycaffe.net import Blob, Net

__all__ = ["TEST", "TRAIN", "Blob", "Net"]


def __getattr__(name: str) -> Any:
    """Imports the net on first use, so that code for messages and pictures needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from caffe_port.pycaffe import net

    return getattr(net, name)
