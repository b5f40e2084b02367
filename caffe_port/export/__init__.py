"""Export of nets: ONNX files, checked when they are written, and files of torch.export."""

from caffe_port.export.onnx_file import Exported, onnx

__all__ = ["Exported", "onnx"]
