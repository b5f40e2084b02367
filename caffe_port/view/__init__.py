"""A page to look at a net: its data as JSON (``data``), and the file that shows it (``page``)."""

from caffe_port.view.data import net_data
from caffe_port.view.page import page

__all__ = ["net_data", "page"]
