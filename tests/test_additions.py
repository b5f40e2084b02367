"""Layers and fields that BVLC Caffe 1.0 lacks, from source: each against a second writing of its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import caffe_port
from caffe_port.errors import CaffeError
from caffe_port.layers.yolo import thinned
from caffe_port.net import Net


def run(layer: str, *bottoms: torch.Tensor, phase: str = "TEST", **params: torch.Tensor) -> torch.Tensor:
    """The top ``y`` of one layer over these bottoms, with these parameters."""
    inputs = {f"x{i}": b for i, b in enumerate(bottoms)}
    text = "".join(
        f"input: '{name}' input_shape {{ {' '.join(f'dim: {n}' for n in b.shape)} }} " for name, b in inputs.items()
    )
    names = " ".join(f"bottom: '{name}'" for name in inputs)
    net = Net(f"{text} layer {{ name: 'l' {names} top: 'y' {layer} }}", phase=phase)
    with torch.no_grad():
        for name, value in params.items():
            getattr(net.get_submodule("l"), name).copy_(value)
        return net(**inputs)["y"]


def numbers(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(sum(shape)).standard_normal(shape)).float()


def pooled(
    x: np.ndarray, kernel: int, stride: int, pads: tuple[int, int, int, int], ceil: bool, kind: str
) -> np.ndarray:
    """Windows one by one: pads are (top, bottom, left, right); a window in the padding alone is left out."""
    (t, b, left, right), (h, w) = pads, x.shape[2:]

    def places(n: int, before: int, behind: int) -> range:
        steps = n + before + behind - kernel
        count = (-(-steps // stride) if ceil else steps // stride) + 1
        count -= any(pads) and (count - 1) * stride >= n + before
        return range(-before, count * stride - before, stride)

    rows = []
    for y in places(h, t, b):
        row = []
        for z in places(w, left, right):
            part = x[:, :, max(y, 0) : min(y + kernel, h), max(z, 0) : min(z + kernel, w)]
            area = (min(y + kernel, h + b) - y) * (min(z + kernel, w + right) - z)
            inside = part.shape[2] * part.shape[3]
            row.append(part.max((2, 3)) if kind == "MAX" else part.sum((2, 3)) / (area if kind == "AVE" else inside))
        rows.append(np.stack(row, -1))
    return np.stack(rows, 2)


@pytest.mark.parametrize("kind", ["MAX", "AVE", "AVE_EXC_PAD", "AVE_TF"])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (0, 1, 0, 1), (1, 0, 1, 1), (2, 1, 0, 2)])
@pytest.mark.parametrize("ceil", [True, False])
def test_pooling_with_a_pad_for_each_side(kind: str, pads: tuple[int, int, int, int], ceil: bool) -> None:
    x = numbers(2, 3, 7, 8)
    t, b, left, right = pads
    layer = (
        f"type: 'Pooling' pooling_param {{ pool: {kind} kernel_size: 3 stride: 2 pad_t: {t} pad_b: {b} pad_l: {left} "
        f"pad_r: {right} ceil_mode: {str(ceil).lower()} }}"
    )
    wanted = pooled(x.numpy(), 3, 2, pads, ceil, kind)
    np.testing.assert_allclose(run(layer, x), wanted, rtol=1e-5, atol=1e-6)


def test_round_mode_goes_before_ceil_mode() -> None:
    """As in the fork that has both."""
    layer = "type: 'Pooling' pooling_param { kernel_size: 2 stride: 2 ceil_mode: true round_mode: FLOOR }"
    assert run(layer, numbers(1, 1, 5, 5)).shape == (1, 1, 2, 2)


def test_average_with_equal_pads_counts_pixels() -> None:
    x = numbers(1, 20, 6, 5)
    layer = "type: 'Pooling' pooling_param { pool: AVE_EXC_PAD kernel_size: 3 stride: 1 pad: 1 }"
    np.testing.assert_allclose(run(layer, x), F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), rtol=1e-5)


@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (2, 0, 1, 3), (1, 1, 1, 1), (1, 1, 2, 2)])
@pytest.mark.parametrize("group", [1, 2])
def test_convolution_with_a_pad_for_each_side(pads: tuple[int, int, int, int], group: int) -> None:
    x, weight, bias = numbers(2, 4, 7, 8), numbers(6, 4 // group, 3, 3), numbers(6)
    left, right, top, low = pads
    layer = (
        f"type: 'Convolution' convolution_param {{ num_output: 6 kernel_size: 3 stride: 2 group: {group} pad_l: {left} "
        f"pad_r: {right} pad_t: {top} pad_b: {low} }}"
    )
    wanted = F.conv2d(F.pad(x, pads), weight, bias, 2, groups=group)
    torch.testing.assert_close(run(layer, x, weight=weight, bias=bias), wanted)


@pytest.mark.parametrize("name", ["ConvolutionDepthwise", "DepthwiseConv", "DepthwiseConvolution"])
def test_depthwise_convolution(name: str) -> None:
    x, weight, bias = numbers(2, 4, 7, 8), numbers(4, 1, 3, 3), numbers(4)
    group = "group: 4" if name == "DepthwiseConvolution" else ""
    layer = f"type: '{name}' convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 {group} }}"
    torch.testing.assert_close(run(layer, x, weight=weight, bias=bias), F.conv2d(x, weight, bias, 1, 1, groups=4))


WIDE = numbers(2, 4, 6, 8) * 5
PLAIN = [
    ("type: 'ReLU' relu_param { relu6: true }", lambda x: np.clip(x, 0, 6)),
    ("type: 'ReLU' relu_param { relu6: true negative_slope: 0.5 }", lambda x: np.minimum(np.where(x > 0, x, x / 2), 6)),
    ("type: 'ReLU6'", lambda x: np.clip(x, 0, 6)),
    ("type: 'ReLU6' relu6_param { negative_slope: 0.5 }", lambda x: np.minimum(np.where(x > 0, x, x / 2), 6)),
    ("type: 'HardSwish'", lambda x: x * np.minimum(np.maximum(x + 3, 0), 6) / 6),
    ("type: 'UpsampleDarknet' upsample_darknet_param { stride: 3 }", lambda x: np.kron(x, np.ones((3, 3)))),
    ("type: 'ShuffleChannel' shuffle_channel_param { group: 2 }", lambda x: x[:, [0, 2, 1, 3]]),
    (
        "type: 'Pad' pad_param { paddings: 0 paddings: 1 paddings: 2 paddings: 0 paddings: 0 paddings: 0 paddings: 1 "
        "paddings: 3 constant_values: 7 }",
        lambda x: np.pad(x, ((0, 1), (2, 0), (0, 0), (1, 3)), constant_values=7),
    ),
    (
        "type: 'Reshape' reshape_param { pixelshuffler: 2 }",
        lambda x: x.reshape(2, 1, 2, 2, 6, 8).transpose(0, 1, 4, 2, 5, 3).reshape(2, 1, 12, 16),
    ),
    (
        "type: 'ResizeNearestNeighbor' resize_nearest_neighbor_param { data_format: 'NCHW' output_height: 4 "
        "output_width: 20 }",
        lambda x: x[:, :, [0, 1, 3, 4]][..., [int(i * 8 / 20) for i in range(20)]],
    ),
    (
        "type: 'ResizeNearestNeighbor' resize_nearest_neighbor_param { scale_height: 2 scale_width: 0.5 }",
        lambda x: x.repeat(2, 1)[:, :, ::2],
    ),
    (
        "type: 'ResizeNearestNeighbor' resize_nearest_neighbor_param { data_format: 'NCHW' output_height: 3 "
        "output_width: 8 align_corners: true }",
        lambda x: x[:, :, [0, 3, 5]],  # 2.5 is rounded away from zero
    ),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "plain"), PLAIN, ids=[row[0][6:40] for row in PLAIN])
def test_a_function_of_one_bottom(layer: str, plain) -> None:
    np.testing.assert_allclose(run(layer, WIDE), plain(WIDE.numpy()), rtol=1e-6)


def reorg(x: np.ndarray, stride: int, reverse: bool) -> np.ndarray:
    """reorg_layer.hpp's loops, index by index."""
    n, c, h, w = x.shape
    flat, out = x.ravel(), np.empty(x.size, x.dtype)
    few, wide, high = c // stride**2, w * stride, h * stride
    for b, k, j, i in np.ndindex(n, c, h, w):
        here = i + w * (j + h * (k + c * b))
        offset, channel = divmod(k, few)
        there = i * stride + offset % stride + wide * (j * stride + offset // stride + high * (channel + few * b))
        if reverse:
            out[there] = flat[here]
        else:
            out[here] = flat[there]
    return out.reshape((n, few, high, wide) if reverse else (n, c * stride**2, h // stride, w // stride))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 6, 8), (1, 12, 2, 4)])
def test_reorg(reverse: bool, shape: tuple[int, ...]) -> None:
    x = numbers(*shape)
    layer = f"type: 'Reorg' reorg_param {{ stride: 2 reverse: {str(reverse).lower()} }}"
    np.testing.assert_array_equal(run(layer, x), reorg(x.numpy(), 2, reverse))


def test_axpy_and_mul_and_squeeze() -> None:
    scale, x, y = numbers(2, 3, 1, 1), numbers(2, 3, 4, 5), numbers(2, 3, 5, 4).view(2, 3, 4, 5)
    torch.testing.assert_close(run("type: 'Axpy'", scale, x, y), scale * x + y)
    torch.testing.assert_close(run("type: 'Mul'", x, scale), x * scale)
    torch.testing.assert_close(run("type: 'Mul'", numbers(4, 1), numbers(2, 1, 5)), numbers(4, 1) * numbers(2, 1, 5))
    weight = numbers(3, 1, 5)
    torch.testing.assert_close(
        run("type: 'Mul' mul_param { mul_shape: 3 mul_shape: 1 mul_shape: 5 }", x, weight=weight), x * weight
    )
    assert run("type: 'Squeeze'", scale).shape == (2, 3)
    assert run("type: 'Squeeze' squeeze_param { axis: -1 }", scale).shape == (2, 3, 1)


def test_batch_norm_with_a_scale_and_a_shift() -> None:
    """NVCaffe's: two passes replace the statistics, then they fade; eps is in the variance that is kept."""
    x = numbers(4, 3, 5, 2)
    text = (
        "input: 'x' input_shape { dim: 4 dim: 3 dim: 5 dim: 2 } layer { name: 'l' type: 'BatchNorm' bottom: 'x' "
        "top: 'y' batch_norm_param { scale_bias: true moving_average_fraction: 0.5 eps: 0.01 } }"
    )
    net = Net(text, phase="TRAIN")
    layer = net.get_submodule("l")
    assert list(layer.blob_shapes) == ["mean", "variance", "scale_factor", "scale", "shift"]
    assert layer.scale.tolist() == [1] * 3
    with torch.no_grad():
        layer.scale.copy_(torch.tensor([1.0, 2, 3]))
        layer.shift.copy_(torch.tensor([0.0, -1, 1]))
        for factor in (3, 1, 2):
            y = net(x=x * factor)["y"]
    over = (1, 3, 1, 1)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    wanted = (2 * x - 2 * mean.view(over)) / (4 * variance.view(over) + 0.01).sqrt()
    torch.testing.assert_close(y, wanted * layer.scale.view(over) + layer.shift.view(over), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.mean, 0.5 * mean + 0.5 * 2 * mean)
    torch.testing.assert_close(layer.variance, 0.5 * (variance + 0.01) + 0.5 * (4 * variance + 0.01))


def test_batch_norm_with_eps_outside_the_root() -> None:
    x, mean, variance = numbers(2, 3, 4), numbers(3), numbers(3).abs()
    layer = "type: 'BatchNorm' batch_norm_param { add_eps_before_sqrt: false eps: 0.1 }"
    ours = run(layer, x, mean=mean, variance=variance, scale_factor=torch.ones(1))
    torch.testing.assert_close(ours, (x - mean.view(3, 1)) / (variance.sqrt().view(3, 1) + 0.1))
    with pytest.raises(CaffeError, match="by the statistics of a batch"):
        run(layer, x, phase="TRAIN")


def test_yolo_3() -> None:
    """Two boxes of which one, of two classes, hides the other; worked by hand."""
    x = torch.full((1, 14, 2, 2), -20.0)
    for box, (cx, cy, w, h) in enumerate(((0.5, 0.5, 8, 8), (0.5, 0.5, 9, 9))):
        at = x[0, 7 * box :, 0, 1]
        at[:2] = torch.tensor([cx, cy]).logit()
        at[2:4] = torch.tensor([w / 10, h / 20]).log()
        at[4:7] = torch.tensor([0.5, 0.8, 0.2 + 0.4 * box]).logit()
    layer = (
        "type: 'Yolov3DetectionOutput' yolov3_detection_output_param { num_classes: 2 num_box: 2 mask_group_num: 1 "
        "anchors_scale: 16 mask: 1 mask: 1 biases: 1 biases: 2 biases: 10 biases: 20 confidence_threshold: %s }"
    )
    half = 9 / 32 / 2
    wanted = [[0, 1, 0.4, 0.75 - 4 / 32, 0.25 - 4 / 32, 0.75 + 4 / 32, 0.25 + 4 / 32]]
    torch.testing.assert_close(run(layer % 0.35, x), torch.tensor([[wanted]]))
    apart = run(layer.replace("num_classes: 2", "num_classes: 2 nms_threshold: 0.9") % 0.35, x)
    assert apart.shape == (1, 1, 2, 7)
    torch.testing.assert_close(apart[0, 0, 1, 3:], torch.tensor([0.75 - half, 0.25 - half, 0.75 + half, 0.25 + half]))
    assert run(layer % 0.9, x).tolist() == [[[[0, *[-1] * 6]]]]


def test_yolo_2() -> None:
    x = torch.full((1, 14, 2, 2), -20.0)
    at = x[0, 7:, 1, 0]
    at[:7] = torch.tensor([0, 0, 0, 0, 0, 1, 3.0])
    layer = (
        "type: 'YoloDetectionOutput' yolo_detection_output_param { num_classes: 2 num_box: 2 biases: 1 biases: 2 "
        "biases: 0.5 biases: 0.4 confidence_threshold: 0.3 }"
    )
    score = 0.5 / (1 + np.exp(-2))
    wanted = [0, 2, score, 0.25 - 0.125, 0.75 - 0.1, 0.25 + 0.125, 0.75 + 0.1]
    torch.testing.assert_close(run(layer, x), torch.tensor([[[wanted]]], dtype=torch.float32))


@pytest.mark.parametrize("overlap", [0.1, 0.45, 0.9])
@pytest.mark.parametrize("count", [0, 1, 128, 129, 700])
def test_yolo_thins_boxes_one_after_the_other(count: int, overlap: float) -> None:
    """In blocks, so that as many boxes as an untrained net finds need no table of all pairs."""
    boxes = torch.rand(count, 4)
    kept: list[int] = []
    for i, (x, y, w, h) in enumerate(boxes.tolist()):
        for j in kept:
            a, b, c, d = boxes[j].tolist()
            across, down = (
                min(p + s / 2, q + t / 2) - max(p - s / 2, q - t / 2) for p, s, q, t in ((x, w, a, c), (y, h, b, d))
            )
            inside = across * down if across > 0 and down > 0 else 0
            if inside / (w * h + c * d - inside) >= overlap:
                break
        else:
            kept.append(i)
    assert thinned(boxes, overlap).tolist() == kept


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("type: 'Pooling' pooling_param { kernel_size: 3 pad: 1 pad_l: 1 }", "both pad and pad_l"),
        ("type: 'Pooling' pooling_param { kernel_size: 3 pad_h: 1 pad_w: 1 pad_l: 1 }", "expected one form"),
        ("type: 'Convolution' convolution_param { num_output: 4 kernel_size: 3 pad_l: -1 }", "expected 0 or more"),
        ("type: 'Deconvolution' convolution_param { num_output: 4 kernel_size: 3 pad_l: 1 }", "expected equal ones"),
        ("type: 'DepthwiseConvolution' convolution_param { num_output: 4 kernel_size: 3 }", "expected group: 4"),
        ("type: 'ConvolutionDepthwise' convolution_param { num_output: 4 kernel_size: 3 group: 2 }", "found group 2"),
        ("type: 'Squeeze' squeeze_param { axis: 1 }", "expected axes of length 1"),
        ("type: 'Pad' pad_param { paddings: 1 }", "expected 2 for each of 4 axes"),
        ("type: 'ShuffleChannel' shuffle_channel_param { group: 3 }", "a multiple of 3 channels"),
        ("type: 'Reorg' reorg_param { stride: 4 }", "multiples of 4 pixels"),
        ("type: 'Reshape' reshape_param { pixelshuffler: 3 }", "a multiple of 9 channels"),
        ("type: 'YoloDetectionOutput'", "expected 10: 2 for each of num_box"),
        ("type: 'Yolov3DetectionOutput'", "mask_group_num 2 for 1 bottoms"),
    ],
)
def test_wrong_definitions(layer: str, says: str) -> None:
    with pytest.raises(CaffeError, match=says):
        run(layer, WIDE)


@pytest.mark.parametrize(
    "type_name", ["Squeeze", "Pad", "ShuffleChannel", "Reorg", "UpsampleDarknet", "ResizeNearestNeighbor"]
)
def test_layers_that_move_values_do_not_work_in_place(type_name: str) -> None:
    """Their forks' code reads bottoms after it has written tops."""
    with pytest.raises(CaffeError, match="expected another name: the layer does not work in place"):
        Net(
            "layer { name: 'y' type: 'Input' top: 'y' input_param { shape { dim: [1, 4, 2, 2] } } }"
            f" layer {{ name: 'l' type: '{type_name}' bottom: 'y' top: 'y' }}"
        )


def test_fields_without_effect_are_logged_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = "layer {{ name: '{0}' type: 'ReLU' bottom: 'x' top: '{0}' quantization_param {{ bw_layer_in: 8 }} }} "
    monkeypatch.setenv("GLOG_minloglevel", "0")
    caffe_port.Net("input: 'x' input_shape { dim: 1 }" + layer.format("a") + layer.format("b"))
    logged = [line for line in capsys.readouterr().err.split("\n") if "quantization_param" in line]
    assert len(logged) == 1
    assert "is read without effect: intel/caffe's whole-number arithmetic is not followed" in logged[0]


@pytest.mark.parametrize(
    "field",
    ["engine: 'MKLDNN'", "default_forward_type: FLOAT16", "global_grad_scale: 8", "reduce_buckets: 3"],
)
def test_a_nets_own_fields_without_effect_are_logged(
    field: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOG_minloglevel", "0")
    caffe_port.Net(
        f"{field} input: 'x' input_shape {{ dim: 1 }} layer {{ name: 'r' type: 'ReLU' bottom: 'x' top: 'y' }}"
    )
    assert f"{field.split(':')[0]} is read without effect" in capsys.readouterr().err
