"""The base of all layers: an ``nn.Module`` registered under its Caffe name.

An example::

    @layer("Power", param="power_param")
    class Power(Layer):
        def setup(self, x):
            self.power, self.scale, self.shift = self.p.power, self.p.scale, self.p.shift

        def forward(self, x):
            return (x * self.scale + self.shift) ** self.power
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from caffe_port.dialects import DIALECTS, Dialect
from caffe_port.errors import LayerError, nearest
from caffe_port.layers.backward import Backward, Gradients, at_the_blobs
from caffe_port.layers.blobs import BlobVec, Copies
from caffe_port.layers.memory import memory_limit
from caffe_port.schema.forks import fork_of
from caffe_port.schema.layer_types import REGISTERED_TYPES
from caffe_port.spec import Shape, Spec, record, records_of
from caffe_port.spec.base import BOTH, Table, kind
from caffe_port.spec.fields import Fields

__all__ = ["REGISTRY", "Layer", "Named", "Shape", "create", "layer", "layer_class", "layer_types"]

REGISTRY: Table[type[Layer]] = Table()
"""For each type the class of every dialect that registered one; :func:`layer_class` searches it along a lineage."""


class Named(nn.Module):
    """A module whose children may have names of its attributes: a layer named ``training`` is legal in Caffe."""

    def __setattr__(self, name: str, value: Any) -> None:
        own = name in self.__dict__ or hasattr(type(self), name)
        if own and name in self.__dict__.get("_modules", ()) and not isinstance(value, nn.Module):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


_OWN = frozenset(
    (
        *(
            "aliases",
            "blob_shapes",
            "copies",
            "dialect",
            "fields",
            "filled",
            "fillers",
            "held_arrays",
            "n_bottoms",
            "n_tops",
        ),
        *("name", "shared", "where"),
    )
)
"""Attributes of a layer that are set once; a subclass that needs one of these names gets an error, not a wrong net."""


class Layer(Spec, Named):
    """A Caffe layer: a record (:class:`caffe_port.spec.Spec`) with a forward pass.

    A subclass has ``setup`` (reads its settings, creates its blobs), ``reshape`` (shapes of the tops from those of the
    bottoms; the default copies the first bottom's) and ``forward`` (tensors in, a tensor or a tuple of tensors out).
    The layers of this package have the first two from their record in ``caffe_port.spec``. Its gradient is autograd's
    unless ``forward`` defines another.
    """

    phase: str = "TEST"
    """The phase it is built for, "TRAIN" or "TEST"; set by the net before ``setup``."""
    keeps_state: bool = False
    """Whether a pass changes state that the next one reads."""
    overwrites_diffs: bool = False
    """Whether backward replaces the parameters' diffs instead of adding to them."""
    is_relu: bool = False
    """Whether the layer is exactly max(x, 0)."""

    def __init__(self, message: Any, dialect: Dialect, where: str) -> None:
        super().__init__(message, dialect, where)
        self.drawn_again: list[str] = []
        """Blobs that Caffe draws again and discards after filling the layer (a recurrent layer's, once a step)."""
        self.filled: set[str] = set()
        """Blobs that were filled when they were created."""
        self.copies = Copies()
        """Arrays over host copies of parameters on another device."""
        self.held_arrays: dict[str, weakref.ref[Any]] = {}
        """Arrays over parameters that callers hold and may write to at any time."""
        self.aliases: dict[str, nn.Parameter] = {}
        """Parameters that share another's memory in another shape (share_mode: PERMISSIVE), with its owner."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN and name in self.__dict__:
            raise self.error(f"code that sets self.{name}", expected="another name: this one is what the net reads")
        super().__setattr__(name, value)

    # -- for subclasses to override ------------------------------------------------------------------------------------

    def initial_tops(self) -> Sequence[torch.Tensor]:
        """The tops' values before the first pass, if known."""
        return ()

    def channel_affine(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(scale, shift), a number for each channel (axis 1), if the layer currently computes only that; else None."""
        return None

    def caffe_gradient(self, b: Backward) -> Gradients:
        """Caffe's gradient where blobs that its backward pass reads were overwritten; see ``reads_bottoms``."""
        return at_the_blobs(self, b)

    @property
    def untraceable(self) -> str:
        """Why a trace would compute something else; empty if it would not."""
        return ""

    # -- for subclasses to call ----------------------------------------------------------------------------------------

    def blob(self, name: str, shape: Shape, filler: Fields | None = None, *, learned: bool = True) -> None:
        """See :meth:`Spec.blob`; the blob's memory is not written until filled or loaded."""
        super().blob(name, shape, filler, learned=learned)
        empty = self.allocate_blob(name, shape)
        if learned:
            self.register_parameter(name, nn.Parameter(empty))
        else:
            self.register_buffer(name, empty)

    def allocate_blob(self, what: str, shape: Shape) -> torch.Tensor:
        """Memory for single-precision numbers of ``shape``, untouched.

        Raises:
            ShapeError: no blob can have that shape, or the machine has not so much memory.
        """
        self.check_size(what, shape)
        size, most = 4 * prod(shape), memory_limit()
        try:
            if size <= most:
                return torch.empty(shape)
        except RuntimeError:  # it is taken already
            pass
        found = f"{what} of shape {tuple(shape)}, which takes {size:,} bytes"
        raise self.shape_error(found, expected=f"less than is free of {most:,} bytes of memory")

    def share(self, name: str, owner: nn.Parameter) -> None:
        """Place the blob ``name`` in ``owner``'s memory; with the same shape it is the same parameter."""
        self.shared.add(name)
        mine: nn.Parameter = getattr(self, name)
        if mine.shape == owner.shape:
            setattr(self, name, owner)
        else:
            mine.data = owner.data.view(mine.shape)
            self.aliases[name] = owner

    def add_diff(self, name: str, grad: torch.Tensor) -> None:
        """Add to a parameter's diff, or replace it if the layer overwrites diffs."""
        diff = self.diff(name)
        if self.overwrites_diffs:
            diff.copy_(grad)
        else:
            diff += grad

    def diff(self, name: str) -> torch.Tensor:
        """A parameter's diff (its ``grad``), zero at first."""
        blob = getattr(self, name)
        owner = self.aliases.get(name, blob)
        if owner.grad is None:
            owner.grad = torch.zeros_like(owner)
        if blob.grad is None:
            blob.grad = owner.grad.view(blob.shape)
        return blob.grad

    def extra_repr(self) -> str:
        return self.name

    # -- for the net ---------------------------------------------------------------------------------------------------

    @property
    def caffe_blobs(self) -> list[torch.Tensor]:
        """The parameter blobs in Caffe's order."""
        return [getattr(self, n) for n in self.blob_names]

    @property
    def blobs(self) -> BlobVec:
        """The parameter blobs as writable arrays, as in pycaffe."""
        return BlobVec(self)

    def holds(self, name: str) -> bool:
        """Whether the blob is a parameter or buffer itself, not computed from others (parametrized, pruned)."""
        return name in self._parameters or name in self._buffers

    def __getstate__(self) -> dict[str, Any]:
        """The state without the arrays of this process."""
        return {**self.__dict__, "held_arrays": {}, "copies": Copies()}


def layer(
    type_name: str, *, param: str | None = None, dialects: tuple[str, ...] = (), replace: bool = False
) -> Callable[[type[Layer]], type[Layer]]:
    """Register a :class:`Layer` under its Caffe type.

    A type that has a record in ``caffe_port.spec`` takes all facts from there. For other types the class is the record,
    with the arguments given here and its class attributes.

    Args:
        type_name: the ``type`` of a prototxt's ``layer`` ("Convolution").
        param: the field of LayerParameter that holds its parameters.
        dialects: the Caffes that have it; those derived from them have it too, unless they register their own.
            By default those of the record, or all.
        replace: replaces the layer and the record of the same type and dialects.

    Raises:
        DefinitionError: the type is already registered for a dialect, or a dialect is unknown.
    """

    def register(cls: type[Layer]) -> type[Layer]:
        records = [] if param or dialects or replace else [*records_of(type_name)]
        if records and not any(issubclass(cls, known) for known in records):
            for fact in Spec.__annotations__:
                setattr(cls, fact, getattr(records[0], fact))
        elif not records:
            record(type_name, param, dialects or BOTH, replace=replace)(cls)
        REGISTRY.add(cls, f"@layer({type_name!r})", replace=replace)
        REGISTERED_TYPES.add(type_name)
        return cls

    return register


def layer_class(type_name: str, dialect: Dialect) -> type[Layer] | None:
    """The class of a type in a dialect: its own, or that of the nearest dialect of its lineage that has one."""
    return REGISTRY.find(type_name, dialect)


def layer_types(dialect: Dialect) -> list[str]:
    """The types that a dialect has, sorted."""
    return sorted(t for t in REGISTRY if layer_class(t, dialect))


def unknown_types(messages: Iterable[Any], dialect: Dialect) -> str:
    """The part of an error about the first unknown type that lists the others, by their fork."""
    names = dict.fromkeys(m.type for m in messages if layer_class(m.type, dialect) is None)
    groups: dict[str, list[str]] = {}
    for name in list(names)[1:]:
        groups.setdefault(fork_of(name), []).append(name)
    listed = (f"{', '.join(types)}{f' of {fork}' if fork else ''}" for fork, types in groups.items())
    return f"; also unknown: {'; '.join(listed)}" if groups else ""


def create(message: Any, dialect: Dialect, where: str, also: str = "") -> Layer:
    """The layer that a LayerParameter (V2 form) describes.

    ``also`` is appended to the error for an unknown type: the net's other unknown parts.

    Raises:
        LayerError: the dialect has no such type, or its parameters are wrong.
    """
    cls = layer_class(kind(message, dialect), dialect)
    if cls is not None:
        return cls(message, dialect, where)
    place = f"{where}: layer {message.name}"
    others = [name for name, other in DIALECTS.items() if layer_class(message.type, other)]
    if others:
        raise LayerError(
            place,
            f"type {message.type}, which {dialect.name} does not have",
            remedy=f"--dialect {' or '.join(others)}",
        )
    near, fork = nearest(message.type, REGISTRY), fork_of(message.type)
    raise LayerError(
        place,
        f"unknown layer type {message.type!r}"
        + (f", of {fork}" if fork else f" (near: {near})" if near else "")
        + also,
        remedy=f'implement it: @layer("{message.type}") in a Python file given by --plugin (docs/extending.md)',
    )
