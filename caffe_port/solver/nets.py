"""The definitions of a solver's nets, with phase and state: the training net and each test net.

Source: solver.cpp (both programs), InitTrainNet, InitTestNets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffe_port.dialects import Dialect
from caffe_port.errors import CaffeError, FileError
from caffe_port.paths import exists
from caffe_port.schema import Definition, read_net
from caffe_port.schema.messages import TEST, TRAIN
from caffe_port.schema.scan import mistaken

__all__ = ["Nets"]


@dataclass(frozen=True)
class Nets:
    """Reads the definitions.

    Attributes:
        param: the SolverParameter. path: its file, for messages and for files that lie beside it.
        dialect, proto: as :func:`caffe_port.schema.read_net` takes them.
    """

    param: Any
    path: str
    dialect: str | Dialect | None = None
    proto: str | Path | None = None

    def train(self) -> tuple[str, Definition]:
        """The origin of the training net's definition, as Caffe logs it, and the definition.

        Raises:
            CaffeError: none of the four fields is set, or several are.
        """
        param = self.param
        given = [f for f in ("net", "net_param", "train_net", "train_net_param") if param.HasField(f)]
        if len(given) != 1:
            raise CaffeError(
                self.path,
                " and ".join(given) or "no net",
                expected="one of net, net_param, train_net, train_net_param",
            )
        source = getattr(param, given[0])
        text = f"from {given[0]} file: {source}" if isinstance(source, str) else f"specified in {given[0]}."
        return text, self._read(source, TRAIN, param.train_state)

    def tests(self) -> list[tuple[str, Definition]]:
        """The same for each test net.

        Raises:
            CaffeError: the numbers of test nets, test_iter and test_state disagree, or test_interval is missing.
        """
        param = self.param
        sources: list[tuple[str, Any]] = [("test_net_param", p) for p in param.test_net_param]
        sources += [(f"test_net file: {name}", name) for name in param.test_net]
        wanted = len(param.test_iter)
        generic = self._generic()
        if wanted < len(sources) or (generic is None and wanted != len(sources)):
            raise CaffeError(
                self.path, f"{wanted} test_iter for {len(sources)} test nets", expected="one for each test net"
            )
        if generic is not None:
            sources += [generic] * (wanted - len(sources))
        if param.test_state and len(param.test_state) != len(sources):
            raise CaffeError(
                self.path,
                f"{len(param.test_state)} test_state for {len(sources)} test nets",
                expected="none, or one for each",
            )
        if sources and param.test_interval <= 0:
            raise CaffeError(self.path, "test nets without a test_interval", expected="a test_interval above 0")
        states = list(param.test_state) or [type(param.train_state)()] * len(sources)
        return [
            (f"specified by {text}", self._read(source, TEST, state))
            for (text, source), state in zip(sources, states, strict=True)
        ]

    def _generic(self) -> tuple[str, Any] | None:
        """The net used for both training and tests, if there is one."""
        if self.param.HasField("net"):
            return f"net file: {self.param.net}", self.param.net
        return ("net_param", self.param.net_param) if self.param.HasField("net_param") else None

    def _read(self, source: Any, phase: int, state: Any) -> Definition:
        if isinstance(source, str):
            source = self.find(source)
        definition = read_net(
            source, phase=phase, state=state, dialect=self.dialect, proto=self.proto, name=str(self.path)
        )
        if phase == TEST and definition.dialect.test_nets_crop_at_random:
            for layer in definition.net.layer:
                if not layer.bottom:
                    layer.phase = TRAIN
        return definition

    def find(self, name: str) -> Path:
        """A file that the solver names, relative to the working directory as in Caffe, or to the solver's folder."""
        beside = Path(self.path).parent / name
        for path in (Path(name), beside):
            if exists(path):
                return path
        expected = f"the file that {self.path} names"
        raise FileError(name, f"no such file, nor {beside}", expected=expected, remedy=mistaken(name))
