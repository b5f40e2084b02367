"""Generation 0 to 1 (upgrade_proto.cpp, UpgradeV0Net): padding layers are removed, flat parameters move into blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from caffe_port.errors import DefinitionError, nearest
from caffe_port.schema.layer_types import V0_TO_V1

__all__ = ["upgrade_v0"]

_log = logging.getLogger(__name__)

_DATA_SOURCES = {
    "data": "data_param",
    "hdf5_data": "hdf5_data_param",
    "images": "image_data_param",
    "window_data": "window_data_param",
}
_SUMS = {"conv": "convolution_param", "innerproduct": "inner_product_param"}
_WINDOWS = {"conv": "convolution_param", "pool": "pooling_param"}
_DETECTION = {"window_data": "window_data_param"}
_IMAGES = {"images": "image_data_param"}
_LRN = {"lrn": "lrn_param"}

# A V0 field, its V1 name, and the block it goes to by layer type ("*": any).
_FIELDS: dict[str, tuple[str, dict[str, str]]] = {
    "num_output": ("num_output", _SUMS),
    "biasterm": ("bias_term", _SUMS),
    "weight_filler": ("weight_filler", _SUMS),
    "bias_filler": ("bias_filler", _SUMS),
    "pad": ("pad", _WINDOWS),
    "kernelsize": ("kernel_size", _WINDOWS),
    "group": ("group", {"conv": "convolution_param"}),
    "stride": ("stride", _WINDOWS),
    "pool": ("pool", {"pool": "pooling_param"}),
    "dropout_ratio": ("dropout_ratio", {"dropout": "dropout_param"}),
    "local_size": ("local_size", _LRN),
    "alpha": ("alpha", _LRN),
    "beta": ("beta", _LRN),
    "k": ("k", _LRN),
    "source": ("source", {**_DATA_SOURCES, "infogain_loss": "infogain_loss_param"}),
    "scale": ("scale", {"*": "transform_param"}),
    "meanfile": ("mean_file", {"*": "transform_param"}),
    "batchsize": ("batch_size", _DATA_SOURCES),
    "cropsize": ("crop_size", {"*": "transform_param"}),
    "mirror": ("mirror", {"*": "transform_param"}),
    "rand_skip": ("rand_skip", {"data": "data_param", **_IMAGES}),
    "shuffle_images": ("shuffle", _IMAGES),
    "new_height": ("new_height", _IMAGES),
    "new_width": ("new_width", _IMAGES),
    "concat_dim": ("concat_dim", {"concat": "concat_param"}),
    "det_fg_threshold": ("fg_threshold", _DETECTION),
    "det_bg_threshold": ("bg_threshold", _DETECTION),
    "det_fg_fraction": ("fg_fraction", _DETECTION),
    "det_context_pad": ("context_pad", _DETECTION),
    "det_crop_mode": ("crop_mode", _DETECTION),
}


def upgrade_v0(net: Any, where: Callable[[int], str]) -> tuple[Any, list[int]]:
    """A V1 net from one whose ``layers`` hold V0 layers.

    As in Caffe, a parameter that does not apply to its layer's type is logged and dropped.

    Args:
        net: a NetParameter; unchanged.
        where: the place of the i-th of its ``layers``, for messages.

    Returns:
        The net, and for each of its ``layers`` the index it had.

    Raises:
        DefinitionError: an unknown type, layers of another generation among the V0 ones, or a padding layer whose
            reader is not a convolution or a pooling of one bottom.
    """
    for i, outer in enumerate(net.layers):
        for field, _ in outer.ListFields():
            if field.name not in ("layer", "bottom", "top"):
                raise DefinitionError(
                    where(i),
                    f"{field.name} beside the layers {{ layer {{ ... }} }} of generation 0",
                    expected="one generation in a file",
                    remedy="write all layers in one generation",
                )
    result, origins = type(net)(), []
    for field, value in net.ListFields():
        if field.name in ("name", "force_backward"):
            setattr(result, field.name, value)
        elif field.name in ("input", "input_dim", "input_shape"):
            getattr(result, field.name).MergeFrom(value)
        elif field.name == "state":
            result.state.CopyFrom(value)
    for i, old in _without_padding(net, where):
        _upgrade_layer(old, result.layers.add(), where(i))
        origins.append(i)
    return result, origins


def _without_padding(net: Any, where: Callable[[int], str]) -> list[tuple[int, Any]]:
    """The layers except padding ones, whose ``pad`` moves to the layers that read them (UpgradeV0PaddingLayers)."""
    makers: dict[str, Any] = dict.fromkeys(net.input)
    kept = []
    for i, original in enumerate(net.layers):
        outer = type(original)()
        outer.CopyFrom(original)
        for j, blob in enumerate(original.bottom):
            if blob not in makers:
                near = nearest(blob, makers)
                raise DefinitionError(
                    where(i),
                    f"bottom {blob!r}, which no earlier layer computes",
                    remedy=f"did you mean {near}?" if near else "",
                )
            maker = makers[blob]
            if maker is None or maker.layer.type != "padding":
                continue
            if outer.layer.type not in ("conv", "pool"):
                raise DefinitionError(
                    where(i), f"a padding layer's top read by type {outer.layer.type!r}", expected="conv or pool"
                )
            if len(outer.bottom) != 1 or len(maker.bottom) != 1 or len(maker.top) != 1:
                raise DefinitionError(where(i), "several bottoms or tops at a padding layer", expected="one")
            outer.layer.pad = maker.layer.pad
            outer.bottom[j] = maker.bottom[0]
        makers.update(dict.fromkeys(original.top, original))
        if outer.layer.type != "padding":
            kept.append((i, outer))
    return kept


def _upgrade_layer(outer: Any, result: Any, where: str) -> None:
    old = outer.layer
    if old.type not in V0_TO_V1:
        near = nearest(old.type, V0_TO_V1)
        raise DefinitionError(
            where,
            f"unknown layer type {old.type!r} of generation 0",
            remedy=f"did you mean {near}?" if near else "",
        )
    result.bottom.extend(outer.bottom)
    result.top.extend(outer.top)
    result.type = result.LayerType.Value(V0_TO_V1[old.type])
    for field, value in old.ListFields():
        if field.name in ("blobs", "blobs_lr", "weight_decay"):
            getattr(result, field.name).extend(value)
        elif field.name == "name":
            result.name = value
        elif field.name == "hdf5_output_param" and old.type == "hdf5_output":
            result.hdf5_output_param.CopyFrom(value)
        elif field.name != "type":
            name, blocks = _FIELDS.get(field.name, ("", {}))
            block = blocks.get(old.type) or blocks.get("*")
            if block:
                _set(getattr(result, block), name, value)
            else:
                _log.warning("%s: a layer of type %s has no %s; dropped", where, old.type, field.name)


def _set(block: Any, name: str, value: Any) -> None:
    field = block.DESCRIPTOR.fields_by_name[name]
    if field.message_type:
        getattr(block, name).CopyFrom(value)
    elif hasattr(getattr(block, name), "append"):
        getattr(block, name).append(value)
    else:
        setattr(block, name, value)
