"""SegNet's fork: batches and dropout of the original program, shapes from its files, and wrong definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data_runs import passes
from reference import SHARED, needs_shared

import caffe_port
from caffe_port.dialects import SEGNET
from caffe_port.errors import CaffeError
from caffe_port.net import Net
from caffe_port.random import set_random_seed
from caffe_port.schema import read_net, schema_of

DATA = SHARED / "reference" / "segnet_data"
MANIFEST = json.loads((DATA / "manifest.json").read_text()) if DATA.is_dir() else {"nets": {"dense_plain": ["TRAIN"]}}
RUNS = [(name, phase) for name, phases in MANIFEST["nets"].items() for phase in phases]


@needs_shared("reference/segnet_data")
@pytest.mark.parametrize(("name", "phase"), RUNS)
def test_batches_are_the_forks(name: str, phase: str) -> None:
    """Equal to the last bit, dropout's masks included."""
    set_random_seed(MANIFEST["seed"])
    net = Net(DATA / f"{name}.prototxt", phase=phase, dialect="segnet")
    with np.load(DATA / "batches.npz") as theirs:
        wrong = [
            f"{blob}/{i}"
            for i, batch in enumerate(passes(net, 5))
            for blob, ours in batch.items()
            if f"{name}/{phase}/{blob}/{i}" in theirs and not np.array_equal(ours, theirs[f"{name}/{phase}/{blob}/{i}"])
        ]
        compared = [key for key in theirs.files if key.startswith(f"{name}/{phase}/")]
    assert compared
    assert not wrong


X = "layer { name: 'x' type: 'DummyData' top: 'x' top: 'm' dummy_data_param { shape { dim: 1 dim: 2 dim: 3 dim: 4 } } }"
UP = X + "layer { name: 'u' type: 'Upsample' bottom: 'x' bottom: 'm' top: 'u' upsample_param { %s } }"


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", (1, 2, 6, 8)),
        ("scale: 3", (1, 2, 9, 12)),
        ("pad_out_h: true", (1, 2, 5, 8)),
        ("scale_h: 1 scale_w: 4", (1, 2, 3, 16)),
        ("scale: 2 upsample_h: 7 upsample_w: 5", (1, 2, 7, 5)),
    ],
)
def test_sizes_of_upsample(text: str, shape: tuple[int, ...]) -> None:
    net = caffe_port.Net(UP % text)
    assert net.dialect is SEGNET
    assert net.blobs["u"].data.shape == shape


LOSS = X.replace("top: 'm'", "") + (
    "layer { name: 'y' type: 'DummyData' top: 'y' dummy_data_param { shape { dim: 1 dim: 1 dim: 3 dim: 4 } } }"
    "layer { name: 'l' type: 'SoftmaxWithLoss' bottom: 'x' bottom: 'y' top: 'l' loss_param { %s } }"
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (UP % "upsample_h: 1 upsample_w: 5", "expected more than 1, found upsample_h and upsample_w (1, 5)"),
        (UP % "scale_h: 2", "expected both of them, without scale"),
        (UP % "scale: 3 pad_out_w: true", "expected scale 2, found pad_out with a scale of 3"),
        (LOSS % "weight_by_label_freqs: true class_weighting: 1", "expected one for each of the 2 classes"),
        (LOSS % "weight_by_label_freqs: true", "found 0 class_weighting"),
    ],
)
def test_wrong_definitions(text: str, says: str) -> None:
    with pytest.raises(CaffeError, match=says.replace("(", r"\(").replace(")", r"\)")):
        caffe_port.Net(text)


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("layer { type: 'BN' } layer { type: 'Upsample' }", "segnet"),
        ("layer { type: 'SoftmaxWithLoss' loss_param { class_weighting: 1 } }", "segnet"),
        ("layers { type: BN }", "noh"),
        ("layer { type: 'BN' bn_param { bn_mode: INFERENCE } } layer { type: 'Unpooling' }", "noh"),
    ],
)
def test_which_fork(text: str, dialect: str) -> None:
    assert read_net(text).dialect.name == dialect


def test_a_file_is_read_with_the_forks_numbers() -> None:
    """Field 3 of LossParameter is BVLC's ``normalization`` and SegNet's ``weight_by_label_freqs``."""
    assert schema_of(SEGNET).LossParameter.FromString(b"\x18\x01").weight_by_label_freqs is True
    fields = schema_of(SEGNET).LayerParameter.DESCRIPTOR.fields_by_name
    numbers = {name: fields[name].number for name in ("bn_param", "upsample_param", "dense_image_data_param")}
    assert numbers == {"bn_param": 45, "upsample_param": 137, "dense_image_data_param": 138}
