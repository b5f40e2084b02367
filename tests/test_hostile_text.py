"""Hostile definitions: one line of error, in time linear in their length."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from caffe_port.errors import DefinitionError
from caffe_port.schema import load_proto, read_net

PROTO = {
    "a field's number past 2^29": ("message A { optional int32 a = 2147483648; }", "1 to 536870911"),
    "a negative field's number": ("message A { optional int32 a = -1; }", "1 to 536870911"),
    "a value past 2^31": ("enum E { A = 4294967295; }", "-2147483648 to 2147483647"),
    "a number of 5,000 digits": (f"enum E {{ A = {'1' * 5000}; }}", "-2147483648 to 2147483647"),
    "5,000 messages in one another": ("message A { " * 5000 + "}" * 5000, "a message in 64 others"),
    "5,000 brackets": ("option a = " + "{" * 5000 + "}" * 4999, "the end of the file"),
}


@pytest.mark.parametrize(("text", "says"), PROTO.values(), ids=PROTO)
def test_a_proto(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.proto").write_text(text)
    with pytest.raises(DefinitionError, match=says) as e:
        load_proto(tmp_path / "a.proto")
    assert len(str(e.value)) < 1000


LONG = {
    "braces": "{" * 200_000,
    "placeholders that do not end": "${" * 100_000,
    "messages in one another": "layer { a { " * 20_000,
    "a name": f'layer {{ name: "{"x" * 10**6}" tpye: "ReLU" }}',
    "names that are unknown": "".join(f"field_{i}: 1\n" for i in range(8_000)),
    "closing braces": 'layer { type: } "x" ' + "} " * 100_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_long_texts_take_no_longer_than_they_are(text: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(text)
    start = time.process_time()
    with pytest.raises(DefinitionError) as e:
        read_net(tmp_path / "net.prototxt")
    assert time.process_time() - start < 5
    assert len(str(e.value)) < 1000
