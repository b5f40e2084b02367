"""DeepLab v2's fork: batches and MATLAB files of the running program, and wrong definitions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_runs import passes
from reference import SHARED, needs_shared
from scipy.io import loadmat, savemat

import caffe_port
from caffe_port.dialects import DEEPLAB2
from caffe_port.errors import CaffeError
from caffe_port.net import Net
from caffe_port.random import set_random_seed
from caffe_port.schema import read_net, schema_of

DATA, MAT = SHARED / "reference" / "deeplab2_data", SHARED / "reference" / "deeplab2_mat"
MANIFEST = json.loads((DATA / "manifest.json").read_text()) if DATA.is_dir() else {"nets": {"seg_plain": ["TRAIN"]}}
RUNS = [(name, phase) for name, phases in MANIFEST["nets"].items() for phase in phases]


@needs_shared("reference/deeplab2_data")
@pytest.mark.parametrize(("name", "phase"), RUNS)
def test_batches_are_the_forks(name: str, phase: str) -> None:
    set_random_seed(MANIFEST["seed"])
    net = Net(DATA / f"{name}.prototxt", phase=phase, dialect="deeplab2")
    with np.load(DATA / "batches.npz") as theirs:
        compared = {key: theirs[key] for key in theirs.files if key.startswith(f"{name}/{phase}/")}
    assert compared
    ours = {f"{name}/{phase}/{b}/{i}": a for i, batch in enumerate(passes(net, 5)) for b, a in batch.items()}
    assert not [key for key, array in compared.items() if not np.array_equal(ours[key], array)]


@needs_shared("reference/deeplab2_mat")
@pytest.mark.parametrize("name", ["write_iter", "write_names", "write_period"])
def test_written_files_hold_what_the_forks_hold(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in MAT.glob("*.txt"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    net = caffe_port.Net(str(MAT / f"{name}.prototxt"), dialect="deeplab2", allow_writes=True)
    with np.load(MAT / "mats.npz") as given:
        for i in range(3):
            for blob in ("a", "b"):
                net.blobs[blob].data[...] = given[f"{name}/{blob}/{i}"]
            net.forward()
    prefix = name.removeprefix("write_")[0].replace("i", "w")
    theirs = sorted(path.name for path in MAT.glob(f"{prefix}_*.mat"))
    assert sorted(path.name for path in tmp_path.glob("*.mat")) == theirs
    for file in theirs:
        assert np.array_equal(loadmat(tmp_path / file)["data"], loadmat(MAT / file)["data"])


@needs_shared("reference/deeplab2_mat")
@pytest.mark.parametrize("name", ["read_names", "read_batch"])
def test_files_are_read_as_the_fork_does(name: str) -> None:
    net = Net(MAT / f"{name}.prototxt", dialect="deeplab2")
    with np.load(MAT / "mats.npz") as theirs:
        for i, batch in enumerate(passes(net, 4)):
            assert np.array_equal(batch["a"], theirs[f"{name}/a/{i}"])


@pytest.mark.parametrize(
    ("names", "size", "passes"), [(["n0"], 1, [[0], [0]]), (["n0", "n1", "n2"], 2, [[0, 1], [2, 0]])]
)
def test_matlab_files_are_read_in_turn(
    names: list[str], size: int, passes: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name has a file for each top; after the last name comes the first. MATLAB's axes are in reverse order."""
    monkeypatch.chdir(tmp_path)
    blobs = np.random.default_rng(1).standard_normal((len(names), 2, 1, 2, 3, 4)).astype(np.float32)
    for name, tops in zip(names, blobs, strict=True):
        for i, blob in enumerate(tops):
            savemat(f"in_{name}_blob_{i}.mat", {"data": blob.transpose(3, 2, 1, 0)})
    Path("list.txt").write_text("".join(f"{name}.png\n" for name in names))
    net = Net(
        f"layer {{ name: 'm' type: 'MatRead' top: 'a' top: 'b' mat_read_param {{ source: 'list.txt' prefix: 'in_'"
        f" strip: 4 batch_size: {size} }} }}",
        dialect="deeplab2",
    )
    for batch in passes:
        found = net.forward()
        for i, top in enumerate("ab"):
            assert np.array_equal(found[top], blobs[batch, i, 0])


def test_matlab_files_are_written_every_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        "input: 'x' input_shape { dim: [1, 2, 3, 4] } input: 't' input_shape { dim: [2, 3] }"
        " layer { name: 'm' type: 'MatWrite' bottom: 'x' bottom: 't' %s mat_write_param { prefix: 'out_' period: 2 } }"
    )
    net = caffe_port.Net(text % "", dialect="deeplab2", allow_writes=True)
    x, t = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), np.float32([[1, 2, 3], [4, 5, 6]])
    for i in range(3):
        net.forward(x=x + i, t=t - i)
    names = [f"out_iter_{k}_blob_{i}.mat" for k in (0, 2) for i in (0, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    first, second = (loadmat(name)["data"] for name in names[2:])
    assert np.array_equal(first.reshape(4, 3, 2).transpose(2, 1, 0), x[0] + 2)
    assert np.array_equal(second.reshape(3, 2).T, t - 2)
    with pytest.raises(CaffeError, match="expected 0 tops, found 1 tops"):
        caffe_port.Net(text % "top: 'y'", dialect="deeplab2", allow_writes=True)


@pytest.mark.parametrize(("label", "bias"), [([[-1, 0]], [[0, 3]]), ([[-1, -1]], [[0, 0]]), ([[255, 0]], [[0, 3]])])
def test_biases_of_labelled_pixels_alone(label: list[list[int]], bias: list[list[int]]) -> None:
    """Of one channel, so that an unlabelled pixel has no other channel to be taken for."""
    net = Net(
        "input: 'x' input_shape { dim: [1, 1, 1, 2] } input: 't' input_shape { dim: [1, 1, 1, 2] }"
        " layer { name: 'b' type: 'BiasChannel' bottom: 'x' bottom: 't' top: 'y'"
        " bias_channel_param { label_type: PIXEL fg_bias: 3 ignore_label: 255 } }",
        dialect="deeplab2",
    )
    y = net(x=torch.tensor([[[[10.0, 20.0]]]]), t=torch.tensor([[label]]).float())["y"]
    assert torch.equal(y, torch.tensor([[[[10.0, 20.0]]]]) + torch.tensor([[bias]]))


CRF = (
    "layer { name: 'x' type: 'DummyData' top: 'x' top: 'd' top: 'im' dummy_data_param {"
    " shape { dim: 1 dim: 2 dim: 3 dim: 4 } shape { dim: 1 dim: 1 dim: 1 dim: 2 } shape { dim: 1 dim: 3 dim: 3 dim: 4 }"
    " data_filler { value: 0 } data_filler { value: %s } data_filler { value: 9 } } }"
    " layer { name: 'c' type: 'DenseCRF' bottom: 'x' bottom: 'd' bottom: 'im' top: 'y' dense_crf_param { %s } }"
)
KERNEL = "bi_w: 1 bi_xy_std: 2 bi_rgb_std: 3"
INTERP = (
    "layer { name: 'x' type: 'DummyData' top: 'x' dummy_data_param { shape { dim: 1 dim: 1 dim: 5 dim: 7 } } } "
    + ("layer { name: 'i' type: 'Interp' bottom: 'x' top: 'y' interp_param { %s } }")
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CRF % (3, "pos_w: 1"), "expected equally often, found pos_w, pos_xy_std given 1, 0 times"),
        (CRF % (3, ""), "expected one or more, for the picture, found no bi_w"),
        (CRF % (3, KERNEL.replace("3", "0")), "found a standard deviation of 0"),
        (INTERP % "", "found no size"),
        (INTERP % "pad_beg: 1 zoom_factor: 2", "expected 0 or less: pads crop, found pad_beg 1"),
        (INTERP % "pad_beg: -3 pad_end: -3 zoom_factor: 2", r"expected 1 or more of each, found \[-1, 1\] pixels"),
    ],
)
def test_wrong_definitions(text: str, says: str) -> None:
    with pytest.raises(CaffeError, match=says):
        caffe_port.Net(text, dialect="deeplab2")


def test_a_real_size_that_the_blob_cannot_hold() -> None:
    net = caffe_port.Net(CRF % (3, KERNEL))
    net.forward()
    net = caffe_port.Net((CRF % (2, KERNEL)).replace("value: 2", "value: 1"), dialect="deeplab2")
    assert (net.forward()["y"][:, :, 1:] == 0).all()
    narrow = "dim: 3 dim: 4 } shape", "dim: 3 dim: 2 } shape"
    net = caffe_port.Net((CRF % (4, KERNEL)).replace(*narrow).replace("dim: 3 dim: 3 dim: 4", "dim: 3 dim: 3 dim: 2"))
    assert (net.forward()["y"] > 0).all()


@pytest.mark.parametrize(("size", "shape"), [("zoom_factor: 2", (9, 13)), ("shrink_factor: 2", (3, 4))])
def test_interp_of_labels_keeps_whole_numbers_at_whole_places(size: str, shape: tuple[int, int]) -> None:
    net = Net(INTERP.replace("'DummyData'", "'Input'").replace("dummy_data_param", "input_param") % size)
    x = torch.arange(35.0).reshape(1, 1, 5, 7)
    y = net(x=x)["y"]
    assert y.shape[2:] == shape
    step = 2 if shape[0] > 5 else 1
    assert torch.equal(y[..., ::step, ::step], x if step == 2 else x[..., ::2, ::2])


def test_numbers_and_detection() -> None:
    fields = schema_of(DEEPLAB2).LayerParameter.DESCRIPTOR.fields_by_name
    numbers = [
        fields[f"{name}_param"].number for name in ("interp", "seg_accuracy", "mat_write", "dense_crf", "mat_read")
    ]
    assert numbers == [143, 144, 145, 146, 151]
    assert read_net("layer { type: 'Interp' interp_param { zoom_factor: 8 } }").dialect is DEEPLAB2
    assert read_net("layer { type: 'ImageSegData' transform_param { scale_factors: 1 } }").dialect is DEEPLAB2
