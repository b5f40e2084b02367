"""What every layer is: a small ``nn.Module`` registered under its Caffe name.

Adding one is a screenful::

    @layer("Power", param="power_param")
    class Power(Layer):
        def setup(self, x):
            self.power, self.scale, self.shift = self.p.power, self.p.scale, self.p.shift

        def forward(self, x):
            return (x * self.scale + self.shift) ** self.power
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from caffe_port.dialects import DIALECTS, Dialect
from caffe_port.errors import DefinitionError, LayerError, ShapeError, nearest
from caffe_port.layers.blobs import BlobVec, Copies
from caffe_port.layers.fields import Fields

__all__ = ["REGISTRY", "Layer", "Named", "Shape", "create", "layer", "layer_class", "layer_types"]

Shape = tuple[int, ...]

REGISTRY: dict[str, dict[str, type[Layer]]] = {}
"""For each type the class of every dialect that registered one; :func:`layer_class` looks it up along a lineage."""

# What the net itself reads of a layer's message.
_NET_FIELDS = [
    *("name", "type", "bottom", "top", "phase", "include", "exclude", "loss_weight", "propagate_down", "blobs"),
    *("param", "blob_share_mode", "blobs_lr", "weight_decay"),
]


class Named(nn.Module):
    """A module whose children may be called as its own attributes are: a layer named ``training`` is legal in Caffe."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_modules", ()) and not isinstance(value, nn.Module):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class Layer(Named):
    """A Caffe layer.

    A subclass has ``setup`` (reads its parameters, makes its blobs), ``reshape`` (shapes of the tops from those of the
    bottoms; the default copies the first bottom's) and ``forward`` (tensors in, a tensor or a tuple of tensors out).
    Its gradient is autograd's unless ``forward`` says otherwise.

    Attributes:
        p: the layer's own parameter block (``convolution_param`` ...) as :class:`Fields`.
        blob_names: the names of its parameter blobs in Caffe's order; each is a parameter or a buffer of that name.
    """

    type: ClassVar[str]  # type: ignore[assignment]
    param: ClassVar[str | None] = None
    dialects: ClassVar[tuple[str, ...]] = ("bvlc", "noh")
    bottoms: ClassVar[tuple[int, int | None]] = (1, 1)
    """Fewest and most bottoms (None: no limit)."""
    tops: ClassVar[tuple[int, int | None]] = (1, 1)
    loss: ClassVar[bool] = False
    """A loss: its first top has weight 1 unless told otherwise, and is made when the definition names none."""
    labels: tuple[int, ...] = ()
    """Bottoms that no gradient reaches (labels, switches)."""
    in_place: ClassVar[bool] = True
    """Whether its top may be its bottom."""
    phase: str = "TEST"
    """The phase it is built for, "TRAIN" or "TEST"; the net says so before ``setup``."""
    data_shaped: ClassVar[bool] = False
    """Whether the tops' shapes depend on the bottoms' numbers; ``reshape`` then gives the largest."""
    keeps_state: bool = False
    """Whether a pass leaves something behind that the next one finds."""
    overwrites_diffs: bool = False
    """Whether backward replaces the parameters' diffs instead of adding to them."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Blobs, by the names that :meth:`blob` gave them."""

    def __init__(self, message: Any, dialect: Dialect, where: str) -> None:
        super().__init__()
        self.where, self.dialect, self.name = where, dialect, message.name
        self.n_bottoms, self.n_tops = len(message.bottom), len(message.top)
        self.fields = Fields(message)
        self.fields.skip(*_NET_FIELDS)
        self.blob_names: list[str] = []
        self.fillers: dict[str, Any] = {}
        self.shared: set[str] = set()
        """Blobs that are another layer's."""
        self.drawn_again: list[str] = []
        """Blobs that Caffe draws again, and drops, when it has filled the layer (a recurrent layer's, once a step)."""
        self.filled: set[str] = set()
        """Blobs that got their numbers when they were made."""
        self.copies = Copies()
        """Arrays over copies of parameters that lie on another device."""
        self.lent: dict[str, weakref.ref[Any]] = {}
        """Arrays over parameters that were handed out and may be written to behind our back."""
        self.aliases: dict[str, nn.Parameter] = {}
        """Parameters that share another's memory in another shape (share_mode: PERMISSIVE), and whose."""
        self._check_counts()
        if not self.in_place and set(self.fields.top) & set(self.fields.bottom):
            raise self.error("a top that is its bottom", expected="another name: the layer does not work in place")
        if self.param:
            self.p = getattr(self.fields, self.param)

    # -- what a subclass writes ----------------------------------------------------------------------------------------

    def setup(self, *shapes: Shape) -> None:
        """Read the parameters, make the blobs."""

    def reshape(self, *shapes: Shape) -> Sequence[Shape]:
        """The tops' shapes. Raises :class:`ShapeError` for shapes that cannot be."""
        return [shapes[0]]

    def initial_tops(self) -> Sequence[torch.Tensor]:
        """What the tops hold before the first pass, if that is known."""
        return ()

    def channel_affine(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(scale, shift), a number for each channel (axis 1), if that is all the layer does just now; else None."""
        return None

    # -- what a subclass uses ------------------------------------------------------------------------------------------

    def blob(self, name: str, shape: Shape, filler: Fields | None = None, *, learned: bool = True) -> None:
        """Make the next parameter blob; its memory stays untouched until filled or loaded.

        Args:
            name: what it is called in the state dict.
            shape: Caffe's shape, without the leading ones of the old four-axis form.
            filler: the filler's message; None is a constant 0.
            learned: False for a statistic that the layer itself keeps (a buffer).
        """
        if any(d <= 0 for d in shape):
            raise ShapeError(f"{self.where}: layer {self.name}", f"{name} would have shape {shape}")
        empty = torch.empty(shape)
        if learned:
            self.register_parameter(name, nn.Parameter(empty))
        else:
            self.register_buffer(name, empty)
        self.blob_names.append(name)
        self.fillers[name] = filler.message if filler is not None else None

    def share(self, name: str, owner: nn.Parameter) -> None:
        """Let the blob ``name`` live in ``owner``'s memory; in the same shape it is the same parameter."""
        self.shared.add(name)
        mine: nn.Parameter = getattr(self, name)
        if mine.shape == owner.shape:
            setattr(self, name, owner)
        else:
            mine.data = owner.data.view(mine.shape)
            self.aliases[name] = owner

    def add_diff(self, name: str, grad: torch.Tensor) -> None:
        """Add to a parameter's diff, or replace it where the layer's way is to overwrite."""
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

    def axis(self, axis: int, shape: Shape) -> int:
        """Caffe's CanonicalAxisIndex: negative axes count from the end."""
        if not -len(shape) <= axis < len(shape):
            raise self.error(f"axis {axis}", expected=f"an axis of a {len(shape)}-axis blob of shape {shape}")
        return axis % len(shape)

    def error(self, found: str, *, expected: str = "", remedy: str = "") -> LayerError:
        """An error about this layer's parameters, to be raised."""
        return LayerError(f"{self.where}: layer {self.name} ({self.type})", found, expected=expected, remedy=remedy)

    def shape_error(self, found: str, *, expected: str = "", remedy: str = "") -> ShapeError:
        """An error about the shapes this layer is given, to be raised."""
        return ShapeError(f"{self.where}: layer {self.name} ({self.type})", found, expected=expected, remedy=remedy)

    def extra_repr(self) -> str:
        return self.name

    # -- what the net uses ---------------------------------------------------------------------------------------------

    @property
    def caffe_blobs(self) -> list[torch.Tensor]:
        """The parameter blobs in Caffe's order."""
        return [getattr(self, n) for n in self.blob_names]

    @property
    def blobs(self) -> BlobVec:
        """The parameter blobs as arrays that may be written to, as pycaffe shows them."""
        return BlobVec(self)

    def check_fields(self) -> list[str]:
        """Other layer types' blocks, which Caffe ignores here; raises for a set field that nobody read."""
        ignored = []
        for path in self.fields.unread():
            if "." not in path and path.endswith("_param") and path != self.param:
                ignored.append(path)
            else:
                raise self.error(f"field {path} is set, and this layer does not know it")
        return ignored

    def _check_counts(self) -> None:
        for what, n, (low, high) in (("bottom", self.n_bottoms, self.bottoms), ("top", self.n_tops, self.tops)):
            if n < low or (high is not None and n > high):
                wanted = str(low) if low == high else f"{low} or more" if high is None else f"{low} to {high}"
                raise self.error(f"{n} {what}s", expected=f"{wanted} {what}{'' if wanted == '1' else 's'}")


def layer(
    type_name: str,
    *,
    param: str | None = None,
    dialects: tuple[str, ...] = ("bvlc", "noh"),
    replace: bool = False,
) -> Callable[[type[Layer]], type[Layer]]:
    """Register a :class:`Layer` under its Caffe type.

    Args:
        type_name: the ``type`` of a prototxt's ``layer`` ("Convolution").
        param: the field of LayerParameter that holds its parameters.
        dialects: the Caffes that have it; those made from them have it too, unless they register one of their own.
        replace: take the place of a layer that is registered for the same type and dialect.

    Raises:
        DefinitionError: the type is registered for a dialect already, or a dialect is not known.
    """

    def register(cls: type[Layer]) -> type[Layer]:
        of_type = REGISTRY.setdefault(type_name, {})
        for name in dialects:
            where = f"@layer({type_name!r}, dialects={dialects})"
            if name not in DIALECTS:
                raise DefinitionError(where, f"dialect {name!r}", expected=f"some of {', '.join(DIALECTS)}")
            if name in of_type and not replace:
                raise DefinitionError(
                    where, f"already registered by {of_type[name].__qualname__}", remedy="replace=True takes its place"
                )
        cls.type, cls.param, cls.dialects = type_name, param, dialects
        of_type.update(dict.fromkeys(dialects, cls))
        return cls

    return register


def layer_class(type_name: str, dialect: Dialect) -> type[Layer] | None:
    """The class of a type in a dialect: its own, or that of the nearest dialect of its lineage that has one."""
    if f"type {type_name}" in dialect.lacks:
        return None
    of_type = REGISTRY.get(type_name, {})
    return next((of_type[name] for name in dialect.lineage if name in of_type), None)


def layer_types(dialect: Dialect) -> list[str]:
    """The types that a dialect has, sorted."""
    return sorted(t for t in REGISTRY if layer_class(t, dialect))


def create(message: Any, dialect: Dialect, where: str) -> Layer:
    """The layer that a LayerParameter (V2 form) describes.

    Raises:
        LayerError: the dialect has no such type, or its parameters are wrong.
    """
    cls = layer_class(message.type, dialect)
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
    near = nearest(message.type, REGISTRY)
    raise LayerError(
        place,
        f"unknown layer type {message.type!r}" + (f" (near: {near})" if near else ""),
        remedy=f'write it: @layer("{message.type}") in a Python file given by --plugin (docs/extending.md)',
    )
