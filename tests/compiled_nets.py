"""Nets of layers that the compiled kernels have, as prototxt."""

from __future__ import annotations


def layer(kind: str, name: str, bottoms: str, body: str = "", top: str = "") -> str:
    """``bottoms`` by blanks; a top of its own unless given."""
    links = "".join(f"bottom: '{b}' " for b in bottoms.split())
    tops = "".join(f"top: '{t}' " for t in (top or name).split())
    return f"layer {{ name: '{name}' type: '{kind}' {links} {tops} {body} }}\n"


def conv(name: str, bottom: str, body: str, top: str = "") -> str:
    return layer("Convolution", name, bottom, f"convolution_param {{ {body} bias_filler {{ type: 'gaussian' }} }}", top)


def pool(name: str, bottom: str, body: str) -> str:
    return layer("Pooling", name, bottom, f"pooling_param {{ {body} }}")


def unpool(name: str, bottoms: str, body: str) -> str:
    return layer("Unpooling", name, bottoms, f"unpooling_param {{ unpool: MAX {body} }}")


def inputs(*shapes: tuple[int, ...]) -> str:
    text = ""
    for i, shape in enumerate(shapes):
        dims = " ".join(f"dim: {n}" for n in shape)
        text += f"layer {{ name: 'x{i}' type: 'Input' top: 'x{i}' input_param {{ shape {{ {dims} }} }} }}\n"
    return text


def relu(x: str, body: str = "", kind: str = "ReLU") -> str:
    return layer(kind, f"{x}_act", x, body, x)


def normed(x: str) -> str:
    return layer("BatchNorm", f"{x}_bn", x, top=x) + layer("Scale", f"{x}_s", x, "scale_param { bias_term: true }", x)


IMAGE = (2, 5, 13, 11)
LINEAR = "convolution_param { num_output: 7 kernel_size: 3 bias_term: false weight_filler { type: 'gaussian' } }"
LRN = "lrn_param { local_size: 5 alpha: 0.5 beta: 0.75 k: 2 }"
NETS = {
    "direct": inputs(IMAGE) + conv("a", "x0", "num_output: 37 kernel_size: 3 pad: 1 stride: 2") + relu("a"),
    "kernels": inputs(IMAGE)
    + conv("a", "x0", "num_output: 7 kernel_h: 5 kernel_w: 2 pad_h: 4 pad_w: 0 stride_h: 1 stride_w: 3 dilation: 2"),
    "many inputs": inputs((1, 300, 6, 5)) + conv("a", "x0", "num_output: 40 kernel_size: 3 pad: 1"),
    "groups": inputs((2, 12, 9, 9)) + conv("a", "x0", "num_output: 48 kernel_size: 3 pad: 2 group: 3 dilation: 2"),
    "depthwise": inputs((2, 37, 9, 8))
    + conv("a", "x0", "num_output: 37 kernel_size: 3 pad: 1 group: 37 stride: 2")
    + normed("a")
    + relu("a"),
    "depthwise with holes": inputs((2, 40, 9, 11))
    + conv("a", "x0", "num_output: 40 kernel_size: 3 pad_h: 1 pad_w: 3 group: 40 dilation: 2 stride_h: 1 stride_w: 2")
    + relu("a"),
    "narrow depthwise": inputs((2, 16, 4, 2)) + conv("a", "x0", "num_output: 16 kernel_size: 3 pad: 1 group: 16"),
    "pointwise": inputs((2, 19, 5, 6))
    + conv("a", "x0", "num_output: 50 kernel_size: 1 stride: 2")
    + conv("b", "x0", "num_output: 12 kernel_size: 1 pad: 1"),
    "depthwise in long rows": inputs((1, 33, 3, 140))
    + conv("a", "x0", "num_output: 33 kernel_size: 3 pad_h: 1 pad_w: 2 group: 33"),
    "wide depthwise": inputs((1, 70, 9, 8)) + conv("a", "x0", "num_output: 70 kernel_size: 5 pad: 4 group: 70"),
    "winograd": inputs((2, 32, 18, 19)) + conv("a", "x0", "num_output: 48 kernel_size: 3 pad: 1") + relu("a"),
    "winograd in groups": inputs((1, 64, 18, 19))
    + conv("a", "x0", "num_output: 96 kernel_size: 3 pad: 1 group: 2")
    + relu("a", kind="PReLU"),
    "slopes": inputs(IMAGE)
    + conv("a", "x0", "num_output: 20 kernel_size: 3")
    + relu("a", "relu_param { negative_slope: 0.3 }")
    + conv("b", "a", "num_output: 35 kernel_size: 1")
    + relu("b", "prelu_param { channel_shared: true }", "PReLU"),
    "deconvolution": inputs(IMAGE)
    + layer("Deconvolution", "a", "x0", "convolution_param { num_output: 6 kernel_size: 3 pad: 1 }")
    + relu("a"),
    "pooling": inputs(IMAGE)
    + pool("a", "x0", "kernel_size: 3 stride: 2")
    + pool("b", "x0", "pool: AVE kernel_size: 3 stride: 2 pad: 1")
    + pool("c", "x0", "pool: AVE global_pooling: true")
    + pool("d", "x0", "kernel_h: 2 kernel_w: 4 stride: 3 pad_h: 1 pad_w: 3"),
    "pooling of many": inputs((1, 70, 9, 8))
    + pool("a", "x0", "kernel_size: 3 stride: 1 pad: 1")
    + pool("b", "a", "pool: AVE kernel_size: 3 stride: 2"),
    "few outputs of many pixels": inputs((1, 16, 110, 100))
    + conv("a", "x0", "num_output: 3 kernel_size: 5")
    + relu("a")
    + conv("b", "a", "num_output: 40 kernel_size: 1"),
    "few outputs": inputs((2, 8, 13, 20))
    + conv("a", "x0", "num_output: 8 kernel_size: 3 pad: 1")
    + relu("a")
    + conv("b", "a", "num_output: 16 kernel_h: 3 kernel_w: 2 pad_h: 2 pad_w: 3 stride_h: 2 stride_w: 3")
    + relu("b", kind="PReLU")
    + conv("c", "b", "num_output: 3 kernel_size: 2")
    + conv("d", "x0", "num_output: 18 kernel_size: 3 group: 2 pad: 1"),
    "few outputs, rows apart": inputs((1, 6, 14, 9))
    + conv("a", "x0", "num_output: 11 kernel_h: 3 kernel_w: 1 pad_h: 2 pad_w: 0 dilation: 2 dilation: 1")
    + layer("Concat", "b", "a x0")
    + conv("c", "b", "num_output: 5 kernel_size: 3 pad: 1"),
    "few outputs of long rows": inputs((1, 4, 3, 9000)) + conv("a", "x0", "num_output: 4 kernel_size: 3 pad: 1"),
    "switches": inputs((2, 27, 13, 10))
    + layer("Pooling", "a", "x0", "pooling_param { kernel_size: 2 stride: 2 }", "a at")
    + conv("b", "a", "num_output: 27 kernel_size: 1")
    + layer(
        "Unpooling", "c", "b at", "unpooling_param { unpool: MAX kernel_size: 2 stride: 2 unpool_h: 13 unpool_w: 10 }"
    )
    + layer("Concat", "d", "c x0")
    + layer("Pooling", "e", "d", "pooling_param { kernel_size: 3 stride: 2 pad: 1 }", "e place"),
    "switches of other windows": inputs((1, 9, 8, 6))
    + layer("Pooling", "a", "x0", "pooling_param { kernel_size: 2 stride: 2 }", "a at")
    + layer(
        "Unpooling", "b", "a at", "unpooling_param { unpool: MAX kernel_size: 2 stride: 3 unpool_h: 8 unpool_w: 6 }"
    )
    + layer(
        "Unpooling", "c", "a at", "unpooling_param { unpool: MAX kernel_size: 2 stride: 2 unpool_h: 12 unpool_w: 5 }"
    ),
    "lrn": inputs((2, 21, 5, 4)) + layer("LRN", "a", "x0", LRN),
    "dense": inputs((3, 4, 5, 2))
    + layer("InnerProduct", "a", "x0", "inner_product_param { num_output: 33 }")
    + relu("a")
    + layer("Dropout", "drop", "a", top="a")
    + layer("InnerProduct", "b", "a", "inner_product_param { num_output: 7 transpose: true }")
    + layer("Softmax", "p", "b"),
    "large dense": inputs((2, 40, 7, 7))
    + layer("InnerProduct", "a", "x0", "inner_product_param { num_output: 130 }")
    + relu("a", kind="PReLU")
    + layer("InnerProduct", "b", "a", "inner_product_param { num_output: 600 transpose: true }")
    + relu("b"),
    "many rows": inputs((60, 40, 7, 7)) + layer("InnerProduct", "a", "x0", "inner_product_param { num_output: 130 }"),
    "few windows": inputs((2, 512, 4, 4)) + conv("a", "x0", "num_output: 1024 kernel_size: 3") + relu("a"),
    "branches": inputs((2, 16, 9, 9))
    + layer("Split", "split", "x0", top="s t u")
    + conv("a", "s", "num_output: 20 kernel_size: 1")
    + relu("a")
    + conv("b", "t", "num_output: 40 kernel_size: 3 pad: 1")
    + pool("c", "u", "kernel_size: 3 stride: 1 pad: 1")
    + layer("Concat", "d", "a b c")
    + conv("e", "d", "num_output: 9 kernel_size: 1")
    + layer("Concat", "f", "e d a")
    + layer("Softmax", "g", "f"),
    "residuals": inputs((2, 16, 9, 9), (2, 16, 9, 9))
    + conv("a", "x0", "num_output: 16 kernel_size: 3 pad: 1")
    + normed("a")
    + layer("Eltwise", "b", "x1 a x0", "eltwise_param { coeff: 0.5 coeff: -1 coeff: 2 }")
    + relu("b")
    + layer("Eltwise", "c", "b a"),
    "the same twice": inputs(IMAGE)
    + conv("a", "x0", "num_output: 8 kernel_size: 3")
    + layer("Concat", "b", "a a")
    + layer("Eltwise", "c", "b b"),
    "alone": inputs((2, 7, 3, 4))
    + layer("BatchNorm", "a", "x0")
    + layer("Scale", "b", "a", "scale_param { bias_term: true }")
    + relu("b")
    + layer("ReLU", "c", "b", "relu_param { negative_slope: -0.5 }")
    + layer("PReLU", "d", "x0"),
    "vectors": inputs((4, 6), (4, 6))
    + layer("Eltwise", "a", "x0 x1")
    + layer("Concat", "b", "a x1")
    + layer("InnerProduct", "c", "b", "inner_product_param { num_output: 5 }")
    + layer("Softmax", "d", "c"),
    "flat": inputs((2, 3, 4, 5))
    + layer("Flatten", "a", "x0")
    + pool("b", "x0", "pool: AVE global_pooling: true")
    + layer("Flatten", "c", "b")
    + layer("Concat", "d", "a c"),
    "a layer between": inputs(IMAGE)
    + conv("a", "x0", "num_output: 8 kernel_size: 3")
    + layer("TanH", "t", "a")
    + conv("b", "t", "num_output: 9 kernel_size: 3")
    + relu("b")
    + layer("Eltwise", "c", "b b", "eltwise_param { operation: PROD }"),
    "what only a refused layer reads": inputs((2, 8, 9, 8), (2, 9, 9, 8))
    + layer("TanH", "t", "x1")
    + conv("b", "x0", "num_output: 9 kernel_size: 1")
    + layer("Eltwise", "c", "b t", "eltwise_param { operation: PROD }"),
}
