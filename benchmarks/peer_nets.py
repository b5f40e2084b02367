"""Ordinary nets for benchmarks/peers.py: their definitions and seeded weights.

Sources: LeNet (LeCun et al. 1998), CaffeNet (Krizhevsky et al. 2012), VGG-16 (Simonyan and Zisserman 2014, table 1 D),
GoogLeNet (Szegedy et al. 2014, table 1), ResNet-50 (He et al. 2015, table 1), SqueezeNet 1.0 (Iandola et al. 2016,
table 1), MobileNet (Howard et al. 2017, table 1), MobileNet v2 (Sandler et al. 2018, table 2), MTCNN (Zhang et al.
2016, figure 2), FCN-8s (Long et al. 2015, the definition with pad 100).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

__all__ = ["NETS", "SMALL", "definition", "draw", "pictures"]


class _Text:
    """A definition in the making; each method adds a layer and returns its top."""

    def __init__(self, name: str, *shape: int) -> None:
        dims = " ".join(f"dim: {n}" for n in shape)
        self.lines = [
            f'name: "{name}"',
            f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}',
        ]

    def add(self, kind: str, name: str, bottoms: str | list[str], body: str = "", *, top: str = "") -> str:
        bottoms, top = [bottoms] if isinstance(bottoms, str) else bottoms, top or name
        links = "".join(f' bottom: "{b}"' for b in bottoms)
        self.lines.append(f'layer {{ name: "{name}" type: "{kind}"{links} top: "{top}" {body} }}')
        return top

    def relu(self, x: str, kind: str = "ReLU") -> str:
        return self.add(kind, f"{x}_relu", x, top=x)

    def conv(self, name: str, x: str, out: int, kernel: int, stride: int = 1, pad: int = 0, group: int = 1) -> str:
        """A convolution and its ReLU."""
        return self.relu(self.linear(name, x, out, kernel, stride, pad, group))

    def linear(
        self, name: str, x: str, out: int, kernel: int, stride: int = 1, pad: int = 0, group: int = 1, bias: bool = True
    ) -> str:
        body = f"num_output: {out} kernel_size: {kernel} stride: {stride} pad: {pad} group: {group}"
        body += "" if bias else " bias_term: false"
        return self.add("Convolution", name, x, f"convolution_param {{ {body} }}")

    def normed(
        self, name: str, x: str, out: int, kernel: int, stride: int = 1, group: int = 1, *, relu: bool = True
    ) -> str:
        """A convolution with BatchNorm and Scale, in place, and its ReLU."""
        y = self.linear(name, x, out, kernel, stride, kernel // 2, group, bias=False)
        self.add("BatchNorm", f"{name}_bn", y, "batch_norm_param { use_global_stats: true eps: 1e-5 }", top=y)
        self.add("Scale", f"{name}_scale", y, "scale_param { bias_term: true }", top=y)
        return self.relu(y) if relu else y

    def pool(self, name: str, x: str, kernel: int, stride: int, pad: int = 0, how: str = "MAX") -> str:
        body = f"pool: {how} kernel_size: {kernel} stride: {stride} pad: {pad}"
        return self.add("Pooling", name, x, f"pooling_param {{ {body} }}")

    def mean(self, name: str, x: str) -> str:
        return self.add("Pooling", name, x, "pooling_param { pool: AVE global_pooling: true }")

    def up(self, name: str, x: str, out: int, kernel: int, stride: int) -> str:
        body = f"num_output: {out} kernel_size: {kernel} stride: {stride} bias_term: false"
        return self.add("Deconvolution", name, x, f"convolution_param {{ {body} }}")

    def crop(self, name: str, x: str, like: str, offset: int) -> str:
        return self.add("Crop", name, [x, like], f"crop_param {{ axis: 2 offset: {offset} }}")

    def lrn(self, name: str, x: str) -> str:
        return self.add("LRN", name, x, "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")

    def dense(self, name: str, x: str, out: int) -> str:
        return self.add("InnerProduct", name, x, f"inner_product_param {{ num_output: {out} }}")

    def dropped(self, name: str, x: str, out: int) -> str:
        """A fully-connected layer, its ReLU, and a Dropout."""
        y = self.relu(self.dense(name, x, out))
        return self.add("Dropout", f"{name}_drop", y, "dropout_param { dropout_ratio: 0.5 }", top=y)

    def softmax(self, x: str) -> _Text:
        self.add("Softmax", "prob", x)
        return self


def lenet(batch: int) -> _Text:
    t = _Text("LeNet", batch, 1, 28, 28)
    x = t.pool("pool1", t.linear("conv1", "data", 20, 5), 2, 2)
    x = t.pool("pool2", t.linear("conv2", x, 50, 5), 2, 2)
    return t.softmax(t.dense("ip2", t.relu(t.dense("ip1", x, 500)), 10))


def caffenet(batch: int) -> _Text:
    t = _Text("CaffeNet", batch, 3, 227, 227)
    x = t.lrn("norm1", t.pool("pool1", t.conv("conv1", "data", 96, 11, 4), 3, 2))
    x = t.lrn("norm2", t.pool("pool2", t.conv("conv2", x, 256, 5, 1, 2, 2), 3, 2))
    x = t.conv("conv4", t.conv("conv3", x, 384, 3, 1, 1), 384, 3, 1, 1, 2)
    x = t.pool("pool5", t.conv("conv5", x, 256, 3, 1, 1, 2), 3, 2)
    return t.softmax(t.dense("fc8", t.dropped("fc7", t.dropped("fc6", x, 4096), 4096), 1000))


def _vgg(t: _Text, *, first_pad: int, pools: dict[int, str]) -> str:
    x = "data"
    for i, (out, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
        for j in range(1, count + 1):
            x = t.conv(f"conv{i}_{j}", x, out, 3, 1, first_pad if i == j == 1 else 1)
        x = pools[i] = t.pool(f"pool{i}", x, 2, 2)
    return x


def vgg16(batch: int) -> _Text:
    t = _Text("VGG-16", batch, 3, 224, 224)
    x = _vgg(t, first_pad=1, pools={})
    return t.softmax(t.dense("fc8", t.dropped("fc7", t.dropped("fc6", x, 4096), 4096), 1000))


INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Outputs: 1x1, 3x3's reduction, 3x3, 5x5's reduction, 5x5, the pooling's projection."""


def googlenet(batch: int) -> _Text:
    t = _Text("GoogLeNet", batch, 3, 224, 224)
    x = t.lrn("norm1", t.pool("pool1", t.conv("conv1", "data", 64, 7, 2, 3), 3, 2))
    x = t.lrn("norm2", t.conv("conv2", t.conv("conv2_reduce", x, 64, 1), 192, 3, 1, 1))
    x = t.pool("pool2", x, 3, 2)
    for name, (one, reduce3, three, reduce5, five, projection) in INCEPTIONS.items():
        parts = [
            t.conv(f"{name}_1", x, one, 1),
            t.conv(f"{name}_3", t.conv(f"{name}_3r", x, reduce3, 1), three, 3, 1, 1),
            t.conv(f"{name}_5", t.conv(f"{name}_5r", x, reduce5, 1), five, 5, 1, 2),
            t.conv(f"{name}_p", t.pool(f"{name}_pool", x, 3, 1, 1), projection, 1),
        ]
        x = t.add("Concat", f"{name}_out", parts)
        x = t.pool(f"pool{name[0]}", x, 3, 2) if name in ("3b", "4e") else x
    x = t.pool("pool5", x, 7, 1, how="AVE")
    t.add("Dropout", "drop5", x, "dropout_param { dropout_ratio: 0.4 }", top=x)
    return t.softmax(t.dense("fc", x, 1000))


def resnet50(batch: int) -> _Text:
    t = _Text("ResNet-50", batch, 3, 224, 224)
    x = t.pool("pool1", t.normed("conv1", "data", 64, 7, 2), 3, 2)
    for stage, (width, count) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 2):
        for i in range(count):
            name, stride = f"res{stage}{'abcdef'[i]}", 2 if i == 0 and stage > 2 else 1
            y = t.normed(f"{name}_1", x, width, 1, stride)
            y = t.normed(f"{name}_3", t.normed(f"{name}_2", y, width, 3), 4 * width, 1, relu=False)
            x = t.normed(f"{name}_0", x, 4 * width, 1, stride, relu=False) if i == 0 else x
            x = t.relu(t.add("Eltwise", name, [x, y]))
    return t.softmax(t.dense("fc", t.pool("pool5", x, 7, 1, how="AVE"), 1000))


def squeezenet(batch: int) -> _Text:
    t = _Text("SqueezeNet", batch, 3, 227, 227)
    x = t.pool("pool1", t.conv("conv1", "data", 96, 7, 2), 3, 2)
    for i, (squeeze, expand) in enumerate(
        [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)], 2
    ):
        y = t.conv(f"fire{i}_s", x, squeeze, 1)
        x = t.add("Concat", f"fire{i}", [t.conv(f"fire{i}_1", y, expand, 1), t.conv(f"fire{i}_3", y, expand, 3, 1, 1)])
        x = t.pool(f"pool{i}", x, 3, 2) if i in (4, 8) else x
    t.add("Dropout", "drop9", x, "dropout_param { dropout_ratio: 0.5 }", top=x)
    return t.softmax(t.mean("pool10", t.conv("conv10", x, 1000, 1)))


def mobilenet(batch: int) -> _Text:
    t = _Text("MobileNet", batch, 3, 224, 224)
    x, channels = t.normed("conv1", "data", 32, 3, 2), 32
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for i, (out, stride) in enumerate(plan, 2):
        x = t.normed(f"conv{i}", t.normed(f"conv{i}_dw", x, channels, 3, stride, channels), out, 1)
        channels = out
    return t.softmax(t.linear("fc", t.mean("pool", x), 1000, 1))


def mobilenet2(batch: int) -> _Text:
    t = _Text("MobileNet v2", batch, 3, 224, 224)
    x, channels, i = t.normed("conv1", "data", 32, 3, 2), 32, 1
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for wider, out, count, first in plan:
        for j in range(count):
            i, stride, wide = i + 1, first if j == 0 else 1, wider * channels
            y = x if wider == 1 else t.normed(f"conv{i}_in", x, wide, 1)
            y = t.normed(f"conv{i}", t.normed(f"conv{i}_dw", y, wide, 3, stride, wide), out, 1, relu=False)
            x = t.add("Eltwise", f"block{i}", [x, y]) if j else y
            channels = out
    return t.softmax(t.linear("fc", t.mean("pool", t.normed("last", x, 1280, 1)), 1000, 1))


def _mtcnn(t: _Text, convolutions: list[tuple[int, int, int]], dense: int, tops: tuple[int, ...]) -> _Text:
    """Convolutions (outputs, kernel, the pooling's kernel behind it or 0), a dense layer, and the heads."""
    x = "data"
    for i, (out, kernel, pooled) in enumerate(convolutions, 1):
        x = t.relu(t.linear(f"conv{i}", x, out, kernel), "PReLU")
        x = t.pool(f"pool{i}", x, pooled, 2) if pooled else x
    x = t.relu(t.dense("dense", x, dense), "PReLU") if dense else x
    heads = [t.dense(f"head{n}", x, n) if dense else t.linear(f"head{n}", x, n, 1) for n in tops]
    return t.softmax(heads[0])


def pnet(batch: int) -> _Text:
    return _mtcnn(_Text("P-Net", batch, 3, 12, 12), [(10, 3, 2), (16, 3, 0), (32, 3, 0)], 0, (2, 4))


def rnet(batch: int) -> _Text:
    return _mtcnn(_Text("R-Net", batch, 3, 24, 24), [(28, 3, 3), (48, 3, 3), (64, 2, 0)], 128, (2, 4))


def onet(batch: int) -> _Text:
    return _mtcnn(_Text("O-Net", batch, 3, 48, 48), [(32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)], 256, (2, 4, 10))


def fcn8s(batch: int) -> _Text:
    """At 320x320, so that ten pictures fit into the memory of a small machine."""
    t, pool = _Text("FCN-8s", batch, 3, 320, 320), {}
    x = _vgg(t, first_pad=100, pools=pool)
    for name, kernel in (("fc6", 7), ("fc7", 1)):
        x = t.conv(name, x, 4096, kernel)
        t.add("Dropout", f"{name}_drop", x, "dropout_param { dropout_ratio: 0.5 }", top=x)
    x = t.linear("score_fr", x, 21, 1)
    for level, offset in ((4, 5), (3, 9)):
        up = t.up(f"upscore{level}", x, 21, 4, 2)
        score = t.linear(f"score_pool{level}", pool[level], 21, 1)
        x = t.add("Eltwise", f"fuse{level}", [up, t.crop(f"score{level}c", score, up, offset)])
    t.crop("score", t.up("upscore8", x, 21, 16, 8), "data", 31)
    return t


NETS: dict[str, Callable[[int], _Text]] = {
    "LeNet": lenet,
    "P-Net": pnet,
    "R-Net": rnet,
    "O-Net": onet,
    "CaffeNet": caffenet,
    "GoogLeNet": googlenet,
    "SqueezeNet": squeezenet,
    "MobileNet": mobilenet,
    "MobileNet-v2": mobilenet2,
    "ResNet-50": resnet50,
    "VGG-16": vgg16,
    "FCN-8s": fcn8s,
}
SMALL = ("LeNet", "P-Net", "R-Net", "O-Net")


def definition(name: str, batch: int) -> str:
    """The prototxt of a net for a batch of that many pictures."""
    return "\n".join(NETS[name](batch).lines) + "\n"


def draw(net: Any) -> None:
    """Weights by layer and blob names: of about unit gain; what a softmax reads is at most about 4."""
    import numpy as np
    import torch

    types = {node.name: node.type for node, _ in net.nodes}
    for layer, blobs in net.params.items():
        kind = types[layer]
        for i, blob in enumerate(blobs):
            random = np.random.RandomState(zlib.crc32(f"{layer}/{i}".encode()))
            numbers = random.standard_normal(blob.shape)
            if kind == "BatchNorm":
                numbers = [0.1 * numbers, np.exp(0.2 * numbers), np.ones(blob.shape)][i]
            elif i == 0 and kind in ("Scale", "PReLU"):
                numbers = (1 if kind == "Scale" else 0.25) + 0.1 * numbers
            elif i == 0:
                numbers *= np.sqrt(2 / np.prod(blob.shape[1:]))
            else:
                numbers *= 0.05
            blob.data[...] = numbers
    for node, _ in net.nodes:
        if node.type == "Softmax":
            (read,) = at = node.bottoms
            while (makers := [n for n, _ in net.nodes if at[0] in n.tops])[0].name not in net.params:
                at = makers[0].bottoms
            with torch.no_grad():
                out = net(data=pictures(net.shapes["data"]), blobs=[read])[read]
                net.params[makers[0].name][0].data[...] *= 4 / float(out.abs().max())


def pictures(shape: tuple[int, ...]) -> Any:
    """A batch of that shape, values as of pictures less their mean."""
    import torch

    return torch.randint(-110, 140, shape, generator=torch.Generator().manual_seed(1)).float()
