"""A net's arguments: tensors by position, in a mapping or by keyword; blobs to return by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from caffe_port.errors import CaffeError, nearest
from caffe_port.layers.base import Layer

__all__ = ["check_inputs", "known_blobs", "named_inputs", "refuse_untraceable"]


def named_inputs(names: Sequence[str], given: Sequence[Any], named: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of the inputs ``names`` from the arguments by position (or as one mapping) and by keyword.

    Raises:
        CaffeError: an input is missing, unknown, or given twice.
    """
    if not given:
        found = dict(named)
    elif len(given) == 1 and isinstance(given[0], Mapping):
        found = {**given[0], **named}
    elif len(given) > len(names) or set(names[: len(given)]) & set(named):
        expected = ", ".join(names) or "no inputs"
        raise CaffeError(where, f"{len(given)} tensors by position, {len(named)} by name", expected=expected)
    else:
        found = {**dict(zip(names, given, strict=False)), **named}
    if len(found) != len(names) or not all(map(found.__contains__, names)):
        expected = ", ".join(names) or "no inputs"
        raise CaffeError(where, f"inputs {', '.join(map(str, found)) or 'none'}", expected=expected)
    return found


def check_inputs(found: Mapping[str, Any], ranks: Mapping[str, int | None], like: Tensor, where: str) -> None:
    """Raise for a value that is not a tensor, has another dtype or device than ``like``, or another number of axes.

    Args:
        ranks: the number of axes of each input, None where the definition does not determine it.

    Raises:
        CaffeError: names the first such input, with the value found and the expected one.
    """
    for name, rank in ranks.items():
        x = found[name]
        if not isinstance(x, Tensor):
            what, expected, remedy = f"a {type(x).__name__}", "a tensor", ""
        elif x.dtype != like.dtype:
            what, expected, remedy = f"{x.dtype}", f"{like.dtype}", f"{name}.to({like.dtype})"
        elif x.device != like.device:
            what, expected, remedy = f"device {x.device}", f"{like.device}", f"{name}.to({str(like.device)!r})"
        elif rank is not None and x.dim() != rank:
            what, expected, remedy = f"{x.dim()} axes {tuple(x.shape)}", f"{rank} axes", ""
        else:
            continue
        raise CaffeError(f"{where}: input {name}", what, expected=expected, remedy=remedy)


def known_blobs(wanted: Iterable[str], blobs: Collection[str], where: str) -> list[str]:
    """The names of blobs to return, a single one as a list of one.

    Raises:
        CaffeError: a name that is not a blob's.
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in blobs:
            near = nearest(name, blobs)
            raise CaffeError(where, f"no blob {name!r}", remedy=f"near: {near}" if near else "")
    return names


def refuse_untraceable(layers: Iterable[Layer]) -> None:
    """Raise if a net is traced that has a layer whose trace would compute something else.

    Raises:
        LayerError: names the first such layer, and the reason.
    """
    for layer in layers:
        if reason := layer.untraceable:
            raise layer.error(f"{reason}, which a trace cannot record", remedy="trace a deploy net, in TEST")
