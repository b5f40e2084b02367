"""The two Caffes as data.

``BVLC`` is BVLC Caffe 1.0. ``NOH`` is the 2015 fork (``HyeonwooNoh/caffe``) that DecoupledNet and DeconvNet were
released with. Every known difference between them is a named field below, read at the one place where it matters.
"""

from __future__ import annotations

from dataclasses import dataclass

from caffe_port.errors import CaffeError, nearest

__all__ = ["BVLC", "DIALECTS", "NOH", "Dialect", "dialect"]


@dataclass(frozen=True)
class Dialect:
    """What one Caffe does where the two differ. Fields are facts of the original programs."""

    name: str

    legacy_shapes: bool
    """Parameter and blob shapes are always four numbers (num, channels, height, width), padded with ones in front;
    weight files carry these, never ``shape`` (noh: blob.cpp). Otherwise shapes have any number of axes."""

    inputs_are_layers: bool
    """``input:`` fields of a prototxt show as a layer named ``input`` (bvlc: upgrade_proto.cpp, UpgradeNetInput)."""

    crop_aligns: bool
    """Crop finds its offset from the layers between its bottoms and takes no parameters (noh: crop_layer.cpp)."""

    fused_draws: bool
    """Draws scaled and shifted in single precision are rounded once (fused multiply-add), as the compiled bvlc did
    whose numbers the tests hold; the fork was built without (fillers, uniform and gaussian with an offset)."""

    all_inputs_or_none: bool
    """pycaffe's forward and backward want arrays for all inputs (outputs) if for any (bvlc: pycaffe.py)."""

    loss_guards_empty: bool
    """A loss normalised by its count of valid labels divides by at least 1 (bvlc: loss_layer.cpp)."""

    accuracy_by_item: bool
    """Accuracy compares an item's label with all numbers of the item, of equal ones the later the better (noh:
    accuracy_layer.cpp). Otherwise with the classes along an axis, where an equal score counts as a better one."""

    relu_gives_mask: bool
    """ReLU may have a second top, 1 where its bottom is above 0 and 0 elsewhere (noh: relu_layer.cpp)."""

    sigmoid_loss_by_batch: bool
    """SigmoidCrossEntropyLoss knows no loss_param and divides by the batch's size (noh:
    sigmoid_cross_entropy_loss_layer.cpp)."""

    contrastive_legacy: bool
    """ContrastiveLoss always takes margin - d^2 for pairs that differ, which bvlc calls its legacy version (noh:
    contrastive_loss_layer.cpp)."""

    infogain_takes_probabilities: bool
    """InfogainLoss is given probabilities, one label an item (noh: infogain_loss_layer.cpp). Otherwise scores, of which
    it takes the softmax along an axis."""

    axes_by_dim: bool
    """Concat and Slice know concat_dim and slice_dim, 0 or 1, not any axis (noh: concat_layer.cpp, slice_layer.cpp)."""

    exp_shift_raises_minus_one: bool
    """Exp raises the base -1, which stands for e, to the power of ``shift`` as it is, which gives 1, -1 or nan (noh:
    exp_layer.cpp)."""

    mvn_eps: float | None
    """What MVN adds to the standard deviation, if not its parameter (noh: mvn_layer.cpp)."""

    mvn_mean_gradient: bool
    """MVN's gradient without normalize_variance is less its mean; otherwise it passes as it is (noh: mvn_layer.cpp)."""

    bn_overwrites_diffs: bool
    """BN writes its parameter diffs where every other layer adds to them (noh: bn_layer.cpp)."""

    data_seeded_each_batch: bool
    """A data layer's transformations draw from a stream that is seeded anew for each batch, and the first time after
    its list is shuffled (noh: base_data_layer.cpp). Otherwise it is seeded before that and once more after, and a word
    for the thread's own stream is drawn then (bvlc: internal_thread.cpp)."""

    data_skips_at_random: bool
    """Data knows rand_skip (noh: data_layer.cpp); otherwise it is a field that nobody reads."""

    decodes_in_color: bool
    """An encoded Datum is decoded in colour, whatever it holds (noh: data_layer.cpp); otherwise as it is."""

    test_nets_crop_at_random: bool
    """A solver's test nets crop at random, as in training: a data layer keeps the phase that the program is in when the
    layer is made (noh: data_transformer.cpp). Otherwise they crop the middle."""

    decay_before_iter_size: bool
    """The solver decays the summed gradient and divides by iter_size afterwards, in SGD only (noh: solver.cpp)."""

    shared_parameters_decay_apart: bool
    """Every layer that shares a parameter has a history of it, adds its own decay to that, and its step is one of the
    parameter's (noh: net.cpp, Update). Otherwise a shared parameter is one, with one pair of multipliers."""

    smooths_last_loss: bool
    """The loss logged after the last iteration is averaged over ``average_loss`` too (bvlc: solver.cpp)."""

    logs_speed: bool
    """The log's loss lines tell iterations a second (bvlc: solver.cpp)."""

    logs_kind_of_snapshot: bool
    """The log's snapshot lines tell the kind of file (bvlc: solver.cpp, sgd_solver.cpp)."""

    debug_tells_updates: bool
    """``debug_info`` tells of every update, and not of parameters, their norms or test nets (noh: net.cpp)."""

    snapshot_off_interval_adds_one: bool
    """A last snapshot that falls off the interval is named max_iter + 1 (noh: solver.cpp)."""


BVLC = Dialect(
    name="bvlc",
    legacy_shapes=False,
    inputs_are_layers=True,
    crop_aligns=False,
    fused_draws=True,
    all_inputs_or_none=True,
    loss_guards_empty=True,
    accuracy_by_item=False,
    relu_gives_mask=False,
    sigmoid_loss_by_batch=False,
    contrastive_legacy=False,
    infogain_takes_probabilities=False,
    axes_by_dim=False,
    exp_shift_raises_minus_one=False,
    mvn_eps=None,
    mvn_mean_gradient=True,
    bn_overwrites_diffs=False,
    data_seeded_each_batch=False,
    data_skips_at_random=False,
    decodes_in_color=False,
    test_nets_crop_at_random=False,
    decay_before_iter_size=False,
    shared_parameters_decay_apart=False,
    smooths_last_loss=True,
    logs_speed=True,
    logs_kind_of_snapshot=True,
    debug_tells_updates=False,
    snapshot_off_interval_adds_one=False,
)
NOH = Dialect(
    name="noh",
    legacy_shapes=True,
    inputs_are_layers=False,
    crop_aligns=True,
    fused_draws=False,
    all_inputs_or_none=False,
    loss_guards_empty=False,
    accuracy_by_item=True,
    relu_gives_mask=True,
    sigmoid_loss_by_batch=True,
    contrastive_legacy=True,
    infogain_takes_probabilities=True,
    axes_by_dim=True,
    exp_shift_raises_minus_one=True,
    mvn_eps=1e-10,
    mvn_mean_gradient=False,
    bn_overwrites_diffs=True,
    data_seeded_each_batch=True,
    data_skips_at_random=True,
    decodes_in_color=True,
    test_nets_crop_at_random=True,
    decay_before_iter_size=True,
    shared_parameters_decay_apart=True,
    smooths_last_loss=False,
    logs_speed=False,
    logs_kind_of_snapshot=False,
    debug_tells_updates=True,
    snapshot_off_interval_adds_one=True,
)
DIALECTS = {d.name: d for d in (BVLC, NOH)}


def dialect(choice: str | Dialect) -> Dialect:
    """The dialect of that name ("bvlc" or "noh"); a :class:`Dialect` is handed back as it is.

    Raises:
        CaffeError: no dialect has that name.
    """
    if isinstance(choice, Dialect):
        return choice
    if choice in DIALECTS:
        return DIALECTS[choice]
    near = nearest(choice, DIALECTS)
    raise CaffeError(
        "dialect", repr(choice), expected=" or ".join(DIALECTS), remedy=f"did you mean {near}?" if near else ""
    )
