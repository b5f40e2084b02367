"""Records: the facts about layer types. Needs no torch.

A record describes what a layer type's definition may contain and which blobs and shapes follow from it. The layers, the
converters, shape inference and the documentation all use it. Most of it is data::

    define("Power", Neuron, "power_param", reads=("power", "scale", "shift"))

What is computed from the parameters and the bottoms' shapes is two methods, ``setup`` and ``reshape``::

    @record("InnerProduct", "inner_product_param")
    class InnerProduct(Spec):
        blob_specs = (Blob("weight", 2, "weight_filler"), BIAS)
        reads = ("num_output",)

        def setup(self, x):
            self.make_blobs((self.num_output, prod(x[1:])), (self.num_output,))

        def reshape(self, x):
            return [(x[0], self.num_output)]

A layer (:class:`caffe_port.layers.Layer`) is a record that also computes. A fork's records are in a separate module;
importing that registers them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from caffe_port.dialects import DIALECTS, Dialect
from caffe_port.errors import DefinitionError, LayerError, ShapeError
from caffe_port.spec.coords import CoordMap, identity_map
from caffe_port.spec.fields import Fields
from caffe_port.spec.no_effect import NO_EFFECT
from caffe_port.spec.unknown import is_known

__all__ = [
    "BIAS",
    "BOTH",
    "BVLC",
    "NOH",
    "RECORDS",
    "Blob",
    "Shape",
    "Spec",
    "Table",
    "define",
    "kind",
    "record",
    "records_of",
]

Shape = tuple[int, ...]

# The fields of a layer's message that the net reads.
_NET_FIELDS = (
    *("name", "type", "bottom", "top", "phase", "include", "exclude", "loss_weight", "propagate_down", "blobs"),
    *("param", "blob_share_mode", "blobs_lr", "weight_decay", "strict_dim"),
    *NO_EFFECT,
)

BVLC, NOH = ("bvlc",), ("noh",)
BOTH = BVLC + NOH


class Blob(NamedTuple):
    """A parameter blob.

    Attributes:
        name: its name in a state dict.
        rank: its number of axes, to which the leading ones of a legacy shape are dropped; None: as stored.
        filler: the field of the parameter block that holds its filler; "": filled with 0.
        default: the filler where that field is not set.
        when: whether a layer (a :class:`Spec`) has it, asked before its shapes are known; None: always.
        learned: False for a statistic that the layer itself keeps.
    """

    name: str
    rank: int | None = None
    filler: str = ""
    default: float = 0.0
    when: Callable[[Any], Any] | None = None
    learned: bool = True


BIAS = Blob("bias", 1, "bias_filler", when=lambda layer: layer.p.bias_term)

_MOST_AXES, _MOST_NUMBERS = 32, 2**31 - 1
"""Of a blob: blob.hpp, kMaxBlobAxes; blob.cpp, Reshape."""


class Spec:
    """The record of a layer type; an instance is that of one layer in a definition.

    Attributes:
        p: the layer's own parameter block (``convolution_param`` ...) as :class:`Fields`.
        blob_shapes: name to shape of the parameter blobs in Caffe's order, once ``setup`` has run.
        fillers: name to the filler's message, None for a constant 0.
        shared: blobs that are another layer's, by ``param { name }``.
    """

    type: ClassVar[Any]
    """The layer type's name."""
    param: ClassVar[str | None] = None
    """The field of LayerParameter that holds the parameters."""
    dialects: ClassVar[tuple[str, ...]] = BOTH
    bottoms: ClassVar[tuple[int, int | None]] = (1, 1)
    """Fewest and most bottoms (None: no limit)."""
    tops: ClassVar[tuple[int, int | None]] = (1, 1)
    blob_specs: ClassVar[tuple[Blob, ...]] = ()
    """All parameter blobs that a layer of the type can have. A plugin may leave it empty and call :meth:`blob`."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Attributes that take their value from a field of the parameter block: "FIELD", or "ATTRIBUTE=FIELD" where they
    have another name; of an enum it is the value's name. With a "?" appended, it is None where the field is not set."""
    ignores: ClassVar[tuple[str, ...]] = ()
    """Fields of the parameter block that make no difference here."""
    filled_from: ClassVar[int | None] = None
    """The first bottom's axes from this one on have to have numbers: without, there is nothing to compute."""
    loss: ClassVar[bool] = False
    """A loss: its first top has weight 1 by default, and exists even if the definition names none."""
    labels: tuple[int, ...] = ()
    """Bottoms that no gradient reaches (labels, switches)."""
    in_place: ClassVar[bool] = True
    """Whether its top may be its bottom."""
    reads_bottoms: tuple[int, ...] = ()
    """Bottoms whose current values Caffe's backward pass reads, even if they were overwritten."""
    reads_tops: tuple[int, ...] = ()
    """Tops to which the same applies."""
    reads_signs: bool = False
    """Whether it only tests if values of these bottoms are above 0."""
    keeps_signs: bool = False
    """Whether in place exactly the values above 0 remain above 0, wherever its gradient is not 0."""
    shares_memory: bool = False
    """Whether in Caffe the tops share the first bottom's memory."""
    corrupts_diffs: bool = False
    """Whether in place, where top and bottom have one diff, backward overwrites values that it reads later."""
    clears_data: bool = False
    """Whether its backward pass sets its bottoms' data to 0."""
    aligned: ClassVar[tuple[str, ...]] = ()
    """The dialects in whose coordinate maps this layer's tops have the coordinates of its first bottom."""
    inferable: ClassVar[bool] = True
    """Whether the definition determines its blobs and shapes; a Python layer's are known only to its code."""
    aligns: bool = False
    """Whether the net calls :meth:`align` with the coordinate map between the bottoms."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Attributes set by ``reads`` and ``setup``; of a layer also its blobs."""

    def __init__(self, message: Any, dialect: Dialect, where: str) -> None:
        super().__init__()
        self.where, self.dialect, self.name = where, dialect, message.name
        self.n_bottoms, self.n_tops = len(message.bottom), len(message.top)
        self.is_in_place = self.n_bottoms > 0 < self.n_tops and message.bottom[0] == message.top[0]
        """Whether its first top is its first bottom."""
        self.fields = fields = Fields(message)
        fields.skip(*_NET_FIELDS)
        self.strict_dim: bool = getattr(message, "strict_dim", True)
        """Whether blobs of a file need this layer's shapes; else as many numbers will do (deeplab1: net.cpp)."""
        self.blob_shapes: dict[str, Shape] = {}
        self.fillers: dict[str, Any] = {}
        self.shared: set[str] = set()
        for what, n, (low, high) in (("bottom", self.n_bottoms, self.bottoms), ("top", self.n_tops, self.tops)):
            if n < low or (high is not None and n > high):
                wanted = str(low) if low == high else f"{low} or more" if high is None else f"{low} to {high}"
                raise self.error(f"{n} {what}s", expected=f"{wanted} {what}{'' if wanted == '1' else 's'}")
        moves = not self.in_place and set(message.top) & set(message.bottom)
        self.refuse(moves, "a top that is its bottom", expected="another name: the layer does not work in place")
        if self.param:
            lacks = self.param not in message.DESCRIPTOR.fields_by_name
            remedy = "give the Caffe's .proto that defines it with --proto FILE (in Python proto=)"
            self.refuse(lacks, f"no field {self.param} in LayerParameter", remedy=remedy)
            self.p = p = getattr(fields, self.param)
            p.skip(*self.ignores)
            for name, field, optional in _parsed(self.reads):
                setattr(self, name, None if optional and not p.has(field) else p.value(field))

    # -- for records to override ---------------------------------------------------------------------------------------

    def setup(self, *shapes: Shape) -> None:
        """Check the parameters and make the blobs, given the shapes of the bottoms.

        Raises:
            LayerError: invalid parameters. ShapeError: invalid shapes.
        """

    def reshape(self, *shapes: Shape) -> Sequence[Shape]:
        """The tops' shapes; by default the first bottom's. Raises :class:`ShapeError` for invalid shapes."""
        return [shapes[0]] * self.n_tops

    def top_shapes(self, *shapes: Shape) -> Sequence[Shape]:
        """:meth:`reshape`, with a check of the limits of Caffe's blobs.

        Raises:
            ShapeError: a shape exceeds them.
        """
        behind = shapes[0][self.filled_from :] if self.filled_from is not None and shapes else ()
        if is_known(behind) and 0 in behind:
            raise self.shape_error(f"a bottom of shape {shapes[0]}", expected=f"no 0 among {tuple(behind)}")
        tops = self.reshape(*shapes)
        for i, shape in enumerate(tops):
            names = self.fields.top
            self.check_size(f"top {names[i] if i < len(names) else i}", shape)
        return tops

    def check_size(self, what: str, shape: Shape) -> None:
        """Raises for a shape beyond the limits of Caffe's blobs (blob.cpp, Reshape).

        Raises:
            ShapeError: it has a negative axis, more than 32 axes, or more than 2**31 - 1 numbers.
        """
        if (
            len(shape) <= _MOST_AXES
            and is_known(shape)
            and (not shape or min(shape) > 0)
            and prod(shape) <= _MOST_NUMBERS
        ):
            return
        known = [n for n in shape if is_known((n,))]
        if any(n < 0 for n in known) or (0 in known and max(known) > _MOST_NUMBERS):
            raise self.shape_error(f"{what} of shape {tuple(shape)}", expected=f"axes from 0 to {_MOST_NUMBERS:,}")
        if len(shape) > _MOST_AXES:
            raise self.shape_error(f"{what} of {len(shape)} axes", expected=f"at most {_MOST_AXES}")
        count = prod(shape)
        if is_known(shape) and count > _MOST_NUMBERS:
            found = f"{what} of shape {tuple(shape)}, {count:,} numbers or {4 * count:,} bytes"
            raise self.shape_error(found, expected=f"at most {_MOST_NUMBERS:,} numbers, the limit of Caffe's blobs")

    def coord_map(self) -> CoordMap | None:
        """The coordinate map from the first bottom to the top; None if the dialect defines none."""
        return identity_map() if set(self.aligned).intersection(self.dialect.lineage) else None

    def align(self, offset: tuple[int, int]) -> None:
        """Set the offset (rows, columns) of the second bottom in the first."""
        raise NotImplementedError

    def uses(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        """The number of multiplications by each weight in a pass (blobs of two axes or more)."""
        return 0

    # -- helpers -------------------------------------------------------------------------------------------------------

    def make_blobs(self, *shapes: Shape) -> None:
        """Create the parameter blobs that this layer has, given the shapes of all ``blob_specs``; the others are
        None."""
        here = self.blobs_here()
        for blob, shape in zip(self.blob_specs, shapes, strict=True):
            if blob in here:
                filler = getattr(self.p, blob.filler) if blob.filler else None
                if filler is not None and blob.default and not self.p.has(blob.filler):
                    filler = Fields(type(filler.message)(value=blob.default))
                self.blob(blob.name, shape, filler, learned=blob.learned)
            else:
                setattr(self, blob.name, None)
                self.p.skip(blob.filler)

    def blobs_here(self) -> tuple[Blob, ...]:
        """Those of ``blob_specs`` that this layer has, given its parameters and its number of bottoms."""
        return tuple(blob for blob in self.blob_specs if blob.when is None or blob.when(self))

    def blob(self, name: str, shape: Shape, filler: Fields | None = None, *, learned: bool = True) -> None:
        """Create the next parameter blob.

        Args:
            name: its name in the state dict.
            shape: Caffe's shape, without the leading ones of the old four-axis form.
            filler: the filler's message; None is a constant 0.
            learned: False for a statistic that the layer itself keeps (a buffer).
        """
        if any(d <= 0 for d in shape):
            raise ShapeError(f"{self.where}: layer {self.name}", f"{name} would have shape {shape}")
        self.check_size(name, shape)
        self.blob_shapes[name] = tuple(shape)
        self.fillers[name] = filler.message if filler is not None else None

    @property
    def blob_names(self) -> list[str]:
        """The names of the parameter blobs in Caffe's order."""
        return list(self.blob_shapes)

    def axis(self, axis: int, shape: Shape) -> int:
        """Caffe's CanonicalAxisIndex: negative axes count from the end."""
        n = len(shape)
        self.refuse(not -n <= axis < n, f"axis {axis}", expected=f"an axis of a {n}-axis blob of shape {shape}")
        return axis % len(shape)

    def four_axes(self, x: Shape) -> None:
        """Raises for a bottom that is not (num, channels, height, width)."""
        self.refuse_shape(len(x) != 4, f"a bottom of shape {x}", expected="4 axes: num, channels, height, width")

    def refuse(self, wrong: Any, found: str, *, expected: str = "", remedy: str = "") -> None:
        """Raises :meth:`error` if the parameters are ``wrong``."""
        if wrong:
            raise self.error(found, expected=expected, remedy=remedy)

    def refuse_shape(self, wrong: Any, found: str, *, expected: str = "", remedy: str = "") -> None:
        """Raises :meth:`shape_error` if the shapes are ``wrong``."""
        if wrong:
            raise self.shape_error(found, expected=expected, remedy=remedy)

    def error(self, found: str, *, expected: str = "", remedy: str = "") -> LayerError:
        """An error about this layer's parameters, to be raised."""
        return LayerError(f"{self.where}: layer {self.name} ({self.type})", found, expected=expected, remedy=remedy)

    def shape_error(self, found: str, *, expected: str = "", remedy: str = "") -> ShapeError:
        """An error about the shapes this layer is given, to be raised."""
        return ShapeError(f"{self.where}: layer {self.name} ({self.type})", found, expected=expected, remedy=remedy)

    def check_fields(self) -> list[str]:
        """Other layer types' blocks, which Caffe ignores here; raises for a set field that no code has read."""
        ignored = []
        for path in self.fields.unread():
            if "." not in path and path.endswith("_param") and path != self.param:
                ignored.append(path)
            else:
                raise self.error(f"field {path} is set, which this layer does not have")
        return ignored


@cache
def _parsed(reads: tuple[str, ...]) -> list[tuple[str, str, bool]]:
    """``Spec.reads`` as the attribute, the field and whether it is None where that is not set."""
    parts = [(read.rstrip("?").rpartition("="), read.endswith("?")) for read in reads]
    return [(name or field, field, optional) for (name, _, field), optional in parts]


# -- the table ---------------------------------------------------------------------------------------------------------

C = TypeVar("C", bound=type[Spec])


class Table(dict[str, dict[str, C]]):
    """Classes by layer type and dialect."""

    def add(self, cls: C, where: str, *, replace: bool = False) -> None:
        """Register a class for its type and dialects.

        Raises:
            DefinitionError: a dialect is not known, or has one already and it is not to ``replace`` that.
        """
        of_type = self.setdefault(cls.type, {})
        for name in cls.dialects:
            if name not in DIALECTS:
                raise DefinitionError(where, f"dialect {name!r}", expected=f"some of {', '.join(DIALECTS)}")
            if name in of_type and not replace:
                raise DefinitionError(
                    where,
                    f"already registered by {of_type[name].__qualname__}",
                    remedy="pass replace=True to replace it",
                )
        of_type.update(dict.fromkeys(cls.dialects, cls))

    def find(self, type_name: str, dialect: Dialect) -> C | None:
        """The class of a type in a dialect: its own, or that of the nearest dialect of its lineage that has one."""
        if f"type {type_name}" in dialect.lacks:
            return None
        of_type = self.get(type_name, {})
        return next((of_type[name] for name in dialect.lineage if name in of_type), None)


RECORDS: Table[type[Spec]] = Table()
"""The record of each layer type."""


def record(
    type_name: str, param: str | None = None, dialects: tuple[str, ...] = BOTH, *, replace: bool = False
) -> Callable[[C], C]:
    """Register a class as the record of a layer type.

    Args:
        type_name: the ``type`` of a prototxt's ``layer`` ("Convolution").
        param: the field of LayerParameter that holds its parameters.
        dialects: the Caffes that have it; those derived from them have it too, unless they register their own.
        replace: replaces the record of the same type and dialects.

    Raises:
        DefinitionError: one exists for that type and dialect, or a dialect is unknown.
    """

    def register(cls: C) -> C:
        cls.type, cls.param, cls.dialects = type_name, param, dialects
        RECORDS.add(cls, f"the record of {type_name}", replace=replace)
        return cls

    return register


def define(
    type_name: str, base: type[Spec], param: str | None = None, dialects: tuple[str, ...] = BOTH, **facts: Any
) -> None:
    """Register a record that is ``base`` with other facts (class attributes of :class:`Spec`)."""
    record(type_name, param, dialects)(type(type_name, (base,), facts))


def kind(message: Any, dialect: Dialect) -> str:
    """The name under which a layer is looked up: its type; of a Python layer that is a layer here, "Python M.C"."""
    if message.type == "Python":
        name = f"Python {message.python_param.module}.{message.python_param.layer}"
        if RECORDS.find(name, dialect):
            return name
    return str(message.type)


def records_of(type_name: str) -> Iterable[type[Spec]]:
    """The records of a type in all dialects, for files that do not determine their dialect; one each."""
    return dict.fromkeys(RECORDS.get(type_name, {}).values())
