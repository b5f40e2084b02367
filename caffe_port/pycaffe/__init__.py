"""The face that pycaffe's users know. Its names are attributes of ``caffe_port`` itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from caffe_port.schema.messages import TEST, TRAIN

if TYPE_CHECKING:
    from caffe_port.pycaffe.net import Blob, Net

__all__ = ["TEST", "TRAIN", "Blob", "Net"]


def __getattr__(name: str) -> Any:
    """The net, when somebody asks for it: what handles messages and pictures alone needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from caffe_port.pycaffe import net

    return getattr(net, name)
