"""A net compared with a reference: the rows of the report, and its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from caffe_port.errors import CaffeError, WeightsError
from caffe_port.tools.compare import Comparison

if TYPE_CHECKING:
    from caffe_port.graph import Node
    from caffe_port.pycaffe import Net
    from caffe_port.tools.replay import Reference

__all__ = ["Report", "Row", "check_parameters", "makers", "measure"]

_FEW = 0.01
"""Share of an array's values up to which those over the bound look like near ties."""


@dataclass(frozen=True)
class Row:
    """One array of the reference, with the layer that computed it.

    Attributes:
        index: the layer's position in the net. turn: order of computation, backward after forward.
        layer, type: of an in-place blob those of the first and the last layer that wrote it, ``conv1 .. relu1``.
    """

    index: int
    turn: int
    layer: str
    type: str
    comparison: Comparison

    @property
    def severity(self) -> tuple[bool, float]:
        """Sort key of the worst rows: those over the bound first, then by error divided by bound."""
        return not self.comparison.ok, self.comparison.error / self.comparison.bound

    @property
    def verdict(self) -> str:
        c = self.comparison
        return c.found or ("over" if not c.ok else "near ties" if c.outside else "ok")

    def as_json(self) -> dict[str, Any]:
        c = self.comparison
        return {
            **{"layer": self.layer, "type": self.type, "array": c.key, "values": c.size, "verdict": self.verdict},
            **{"error": float(c.error), "rms": float(c.rms), "bound": float(c.bound), "outside": c.outside},
        }


@dataclass(frozen=True)
class Report:
    """A net compared with a reference. ``rows`` are in the order of the net, backward after forward."""

    net: str
    reference: str
    setting: str
    rows: list[Row]
    lacking: list[str] = field(default_factory=list)
    """Outputs of the net that the reference does not have."""

    @property
    def over(self) -> list[Row]:
        return [row for row in self.rows if not row.comparison.ok]

    @property
    def worst_first(self) -> list[Row]:
        return sorted(self.rows, key=lambda row: row.severity, reverse=True)

    @property
    def layers(self) -> list[list[Row]]:
        """The rows of each layer, in the order of the net."""
        layers: dict[int, list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: row.index):
            layers.setdefault(row.index, []).append(row)
        return list(layers.values())

    @property
    def head(self) -> str:
        """What was compared."""
        size = f"{len(self.rows)} arrays of {len(self.layers)} layers"
        return f"{self.net} beside {self.reference}: {size}, {self.setting}"

    @property
    def verdict(self) -> str:
        """One sentence: whether all arrays are within their bounds, or the first layer that is not."""
        lacking = f"; the reference lacks the net's outputs {', '.join(self.lacking)}" if self.lacking else ""
        return self._verdict() + lacking

    @property
    def first(self) -> Row | None:
        """The array that is over its bound and was computed first; None where all is well."""
        return min(self.over, key=lambda row: row.turn, default=None)

    @property
    def near_ties(self) -> bool:
        """Whether the arrays over their bounds look like near ties: few values of the first one are over."""
        if self.first is None:
            return False
        first = self.first.comparison
        return not first.found and 0 < first.outside < _FEW * first.size

    def _verdict(self) -> str:
        first = self.first
        if first is None:
            worst = max((row.comparison for row in self.rows if not row.comparison.outside), key=lambda c: c.error)
            ties = sum(row.comparison.outside for row in self.rows)
            return f"all within their bounds; the largest error is {worst.error:.1e} ({worst.key})" + (
                f"; {ties} values exceed them, as near ties may" if ties else ""
            )
        return (
            f"{len(self.over)} of {len(self.rows)} arrays over their bounds, first at layer {first.layer}"
            f" ({first.type}): {first.comparison}"
        )


def measure(net: Net, reference: Reference, *, forwards: int = 1, own_switches: bool = False) -> Report:
    """Run ``net`` as the reference was run and compare; see :func:`caffe_port.tools.replay.replay`.

    Raises:
        CaffeError: the reference does not fit the net, or lacks one of its inputs.
    """
    from caffe_port.tools.replay import replay

    for name in net.inputs:
        if f"in/{name}" not in reference:
            raise CaffeError(reference.path, f"no in/{name}", expected="a value for each input of the net")
    rows = []
    for comparison in replay(net, reference, forwards=forwards, own_switches=own_switches):
        made = makers(net, comparison)
        index = made[-1].index
        turn = 2 * len(net.nodes) - index if comparison.kind in ("diff", "pdiff") else index
        names = [node.name or f"({node.type})" for node in made]
        rows.append(Row(index, turn, _from_to(names), _from_to([node.type for node in made]), comparison))
    if all(row.type == "Input" for row in rows):
        found = f"nothing that a layer computed ({len(rows)} arrays, all of inputs)"
        remedy = "dump it again: caffe-port dump-reference"
        raise CaffeError(reference.path, found, expected="out/BLOB of the net's layers", remedy=remedy)
    held = {key.partition("/")[2] for key in reference.keys("out", "sample", "moments", "masksum", "switch")}
    lacking = [name for name in net.outputs if name not in held]
    rows.sort(key=lambda row: row.turn)
    setting = f"phase {net.phase}, dialect {net.dialect.name}" + (", the reference's switches" if own_switches else "")
    return Report(net.definition.path, reference.path, setting, rows, lacking)


def makers(net: Net, comparison: Comparison) -> list[Node]:
    """The layers that wrote an array: several for an in-place blob."""
    kind, name = comparison.kind, comparison.name
    nodes = [node for node, _ in net.nodes]
    if kind in ("pdiff", "after"):
        return [node for node in nodes if node.name == name.rpartition("/")[0]][:1]
    readers = [node for node in nodes if name in node.bottoms] if kind == "diff" else []
    return readers[:1] or [node for node in nodes if name in node.tops]


def _from_to(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"


def check_parameters(net: Net, weights: str | None, reference: Reference) -> None:
    """Refuse a net without trained parameters.

    Raises:
        WeightsError: there are neither weights nor parameters in the reference.
    """
    if net.params and not weights and not reference.keys("param"):
        raise WeightsError(reference.path, "no parameters", expected="MODEL.caffemodel before it on the command line")
