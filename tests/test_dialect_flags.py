"""Every flag of a dialect seen from outside: what a net or a solver does with it, and which of the Caffes do that.

Each row names the flag, the Caffes whose source says so (:class:`caffe_port.dialects.Dialect` names their files) and an
observation whose outcome is worked by hand. Where a Caffe lacks the layer, its row leaves it out.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import caffe_port
from caffe_port.dialects import Dialect
from caffe_port.errors import CaffeError
from caffe_port.random import default_stream
from caffe_port.schema import read_net
from caffe_port.solver import Solver
from caffe_port.solver.log import Log

FOLDER = Path(__file__).resolve().parents[1] / "caffe_port" / "dialects"
SOURCE = 'layer { name: "%s" type: "Input" top: "%s" input_param { shape { %s } } }\n'


def net(dialect: str, text: str, phase: str = "TEST", **inputs: Any) -> Any:
    """A net of these layers with these arrays put in."""
    given = "".join(
        SOURCE % (name, name, " ".join(f"dim: {n}" for n in np.shape(value))) for name, value in inputs.items()
    )
    made = caffe_port.Net(given + text, phase, dialect=dialect)
    for name, value in inputs.items():
        made.blobs[name].data[...] = np.asarray(value, np.float32).reshape(made.blobs[name].data.shape)
    return made


def run(dialect: str, text: str, top: str = "y", **inputs: Any) -> np.ndarray:
    made = net(dialect, text, **inputs)
    made.forward()
    return made.blobs[top].data.copy()


def refused(build: Callable[[], Any]) -> bool:
    try:
        build()
    except CaffeError:
        return True
    return False


def one(kind: str, bottoms: str, more: str = "", tops: str = "y") -> str:
    names = "".join(f' bottom: "{b}"' for b in bottoms.split()) + "".join(f' top: "{t}"' for t in tops.split())
    return f'layer {{ name: "l" type: "{kind}"{names} {more} }}'


def either(found: float, set_: float, unset: float) -> bool:
    """Which of two numbers it is."""
    assert min(abs(found - set_), abs(found - unset)) < 1e-4, found
    return abs(found - set_) < abs(found - unset)


# -- what is observed: each gives True where the flag is set -----------------------------------------------------------


def legacy_shapes(d: str) -> bool:
    shape = run(d, one("InnerProduct", "x", "inner_product_param { num_output: 3 }"), x=np.ones((2, 4, 1, 1))).shape
    assert shape in ((2, 3), (2, 3, 1, 1))
    return shape == (2, 3, 1, 1)


def inputs_are_layers(d: str) -> bool:
    made = caffe_port.Net('input: "x" input_dim: 1 input_dim: 1 input_dim: 1 input_dim: 2', "TEST", dialect=d)
    return "input" in made._layer_names


def only_layers(d: str) -> bool:
    """A BN, or an interp_param, in ``layers`` is that Caffe's, in ``layer`` it is not."""
    text = 'input: "x" input_dim: 1 input_dim: 1 input_dim: 1 input_dim: 2\n'
    kind = "RELU interp_param { }" if d == "deeplab1" else "BN"
    return read_net(f'{text} layers {{ name: "b" type: {kind} bottom: "x" top: "y" }}').dialect.name == d


def crop_aligns(d: str) -> bool:
    """A convolution of 3 x 3 without pad loses a pixel on each side: (1, 1) of the picture lies under its (0, 0)."""
    window = "convolution_param { num_output: 1 kernel_size: 3 }"
    conv = f'layer {{ name: "c" type: "Convolution" bottom: "x" top: "c" {window} }}'
    top = run(d, conv + one("Crop", "x c"), x=np.arange(36).reshape(1, 1, 6, 6))
    return either(top.ravel()[0], 7, 0)


def fused_draws(d: str) -> bool:
    """u * (high - low) + low rounded once, or after the product and after the sum; u comes of a scale of 1."""

    def drawn(low: float, high: str) -> np.ndarray:
        caffe_port.set_random_seed(5)
        filler = f'weight_filler {{ type: "uniform" min: {low} max: {high} }}'
        layer = f"inner_product_param {{ num_output: 300 bias_term: false {filler} }}"
        return net(d, one("InnerProduct", "x", layer), x=np.ones((1, 3, 1, 1))).params["l"][0].data.ravel().copy()

    unit, got, low = drawn(0, "0.99999994"), drawn(-0.1, "0.3"), np.float32(-0.1)
    scale = np.nextafter(np.float32(0.3), np.float32(1)) - low  # both ends can be drawn
    once = (unit.astype(np.float64) * scale + np.float64(low)).astype(np.float32)
    twice = unit * scale + low
    assert (got == once).all() != (got == twice).all()
    return bool((got == once).all())


def all_inputs_or_none(d: str) -> bool:
    made = net(d, one("Eltwise", "a b"), a=np.ones((1, 1, 1, 2)), b=np.ones((1, 1, 1, 2)))
    try:
        made.forward(a=np.ones((1, 1, 1, 2), np.float32))
    except Exception as error:
        assert "b" in str(error)  # noqa: PT017
        return True
    return False


def loss_guards_empty(d: str) -> bool:
    """No label counts: 0 / 1, or 0 / 0."""
    ignore = (
        "softmaxloss_param { ignore_label: 1 }" if d == "deeplab1" else "loss_param { ignore_label: 1 normalize: true }"
    )
    labels = np.ones((2, 1, 1, 1))
    loss = float(run(d, one("SoftmaxWithLoss", "x t", ignore), x=np.ones((2, 3, 1, 1)), t=labels).ravel()[0])
    assert loss == 0 or math.isnan(loss)
    return loss == 0


def accuracy_by_item(d: str) -> bool:
    """Two labels for two items of 3 x 1 x 2 scores: one for each item, not one for each of its two places."""
    return not refused(lambda: net(d, one("Accuracy", "x t"), x=np.ones((2, 3, 1, 2)), t=np.ones((2, 1, 1, 1))))


def accuracy_ranks_ties(d: str) -> bool:
    """Of two equal scores the second counts as the better one, or neither is right."""
    tied = run(d, one("Accuracy", "x t"), x=np.ones((1, 2, 1, 1)), t=np.ones((1, 1, 1, 1)))
    return float(tied.ravel()[0]) == 1


def relu_gives_mask(d: str) -> bool:
    return not refused(lambda: net(d, one("ReLU", "x", tops="y mask"), x=np.ones((1, 1, 1, 2))))


def sigmoid_loss_by_batch(d: str) -> bool:
    """Six losses of log 2: their sum as loss_param asks, or without that divided by the batch's size, 2."""
    layer = one("SigmoidCrossEntropyLoss", "x t", "loss_param { normalization: NONE }")
    loss = float(run(d, layer, x=np.zeros((2, 3, 1, 1)), t=np.ones((2, 3, 1, 1))).ravel()[0])
    return either(loss, 3 * math.log(2), 6 * math.log(2))


def contrastive_legacy(d: str) -> bool:
    """Vectors 0.5 apart that differ, margin 1: (1 - 0.25) / 2, or (1 - 0.5)^2 / 2."""
    bottoms = {"a": np.zeros((1, 1, 1, 1)), "b": np.full((1, 1, 1, 1), 0.5), "s": np.zeros((1, 1, 1, 1))}
    loss = float(run(d, one("ContrastiveLoss", "a b s"), **bottoms).ravel()[0])
    return either(loss, 0.375, 0.125)


def infogain_takes_probabilities(d: str) -> bool:
    """-log 0.5, or -log of softmax(0.5, 0.25)[0]."""
    x, h = np.array([0.5, 0.25]).reshape(1, 2, 1, 1), np.eye(2).reshape(1, 1, 2, 2)
    loss = float(run(d, one("InfogainLoss", "x t h"), x=x, t=np.zeros((1, 1, 1, 1)), h=h).ravel()[0])
    return either(loss, math.log(2), math.log(1 + math.exp(-0.25)))


def axes_by_dim(d: str) -> bool:
    return refused(lambda: net(d, one("Concat", "x x", "concat_param { axis: 2 }"), x=np.ones((1, 1, 2, 2))))


def exp_shift_raises_minus_one(d: str) -> bool:
    """(-1)^2, or e^2."""
    value = float(run(d, one("Exp", "x", "exp_param { shift: 2 }"), x=np.zeros((1, 1, 1, 1))).ravel()[0])
    return either(value, 1, math.exp(2))


def mvn_eps(d: str) -> bool:
    """Numbers 1e-9 from their mean, divided by 1e-9 + 1e-10 or by 1e-9 + 1e-9 (the parameter's default)."""
    value = float(run(d, one("MVN", "x"), x=np.array([0, 2e-9]).reshape(1, 1, 1, 2)).ravel()[1])
    return either(value, 10 / 11, 1 / 2)


def mvn_mean_gradient(d: str) -> bool:
    """The gradient (1, 0) less its mean, or as it is."""
    text = "force_backward: true\n" + one("MVN", "x", "mvn_param { normalize_variance: false }")
    made = net(d, text, x=np.array([3.0, 4.0]).reshape(1, 1, 1, 2))
    made.forward()
    made.blobs["y"].diff[...] = np.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    made.backward()
    found = made.blobs["x"].diff.ravel().tolist()
    assert found in ([0.5, -0.5], [1, 0])
    return found == [0.5, -0.5]


def mvn_measures_again(d: str) -> bool:
    """In place on (0, 6, 0, 6) with the diff (1, 0, 0, 0): -1/2 by the deviation of its own output, 1, or of x, 3."""
    before = 'layer { name: "p" type: "Power" bottom: "x" top: "y" }'
    made = net(d, "force_backward: true\n" + before + one("MVN", "y"), x=np.array([0, 6, 0, 6]).reshape(1, 1, 1, 4))
    made.forward()
    made.blobs["y"].diff[...] = np.array([1, 0, 0, 0]).reshape(1, 1, 1, 4)
    made.backward()
    return either(float(made.blobs["x"].diff.ravel()[0]), -1 / 2, -1 / 6)


def bn_overwrites_diffs(d: str) -> bool:
    """The diff of a shift is the sum of the top's: 2 after one backward pass; after another 2 again, or 4."""
    made = net(d, "force_backward: true\n" + one("BN", "x", "bn_param { bn_mode: INFERENCE }"), x=np.ones((1, 1, 1, 2)))
    for _ in range(2):
        made.forward()
        made.blobs["y"].diff[...] = 1
        made.backward()
    return either(float(made.params["l"][1].diff.ravel()[0]), 2, 4)


def pictures(folder: Path) -> str:
    """A list of two pictures, 3 x 4 pixels."""
    import cv2

    for i in range(2):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((3, 4, 3), 40 * i, np.uint8))
    (folder / "list.txt").write_text("".join(f"{folder / f'{i}.png'} {i}\n" for i in range(2)))
    return str(folder / "list.txt")


def words_drawn(d: str, text: str, forwards: int) -> int:
    """How many words of the net's stream a data layer takes."""
    caffe_port.set_random_seed(3)
    ahead = [int(word) for word in default_stream().words(30)]
    caffe_port.set_random_seed(3)
    made = caffe_port.Net(text, "TRAIN", dialect=d)
    for _ in range(forwards):
        made.forward()
    return ahead.index(int(default_stream().words(1)[0]))


def data_seeded_each_batch(d: str, folder: Path) -> bool:
    layer = f'type: "ImageData" top: "x" top: "t" image_data_param {{ source: "{pictures(folder)}" batch_size: 1 }}'
    text = f'layer {{ name: "d" {layer} transform_param {{ mirror: true }} }}'
    more = words_drawn(d, text, 3) - words_drawn(d, text, 1)
    assert more in (0, 2)
    return more == 2


def database(folder: Path) -> str:
    """An LMDB of one grey picture, encoded."""
    lmdb = pytest.importorskip("lmdb")
    import cv2

    from caffe_port.schema.messages import Datum

    datum = Datum(encoded=True, label=1, data=cv2.imencode(".png", np.full((3, 4), 70, np.uint8))[1].tobytes())
    with lmdb.open(str(folder / "lmdb")) as made, made.begin(write=True) as records:
        records.put(b"0", datum.SerializeToString())
    return str(folder / "lmdb")


def data(folder: Path, more: str = "") -> str:
    block = f'data_param {{ source: "{database(folder)}" backend: LMDB batch_size: 1 {more} }}'
    return f'layer {{ name: "d" type: "Data" top: "x" top: "t" {block} }}'


def decodes_in_color(d: str, folder: Path) -> bool:
    """Three channels of a grey picture, or one."""
    made = caffe_port.Net(data(folder), "TRAIN", dialect=d)
    made.forward()
    assert made.blobs["x"].data.shape[1] in (1, 3)
    return made.blobs["x"].data.shape[1] == 3


def data_skips_at_random(d: str, folder: Path) -> bool:
    """A word more is drawn for the number of records to skip."""
    plain, skipping = data(folder / "a"), data(folder / "b", "rand_skip: 1000")
    return words_drawn(d, skipping, 0) > words_drawn(d, plain, 0)


def database_thread_draws(d: str, folder: Path) -> bool:
    """A word more is drawn for a database than for a list, which has no thread of its own."""
    list_layer = (
        f'type: "ImageData" top: "x" top: "t" image_data_param {{ source: "{pictures(folder)}" batch_size: 1 }}'
    )
    more = words_drawn(d, data(folder / "a"), 0) - words_drawn(d, f'layer {{ name: "d" {list_layer} }}', 0)
    assert more in (0, 1)
    return more == 1


# -- solvers -----------------------------------------------------------------------------------------------------------

INPUTS = """layer { name: "d" type: "DummyData" top: "x" top: "t" dummy_data_param {
  num: 1 channels: 1 height: 1 width: 1 data_filler { value: 1 } data_filler { value: 0 } } }
"""
WEIGHT = """layer { name: "%s" type: "InnerProduct" bottom: "x" top: "%s" param { name: "w" }
  inner_product_param { num_output: 1 bias_term: false weight_filler { value: 1 } } }
"""
LOSS = 'layer { name: "loss" type: "EuclideanLoss" bottom: "%s" bottom: "t" top: "loss" }'
SOLVER = {"lr_policy": '"fixed"', "base_lr": "0.5", "max_iter": "2", "display": "1", "snapshot_after_train": "false"}


def train(d: str, folder: Path, text: str = "", **fields: str) -> list[str]:
    """What a training logs. Of the net given here: one weight w, 1 at first, and the loss w^2 / 2; the rate is 0.5."""
    (folder / "net.prototxt").write_text(text or INPUTS + WEIGHT % ("w", "y") + LOSS % "y")
    places = {"net": f'"{folder / "net.prototxt"}"', "snapshot_prefix": f'"{folder / "snap"}"'}
    said = {**SOLVER, **places, **fields}
    (folder / "s.prototxt").write_text("\n".join(f"{name}: {value}" for name, value in said.items()))
    log = Log(io.StringIO())
    Solver(str(folder / "s.prototxt"), dialect=d, log=log).solve()
    assert isinstance(log.file, io.StringIO)
    return [line.partition("] ")[2] for line in log.file.getvalue().splitlines()]


def last_loss(lines: list[str]) -> float:
    return float([line for line in lines if ", loss = " in line][-1].rpartition(" ")[2])


def smooths_last_loss(d: str, folder: Path) -> bool:
    """Losses 1/2, 1/8, and at the end 1/32: alone, or on average with the one before."""
    return either(last_loss(train(d, folder, average_loss="2")), (1 / 8 + 1 / 32) / 2, 1 / 32)


def logs_speed(d: str, folder: Path) -> bool:
    return any("iter/s" in line for line in train(d, folder))


def logs_kind_of_snapshot(d: str, folder: Path) -> bool:
    lines = [line for line in train(d, folder, snapshot="1") if "Snapshotting" in line]
    assert lines
    return any("to binary proto file" in line for line in lines)


def snapshot_off_interval_adds_one(d: str, folder: Path) -> bool:
    """Two iterations and a snapshot every three: the last is number 2, or 3."""
    train(d, folder, snapshot="3", snapshot_after_train="true")
    (name,) = (path.name for path in folder.glob("snap_iter_*.caffemodel*"))
    assert name[:11] in ("snap_iter_2", "snap_iter_3")
    return name.startswith("snap_iter_3")


def debug_logs_updates(d: str, folder: Path) -> bool:
    lines = train(d, folder, debug_info="true")
    assert any("[Forward]" in line for line in lines)
    return any("[Update]" in line for line in lines)


def decay_before_iter_size(d: str, folder: Path) -> bool:
    """Gradients of 1 twice, decay 1/2, iter_size 2: w = 1 - 1/2 (2 + 1/2) / 2, or 1 - 1/2 (2 / 2 + 1/2)."""
    loss = last_loss(train(d, folder, iter_size="2", weight_decay="0.5", max_iter="1"))
    return either(math.sqrt(2 * loss), 3 / 8, 1 / 4)


def shared_parameters_decay_apart(d: str, folder: Path) -> bool:
    """y = 2 w from two layers that share w; gradient 4, decay 1/2 in each, or once: w = 1 - 0.1 (4 + 1), or 4 + 1/2."""
    text = INPUTS + WEIGHT % ("a", "ya") + WEIGHT % ("b", "yb")
    text += 'layer { name: "sum" type: "Eltwise" bottom: "ya" bottom: "yb" top: "y" }\n' + LOSS % "y"
    loss = last_loss(train(d, folder, text, weight_decay="0.5", base_lr="0.1", max_iter="1"))
    return either(math.sqrt(2 * loss) / 2, 0.5, 0.55)


def checks_rate_fields(d: str, folder: Path) -> bool:
    return refused(lambda: train(d, folder, lr_policy='"exp"', gamma="-0.5"))


def test_nets_crop(d: str, folder: Path) -> bool:
    """A crop of 2 x 2 pixels in the test net's two batches draws words, or is the middle."""
    block = f'image_data_param {{ source: "{pictures(folder)}" batch_size: 1 }} transform_param {{ crop_size: 2 }}'
    layer = f'layer {{ name: "i" type: "ImageData" top: "i" top: "j" include {{ phase: TEST }} {block} }}\n'
    text = INPUTS + WEIGHT % ("w", "y") + LOSS % "y" + layer
    train(d, folder, text, test_iter="1", test_interval="5", random_seed="3")
    solver = Solver(str(folder / "s.prototxt"), dialect=d, log=Log(io.StringIO()))
    (layer,) = (layer for _, layer in solver.test_nets[0].nodes if layer.type == "ImageData")
    return layer.transformer.draws


test_nets_crop.__test__ = False  # type: ignore[attr-defined]
test_nets_crop.__name__ = "test_nets_crop_at_random"

# -- who does what -----------------------------------------------------------------------------------------------------

AS_BVLC = ("bvlc", "mixed", "segnet", "deeplab2", "pspnet", "ssd", "rcnn", "rfcn")
OLD = ("noh", "deeplab1")
ALL = (*OLD, *AS_BVLC)
WITH_BN = ("noh", "mixed", "segnet")  # pspnet's is another
WITH_CROP = ("bvlc", "noh", "mixed", "ssd")
FORKS = (*OLD, "segnet", "deeplab2", "pspnet", "rcnn", "rfcn")

ROWS: list[tuple[Callable[..., bool], tuple[str, ...], tuple[str, ...]]] = [  # observation, who does so, of whom
    (legacy_shapes, OLD, ALL),
    (inputs_are_layers, ("bvlc", "mixed", "ssd"), ALL),
    (only_layers, OLD, ALL),
    (crop_aligns, ("noh",), WITH_CROP),
    (fused_draws, tuple(d for d in AS_BVLC if d != "ssd"), ALL),
    (all_inputs_or_none, AS_BVLC, ALL),
    (loss_guards_empty, ("bvlc", "mixed", "deeplab2", "pspnet", "ssd", "rcnn", "rfcn"), ALL),
    (accuracy_by_item, OLD, ALL),
    (accuracy_ranks_ties, (*FORKS, "ssd"), ALL),
    (relu_gives_mask, ("noh",), ALL),
    (sigmoid_loss_by_batch, FORKS, ALL),
    (contrastive_legacy, OLD, ALL),
    (infogain_takes_probabilities, (*FORKS, "ssd"), ALL),
    (axes_by_dim, OLD, ALL),
    (exp_shift_raises_minus_one, FORKS, ALL),
    (mvn_eps, OLD, ALL),
    (mvn_mean_gradient, ("bvlc", "mixed", "deeplab2", "pspnet", "ssd", "rcnn", "rfcn"), ALL),
    (mvn_measures_again, OLD, ALL),
    (bn_overwrites_diffs, WITH_BN, WITH_BN),
    (data_seeded_each_batch, (*OLD, "segnet"), ALL),
    (decodes_in_color, OLD, ALL),
    (data_skips_at_random, OLD, ALL),
    (database_thread_draws, ("deeplab2", "pspnet", "rcnn", "rfcn", "ssd"), ALL),
    (test_nets_crop, OLD, ALL),
    (smooths_last_loss, tuple(d for d in AS_BVLC if d != "segnet"), ALL),
    (logs_speed, ("bvlc", "mixed"), ALL),
    (logs_kind_of_snapshot, tuple(d for d in AS_BVLC if d != "segnet"), ALL),
    (snapshot_off_interval_adds_one, ("noh",), ALL),
    (debug_logs_updates, OLD, ALL),
    (decay_before_iter_size, ("noh",), ("noh", *AS_BVLC)),
    (shared_parameters_decay_apart, (*OLD, "segnet"), ALL),
    (checks_rate_fields, ("bvlc", "mixed"), ALL),
]
ELSEWHERE = {"fallback": "tests/test_dialects.py", "silence_clears_data": "tests/test_layers_reference.py"}


@pytest.fixture(autouse=True)
def _logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOG_minloglevel", "0")


@pytest.mark.parametrize(
    ("observe", "does", "dialect"),
    [pytest.param(observe, does, d, id=f"{observe.__name__}-{d}") for observe, does, of in ROWS for d in of],
)
def test_flag(observe: Callable[..., bool], does: tuple[str, ...], dialect: str, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    with_files = "folder" in observe.__annotations__
    found = observe(dialect, tmp_path) if with_files else observe(dialect)
    assert bool(found) == (dialect in does)


def test_every_flag_is_observed() -> None:
    flags = {field.name for field in fields(Dialect) if field.type in ("bool", "float | None")}
    assert flags == {observe.__name__ for observe, _, _ in ROWS} | set(ELSEWHERE)
    files = [path for path in FOLDER.glob("*.py") if path.stem != "base"]
    named = {name for path in files for name in re.findall(r'\bname="(\w+)"', path.read_text(encoding="utf-8"))}
    assert set(ALL) == named
