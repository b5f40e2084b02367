"""Which layers a net has in a phase, at a level, in stages (net.cpp, FilterNet and StateMeetsRule)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from caffe_port.errors import DefinitionError

__all__ = ["filter_net", "included", "merge_state", "satisfies", "set_state"]


def set_state(net: Any, phase: int | None, level: int, stages: Iterable[str]) -> None:
    """Give ``net`` the state that Caffe's Net constructor does: phase and level replaced, stages added.

    Without a phase the net's own state is kept (TEST by default), plus the stages and a level other than 0.
    """
    if phase is not None:
        net.state.phase = phase
    if phase is not None or level:
        net.state.level = level
    net.state.stage.extend(stages)


def merge_state(net: Any, phase: int | None, state: Any) -> None:
    """Give ``net`` the state that a solver does: ``phase``, merged with the net's own, then ``state`` (solver.cpp)."""
    merged = type(net.state)()
    if phase is not None:
        merged.phase = phase
    merged.MergeFrom(net.state)
    merged.MergeFromString(state.SerializeToString())  # a solver's may be of another schema than a dialect's net
    net.state.CopyFrom(merged)


def satisfies(state: Any, rule: Any) -> bool:
    """Whether a NetState satisfies a NetStateRule."""
    return not (
        (rule.HasField("phase") and rule.phase != state.phase)
        or (rule.HasField("min_level") and state.level < rule.min_level)
        or (rule.HasField("max_level") and state.level > rule.max_level)
        or any(stage not in state.stage for stage in rule.stage)
        or any(stage in state.stage for stage in rule.not_stage)
    )


def included(layer: Any, state: Any) -> bool:
    """Whether a net in ``state`` has a layer, by its include or its exclude rules."""
    if layer.include:
        return any(satisfies(state, rule) for rule in layer.include)
    return not any(satisfies(state, rule) for rule in layer.exclude)


def filter_net(net: Any, where: Callable[[int], str]) -> tuple[int, ...]:
    """Remove the layers that the net's state excludes.

    Args:
        net: a V2 NetParameter, changed in place.
        where: the place of the i-th layer, for messages.

    Returns:
        The previous indices of the remaining layers.

    Raises:
        DefinitionError: a layer has include rules and exclude rules.
    """
    kept = []
    for i, layer in enumerate(net.layer):
        if layer.include and layer.exclude:
            raise DefinitionError(where(i), "include and exclude rules", expected="only one kind", remedy="remove one")
        if included(layer, net.state):
            kept.append(i)
    for i in sorted({*range(len(net.layer))}.difference(kept), reverse=True):
        del net.layer[i]
    return tuple(kept)
