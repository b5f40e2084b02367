"""Dialects, and their registry.

A dialect is one Caffe as data. Every known difference between two of them is a named field of :class:`Dialect`, read in
the one place where it has an effect. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from caffe_port.errors import CaffeError, DefinitionError, nearest

__all__ = ["DIALECTS", "Dialect", "dialect", "names", "register"]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The differences of one Caffe from others. The flags are facts of the original programs; their
    defaults are BVLC Caffe 1.0's.

    Another dialect is derived from the most similar one: ``replace(BVLC, name="mine", flag=True)``. It then has the
    layers and messages of that one too, by its ``lineage``.
    """

    name: str
    title: str
    """A description of the program."""
    lineage: tuple[str, ...] = ()
    """Its own name, then those of the dialects whose layers and messages it has too, nearest first."""
    proto: Path | str | None = None
    """A ``.proto`` file, or its text, with the messages and fields that its lineage lacks."""
    marks: frozenset[str] = frozenset()
    """The parts of definitions that are only in files for this Caffe: "type T", "field a.b" (of a layer), "T with N
    tops", "solver field f"."""
    lacks: frozenset[str] = frozenset()
    """The parts that its lineage has and this Caffe lacks, in the form of ``marks``."""
    v1_types: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Names that it adds to V1LayerParameter.LayerType, and the V2 type of each."""
    only_layers: bool = False
    """Its definitions have ``layers``, never ``layer``. Detection uses this if several dialects are possible."""
    fallback: bool = False
    """Chosen by detection only if no other dialect has all parts of a net."""

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
    """pycaffe's forward and backward require arrays for all inputs (outputs) or none (bvlc: pycaffe.py)."""

    loss_guards_empty: bool = True
    """A loss normalised by its count of valid labels divides by at least 1 (bvlc: loss_layer.cpp)."""

    accuracy_by_item: bool = False
    """Accuracy compares an item's label with all numbers of the item, of equal ones the later ranks higher (noh:
    accuracy_layer.cpp). Otherwise with the classes along an axis, where an equal score ranks higher."""

    accuracy_ranks_ties: bool = False
    """Of equal scores along the axis Accuracy ranks the highest class first; without a valid label it is
    0/0 (ssd, segnet, deeplab2: accuracy_layer.cpp)."""

    silence_clears_data: bool = False
    """Silence's backward pass sets the data of its bottoms to 0, which layers that share them then read (segnet:
    silence_layer.cpp)."""

    relu_gives_mask: bool = False
    """ReLU may have a second top, 1 where its bottom is above 0 and 0 elsewhere (noh: relu_layer.cpp)."""

    sigmoid_loss_by_batch: bool = False
    """SigmoidCrossEntropyLoss has no loss_param and divides by the batch's size (noh:
    sigmoid_cross_entropy_loss_layer.cpp)."""

    contrastive_legacy: bool = False
    """ContrastiveLoss always uses margin - d^2 for dissimilar pairs, bvlc's legacy version (noh:
    contrastive_loss_layer.cpp)."""

    infogain_takes_probabilities: bool = False
    """InfogainLoss reads probabilities, with one label for each item (noh: infogain_loss_layer.cpp). Otherwise scores,
    of which it computes the softmax along an axis."""

    axes_by_dim: bool = False
    """Concat and Slice have concat_dim and slice_dim, 0 or 1, but no axis (noh: concat_layer.cpp, slice_layer.cpp)."""

    exp_shift_raises_minus_one: bool = False
    """Exp computes (-1)^shift for the base -1, which means e, which gives 1, -1 or nan (noh:
    exp_layer.cpp)."""

    mvn_eps: float | None = None
    """The constant that MVN adds to the standard deviation instead of its parameter (noh: mvn_layer.cpp)."""

    mvn_mean_gradient: bool = True
    """MVN's gradient without normalize_variance has its mean subtracted; otherwise it passes unchanged (noh:
    mvn_layer.cpp)."""

    mvn_measures_again: bool = False
    """MVN's backward pass computes the variance of its bottom's current values (noh: mvn_layer.cpp); otherwise it uses
    forward's."""

    bn_overwrites_diffs: bool = False
    """BN overwrites its parameter diffs, while every other layer adds to them (noh: bn_layer.cpp)."""

    data_seeded_each_batch: bool = False
    """A data layer's transformations draw from a stream that is reseeded for each batch, and the first time after
    its list is shuffled (noh: base_data_layer.cpp). Otherwise it is seeded before that and once more after, and a word
    for the thread's stream is drawn then (bvlc: internal_thread.cpp)."""

    database_thread_draws: bool = False
    """A thread that reads a database is seeded with a word of the thread that makes the layer, and needs none
    (deeplab2, pspnet, rcnn, rfcn, ssd: data_reader.cpp)."""

    data_skips_at_random: bool = False
    """Data applies rand_skip (noh: data_layer.cpp); otherwise the field has no effect."""

    decodes_in_color: bool = False
    """An encoded Datum is always decoded in colour (noh: data_layer.cpp); otherwise with its own channels."""

    test_nets_crop_at_random: bool = False
    """A solver's test nets crop at random, as in training: a data layer keeps the phase that the program is in when the
    layer is made (noh: data_transformer.cpp). Otherwise they crop the middle."""

    decay_before_iter_size: bool = False
    """The solver decays the summed gradient and divides by iter_size afterwards, in SGD only (noh: solver.cpp)."""

    shared_parameters_decay_apart: bool = False
    """Every layer that shares a parameter has its own history, decay and update of it (noh: net.cpp, Update). Otherwise
    a shared parameter is one, with one pair of multipliers."""

    checks_rate_fields: bool = True
    """The solver refuses a negative gamma, and a stepsize of 0 or less with lr_policy "sigmoid" (bvlc:
    sgd_solver.cpp; none of the older forks does)."""

    smooths_last_loss: bool = True
    """The loss logged after the last iteration is averaged over ``average_loss`` too (bvlc: solver.cpp)."""

    logs_speed: bool = True
    """The log's loss lines contain iterations per second (bvlc: solver.cpp; no other has it)."""

    logs_kind_of_snapshot: bool = True
    """The log's snapshot lines contain the kind of file (bvlc: solver.cpp, sgd_solver.cpp)."""

    debug_logs_updates: bool = False
    """``debug_info`` reports every update, but not parameters, their norms or test nets (noh: net.cpp)."""

    snapshot_off_interval_adds_one: bool = False
    """A last snapshot that falls off the interval is named max_iter + 1 (noh: solver.cpp)."""

    def __post_init__(self) -> None:
        if self.lineage[:1] != (self.name,):
            object.__setattr__(self, "lineage", (self.name, *self.lineage))


DIALECTS: dict[str, Dialect] = {}
"""All dialects by name; :func:`register` adds one."""


def register(dialect: Dialect) -> Dialect:
    """Add a dialect for ``dialect=``, ``--dialect`` and detection; returns it.

    Raises:
        DefinitionError: another dialect has its name, or its lineage has an unknown one.
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
    """The dialect of that name; a :class:`Dialect` is returned unchanged.

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
