"""Definitions as Caffe builds from them: filtered, split, with their dialect; all shared nets equal to real Caffe's."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from reference import SHARED, definition

from caffe_port.dialects import BVLC, MIXED, NOH, names
from caffe_port.errors import CaffeError, DefinitionError
from caffe_port.schema import SCHEMA, parse_text, read_net, read_solver
from caffe_port.schema.splits import insert_splits

DIGESTS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("definition_digests.json").read_text())
"""For each shared net and phase a digest of what real Caffe (noh for noh_*, else bvlc) makes of it: upgraded, filtered,
split; noh's V1 result in V2 form."""


@pytest.mark.parametrize("name", DIGESTS)
def test_equals_real_caffe(name):
    source = definition(name)
    if source is None:
        pytest.skip(f"needs ../shared/{Path(name).parent}")
    for phase, digest in DIGESTS[name].items():
        net = read_net(source, phase=phase).net
        net.ClearField("state")
        assert hashlib.sha256(net.SerializeToString(deterministic=True)).hexdigest()[:12] == digest, phase


def _others() -> list[Path]:
    folders = [Path(__file__).parents[1] / "prototxt", SHARED / "reference", SHARED / "models"]
    if "CAFFE_PROTOTXTS" in os.environ:
        folders.append(Path(os.environ["CAFFE_PROTOTXTS"]))
    found = [path for folder in folders for path in sorted(folder.rglob("*.prototxt"))]
    return [path for path in found if _is_known(path)]


def _is_known(path: Path) -> bool:
    """Whether a reference suite is of a Caffe whose dialect there is; its folder's name starts with the dialect's."""
    if SHARED / "reference" in path.parents:
        return path.relative_to(SHARED / "reference").parts[0].partition("_")[0] in names()
    return "res10_ssd" not in path.parts or "ssd" in names()


@pytest.mark.parametrize("path", _others(), ids=str)
def test_reads_every_prototxt(path):
    suite = path.relative_to(SHARED / "reference").parts[0] if SHARED / "reference" in path.parents else ""
    fork = suite.partition("_")[0]
    dialect = fork if fork in ("rcnn", "segnet", "ssd") else None  # SmoothL1Loss or BN alone may be another's
    if "solver" in path.name:
        assert read_solver(path).type
    else:
        try:
            definition = read_net(path, phase="TRAIN", dialect=dialect)
        except DefinitionError as error:
            if "another phase, level or stage" in str(error):
                pytest.skip(str(error))
            raise
        assert len(definition.lines) == len(definition.net.layer) > 0


# rules, state (phase, level, stages), whether the layer is there
RULES = [
    ("", ("TEST", 0, ()), True),
    ("include { phase: TRAIN }", ("TRAIN", 0, ()), True),
    ("include { phase: TRAIN }", ("TEST", 0, ()), False),
    ("exclude { phase: TRAIN }", ("TRAIN", 0, ()), False),
    ("exclude { phase: TRAIN }", ("TEST", 0, ()), True),
    ("include { phase: TRAIN } include { phase: TEST }", ("TEST", 0, ()), True),
    ("exclude { phase: TRAIN } exclude { stage: 'a' }", ("TEST", 0, ("a",)), False),
    ("include { min_level: 2 }", ("TEST", 1, ()), False),
    ("include { min_level: 2 }", ("TEST", 2, ()), True),
    ("include { max_level: 2 }", ("TEST", 2, ()), True),
    ("include { max_level: 2 }", ("TEST", 3, ()), False),
    ("include { min_level: 0 max_level: 0 }", ("TEST", 0, ()), True),
    ("include { min_level: -1 max_level: -1 }", ("TEST", -1, ()), True),
    ("include { stage: 'a' }", ("TEST", 0, ()), False),
    ("include { stage: 'a' }", ("TEST", 0, ("b", "a")), True),
    ("include { stage: 'a' stage: 'b' }", ("TEST", 0, ("a",)), False),
    ("include { stage: 'a' } include { stage: 'b' }", ("TEST", 0, ("a",)), True),
    ("include { not_stage: 'a' }", ("TEST", 0, ()), True),
    ("include { not_stage: 'a' }", ("TEST", 0, ("a",)), False),
    ("include { not_stage: 'a' not_stage: 'b' }", ("TEST", 0, ("b",)), False),
    ("include { stage: 'a' not_stage: 'b' }", ("TEST", 0, ("a", "b")), False),
    ("include { phase: TRAIN min_level: 1 stage: 'a' }", ("TRAIN", 1, ("a",)), True),
    ("include { phase: TRAIN min_level: 1 stage: 'a' }", ("TEST", 1, ("a",)), False),
    ("include { }", ("TEST", 0, ()), True),
    ("exclude { }", ("TEST", 0, ()), False),
]


@pytest.mark.parametrize(("rules", "state", "there"), RULES)
def test_rules(rules, state, there):
    phase, level, stages = state
    for form in ('layer { name: "l" %s }', 'layers { name: "l" %s }'):
        definition = read_net(form % rules, phase=phase, level=level, stages=stages)
        assert bool(definition.net.layer) == there
        assert definition.phase == phase


@pytest.mark.parametrize(
    ("own", "asked", "state"),
    [
        ("", {}, "phase: TEST level: 0"),
        ("state { phase: TRAIN level: 3 stage: 'a' }", {"phase": "TEST"}, "phase: TEST level: 0 stage: 'a'"),
        ("state { phase: TRAIN level: 3 stage: 'a' }", {"phase": None}, "phase: TRAIN level: 3 stage: 'a'"),
        ("state { stage: 'a' }", {"phase": 0, "stages": ["b"], "level": 2}, "phase: TRAIN level: 2 stage: ['a', 'b']"),
        ("", {"phase": None, "level": 1}, "level: 1"),
    ],
)
def test_state_of_the_net(own, asked, state):
    definition = read_net(f"{own} layer {{ }}", **asked)
    assert definition.net.state == parse_text(state, SCHEMA.NetState, "expected")


def test_wrong_phase():
    with pytest.raises(CaffeError, match="phase: expected TRAIN or TEST, found 'train'"):
        read_net("layer { }", phase="train")


# a net, and the same with its splits
SPLITS = {
    "one reader each": (
        "layer { name: 'd' top: 'x' top: 'y' } layer { name: 'l' bottom: 'x' bottom: 'y' top: 'z' }",
        "layer { name: 'd' top: 'x' top: 'y' } layer { name: 'l' bottom: 'x' bottom: 'y' top: 'z' }",
    ),
    "two readers": (
        """layer { name: 'd' top: 'u' top: 'x' } layer { name: 'a' bottom: 'x' }
           layer { name: 'b' bottom: 'u' bottom: 'x' }""",
        """layer { name: 'd' top: 'u' top: 'x' }
           layer { name: 'x_d_1_split' type: 'Split' bottom: 'x' top: 'x_d_1_split_0' top: 'x_d_1_split_1' }
           layer { name: 'a' bottom: 'x_d_1_split_0' } layer { name: 'b' bottom: 'u' bottom: 'x_d_1_split_1' }""",
    ),
    "twice in one layer": (
        "layer { name: 'd' top: 'x' } layer { name: 'a' bottom: 'x' bottom: 'x' }",
        """layer { name: 'd' top: 'x' }
           layer { name: 'x_d_0_split' type: 'Split' bottom: 'x' top: 'x_d_0_split_0' top: 'x_d_0_split_1' }
           layer { name: 'a' bottom: 'x_d_0_split_0' bottom: 'x_d_0_split_1' }""",
    ),
    "in place": (
        """layer { name: 'd' top: 'x' } layer { name: 'r' bottom: 'x' top: 'x' }
           layer { name: 'a' bottom: 'x' } layer { name: 'b' bottom: 'x' }""",
        """layer { name: 'd' top: 'x' } layer { name: 'r' bottom: 'x' top: 'x' }
           layer { name: 'x_r_0_split' type: 'Split' bottom: 'x' top: 'x_r_0_split_0' top: 'x_r_0_split_1' }
           layer { name: 'a' bottom: 'x_r_0_split_0' } layer { name: 'b' bottom: 'x_r_0_split_1' }""",
    ),
    "split, then in place on a copy": (
        """layer { name: 'd' top: 'x' } layer { name: 'a' bottom: 'x' } layer { name: 'r' bottom: 'x' top: 'x' }
           layer { name: 'b' bottom: 'x' }""",
        """layer { name: 'd' top: 'x' }
           layer { name: 'x_d_0_split' type: 'Split' bottom: 'x' top: 'x_d_0_split_0' top: 'x_d_0_split_1' }
           layer { name: 'a' bottom: 'x_d_0_split_0' } layer { name: 'r' bottom: 'x_d_0_split_1' top: 'x' }
           layer { name: 'b' bottom: 'x' }""",
    ),
    "a loss that is read": (
        "layer { name: 'l' top: 'x' loss_weight: 2 } layer { name: 'a' bottom: 'x' }",
        """layer { name: 'l' top: 'x' }
           layer { name: 'x_l_0_split' type: 'Split' bottom: 'x' top: 'x_l_0_split_0' top: 'x_l_0_split_1'
             loss_weight: [2, 0] }
           layer { name: 'a' bottom: 'x_l_0_split_1' }""",
    ),
    "a loss of weight 0": (
        "layer { name: 'l' top: 'x' loss_weight: 0 } layer { name: 'a' bottom: 'x' }",
        "layer { name: 'l' top: 'x' loss_weight: 0 } layer { name: 'a' bottom: 'x' }",
    ),
    "two losses, one read: Caffe forgets the other": (
        "layer { name: 'l' top: 'x' top: 'y' loss_weight: [2, 3] } layer { name: 'a' bottom: 'x' }",
        """layer { name: 'l' top: 'x' top: 'y' }
           layer { name: 'x_l_0_split' type: 'Split' bottom: 'x' top: 'x_l_0_split_0' top: 'x_l_0_split_1'
             loss_weight: [2, 0] }
           layer { name: 'a' bottom: 'x_l_0_split_1' }""",
    ),
    "names of nobody": (
        "layer { top: 'x' } layer { bottom: 'x' } layer { bottom: 'x' }",
        """layer { top: 'x' }
           layer { name: 'x__0_split' type: 'Split' bottom: 'x' top: 'x__0_split_0' top: 'x__0_split_1' }
           layer { bottom: 'x__0_split_0' } layer { bottom: 'x__0_split_1' }""",
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits(name):
    before, after = (parse_text(text, SCHEMA.NetParameter, "t") for text in SPLITS[name])
    source = before.SerializeToString()
    net, origins = insert_splits(before)
    assert net == after
    assert [i for i in origins if i >= 0] == list(range(len(before.layer)))
    assert [net.layer[k].type == "Split" for k in range(len(origins))] == [i < 0 for i in origins]
    assert insert_splits(net)[0] == net
    assert before.SerializeToString() == source, "the source has changed"


def test_splits_of_inputs():
    definition = read_net(
        "input: 'u' input: 'x' input_dim: [1, 2, 3, 4, 1, 2, 3, 4]\n"
        "layers { name: 'a' bottom: 'x' }\n\nlayers { name: 'b' bottom: 'x' bottom: 'u' }"
    )
    names = ["input", "x_input_1_split", "a", "b"]
    assert [layer.name for layer in definition.net.layer] == names
    assert list(definition.net.layer[3].bottom) == ["x_input_1_split_1", "u"]
    assert (definition.synthetic, definition.inserted, definition.generation) == ((0,), (1,), 1)
    assert definition.lines == (1, 0, 2, 4)
    assert [definition.where(i) for i in range(4)] == ["<text>:1", "<text>", "<text>:2", "<text>:4"]


def test_lines_after_filter_and_padding():
    definition = read_net(
        """input: "x" input_dim: [1, 1, 4, 4]
        layers { layer { type: "padding" pad: 2 } bottom: "x" top: "xp" }
        layers { layer { name: "c" type: "conv" } bottom: "xp" top: "y" }"""
    )
    assert definition.lines == (1, 3)
    definition = read_net("layer { include { phase: TRAIN } }\nlayer { exclude { phase: TRAIN } }\nlayer { }")
    assert definition.lines == (2, 3)


# a bottom that no layer computes, and the error
BOTTOMS = {
    "near": (
        "layer { top: 'conv1' }\nlayer { name: 'b' bottom: 'conv2' }",
        "<text>:2: layer b: ",
        "did you mean conv1?",
    ),
    "later": (
        "layer { bottom: 'x' }\nlayer { name: 'l' top: 'x' }",
        "<text>:1: a layer without",
        "late (<text>:2: layer l)",
    ),
    "other phase": (
        "layer { name: 'd' top: 'x' include { phase: TRAIN } }\nlayer { name: 'b' bottom: 'x' }",
        "<text>:2: layer b: bottom 'x', which no earlier layer computes; ",
        "another phase, level or stage (<text>:1: layer d)",
    ),
    "input without shape": (
        "input: 'data'\nlayer { name: 'b' bottom: 'data' }",
        "<text>:2",
        "give input data an input_shape",
    ),
    "far": (
        "layer { top: 'x' }\nlayer { name: 'b' bottom: 'something' }",
        "<text>:2: layer b",
        "computed before it: x",
    ),
    "nothing": ("layer { name: 'b' bottom: 'something' }", "<text>:1: layer b", "no earlier layer computes a blob"),
    "own top": ("layer { name: 'b' bottom: 'x' top: 'x' }", "<text>:1: layer b", "too late"),
}


@pytest.mark.parametrize("name", BOTTOMS)
def test_unknown_bottom(name):
    text, place, says = BOTTOMS[name]
    with pytest.raises(DefinitionError) as error:
        read_net(text)
    assert str(error.value).startswith(place) and says in str(error.value), str(error.value)


def test_include_and_exclude():
    with pytest.raises(
        DefinitionError, match="<text>:2: layer b: expected only one kind, found include and exclude rules"
    ):
        read_net("layer { }\nlayer { name: 'b' include { } exclude { } }")


# a layer, the dialect, and why
DIALECTS = [
    (
        "layers { name: 'u' type: UNPOOLING }",
        NOH,
        "<text>:1: layer u is of type UNPOOLING, which only the noh fork has",
    ),
    ("layers { type: CROP }", NOH, "is of type CROP"),
    ("layer { type: 'Crop' }", BVLC, "nothing"),
    ("layer { type: 'WindowSegData' }", NOH, "is of type WindowSegData"),
    ("layers { type: POOLING bn_param { } }", NOH, "has bn_param"),
    ("layer { select_seg_binary_param { } }", NOH, "has select_seg_binary_param"),
    ("layers { type: RELU top: 'x' top: 'mask' }", NOH, "a ReLU with 2 tops"),
    ("layer { type: 'ReLU' top: 'x' top: 'mask' }", NOH, "a ReLU with 2 tops"),
    ("layers { type: RELU top: 'x' }", BVLC, "nothing"),
    ("layers { type: POOLING top: 'x' top: 'mask' }", BVLC, "nothing"),
    ("layers { type: IMAGE_DATA image_data_param { label_type: PIXEL } }", NOH, "has image_data_param.label_type"),
    ("layers { type: IMAGE_DATA image_data_param { source: 's' } }", BVLC, "nothing"),
    ("layers { layer { type: 'conv' } }", BVLC, "nothing"),
    ("layers { type: UNPOOLING include { phase: TRAIN } }", NOH, "UNPOOLING"),
    ("# type: UNPOOLING\nlayers { name: 'type: BN { }' type: POOLING }", BVLC, "nothing"),
    ("layer { type: 'Unpooling' }\nlayer { name: 's' type: 'Scale' }", MIXED, "<text>:1 is of type Unpooling"),
]


@pytest.mark.parametrize(("text", "dialect", "why"), DIALECTS)
def test_dialect(text, dialect, why):
    definition = read_net(text)
    assert definition.dialect is dialect
    assert why in definition.dialect_reason


def test_dialect_asked_for():
    definition = read_net("layers { type: UNPOOLING }", dialect="bvlc")
    assert (definition.dialect, definition.dialect_reason) == (BVLC, "requested")
    assert read_net("layer { }", dialect=NOH).dialect is NOH
    with pytest.raises(CaffeError, match="dialect"):
        read_net("layer { }", dialect="caffe")


def test_a_message_is_left_as_it_was():
    net = parse_text(
        "layers { name: 'd' top: 'x' } layers { bottom: 'x' } layers { bottom: 'x' }", SCHEMA.NetParameter, "t"
    )
    before = net.SerializeToString()
    definition = read_net(net)
    assert net.SerializeToString() == before
    assert (definition.path, definition.lines, definition.inserted) == ("<message>", (0, 0, 0, 0), (1,))
    assert definition.where(0) == "<message>"
