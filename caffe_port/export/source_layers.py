"""Layers as Python: neurons, shapes, sums, normalizations; in torch's own words where it has them.

The functions and modules that stand in for what torch lacks are in :mod:`caffe_port.export.source_helpers`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.export.source_code import Code, Unpacked, Var, arguments, number, writer

__all__ = ["behind", "flattened", "refuse"]


def refuse(layer: Any, found: str, expected: str) -> CaffeError:
    """The error for a setting of a layer that cannot be written."""
    return CaffeError(
        f"{layer.where}: layer {layer.name} ({layer.type})",
        found,
        expected=expected,
        remedy="cut the net before this layer with --outputs BLOB, or use -o NAME.pt2",
    )


def behind(x: Any, axes: int) -> str:
    """A blob with further axes of length 1 at its end."""
    return f"{x}[{', '.join(['...', *['None'] * axes])}]" if axes > 0 else str(x)


def flattened(x: Var, axis: int) -> str:
    """A blob with its axes from ``axis`` on as one."""
    return str(x) if axis == len(x.shape) - 1 else f"{x}.flatten({axis})"


def scaled(text: str, factor: float) -> str:
    return text if factor == 1 else f"{text} * {number(factor)}"


def shifted(text: str, term: float) -> str:
    return text if term == 0 else f"{text} - {number(-term)}" if term < 0 else f"{text} + {number(term)}"


# -- elementwise -------------------------------------------------------------------------------------------------------


@writer("ReLU", "ReLU6")
def relu(c: Code, layer: Any, x: Var) -> Any:
    capped = layer.type == "ReLU6" or layer.capped
    y = f"F.leaky_relu({x}, {number(layer.slope)})" if layer.slope else f"F.relu6({x})" if capped else f"F.relu({x})"
    y = f"{y}.clamp(max=6)" if layer.slope and capped else y
    return y if layer.n_tops == 1 else [(1, f"({x} > 0).to({x}.dtype)"), (0, y)]


@writer("PReLU")
def prelu(c: Code, layer: Any, x: Var) -> str:
    count = layer.weight.numel()
    blob = layer.weight if layer.weight.dim() == 1 else layer.weight.reshape(-1)
    module = c.module(f"nn.PReLU({count if count > 1 else ''})", weight=blob)
    return f"{module}({x})"


for kind, text in (
    ("Sigmoid", "torch.sigmoid({})"),
    ("TanH", "torch.tanh({})"),
    ("AbsVal", "torch.abs({})"),
    ("BNLL", "F.softplus({}, threshold=50)"),
    ("HardSwish", "{0} * F.relu6({0} + 3) / 6"),
):
    writer(kind)(lambda c, layer, x, text=text: text.format(x))


@writer("Clip")
def clip(c: Code, layer: Any, x: Var) -> str:
    return f"torch.clamp({x}, {number(layer.min)}, {number(layer.max)})"


@writer("ELU")
def elu(c: Code, layer: Any, x: Var) -> str:
    return f"F.elu({arguments(x, alpha=(number(layer.alpha), '1'))})"


@writer("Swish")
def swish(c: Code, layer: Any, x: Var) -> str:
    return f"F.silu({x})" if layer.beta == 1 else f"{x} * torch.sigmoid({scaled(str(x), layer.beta)})"


@writer("Threshold")
def threshold(c: Code, layer: Any, x: Var) -> str:
    return f"({x} > {number(layer.threshold)}).to({x}.dtype)"


@writer("Exp")
def exp(c: Code, layer: Any, x: Var) -> str:
    return scaled(f"torch.exp({scaled(str(x), layer.inner)})", layer.outer)


@writer("Log")
def log(c: Code, layer: Any, x: Var) -> str:
    return scaled(f"torch.log({shifted(scaled(str(x), layer.scale), layer.shift)})", layer.factor)


@writer("Power")
def power(c: Code, layer: Any, x: Var) -> str:
    if layer.power * layer.scale == 0:
        return f"torch.full_like({x}, {number(np.float32(layer.shift) ** np.float32(layer.power))})"
    inner = shifted(scaled(str(x), layer.scale), layer.shift)
    if layer.power == 1:
        return inner
    return f"{x}**{number(layer.power)}" if inner == str(x) else f"({inner}) ** {number(layer.power)}"


@writer("Dropout", "DropoutChannel")
def dropout(c: Code, layer: Any, x: Var) -> str:
    if layer.drops():
        raise refuse(layer, "a layer that draws", "phase TEST")
    kind = "nn.Dropout2d" if layer.type == "DropoutChannel" and len(x.shape) == 4 else "nn.Dropout"
    module = c.module(f"{kind}({number(layer.ratio)})")
    return f"{module}({x})"


@writer("Dropout", dialect="rcnn")
def scaled_dropout(c: Code, layer: Any, x: Var) -> str:
    return dropout(c, layer, x) if layer.scales_train else scaled(str(x), 1 - layer.ratio)


@writer("Split")
def split(c: Code, layer: Any, x: Var) -> list[str]:
    return [str(x)] * layer.n_tops


@writer("Silence")
def silence(c: Code, layer: Any, *bottoms: Var) -> list[str]:
    return []


@writer("Parameter")
def parameter(c: Code, layer: Any) -> str:
    return c.parameter(layer.weight)


# -- shapes ------------------------------------------------------------------------------------------------------------


@writer("Concat")
def concat(c: Code, layer: Any, *bottoms: Var) -> str:
    return f"torch.cat(({', '.join(map(str, bottoms))}{',' * (len(bottoms) == 1)}), {layer.along})"


@writer("Slice")
def cut(c: Code, layer: Any, x: Var) -> Any:
    if layer.n_tops == 1:
        return str(x)
    if layer.points:
        points = [int(p) for p in layer.points]
        return Unpacked(f"{x}.tensor_split({points}, {layer.along})")
    return Unpacked(f"{x}.chunk({layer.n_tops}, {layer.along})")


@writer("Tile")
def tile(c: Code, layer: Any, x: Var) -> str:
    times = [str(layer.tiles if axis == layer.along else 1) for axis in range(len(x.shape))]
    return f"{x}.repeat({', '.join(times)})"


@writer("Flatten")
def flatten(c: Code, layer: Any, x: Var) -> str:
    last = layer.end_axis if layer.end_axis != len(x.shape) - 1 else -1
    return f"{x}.flatten({layer.from_axis}{f', {last}' if last != -1 else ''})"


@writer("Reshape")
def reshape(c: Code, layer: Any, x: Var) -> str:
    if layer.shuffles != 1:
        return f"F.pixel_shuffle({x}, {layer.shuffles})"
    axis, n = layer.from_axis, layer.num_axes
    start = axis if axis >= 0 else len(x.shape) + axis + 1
    end = len(x.shape) if n == -1 else start + n
    copied = [f"{x}.shape[{i}]" for i in range(len(x.shape))]
    dims = [*copied[:start], *(str(d) if d else copied[i] for i, d in enumerate(layer.dims, start)), *copied[end:]]
    if dims[:1] == copied[:1] and "-1" not in dims:
        dims[0] = "-1"
    return f"{x}.reshape({', '.join(dims) or '()'})"


@writer("Crop")
def crop(c: Code, layer: Any, x: Var, size: Var) -> str:
    ranges = [":"] * layer.from_axis
    for axis, o in enumerate(layer.offset, layer.from_axis):
        ranges.append(f"{o} : {o} + {size}.shape[{axis}]" if o else f": {size}.shape[{axis}]")
    return f"{x}[{', '.join(ranges)}]"


@writer("BatchReindex")
def batch_reindex(c: Code, layer: Any, x: Var, index: Var) -> str:
    return f"{x}[{index}.long()]"


@writer("Filter")
def filter_items(c: Code, layer: Any, *bottoms: Var) -> list[str]:
    *items, selector = bottoms
    return [f"{x}[{selector}.flatten() != 0]" for x in items]


@writer("ArgMax")
def arg_max(c: Code, layer: Any, x: Var) -> str:
    (shape,) = layer.reshape(x.shape)
    flat = flattened(x, 1) if layer.over is None else str(x)
    found = f"{c.helper('largest')}({flat}, {1 if layer.over is None else layer.over}, {layer.top_k})"
    if layer.over is not None:
        return f"{found}[{int(not layer.out_max_val)}]"
    rest = ", ".join(map(str, shape[1:]))
    if layer.out_max_val:
        return f"torch.stack({found}[::-1], 1).reshape(-1, {rest})"
    return f"{found}[1].reshape(-1, {rest})"


@writer("Reduction")
def reduction(c: Code, layer: Any, x: Var) -> str:
    flat = flattened(x, layer.from_axis)
    kinds = {"SUM": "{}.sum(-1)", "MEAN": "{}.mean(-1)", "ASUM": "{}.abs().sum(-1)", "SUMSQ": "{}.square().sum(-1)"}
    return scaled(kinds[layer.operation].format(flat), layer.coeff)


@writer("Permute")
def permute(c: Code, layer: Any, x: Var) -> str:
    return f"{x}.permute({', '.join(map(str, layer.order))})"


@writer("Squeeze")
def squeeze(c: Code, layer: Any, x: Var) -> str:
    axes = tuple(int(a) for a in layer.axes)
    return f"{x}.squeeze({axes[0] if len(axes) == 1 else axes or ''})"


@writer("Pad")
def pad(c: Code, layer: Any, x: Var) -> str:
    sides = tuple(int(n) for i in reversed(range(len(x.shape))) for n in layer.paddings[2 * i : 2 * i + 2])
    return f"F.pad({arguments(x, sides, value=(number(layer.value), '0'))})"


@writer("ShuffleChannel")
def shuffle_channel(c: Code, layer: Any, x: Var) -> str:
    return f"{x}.unflatten(1, ({layer.group}, -1)).transpose(1, 2).flatten(1, 2)"


@writer("Reorg")
def reorg(c: Code, layer: Any, x: Var) -> str:
    return f"{c.helper('reorganize_back' if layer.reverse else 'reorganize')}({x}, {layer.stride})"


@writer("UpsampleDarknet")
def upsample_darknet(c: Code, layer: Any, x: Var) -> str:
    return f'F.interpolate({x}, scale_factor={layer.times}, mode="nearest")'


@writer("ResizeNearestNeighbor")
def resize_nearest(c: Code, layer: Any, x: Var) -> str:
    sizes = zip(layer.size, layer.factors, (layer.first, layer.first + 1), strict=True)
    size = [f"int({x}.shape[{axis}] * {number(f)})" if n is None else str(n) for n, f, axis in sizes]
    more = f"corners={bool(layer.corners)}, centres={bool(layer.centres)}"
    return f"{c.helper('resize_nearest')}({x}, ({', '.join(size)}), {layer.first}, {more})"


@writer("Interp")
def interp(c: Code, layer: Any, x: Var) -> str:
    (shape,) = layer.reshape(x.shape)
    begin, end = layer.cut
    cut = f"{begin or ''} : {-end}" if end else f"{begin}:"
    part = f"{x}[:, :, {cut}, {cut}]" if begin or end else str(x)
    size = str(shape[2:])
    if layer.size is None:
        lengths = [f"({x}.shape[{axis}] - {1 + begin + end})" for axis in (2, 3)]
        lengths = [f"{n} // {layer.shrink}" if layer.shrink != 1 else n for n in lengths]
        size = f"({', '.join(f'{n} * {layer.zoom} + 1' if layer.zoom != 1 else f'{n} + 1' for n in lengths)})"
    if x.shape[1] == 1:
        return f"{c.helper('resize_one_channel')}({part}, {size})"
    return f'F.interpolate({part}, {size}, mode="bilinear", align_corners=True)'


# -- several blobs -----------------------------------------------------------------------------------------------------


@writer("Eltwise")
def eltwise(c: Code, layer: Any, *bottoms: Var) -> str:
    given, coeff = [str(b) for b in bottoms], layer.coeff
    if layer.is_in_place and layer.operation != "PROD":
        given, coeff = given[1:], coeff[1:]  # Caffe clears the top, and with it the first bottom
    if layer.operation == "PROD":
        return " * ".join(given)
    y = scaled(given[0], coeff[0]) if layer.operation == "SUM" else given[0]
    for other, factor in zip(given[1:], coeff[1:], strict=True):
        if layer.operation == "MAX":
            y = f"torch.maximum({y}, {other})"
        elif abs(factor) == 1:
            y = f"{y} {'+' if factor > 0 else '-'} {other}"
        else:
            y = f"torch.add({y}, {other}, alpha={number(factor)})"
    return y


@writer("Scale", "Bias")
def factor_or_term(c: Code, layer: Any, x: Var, other: Var | None = None) -> str:
    axes = len(layer.operand_shape)
    ones = len(x.shape) - layer.from_axis % len(x.shape) - axes if axes else 0
    weight = layer.weight if layer.type == "Scale" else None
    if other is not None:
        y = f"{x} {'*' if layer.type == 'Scale' else '+'} {behind(other, ones)}"
        bias = layer.bias if layer.type == "Scale" else None
        return y if bias is None else f"{y} + {c.parameter(_with_ones(bias, ones), '_bias')}"
    return affine(c, x, weight, layer.bias, ones)


def affine(c: Code, x: Var, weight: Any, bias: Any, ones: int = 0) -> str:
    """x * weight + bias, each None where it has none, with further axes of length 1."""
    blobs = {name: _with_ones(blob, ones) for name, blob in (("weight", weight), ("bias", bias)) if blob is not None}
    shape = [str(n) for n in next(iter(blobs.values())).shape]
    lacks = [f"{name}=False" for name in ("weight", "bias") if name not in blobs]
    module = c.module(f"{c.helper('Scale')}({', '.join([*shape, *lacks])})", **blobs)
    return f"{module}({x})"


def _with_ones(blob: Any, ones: int) -> Any:
    return blob.reshape(*blob.shape, *(1,) * ones) if ones else blob


@writer("Axpy")
def axpy(c: Code, layer: Any, factor: Var, x: Var, y: Var) -> str:
    ones = len(x.shape) - len(factor.shape)
    return f"{behind(factor, ones)} * {x} + {y}"


@writer("Mul")
def mul(c: Code, layer: Any, x: Var, other: Var | None = None) -> str:
    return f"{x} * {c.parameter(layer.weight) if other is None else other}"


@writer("SpatialProduct")
def spatial_product(c: Code, layer: Any, x: Var, factor: Var) -> str:
    return f"{x} * {factor}"


# -- normalizations ----------------------------------------------------------------------------------------------------


def batch_norm_module(c: Code, x: Var, eps: float, affine: bool, **blobs: Any) -> str:
    """torch's module with these statistics, applied."""
    axes = max(len(x.shape) - 3, 0) + 1
    more = "" if affine else ", affine=False"
    module = c.module(f"nn.BatchNorm{axes}d({x.shape[1]}, eps={number(eps)}{more})", **blobs)
    return f"{module}({x})"


@writer("BatchNorm")
def batch_norm(c: Code, layer: Any, x: Var, weight: Any = None, bias: Any = None) -> str:
    if not layer.uses_blobs():
        y = f"{c.helper('normalize_batch')}({x}, {number(layer.eps)})"
        if layer.scale is None:
            return y
        ones = len(x.shape) - 2
        return f"{y} * {c.parameter(_with_ones(layer.scale, ones))} + {c.parameter(_with_ones(layer.shift, ones))}"
    mean, variance = (t.detach().cpu().numpy() for t in layer.statistics())
    eps = layer.eps
    if layer.eps_outside:
        variance, eps = (np.sqrt(variance) + np.float32(eps)) ** 2, 0
    if len(x.shape) > 5:
        raise refuse(layer, f"{len(x.shape)} axes", "5 at most")
    if layer.scale is not None:
        weight, bias = layer.scale, layer.shift
    if weight is not None and bias is None:
        bias = np.zeros(layer.channels, np.float32)
    return batch_norm_module(
        c, x, eps, weight is not None, weight=weight, bias=bias, running_mean=mean, running_var=variance
    )


@writer("BN")
def bn(c: Code, layer: Any, x: Var) -> Any:
    given = behind(x, 4 - len(x.shape))
    blobs = {"weight": layer.scale.reshape(-1, 1, 1), "bias": layer.shift.reshape(-1, 1, 1)}
    module = c.module(f"{c.helper('Scale')}({layer.scale.numel()}, 1, 1)", **blobs)
    if not layer.learn:
        return f"{module}({given})"
    y = f"{module}({c.helper('normalize_batch')}({given}, {number(layer.eps)}))"
    if layer.n_tops == 1:
        return y
    mean = f"{given}.mean((0, 2, 3), keepdim=True)"
    variance = f"{given}.var((0, 2, 3), correction=0, keepdim=True)"
    return [*enumerate((mean, variance)[: layer.n_tops - 1], 1), (0, y)]


@writer("BN", dialect="pspnet")
def moving_bn(c: Code, layer: Any, x: Var) -> str:
    names = {"weight": layer.slope, "bias": layer.bias, "running_mean": layer.mean, "running_var": layer.variance}
    blobs = {name: blob.reshape(-1) for name, blob in names.items()}
    return batch_norm_module(c, x, layer.eps, True, **blobs)


@writer("MVN")
def mvn(c: Code, layer: Any, x: Var) -> str:
    flags = f"across={bool(layer.across_channels)}{'' if layer.normalize_variance else ', variance=False'}"
    given = behind(x, 4 - len(x.shape))
    return f"{c.helper('normalize_mean_variance')}({given}, {number(layer.eps)}, {flags})"


@writer("LRN")
def lrn(c: Code, layer: Any, x: Var) -> str:
    if not layer.across:
        how = f"{layer.size}, {number(layer.alpha)}, {number(layer.beta)}"
        return f"{c.helper('local_response_within')}({x}, {how})"
    reach = min(layer.size // 2, x.shape[1] - 1)  # the window has no more channels than the blob
    size = 2 * reach + 1
    alpha, beta, k = number(layer.alpha / layer.size * size), number(layer.beta), number(layer.k)
    if layer.is_in_place:
        return f"{c.helper('local_response_in_place')}({x}, {size}, {alpha}, {beta}, {k})"
    module = c.module(f"nn.LocalResponseNorm({size}, alpha={alpha}, beta={beta}, k={k})")
    return f"{module}({x})"


@writer("Normalize")
def normalize(c: Code, layer: Any, x: Var) -> str:
    scale = layer.scale.reshape(-1, *(1,) * (len(x.shape) - 2))
    how = f"{', '.join(map(str, scale.shape))}, eps={number(layer.eps)}, across={bool(layer.across)}"
    module = c.module(f"{c.helper('Normalize')}({how})", weight=scale)
    return f"{module}({x})"


@writer("Softmax")
def softmax(c: Code, layer: Any, x: Var) -> str:
    return f"torch.softmax({x}, {layer.over})"
