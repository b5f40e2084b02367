"""What a dialect is, and the registry of dialects.

A dialect is one Caffe as data. Every known difference between two of them is a named field of :class:`Dialect`, read at
the one place where it matters. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from caffe_port.errors import CaffeError, DefinitionError, nearest

__all__ = ["DIALECTS", "Dialect", "dialect", "names", "register"]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What one Caffe does where it differs from others. The flags are facts of the original programs; their
    defaults are BVLC Caffe 1.0's.

    Another dialect is made from the one it resembles most: ``replace(BVLC, name="mine", flag=True)``. It then has the
    layers and messages of that one too, by its ``lineage``.
    """

    name: str
    title: str
    """The program, in words."""
    lineage: tuple[str, ...] = ()
    """Its own name, then those of the dialects whose layers and messages it has too, nearest first."""
    proto: Path | None = None
    """A ``.proto`` file with the messages and fields that its lineage lacks."""
    marks: frozenset[str] = frozenset()
    """What only files for this Caffe hold: "type T", "field a.b" (of a layer), "T with N tops", "solver field f"."""
    lacks: frozenset[str] = frozenset()
    """What its lineage has and this Caffe does not, written as marks are."""
    v1_types: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Names that it adds to V1LayerParameter.LayerType, and the V2 type of each."""
    only_layers: bool = False
    """Its definitions say ``layers``, never ``layer``. Of several that know a net, the form decides."""
    fallback: bool = False
    """Chosen by detection only where no other dialect knows everything that a net holds."""

    legacy_shapes: bool = False
    """Parameter and blob shapes are always four numbers (num, channels, height, width), padded with ones in front;
    weight files carry these, never ``shape`` (noh: blob.cpp). Otherwise shapes have any number of axes."""

    inputs_are_layers: bool = True
    """``input:`` fields of a prototxt show as a layer named ``input`` (bvlc: upgrade_proto.cpp, UpgradeNetInput)."""

    crop_aligns: bool = False
    """Crop finds its offset from the layers between its bottoms and takes no parameters (noh: crop_layer.cpp)."""

    fused_draws: bool = True
    """Draws scaled and shifted in single precision are rounded once (fused multiply-add), as the compiled bvlc did
    whose numbers the tests hold; the fork was built without (fillers, uniform and gaussian with an offset)."""

    all_inputs_or_none: bool = True
    """pycaffe's forward and backward want arrays for all inputs (outputs) if for any (bvlc: pycaffe.py)."""

    loss_guards_empty: bool = True
    """A loss normalised by its count of valid labels divides by at least 1 (bvlc: loss_layer.cpp)."""

    accuracy_by_item: bool = False
    """Accuracy compares an item's label with all numbers of the item, of equal ones the later the better (noh:
    accuracy_layer.cpp). Otherwise with the classes along an axis, where an equal score counts as a better one."""

    accuracy_ranks_ties: bool = False
    """Of equal scores along the axis Accuracy takes the highest class as the better one; without a valid label it is
    0/0 (ssd, segnet, deeplab2: accuracy_layer.cpp)."""

    silence_clears_data: bool = False
    """Silence's backward pass sets the data of its bottoms to 0, which layers that share them then read (segnet:
    silence_layer.cpp)."""

    relu_gives_mask: bool = False
    """ReLU may have a second top, 1 where its bottom is above 0 and 0 elsewhere (noh: relu_layer.cpp)."""

    sigmoid_loss_by_batch: bool = False
    """SigmoidCrossEntropyLoss knows no loss_param and divides by the batch's size (noh:
    sigmoid_cross_entropy_loss_layer.cpp)."""

    contrastive_legacy: bool = False
    """ContrastiveLoss always takes margin - d^2 for pairs that differ, which bvlc calls its legacy version (noh:
    contrastive_loss_layer.cpp)."""

    infogain_takes_probabilities: bool = False
    """InfogainLoss is given probabilities, one label an item (noh: infogain_loss_layer.cpp). Otherwise scores, of which
    it takes the softmax along an axis."""

    axes_by_dim: bool = False
    """Concat and Slice know concat_dim and slice_dim, 0 or 1, not any axis (noh: concat_layer.cpp, slice_layer.cpp)."""

    exp_shift_raises_minus_one: bool = False
    """Exp raises the base -1, which stands for e, to the power of ``shift`` as it is, which gives 1, -1 or nan (noh:
    exp_layer.cpp)."""

    mvn_eps: float | None = None
    """What MVN adds to the standard deviation, if not its parameter (noh: mvn_layer.cpp)."""

    mvn_mean_gradient: bool = True
    """MVN's gradient without normalize_variance is less its mean; otherwise it passes as it is (noh: mvn_layer.cpp)."""

    mvn_measures_again: bool = False
    """MVN's backward pass takes the variance of what its bottom holds by then (noh: mvn_layer.cpp); otherwise forward's
    own is kept."""

    bn_overwrites_diffs: bool = False
    """BN writes its parameter diffs where every other layer adds to them (noh: bn_layer.cpp)."""

    data_seeded_each_batch: bool = False
    """A data layer's transformations draw from a stream that is seeded anew for each batch, and the first time after
    its list is shuffled (noh: base_data_layer.cpp). Otherwise it is seeded before that and once more after, and a word
    for the thread's own stream is drawn then (bvlc: internal_thread.cpp)."""

    database_thread_draws: bool = False
    """A thread that reads a database is seeded with a word of the thread that makes the layer, and needs none
    (deeplab2, pspnet, rcnn, rfcn, ssd: data_reader.cpp)."""

    data_skips_at_random: bool = False
    """Data knows rand_skip (noh: data_layer.cpp); otherwise it is a field that nobody reads."""

    decodes_in_color: bool = False
    """An encoded Datum is decoded in colour, whatever it holds (noh: data_layer.cpp); otherwise as it is."""

    test_nets_crop_at_random: bool = False
    """A solver's test nets crop at random, as in training: a data layer keeps the phase that the program is in when the
    layer is made (noh: data_transformer.cpp). Otherwise they crop the middle."""

    decay_before_iter_size: bool = False
    """The solver decays the summed gradient and divides by iter_size afterwards, in SGD only (noh: solver.cpp)."""

    shared_parameters_decay_apart: bool = False
    """Every layer that shares a parameter has a history of it, adds its own decay to that, and its step is one of the
    parameter's (noh: net.cpp, Update). Otherwise a shared parameter is one, with one pair of multipliers."""

    checks_rate_fields: bool = True
    """The solver refuses a negative gamma, and a stepsize of 0 or less with lr_policy "sigmoid" (bvlc:
    sgd_solver.cpp; none of the older forks does)."""

    smooths_last_loss: bool = True
    """The loss logged after the last iteration is averaged over ``average_loss`` too (bvlc: solver.cpp)."""

    logs_speed: bool = True
    """The log's loss lines tell iterations a second (bvlc: solver.cpp; no other has it)."""

    logs_kind_of_snapshot: bool = True
    """The log's snapshot lines tell the kind of file (bvlc: solver.cpp, sgd_solver.cpp)."""

    debug_tells_updates: bool = False
    """``debug_info`` tells of every update, and not of parameters, their norms or test nets (noh: net.cpp)."""

    snapshot_off_interval_adds_one: bool = False
    """A last snapshot that falls off the interval is named max_iter + 1 (noh: solver.cpp)."""

    def __post_init__(self) -> None:
        if self.lineage[:1] != (self.name,):
            object.__setattr__(self, "lineage", (self.name, *self.lineage))


DIALECTS: dict[str, Dialect] = {}
"""All dialects by name; :func:`register` adds one."""


def register(dialect: Dialect) -> Dialect:
    """Make a dialect known to ``dialect=``, ``--dialect`` and detection; hands it back.

    Raises:
        DefinitionError: another dialect has its name, or its lineage names one that is not known.
    """
    if DIALECTS.setdefault(dialect.name, dialect) != dialect:
        raise DefinitionError(f"dialect {dialect.name}", "a second one of this name", expected="another name")
    for name in dialect.lineage:
        if name not in DIALECTS:
            raise DefinitionError(f"dialect {dialect.name}", f"a lineage with {name!r}", expected="registered dialects")
    return dialect


def names() -> list[str]:
    """The names of all dialects, for choices on command lines."""
    return list(DIALECTS)


def dialect(choice: str | Dialect) -> Dialect:
    """The dialect of that name; a :class:`Dialect` is returned as it is.

    Raises:
        CaffeError: no dialect has that name.
    """
    if isinstance(choice, Dialect):
        return choice
    if choice in DIALECTS:
        return DIALECTS[choice]
    near = nearest(choice, DIALECTS)
    raise CaffeError(
        "dialect", repr(choice), expected=f"one of {', '.join(DIALECTS)}", remedy=f"near: {near}" if near else ""
    )
