"""Upgrades nets and solvers of every generation to the newest form, as Caffe does on reading (upgrade_proto.cpp)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from caffe_port.errors import DefinitionError
from caffe_port.schema.layer_types import v2_type
from caffe_port.schema.upgrade_v0 import upgrade_v0

__all__ = ["PARAM_SPECS", "Upgraded", "generation", "upgrade_net", "upgrade_solver"]

_TRANSFORMS = ("scale", "mean_file", "crop_size", "mirror")
_DATA_BLOCKS = {"DATA": "data_param", "IMAGE_DATA": "image_data_param", "WINDOW_DATA": "window_data_param"}
PARAM_SPECS = {"param": "name", "blob_share_mode": "share_mode", "blobs_lr": "lr_mult", "weight_decay": "decay_mult"}
_SOLVERS = {
    "SGD": "SGD",
    "NESTEROV": "Nesterov",
    "ADAGRAD": "AdaGrad",
    "RMSPROP": "RMSProp",
    "ADADELTA": "AdaDelta",
    "ADAM": "Adam",
}


@dataclass(frozen=True)
class Upgraded:
    """A net in the newest form.

    Attributes:
        net: a NetParameter with ``layer``, without ``layers`` and ``input``.
        origins: for each layer its index among the layers of the source; -1 for the Input layer of ``input`` fields.
        generation: the source's: 0, 1 or 2.
    """

    net: Any
    origins: tuple[int, ...]
    generation: int


def generation(net: Any) -> int:
    """The generation of a net's layers: 0, 1 or 2."""
    if not net.layers:
        return 2
    return 0 if any(layer.HasField("layer") for layer in net.layers) else 1


def upgrade_net(net: Any, where: Callable[[int], str] = "layer {}".format) -> Upgraded:
    """A net, of a prototxt or of weights, in the newest form (UpgradeNetAsNeeded).

    Args:
        net: a NetParameter; unchanged.
        where: the place of the source's i-th layer, for messages; of its inputs for -1.

    Raises:
        DefinitionError: generations are mixed, a V0 net is wrong, or inputs lack shapes.
    """
    source_generation = generation(net)
    if net.layer and net.layers:
        raise DefinitionError(
            where(0),
            "both layer {} and layers {}",
            expected="one generation in a file",
            remedy='write all as layer { type: "Type" }',
        )
    if source_generation == 0:
        net, origins = upgrade_v0(net, where)
    else:
        origins = list(range(len(net.layers) or len(net.layer)))
    result = type(net)()
    for field, value in net.ListFields():
        if field.name not in ("layer", "layers", "input", "input_dim", "input_shape"):
            _copy(result, field, value)
    if net.input and (net.input_shape or net.input_dim):
        _make_input(net, result.layer.add(), where(-1))
        origins = [-1, *origins]
    result.layer.MergeFrom(net.layer)
    for layer in net.layers:
        _upgrade_layer(layer, result.layer.add())
    for layer in result.layer:
        if layer.type == "BatchNorm" and len(layer.param) == 3:
            for param in layer.param:  # the statistics; older files have rates for them, which Caffe ignores
                param.lr_mult = param.decay_mult = 0
    return Upgraded(result, tuple(origins), source_generation)


def upgrade_solver(solver: Any, where: str) -> None:
    """Turn the enum ``solver_type`` into the string ``type``, in place (UpgradeSolverType).

    Raises:
        DefinitionError: both are given.
    """
    if not solver.HasField("solver_type"):
        return
    if solver.HasField("type"):
        raise DefinitionError(where, "solver_type and type", expected="one of them", remedy="remove solver_type")
    solver.type = _SOLVERS[solver.SolverType.Name(solver.solver_type)]
    solver.ClearField("solver_type")


def _upgrade_layer(old: Any, new: Any) -> None:
    """V1 to V2 (UpgradeV1LayerParameter), data layers' transformations included (UpgradeNetDataTransformation)."""
    v1_type = old.LayerType.Name(old.type)
    for field, value in old.ListFields():
        if field.name == "type":
            new.type = v2_type(v1_type)
        elif field.name in PARAM_SPECS:
            for i, item in enumerate(value):
                while len(new.param) <= i:
                    new.param.add()
                setattr(new.param[i], PARAM_SPECS[field.name], item)
        else:
            _copy(new, field, value)
    if v1_type in _DATA_BLOCKS and old.HasField(_DATA_BLOCKS[v1_type]):
        block = getattr(new, _DATA_BLOCKS[v1_type])
        for name in _TRANSFORMS:
            if block.HasField(name):
                setattr(new.transform_param, name, getattr(block, name))
                block.ClearField(name)


def _make_input(net: Any, layer: Any, where: str) -> None:
    """Create the Input layer of a net's ``input`` fields (UpgradeNetInput).

    Inputs without any shape, as in weight files, are dropped earlier.
    """
    field, each = ("input_shape", 1) if net.input_shape else ("input_dim", 4)
    given = len(getattr(net, field))
    if given < each * len(net.input):
        raise DefinitionError(where, f"{given} {field} for {len(net.input)} inputs", expected=f"{each} for each")
    layer.name, layer.type = "input", "Input"
    layer.top.extend(net.input)
    for i in range(len(net.input)):
        shape = layer.input_param.shape.add()
        if field == "input_shape":
            shape.CopyFrom(net.input_shape[i])
        else:
            shape.dim.extend(net.input_dim[4 * i : 4 * i + 4])


def _copy(message: Any, field: Any, value: Any) -> None:
    if hasattr(value, "append"):
        getattr(message, field.name).MergeFrom(value)
    elif field.message_type:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)
