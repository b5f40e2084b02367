"""Definitions written in Python, as in pycaffe::

    from caffe_port import NetSpec, layers as L, params as P

    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, 28, 28]))
    n.conv1 = L.Convolution(n.data, kernel_size=5, num_output=20, weight_filler=dict(type="xavier"))
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.relu1 = L.ReLU(n.pool1, in_place=True)
    print(n.to_proto())

A keyword is a field of the layer's parameter block, or, if that has no such field, of the layer. A keyword that
ends in ``param`` is always a field of the layer. Dicts are messages, lists are repeated fields.

Source: python/caffe/net_spec.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from caffe_port.errors import DefinitionError, nearest
from caffe_port.schema import messages

__all__ = ["Function", "Layers", "NetSpec", "Parameters", "Top", "layers", "params", "to_proto"]


class Function:
    """A layer's type, inputs and fields.

    Args:
        type_name: the layer's ``type``.
        inputs: the tops it reads.
        fields: its fields; also ``ntop``, its number of tops (1), and ``in_place``.

    Raises:
        TypeError: an input is not a :class:`Top`.
    """

    def __init__(self, type_name: str, inputs: tuple[Top, ...], fields: dict[str, Any]) -> None:
        for i, given in enumerate(inputs):
            if not isinstance(given, Top):
                raise TypeError(f"{type_name} input {i} is not a Top (type is {type(given)})")
        self.type_name, self.inputs = type_name, inputs
        self.params = {name: value for name, value in fields.items() if name not in ("ntop", "in_place")}
        self.ntop: int = fields.get("ntop", 1)
        self.in_place: bool = fields.get("in_place", False)
        self.tops = tuple(Top(self, n) for n in range(self.ntop))

    def to_proto(self) -> Any:
        """A NetParameter of this layer and all that it needs."""
        return to_proto(self)


class Top:
    """One of the blobs that a layer computes.

    Attributes:
        fn: the layer. n: the index among its tops.
    """

    def __init__(self, fn: Function, n: int) -> None:
        self.fn, self.n = fn, n

    def to_proto(self) -> Any:
        """A NetParameter of all layers that this blob needs."""
        return to_proto(self)


class NetSpec:
    """A net: every attribute set is a blob, or a layer without tops, of that name."""

    tops: dict[str, Top | Function]

    def __init__(self) -> None:
        object.__setattr__(self, "tops", {})

    def __setattr__(self, name: str, value: Any) -> None:
        self.tops[name] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self.tops:
            raise AttributeError(f"the net has no top {name!r}")
        return self.tops[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.tops[name] = value

    def __getitem__(self, name: str) -> Any:
        return self.tops[name]

    def to_proto(self) -> Any:
        """A NetParameter of all layers that the net's blobs need, with the blobs' names.

        Raises:
            DefinitionError: a field that neither the layer nor its parameters have, or a value it cannot hold.
        """
        return _Writer({top: name for name, top in self.tops.items()}).net(self.tops.values())


def to_proto(*tops: Top | Function) -> Any:
    """A NetParameter of all layers that ``tops`` need, with generated names: ``Convolution1``, ``Convolution2`` ..."""
    return _Writer({}).net(tops)


class _Writer:
    """Writes functions as layers, each once, after its inputs."""

    def __init__(self, names: dict[Top | Function, str]) -> None:
        self.names = names
        self.made_up: Counter[str] = Counter()
        self.layers: dict[Function, Any] = {}

    def net(self, tops: Iterable[Top | Function]) -> Any:
        for top in tops:
            self.write(top.fn if isinstance(top, Top) else top)
        net = messages.NetParameter()
        net.layer.extend(self.layers.values())
        return net

    def write(self, fn: Function) -> None:
        if fn in self.layers:
            return
        layer = messages.LayerParameter(type=fn.type_name)
        for given in fn.inputs:
            self.write(given.fn)
            layer.bottom.append(self.layers[given.fn].top[given.n])
        if fn.in_place:
            layer.top.extend(layer.bottom)
        else:
            layer.top.extend(self.name(top, fn) for top in fn.tops)
        layer.name = self.names[fn] if fn in self.names else self.name(fn.tops[0] if fn.tops else fn, fn)
        for name, value in fn.params.items():
            _set_field(layer, name, value)
        self.layers[fn] = layer

    def name(self, item: Top | Function, fn: Function) -> str:
        if item not in self.names:
            self.made_up[fn.type_name] += 1
            self.names[item] = f"{fn.type_name}{self.made_up[fn.type_name]}"
        return self.names[item]


def _blocks() -> dict[str, str]:
    """The field of LayerParameter that holds a type's parameters, by the type."""
    fields = messages.LayerParameter.DESCRIPTOR.fields
    return {f.message_type.name.removesuffix("Parameter"): f.name for f in fields if f.name.endswith("_param")}


_BLOCKS = _blocks()


def _set_field(layer: Any, name: str, value: Any) -> None:
    block = getattr(layer, _BLOCKS.get(layer.type, ""), None)
    own = {} if block is None or name.endswith("param") else block.DESCRIPTOR.fields_by_name
    _assign(block if name in own else layer, name, value, f"L.{layer.type}", other=own)


def _assign(message: Any, name: str, value: Any, where: str, other: Iterable[str] = ()) -> None:
    fields = message.DESCRIPTOR.fields_by_name
    if name not in fields:
        near = nearest(name, [*fields, *other])
        raise DefinitionError(where, f"no field {name!r}", remedy=f"near: {near}" if near else "")
    field = getattr(message, name)
    try:
        if hasattr(field, "extend"):
            _extend(field, list(value) if isinstance(value, (list, tuple)) else [value], f"{where}.{name}")
        elif isinstance(value, dict):
            for key, item in value.items():
                _assign(field, key, item, f"{where}.{name}")
        else:
            setattr(message, name, value)
    except (TypeError, ValueError, AttributeError) as error:
        raise DefinitionError(where, f"{name}={value!r}", expected=f"a value that {name} can hold ({error})") from None


def _extend(field: Any, values: list[Any], where: str) -> None:
    for value in values:
        if isinstance(value, dict):
            item = field.add()
            for key, inner in value.items():
                _assign(item, key, inner, where)
        else:
            field.append(value)


class Layers:
    """``L``: a function for every layer type, known or not. ``L.Convolution(bottom, kernel_size=3)`` gives its top, a
    tuple of tops for ``ntop`` above 1, the :class:`Function` itself for ``ntop=0``."""

    def __getattr__(self, type_name: str) -> Callable[..., Any]:
        if type_name.startswith("__"):
            raise AttributeError(type_name)

        def layer(*inputs: Top, **fields: Any) -> Any:
            fn = Function(type_name, inputs, fields)
            if fn.ntop == 0:
                return fn
            return fn.tops[0] if fn.ntop == 1 else fn.tops

        return layer


class _Values:
    def __init__(self, message: Any) -> None:
        self._message = message

    def __getattr__(self, value: str) -> Any:
        return getattr(self._message, value)


class Parameters:
    """``P``: the values of enums. ``P.Pooling.MAX`` is that of PoolingParameter."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Values(getattr(messages, f"{name}Parameter"))


layers = Layers()
params = Parameters()
