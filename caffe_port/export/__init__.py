"""Export of nets: ONNX files, checked when they are written, and files of torch.export."""

from caffe_port.export.onnx_file import onnx
from caffe_port.export.parts import Exported

__all__ = ["Exported", "onnx"]
