"""Random draws are real Caffe's, to the last bit and to the last word taken."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import pytest
import torch
from reference import folder

from caffe_port.errors import CaffeError, LayerError
from caffe_port.net import Net
from caffe_port.random import Stream, default_stream, fill, set_random_seed, stream
from caffe_port.schema import SCHEMA, parse_text

SEED = 1701
"""Of every draw in the suite bvlc_random."""

DRAWS = [
    # method, arguments, dtype, count, options, seed, digest of the numbers and the ten words after them: by boost 1.74
    ("gaussian", (0.0, 1.0), "float32", 1_000_000, {}, 1, "625b7b496d66a3b0"),
    ("gaussian", (0.0, 1.0), "float64", 300_000, {}, 1, "f6c7d6b230df6937"),
    ("gaussian", (0.2, 0.7), "float32", 1_000_000, {"fused": True}, 10, "2c5e52127b10566d"),
    ("gaussian", (0.2, 0.7), "float32", 1_000_000, {"fused": False}, 10, "69e229a8c7b6823e"),
    ("gaussian", (0.2, 0.7), "float32", 1, {"fused": False}, 2, "9416ef2096bf6b2a"),
    ("gaussian", (0.2, 0.7), "float64", 1, {}, 2, "9c5b42db8227e1ef"),
    ("gaussian", (-3.0, 0.001), "float32", 70_001, {"fused": False}, 4294967295, "80af8a8dc2a149d2"),
    ("gaussian", (-3.0, 0.001), "float64", 70_001, {}, 0, "390f9fd78718cf2e"),
    ("uniform", (-0.3, 0.4), "float32", 1_000_000, {"fused": True}, 11, "fd91c7974f02c296"),
    ("uniform", (-0.3, 0.4), "float32", 1_000_000, {"fused": False}, 11, "39b60f2f46ec35f5"),
    ("uniform", (0.001, 0.4), "float32", 1_000_000, {"fused": True}, 12, "1bf358656c50f791"),
    ("uniform", (-0.7, 1.3), "float64", 300_000, {}, 3, "4363722e9c4ebd90"),
    ("uniform", (5.0, 5.0), "float32", 1_000, {}, 4, "e282abefec552ba0"),
    ("uniform", (5.0, 5.0), "float64", 1_000, {}, 4, "9d497914240b2ba9"),
    ("uniform", (-3e38, 3e38), "float32", 1_000, {"fused": False}, 5, "265acb28748215aa"),
    ("uniform", (0.0, 0.0), "float32", 100, {}, 6, "49406602eec8e134"),
    ("bernoulli", (0.6,), "float64", 1_000_000, {}, 7, "12a6b4179fac03db"),
    ("bernoulli", (0.6,), "float32", 100_000, {}, 7, "4f55e6734b5115c6"),
    ("bernoulli", (0.0,), "float64", 100, {}, 8, "55c62945f322d6d5"),
    ("bernoulli", (1.0,), "float32", 100, {}, 8, "622ec4af6a7edc8b"),
]

# State words whose output starts a tail, a wedge or the innermost layer of the ziggurat, or rounds to 1 in float32.
RARE_STATES = np.frombuffer(
    bytes.fromhex(
        "9783261b 87a162d2 12dd9bb3 02ffdf7a f492ad15 97c32e1b 87e16ad2"
        "957cf961 054e9fac 77e287d0 63201a82 32500a74 f2127c0d"
    ),
    ">u4",
).astype(np.uint32)
RARE_DRAWS = [
    # seed of the choice among them, dtype, digest of 1000 numbers and the next word: by boost 1.74
    (0, "float32", "9ebf51c198dbb74a"),
    (0, "float64", "5829885be3171d6b"),
    (1, "float32", "fcbd1c7c363d903c"),
    (1, "float64", "73b5b9af18bc8805"),
    (2, "float32", "57ecc84925ff3fe2"),
    (2, "float64", "e14848ecf1497307"),
    (3, "float32", "afb3a5e491b6e324"),
    (3, "float64", "29e286bb25c2ec3b"),
]

WEIGHTS = {
    # key in draws.npz of bvlc_random: the filler of an 11 x 60 weight; a bias from uniform 0..1 follows
    "constant": "type: 'constant' value: 0.3",
    "uniform": "type: 'uniform' min: -0.7 max: 1.3",
    "gaussian": "type: 'gaussian' mean: 0.2 std: 0.7",
    "gaussian_sparse": "type: 'gaussian' std: 0.5 sparse: 3",
    "positive_unitball": "type: 'positive_unitball'",
    "xavier": "type: 'xavier'",
    "xavier_out": "type: 'xavier' variance_norm: FAN_OUT",
    "xavier_avg": "type: 'xavier' variance_norm: AVERAGE",
    "msra": "type: 'msra'",
    "msra_avg": "type: 'msra' variance_norm: AVERAGE",
}

_SPARSE = "type: 'gaussian' mean: -1.5 std: 0.3 sparse: 7"
LAYERS = [
    # dialect, weight filler and shape, bias filler and shape, digest of both: by the two programs, seed 77, not fused
    ("bvlc", "type: 'bilinear'", (3, 1, 3, 3), "", (), "bdddff87f3e6f570"),
    ("bvlc", "type: 'bilinear'", (3, 1, 6, 6), "", (), "055711533a3e97be"),
    ("bvlc", "type: 'bilinear'", (3, 1, 7, 7), "", (), "446dc49d9aa53b49"),
    ("bvlc", "type: 'xavier' variance_norm: FAN_OUT", (10, 3, 3, 2), "type: 'xavier'", (10,), "b8db8cb94bf26c84"),
    ("bvlc", "type: 'xavier' variance_norm: AVERAGE", (10, 3, 3, 2), "type: 'xavier'", (10,), "7626f603e55c82a3"),
    ("bvlc", "type: 'msra' variance_norm: FAN_OUT", (10, 3, 3, 2), "type: 'xavier'", (10,), "ded0d2a32e0d335a"),
    ("bvlc", "type: 'positive_unitball'", (10, 3, 3, 2), "type: 'xavier'", (10,), "981bc424fba845af"),
    ("bvlc", _SPARSE, (10, 3, 3, 2), "type: 'xavier'", (10,), "95233905cd1e1f86"),
    ("bvlc", "type: 'gaussian' sparse: 0", (10, 3, 3, 2), "type: 'xavier'", (10,), "d1e234461ec11b87"),
    ("bvlc", "type: 'uniform' min: 2 max: 2", (10, 3, 3, 2), "type: 'xavier'", (10,), "bd6e1a458e05354f"),
    ("noh", "type: 'xavier'", (10, 3, 3, 2), "type: 'xavier'", (1, 1, 1, 10), "0b8960d6f4761da0"),
    ("noh", "type: 'xavier'", (1, 1, 10, 168), "type: 'positive_unitball'", (1, 1, 1, 10), "0df5e260ee5e8896"),
    ("noh", "type: 'positive_unitball'", (10, 3, 3, 2), "type: 'xavier'", (1, 1, 1, 10), "89b528dcf8186553"),
    ("noh", _SPARSE, (1, 1, 10, 168), "type: 'positive_unitball'", (1, 1, 1, 10), "87d1bd881ef369cd"),
]

WRONG_FILLERS = [
    # filler, shape, what the message says
    ("type: 'xavir'", (2, 3), "unknown filler type 'xavir'; did you mean xavier?"),
    ("type: 'orthogonal'", (2, 3), "known are bilinear, constant,"),
    ("type: 'gaussian' std: 0", (2, 3), "gaussian filler: expected a standard deviation above 0, found std 0.0"),
    ("type: 'gaussian' sparse: -2", (2, 3), "sparse: -2"),
    ("type: 'gaussian' sparse: 3", (2, 3), "expected at most the 2 outputs, found sparse: 3"),
    ("type: 'xavier' sparse: 3", (2, 3), "sparse only in a gaussian filler"),
    ("type: 'uniform' min: 1 max: 0", (2, 3), "expected finite bounds, the lower one first, found 1.0 and 0.0"),
    ("type: 'bilinear'", (3, 1, 4, 5), "expected four axes, the last two equal, found shape (3, 1, 4, 5)"),
    ("type: 'constant'", (2, 0), "expected a blob with numbers in it, found shape (2, 0)"),
    ("type: 'msra'", (), "expected a blob with numbers in it, found shape ()"),
]


def filler(text: str) -> Any:
    return parse_text(text, SCHEMA.FillerParameter, "<text>")


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    where = folder("bvlc_random")
    assert where is not None
    with np.load(where / "draws.npz") as arrays:
        return dict(arrays)


def test_words_are_the_mersenne_twisters():
    # The C++ standard gives the 10000th word of the default seed.
    assert Stream(5489).words(10_000)[-1] == 4123659995


@pytest.mark.parametrize(("method", "args", "dtype", "count", "options", "seed", "expected"), DRAWS)
def test_distribution(method, args, dtype, count, options, seed, expected):
    source = Stream(seed)
    numbers = getattr(source, method)(*args, count, dtype, **options)
    assert numbers.dtype == (bool if method == "bernoulli" else dtype)
    assert digest(numbers, source.words(10)) == expected


@pytest.mark.parametrize(("seed", "dtype", "expected"), RARE_DRAWS)
def test_rare_candidates_of_the_ziggurat(seed, dtype, expected):
    source = Stream()
    source.set_state(np.random.RandomState(seed).choice(RARE_STATES, 624))
    assert digest(source.gaussian(0.25, 1.5, 1000, dtype, fused=False), source.words(1)) == expected


def test_shuffle():
    source, items = Stream(9), list(range(1000))
    source.shuffle(items)
    assert items[:8] == [711, 161, 508, 662, 272, 584, 434, 26]
    assert digest(np.array(items, np.uint32), source.words(10)) == "4a3bbaed2bf28538"


def test_shuffling_one_item_draws_nothing():
    source = Stream(9)
    source.shuffle([])
    source.shuffle(["alone"])
    assert source.words(1) == Stream(9).words(1)


def test_rand_is_the_next_word_modulo():
    source, words = Stream(4), Stream(4).words(20)
    assert [source.rand(n) for n in range(1, 21)] == [int(w) % n for n, w in enumerate(words, 1)]


@pytest.mark.parametrize("name", WEIGHTS)
def test_fillers_of_real_caffe(reference, name):
    source = Stream(SEED)
    for i, text in enumerate((WEIGHTS[name], "type: 'uniform' min: 0 max: 1")):
        theirs = reference[f"filler_{name}/{i}"]
        ours = fill(filler(text), theirs.shape, source)
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


def test_bilinear_of_real_caffe(reference):
    theirs = reference["filler_bilinear/0"]
    assert np.array_equal(fill(filler("type: 'bilinear'"), theirs.shape, Stream(SEED)), theirs)


@pytest.mark.parametrize(("dialect", "weight", "weight_shape", "bias", "bias_shape", "expected"), LAYERS)
def test_layers_of_both_programs(dialect, weight, weight_shape, bias, bias_shape, expected):
    source = Stream(77)
    pairs = [(weight, weight_shape), (bias, bias_shape)] if bias else [(weight, weight_shape)]
    options = {"legacy": dialect == "noh", "fused": False}
    assert digest(*(fill(filler(text), shape, source, **options) for text, shape in pairs)) == expected


def test_dropout_masks_of_real_caffe(reference):
    source, ratio = Stream(SEED), float(np.float32(0.4))
    for i in range(3):
        theirs = reference[f"dropout/{i}"]
        assert np.array_equal(source.bernoulli(1 - ratio, theirs.size), theirs.ravel() > 0)


def test_dummy_data_of_real_caffe(reference):
    source = Stream(SEED)
    for i in range(2):
        for name, text in (("a", "type: 'gaussian' std: 2"), ("b", "type: 'uniform' min: 0 max: 5")):
            theirs = reference[f"dummy_{name}/{i}"]
            assert np.array_equal(fill(filler(text), theirs.shape, source), theirs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("method", "args"), [("gaussian", (1, 2)), ("uniform", (3, 3)), ("bernoulli", (0.3,))])
def test_draws_in_pieces_are_the_draw(monkeypatch, method, args, dtype):
    whole = getattr(Stream(11), method)(*args, 5000, dtype)
    pieces = Stream(11)
    parts = [getattr(pieces, method)(*args, n, dtype) for n in (0, 1, 2, 997, 0, 4000)]
    assert np.array_equal(np.concatenate(parts), whole)
    monkeypatch.setattr(stream, "_BLOCK", 64)
    assert np.array_equal(getattr(Stream(11), method)(*args, 5000, dtype), whole)


@pytest.mark.parametrize("before", [0, 1, 623, 624, 625, 5000])
def test_a_state_resumes(before):
    source, other = Stream(12), Stream(13)
    source.gaussian(0, 1, 7, np.float64)
    source.words(before)
    state = source.get_state()
    ahead = source.gaussian(0, 1, 3000), source.words(1000)
    other.words(5)
    other.set_state(state)
    assert np.array_equal(other.get_state(), state)
    resumed = other.gaussian(0, 1, 3000), other.words(1000)
    assert all(np.array_equal(a, b) for a, b in zip(ahead, resumed, strict=True))
    numpys = np.random.RandomState()
    numpys.set_state(("MT19937", state, 0))
    source.set_state(state)
    assert np.array_equal(numpys.randint(0, 2**32, 2000, np.uint32), source.words(2000))


def test_equal_positions_have_equal_states():
    drawn, skipped = Stream(14), Stream(14)
    drawn.uniform(0, 1, 1000, np.float64)
    skipped.words(300), skipped.words(700)
    assert np.array_equal(drawn.get_state(), skipped.get_state())


def test_the_default_stream_is_seeded():
    set_random_seed(SEED)
    assert np.array_equal(default_stream().words(5), Stream(SEED).words(5))
    assert not np.array_equal(Stream().words(5), Stream().words(5))


def test_double_precision_fillers_draw_in_double():
    ours = fill(filler("type: 'msra'"), (4, 3, 2, 2), Stream(15), np.float64)
    assert np.array_equal(ours.ravel(), Stream(15).gaussian(0, np.sqrt(2 / 12), 48, np.float64))


@pytest.mark.parametrize(("text", "shape", "said"), WRONG_FILLERS)
def test_wrong_fillers(text, shape, said):
    with pytest.raises(LayerError) as caught:
        fill(filler(text), shape, Stream(0), where="net.prototxt:7: conv1[0]")
    assert str(caught.value).startswith("net.prototxt:7: conv1[0]: ") and said in str(caught.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: s.uniform(0, float("inf"), 3), "finite bounds"),
        (lambda s: s.uniform(0, 1e39, 3), "finite bounds"),
        (lambda s: s.gaussian(0, -1, 3), "above 0"),
        (lambda s: s.bernoulli(1.5, 3), "from 0 to 1"),
        (lambda s: s.gaussian(0, 1, 3, np.float16), "float32 or float64"),
        (lambda s: s.set_state(np.zeros(625, np.uint32)), "uint32 (624,)"),
    ],
)
def test_wrong_arguments(call, said):
    with pytest.raises(CaffeError, match=re.escape(said)):
        call(Stream(0))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_net_fills_its_layers_in_order(reference, name):
    set_random_seed(SEED)
    net = Net(
        "layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }\n"
        "layer { name: 'l' type: 'InnerProduct' bottom: 'x' top: 'y' inner_product_param { num_output: 11"
        f" weight_filler {{ {WEIGHTS[name]} }} bias_filler {{ type: 'uniform' min: 0 max: 1 }} }} }}"
    )
    for i, blob in enumerate(("weight", "bias")):
        assert np.array_equal(net.state_dict()[f"l.{blob}"].numpy(), reference[f"filler_{name}/{i}"])


def test_a_net_drops_out_as_real_caffe(reference):
    net = Net(
        "layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }\n"
        "layer { name: 'd' type: 'Dropout' bottom: 'x' top: 'y' dropout_param { dropout_ratio: 0.4 } }",
        phase="TRAIN",
    )
    set_random_seed(SEED)
    for i in range(3):
        assert np.array_equal(net(x=torch.ones(2, 3, 5, 4))["y"].numpy(), reference[f"dropout/{i}"])
