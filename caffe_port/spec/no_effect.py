"""Fields that change nothing here: they choose how other Caffes compute, not what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["NO_EFFECT", "without_effect"]

NO_EFFECT = {
    "quantization_param": "intel/caffe's whole-number arithmetic is not followed; layers compute in floating point",
    "engine": "intel/caffe's choice of a library",
    **dict.fromkeys(
        ("forward_type", "backward_type", "forward_math", "backward_math"),
        "NVCaffe's choice of a precision is not followed; --precision or the tensors' own choose it",
    ),
    "cudnn_math_override": "NVCaffe's choice of a cuDNN algorithm",
    **{
        f"default_{name}": "NVCaffe's choice of a precision or an algorithm is not followed"
        for name in (
            *("forward_type", "backward_type", "forward_math", "backward_math"),
            *("conv_algos_override", "cudnn_math_override"),
        )
    },
    **dict.fromkeys(
        ("global_grad_scale", "global_grad_scale_adaptive"),
        "NVCaffe's scale of 16-bit gradients, which its update takes out again",
    ),
    **dict.fromkeys(("reduce_buckets", "eltwise_mem_sharing"), "NVCaffe's way of working, not its numbers"),
    **dict.fromkeys(
        tuple(f"data_param.{name}" for name in ("threads", "parser_threads", "cache", "precache")),
        "NVCaffe's way of reading, not what it reads",
    ),
}
"""Fields of a net and its layers that are read and change nothing here, and why."""


def without_effect(definition: Any, others: Iterable[str]) -> list[str]:
    """Messages about a net's fields without effect, once each, and about the ``others``, of other layer types."""
    net = definition.net
    fields = {field.name for message in (net, *net.layer) for field, _ in message.ListFields()}
    readers = (message.data_param for message in net.layer if message.HasField("data_param"))
    fields.update(f"data_param.{field.name}" for message in readers for field, _ in message.ListFields())
    without = [f"{name} is read without effect: {why}" for name, why in NO_EFFECT.items() if name in fields]
    ignored = [f"{field} is another layer type's, ignored as in Caffe" for field in others]
    return ignored + [f"{definition.path}: {line}" for line in without]
