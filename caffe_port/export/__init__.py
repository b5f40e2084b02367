"""Nets for other programs: ONNX files that are checked when they are written."""

from caffe_port.export.onnx_file import Exported, onnx

__all__ = ["Exported", "onnx"]
