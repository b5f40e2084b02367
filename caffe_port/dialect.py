"""The two Caffes as data.

``BVLC`` is BVLC Caffe 1.0. ``NOH`` is the 2015 fork (``HyeonwooNoh/caffe``) that DecoupledNet and DeconvNet were released
with. Every known difference between them is a named field below, read at the one place where it matters.
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
    """Parameter and blob shapes are always four numbers (num, channels, height, width), padded with ones in front; weight
    files carry these, never ``shape`` (noh: blob.cpp). Otherwise shapes have any number of axes."""

    inputs_are_layers: bool
    """``input:`` fields of a prototxt show as a layer named ``input`` (bvlc: upgrade_proto.cpp, UpgradeNetInput)."""

    crop_aligns: bool
    """Crop finds its offset from the layers between its bottoms and takes no parameters (noh: crop_layer.cpp)."""

    loss_guards_empty: bool
    """A loss normalised by its count of valid labels divides by at least 1 (bvlc: loss_layer.cpp)."""

    bn_overwrites_diffs: bool
    """BN writes its parameter diffs where every other layer adds to them (noh: bn_layer.cpp)."""

    decay_before_iter_size: bool
    """The solver decays the summed gradient and divides by iter_size afterwards, in SGD only (noh: solver.cpp)."""

    snapshot_off_interval_adds_one: bool
    """A last snapshot that falls off the interval is named max_iter + 1 (noh: solver.cpp)."""


BVLC = Dialect(
    name="bvlc",
    legacy_shapes=False,
    inputs_are_layers=True,
    crop_aligns=False,
    loss_guards_empty=True,
    bn_overwrites_diffs=False,
    decay_before_iter_size=False,
    snapshot_off_interval_adds_one=False,
)
NOH = Dialect(
    name="noh",
    legacy_shapes=True,
    inputs_are_layers=False,
    crop_aligns=True,
    loss_guards_empty=False,
    bn_overwrites_diffs=True,
    decay_before_iter_size=True,
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
