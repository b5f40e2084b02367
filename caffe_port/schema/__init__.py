"""Caffe's messages, prototxt, and definitions upgraded to one form. Needs no torch."""

from caffe_port.schema.definition import Definition, read_net, read_solver
from caffe_port.schema.layer_types import V1_TO_V2, V2_TO_V1
from caffe_port.schema.merge import load_proto, schema_of
from caffe_port.schema.messages import SCHEMA, TEST, TRAIN
from caffe_port.schema.text import parse_text, to_text
from caffe_port.schema.upgrade import Upgraded, upgrade_net, upgrade_solver

__all__ = [
    "SCHEMA",
    "TEST",
    "TRAIN",
    "V1_TO_V2",
    "V2_TO_V1",
    "Definition",
    "Upgraded",
    "load_proto",
    "parse_text",
    "read_net",
    "read_solver",
    "schema_of",
    "to_text",
    "upgrade_net",
    "upgrade_solver",
]
