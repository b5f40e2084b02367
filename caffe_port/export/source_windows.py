"""Layers with weights, and over windows, as Python: convolution, inner products, pooling, unpooling, recurrence."""

from __future__ import annotations

from math import prod
from typing import Any

from caffe_port.export.source_code import Code, Unpacked, Var, arguments, pair, writer
from caffe_port.export.source_layers import flattened, refuse

__all__: list[str] = []

INDEX = (("Unpooling", 1), ("Upsample", 1))
"""Readers for which switches stay integers."""


@writer("Convolution", "Deconvolution", "ConvolutionDepthwise", "DepthwiseConv", "DepthwiseConvolution")
def convolution(c: Code, layer: Any, *bottoms: Var, weight: Any = None, bias: Any = None) -> Any:
    axes = len(layer.kernel)
    if not 1 <= axes <= 3:
        raise refuse(layer, f"{axes} spatial axes", "1 to 3")
    weight = layer.weight if weight is None else weight
    bias = layer.bias if bias is None else bias
    text = arguments(
        layer.channels,
        layer.num_output,
        pair(layer.kernel),
        stride=(pair(layer.stride), "1"),
        padding=(pair(layer.pad), "0"),
        dilation=(pair(layer.dilation), "1"),
        groups=(layer.group, 1),
        bias=(bias is not None, True),
    )
    kind = "nn.ConvTranspose" if layer.transposed else "nn.Conv"
    module = c.module(f"{kind}{axes}d({text})", weight=weight, bias=bias)
    lead = layer.channel_axis
    tops = []
    for x in bottoms:
        given = f"F.pad({x}, {tuple(layer.border)})" if any(layer.border) else str(x)
        if lead == 0:
            tops.append(f"{module}({given}[None])[0]")
        elif lead > 1:
            tops.append(f"{module}({given}.flatten(0, {lead - 1})).unflatten(0, {x}.shape[:{lead}])")
        else:
            tops.append(f"{module}({given})")
    return tops if len(tops) > 1 else tops[0]


@writer("InnerProduct")
def inner_product(c: Code, layer: Any, x: Var, weight: Any = None, bias: Any = None) -> str:
    if weight is None:
        weight = layer.weight.t().contiguous() if layer.transpose else layer.weight
    bias = layer.bias if bias is None else bias
    text = arguments(layer.length, layer.num_output, bias=(bias is not None, True))
    module = c.module(f"nn.Linear({text})", weight=weight, bias=bias)
    return f"{module}({flattened(x, layer.from_axis) if layer.from_axis < len(x.shape) else f'{x}[..., None]'})"


@writer("Embed")
def embed(c: Code, layer: Any, x: Var) -> str:
    module = c.module(f"nn.Embedding({layer.input_dim}, {layer.num_output})", weight=layer.weight)
    y = f"{module}({x}.long())"
    return y if layer.bias is None else f"{y} + {c.parameter(layer.bias, '_bias')}"


@writer("Im2col")
def im2col(c: Code, layer: Any, x: Var) -> str:
    lead = layer.channel_axis
    given = str(x) if lead == 1 else f"{x}[None]" if lead == 0 else f"{x}.flatten(0, {lead - 1})"
    if len(layer.kernel) == 2 and lead == 1:
        (shape,) = layer.reshape(x.shape)
        how = ", ".join(map(pair, (layer.kernel, layer.dilation, layer.pad, layer.stride)))
        return f"F.unfold({given}, {how}).unflatten(2, {shape[2:]})"
    how = ", ".join(str(tuple(n)) for n in (layer.kernel, layer.stride, layer.pad, layer.dilation))
    y = f"{c.helper('windows_as_channels')}({given}, {how})"
    return y if lead == 1 else f"{y}[0]" if lead == 0 else f"{y}.unflatten(0, {x}.shape[:{lead}])"


# -- pooling -----------------------------------------------------------------------------------------------------------


def as_torch(layer: Any) -> bool:
    """Whether torch's pooling has Caffe's windows at every size.

    It has where no window can lie past the bottom: torch drops such a window, Caffe only where there is padding.
    """
    sides = list(zip(layer.kernel, layer.stride, layer.pad, strict=True))
    fits = layer.pad == layer.behind and all(2 * p <= k for k, _, p in sides)
    return fits and (not layer.ceil or all(k >= s for k, s, _ in sides))


def how_torch(layer: Any) -> str:
    """The arguments of torch's pooling after the bottom."""
    return arguments(
        pair(layer.kernel),
        stride=(pair(layer.stride), pair(layer.kernel)),
        padding=(pair(layer.pad), "0"),
        ceil_mode=(layer.ceil and set(layer.stride) != {1}, False),
    ).replace("stride=", "")


def how_caffe(layer: Any) -> str:
    (top, left), (bottom, right) = layer.pad, layer.behind
    pad = (left, right, top, bottom)
    return arguments(layer.kernel, layer.stride, *([pad] if any(pad) else []), ceil=(bool(layer.ceil), True))


@writer("Pooling")
def pooling(c: Code, layer: Any, x: Var) -> Any:
    if layer.method == "MAX":
        return max_pool(c, layer, x)
    if layer.method == "STOCHASTIC":
        if layer.training:
            raise refuse(layer, "a layer that draws", "phase TEST")
        kernel = tuple(layer.window(x.shape))
        return f"{c.helper('stochastic_pool')}({arguments(x, kernel, layer.stride, ceil=(bool(layer.ceil), True))})"
    if layer.global_pooling:
        y = f"{x}.mean((2, 3), keepdim=True)"
    elif as_torch(layer):
        more = "" if layer.counts_padding or not any(layer.pad) else ", count_include_pad=False"
        y = f"F.avg_pool2d({x}, {how_torch(layer)}{more})"
    else:
        more = "" if layer.counts_padding else ", counts_padding=False"
        y = f"{c.helper('average_pool_caffe')}({x}, {how_caffe(layer)}{more})"
    return y if layer.n_tops == 1 else [y, f"torch.zeros_like({y})"]


def max_pool(c: Code, layer: Any, x: Var) -> Any:
    if layer.n_tops == 1:
        return highest(c, layer, x)
    y, switches = c.tops
    if switches.only_read_as(INDEX):
        switches.integer = True
        return Unpacked(highest(c, layer, x))
    index = c.new(f"{switches.blob} index", switches.shape)
    c.assign(highest(c, layer, x), y, index)
    return [(1, f"{index}.to({x}.dtype)")]


def highest(c: Code, layer: Any, x: Var) -> str:
    """The maxima, or both they and their positions."""
    if not layer.global_pooling and not as_torch(layer):
        found = f"{c.helper('max_pool_caffe')}({x}, {how_caffe(layer)})"
        return f"{found}[0]" if layer.n_tops == 1 else found
    if layer.global_pooling and layer.n_tops == 1:
        return f"{x}.amax((2, 3), keepdim=True)"
    how = f"{x}.shape[2:]" if layer.global_pooling else how_torch(layer)
    return f"F.max_pool2d({x}, {how}{', return_indices=True' if layer.n_tops == 2 else ''})"


@writer("SPP")
def pyramid(c: Code, layer: Any, x: Var) -> str:
    if layer.method not in ("MAX", "AVE"):
        raise refuse(layer, f"pool: {layer.method}", "MAX or AVE")
    return f"{c.helper('pyramid_pool')}({x}, {layer.height}, average={layer.method == 'AVE'})"


@writer("Unpooling")
def unpooling(c: Code, layer: Any, x: Var, switches: Var | None = None) -> str:
    size = tuple(layer.size)
    if layer.method != "MAX":
        how = f"{layer.kernel}, {layer.stride}, {size}, divide={layer.method == 'AVE'}"
        return f"{c.helper('unpool_spread')}({x}, {how})"
    if switches is None:
        return f"{c.helper('unpool_corners')}({x}, {layer.stride}, {size})"
    windows = list(zip(x.shape[2:], layer.kernel, layer.stride, size, strict=True))
    near = all(abs((n - 1) * s + k - m) < s for n, k, s, m in windows)  # torch takes no other size
    if near and all(k <= s for _, k, s, _ in windows):
        given = str(switches) if switches.integer else f"{switches}.long()"
        how = arguments(pair(layer.kernel), stride=(pair(layer.stride), pair(layer.kernel)), output_size=(size, ()))
        return f"F.max_unpool2d({x}, {given}, {how.replace('stride=', '')})"
    return f"{c.helper('unpool')}({x}, {switches}, {size})"


@writer("Upsample")
def upsample(c: Code, layer: Any, x: Var, mask: Var) -> str:
    if layer.size:
        size = str(tuple(layer.size))
    else:
        sides = zip((2, 3), layer.scale, layer.cut, strict=True)
        size = f"({', '.join(f'{x}.shape[{a}] * {s}' + (f' - {cut}' if cut else '') for a, s, cut in sides)})"
    return f"{c.helper('unpool')}({x}, {mask}, {size})"


# -- recurrence --------------------------------------------------------------------------------------------------------


@writer("LSTMUnit")
def lstm_unit(c: Code, layer: Any, cell: Var, gates: Var, cont: Var) -> Unpacked:
    return Unpacked(f"{c.helper('lstm_step')}({cell}, {gates}, {cont}[..., None])")


@writer("LSTM", "RNN")
def recurrent(c: Code, layer: Any, x: Var, cont: Var, *others: Var) -> Any:
    weight, bias, static, hidden = (blob.name for blob in layer.blob_specs[:4])
    blobs = {"inputs.weight": weight, "inputs.bias": bias, "hidden.weight": hidden}
    if layer.static:
        blobs["static.weight"] = static
    if layer.type == "RNN":
        blobs |= {"output.weight": "W_ho", "output.bias": "b_o"}
    width = f", {prod(others[0].shape[1:])}" if layer.static else ""
    kind = c.helper(f"{layer.type}Caffe")
    text = f"{kind}({prod(x.shape[2:])}, {layer.size}{width})"
    module = c.module(text, **{key: getattr(layer, name) for key, name in blobs.items()})
    given = [str(x), str(cont), *([str(others[0])] if layer.static else [])]
    if layer.exposes:
        states = ", ".join(map(str, others[layer.static :]))
        comma = "," * (len(others) - layer.static == 1)
        return Unpacked(f"{module}({', '.join(given)}, states=({states}{comma}))")
    return f"{module}({', '.join(given)})[0]"
