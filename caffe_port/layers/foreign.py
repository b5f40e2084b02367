"""Torch modules in place of a net's layers: ``net.ip2 = torch.nn.Linear(500, 3)``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port.dialects import Dialect
from caffe_port.errors import CaffeError, ShapeError
from caffe_port.layers.base import Layer, Named, Shape
from caffe_port.layers.blobs import Copies

__all__ = ["Foreign", "Place", "check_savable", "found_at", "register"]


@dataclass(frozen=True)
class Place:
    """The properties of a layer's position in a net, independent of the module there.

    Attributes:
        name, type_name: the definition's. where: "file:line". n_bottoms, n_tops: their numbers.
        labels: bottoms that no gradient reaches. kind: the layer's class.
    """

    name: str
    type_name: str
    where: str
    dialect: Dialect
    n_bottoms: int
    n_tops: int
    labels: tuple[int, ...]
    kind: type[nn.Module]


class Foreign(Layer):
    """Adapts any module to the interface of layers. Its blobs are the module's parameters.

    The module is a submodule of the net, the adapter is not.
    """

    def __init__(self, module: nn.Module, place: Place) -> None:
        if place.type_name == "Input":
            found, remedy = "a module in its place", "put it before the net: torch.nn.Sequential(module, net)"
            raise CaffeError(f"{place.where}: layer {place.name} (Input)", found, remedy=remedy)
        nn.Module.__init__(self)
        self.module, self.place = module, place
        self.name, self.type, self.where, self.dialect = place.name, place.type_name, place.where, place.dialect  # type: ignore[misc]
        self.n_bottoms, self.n_tops, self.labels = place.n_bottoms, place.n_tops, place.labels
        self.blob_shapes = {name: tuple(blob.shape) for name, blob in module.named_parameters()}
        self.fillers = dict.fromkeys(self.blob_shapes)
        self.shared, self.aliases, self.filled, self.held_arrays, self.copies = set(), {}, set(), {}, Copies()
        self.drawn_again: list[str] = []
        self.is_in_place, self.strict_dim = False, True
        self._shapes: dict[tuple[Shape, ...], list[Shape]] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return super().__getattr__("module").get_parameter(name)

    def holds(self, name: str) -> bool:
        return name in self.blob_names

    def __call__(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        """Calls the module with its hooks; its results are the layer's tops."""
        try:
            tops = self.module(*bottoms)
        except CaffeError:
            raise
        except Exception as error:
            raise self._error([tuple(b.shape) for b in bottoms], error) from error
        return self._checked(tops)

    def _checked(self, tops: Any) -> tuple[Tensor, ...]:
        tops = tuple(tops) if isinstance(tops, (tuple, list)) else (tops,)
        if len(tops) != self.n_tops or not all(isinstance(t, Tensor) for t in tops):
            found = ", ".join(type(t).__name__ for t in tops)
            raise CaffeError(self._where, f"it returned {found}", expected=f"{self.n_tops} tensor(s), the layer's tops")
        return tops

    def reshape(self, *shapes: Shape) -> Sequence[Shape]:
        """The tops' shapes, from a run of a copy of the module: on meta tensors, or, where that fails, on zeros."""
        if shapes not in self._shapes:
            try:
                tops = self._probe(shapes, "meta")
            except Exception:
                try:
                    tops = self._probe(shapes, None)
                except Exception as error:
                    raise self._error(shapes, error) from error
            self._shapes = {shapes: [tuple(t.shape) for t in self._checked(tops)]}
        return self._shapes[shapes]

    def top_shapes(self, *shapes: Shape) -> Sequence[Shape]:
        """:meth:`reshape`: torch has worked the shapes out, and a blob's limits are not its modules'."""
        return self.reshape(*shapes)

    @torch.no_grad()
    def _probe(self, shapes: Sequence[Shape], device: str | None) -> Any:
        own = [*self.module.parameters(), *self.module.buffers()]
        moved = {id(t): torch.empty_like(t, device=device) for t in own} if device else {}
        twin = copy.deepcopy(self.module, moved)
        for part in twin.modules():
            for hooks in (part._forward_hooks, part._forward_pre_hooks):
                hooks.clear()
        like = own[0] if own else torch.zeros(())
        kind = like.dtype if like.dtype.is_floating_point else torch.float32
        with torch.random.fork_rng(devices=[]):
            return twin(*(torch.zeros(s, dtype=kind, device=device or like.device) for s in shapes))

    @property
    def _where(self) -> str:
        kind = type(self.module).__name__
        return f"{self.where}: layer {self.name} ({kind} in place of the definition's {self.type})"

    def _error(self, shapes: Sequence[Shape], error: Exception) -> ShapeError:
        text = " ".join(str(error).split())[:300]
        return ShapeError(
            self._where,
            f"the module fails on bottoms of shapes {', '.join(map(str, shapes))}: {type(error).__name__}: {text}",
            remedy="a blob has Caffe's axes: torch.nn.Sequential(torch.nn.Flatten(), ...) flattens it",
        )


def check_savable(layers: Iterable[Layer]) -> None:
    """Refuse to write a net with other modules in its layers' places.

    Raises:
        CaffeError: naming the first that has parameters.
    """
    for layer in layers:
        if isinstance(layer, Foreign) and layer.blob_names:
            raise CaffeError(
                f"{layer.where}: layer {layer.name}",
                f"a {type(layer.module).__name__} in place of the definition's {layer.type}",
                expected="the definition's layers, as Caffe's files contain no others",
                remedy="use torch.save(net.state_dict()), or change the prototxt and load that",
            )


def register(net: nn.Module, key: str, layer: Layer) -> None:
    """Register the layer as a module of the net; a name with dots is a path, as in torch."""
    *path, last = key.split(".")
    for part in path:
        net = net._modules.setdefault(part, Named())  # type: ignore[assignment]
    if last in net._modules:
        layer._modules.update(net._modules[last]._modules)  # type: ignore[union-attr]
    net._modules[last] = layer


def found_at(net: nn.Module, path: Sequence[str]) -> nn.Module | None:
    """The module of that path; None if there is none."""
    found: nn.Module | None = net
    for part in path:
        found = None if found is None else found._modules.get(part)
    return found
