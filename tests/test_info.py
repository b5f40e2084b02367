"""caffe-port info: the contents of definitions and weight files, compared with the built net."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference import EMBEDDED

from caffe_port.errors import CaffeError
from caffe_port.net import Net
from caffe_port.random.fillers import FILLERS as FILLED
from caffe_port.schema.layer_types import FILLERS, POLICIES, SOLVERS
from caffe_port.solver.optimizers import rule
from caffe_port.solver.schedule import policy
from caffe_port.spec import RECORDS
from caffe_port.spec.exports import NOT_EXPORTED
from caffe_port.tools.info import main
from caffe_port.tools.summary import summarize

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = sorted(p for p in (ROOT / "prototxt").glob("*/*deploy*.prototxt"))
DEMO = EMBEDDED / "demo"
NET = """\
name: "small"
input: "x" input_shape { dim: [2, 3, 8, 8] }
layer { name: "conv" type: "Convolution" bottom: "x" top: "c" param { name: "w" } param { name: "b" }
        convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "again" type: "Convolution" bottom: "x" top: "d" param { name: "w" } param { name: "b" }
        convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" include { stage: "deep" min_level: 2 } }
layer { name: "sum" type: "Eltwise" bottom: "c" bottom: "d" top: "e" exclude { phase: TRAIN } }
"""


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0), capsys.readouterr().out


@pytest.mark.parametrize("path", DEPLOY, ids=lambda p: p.name)
def test_shapes_and_parameters_are_those_of_the_net_built(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Net, "_fill", lambda *_: None)  # seconds of random numbers that nobody reads
    found = summarize(path)
    net = Net(path)
    shapes = {name: shape for line in found.lines for name, shape in line.tops}
    for name, shape in shapes.items():
        assert shape == tuple(net.shapes[next(t for n, _ in net.nodes for t in n.tops if t.split("@")[0] == name)])
    assert found.parameters == sum(
        p.numel() for p in {id(p): p for p in net.state_dict(keep_vars=True).values()}.values()
    )
    assert found.dialect == net.dialect.name
    assert not found.unknown
    assert not found.problems


def test_a_small_net_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "n.prototxt"
    path.write_text(NET)
    found = summarize(path)
    assert (found.name, found.phases, found.stages, found.levels) == ("small", {"TEST": 4, "TRAIN": 3}, ["deep"], [2])
    assert found.parameters == 4 * 3 * 9 + 4, "shared blobs count once"
    assert found.macs == 2 * (2 * 4 * 6 * 6 * 27)
    assert found.memory == 4 * (2 * 3 * 64 + 3 * 2 * 4 * 36)
    assert len(summarize(path, stages=["deep"], level=3).lines) == 5


def test_what_data_decides_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "n.prototxt"
    path.write_text(
        'layer { name: "d" type: "Data" top: "d" data_param { source: "nowhere" batch_size: 2 backend: LMDB } }'
        'layer { name: "c" type: "InnerProduct" bottom: "d" top: "c" inner_product_param { num_output: 4 } }'
    )
    found = summarize(path)
    assert (found.parameters, found.macs, found.unknown, found.problems) == (None, None, [], [])


@pytest.mark.parametrize(
    ("text", "kind", "unknown"),
    [
        (NET, "net", []),
        (NET.replace("ReLU", "Mish"), "net", ["type Mish"]),
        (NET.replace("stage:", "stages:"), "net", ["field NetStateRule.stages"]),
        (NET.replace("TRAIN", "DEPLOY"), "net", ["value Phase.DEPLOY"]),
        (NET.replace("kernel_size: 3", 'weight_filler { type: "he" }'), "net", ["value FillerParameter.type.he"]),
        ('net: "n" base_lr: 1 lr_policy: "cosine" type: "LAMB"', "solver", [
            "value SolverParameter.lr_policy.cosine", "value SolverParameter.type.LAMB",
        ]),
        ('layers { type: CONVOLUTON } layers { type: RELU }', "net", ["type CONVOLUTON"]),
        ('layers { layer { type: "convo" name: "c" } }', "net", ["value V0LayerParameter.type.convo"]),
    ],
)  # fmt: skip
def test_everything_unknown_is_listed(text: str, kind: str, unknown: list[str], tmp_path: Path) -> None:
    path = tmp_path / "n.prototxt"
    path.write_text(text)
    found = summarize(path).as_json()
    assert (found["kind"], found["unknown"]) == (kind, unknown)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layer { name: ${N} }", "a template's placeholder"),
        ("layer {", "an unclosed bracket"),
        ("name: 'a' name: 'b'", "name a second time"),
        ("force_backward: 7", "expected"),
    ],
)
def test_what_cannot_be_read_is_not_called_known(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "n.prototxt"
    path.write_text(text)
    status, out = call(capsys, "--json", str(path))
    found = json.loads(out)
    assert status == 2
    assert found["unknown"]
    assert said in found["problems"][0]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (
            'layer { name: "sum" type: "Eltwise" bottom: "c" bottom: "d" top: "e" propagate_down: true }',
            "1 propagate_down",
        ),
        ('layer { name: "late" type: "Power" bottom: "x" top: "d" }', "'d' a second time"),
        ('layer { name: "late" type: "Power" bottom: "y" top: "e" }', "bottom 'y', which no earlier layer"),
    ],
)
def test_what_no_net_can_be_built_from(layers: str, said: str, tmp_path: Path) -> None:
    """Found where a net finds it, and told with the file."""
    path = tmp_path / "n.prototxt"
    path.write_text("\n".join([*NET.splitlines()[:6], layers]))
    (problem,) = summarize(path).problems
    assert problem.startswith(str(path))
    assert said in problem
    with pytest.raises(CaffeError) as error:
        Net(path)
    assert said in str(error.value)


def test_one_line_of_json_a_file_also_for_files_that_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.prototxt").write_text("<html>")
    files = [str(DEMO / "net.prototxt"), str(DEMO / "weights.caffemodel"), str(tmp_path / "page.prototxt"), "nowhere"]
    status, out = call(capsys, "--json", *files)
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 2
    assert [one["file"] for one in found] == files
    assert [one["kind"] for one in found] == ["net", "weights", "unreadable", "unreadable"]
    assert found[0]["parameters"] == found[1]["parameters"] > 0
    assert (found[0]["dialect"], found[1]["dialect"]) == ("noh", "noh")
    assert all({"file", "dialect", "layers", "parameters", "unknown"} <= one.keys() for one in found)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_the_page_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "n.prototxt"
    text = NET.replace("ReLU", "CenterLoss").replace("num_output", "zz: 1 num_output") + '# a\nlayer { name: "C:\\d" }'
    path.write_text(text)
    status, out = call(capsys, str(path))
    assert status == 0
    assert f"{path}: net small" in out
    assert "conv Convolution c 2 x 4 x 6 x 6 112 7,776" in " ".join(out.split())
    assert "  unknown, of Center loss (ydwen/caffe-face):\n    type CenterLoss (line 7)" in out
    assert "    field ConvolutionParameter.zz (line 4 and 1 more)" in out
    assert "note: line 10: a Windows path" in out
    path.write_text(NET.replace("small", "${NAME}", 1) + '# "${COMMENT}"')
    assert "${NAME}, a template's placeholder: fill it in first" in call(capsys, str(path))[1]
    assert "COMMENT" not in call(capsys, str(path))[1]


def test_it_loads_no_torch() -> None:
    files = [str(p) for p in DEPLOY[:2]]
    code = (
        f"from caffe_port.tools.info import main\ntry: main({['--json', *files]!r})\nexcept SystemExit: pass\n"
        "import sys; print(*{m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    modules = set(done.stdout.splitlines()[-1].split())
    assert "caffe_port" in modules
    assert not {"torch", "numpy", "h5py", "scipy", "PIL"} & modules


def test_names_that_are_known_are_those_that_compute() -> None:
    assert set(FILLERS) == set(FILLED)
    assert set(POLICIES) == set(policy.classes)
    assert set(SOLVERS) == set(rule.classes)


PAIR = """\
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3] } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 4 } }
layer { name: "scale" type: "Scale" bottom: "y" top: "y" scale_param { bias_term: %s } }
layer { name: "%s" type: "InnerProduct" bottom: "y" top: "z" inner_product_param { num_output: %d } }
"""


@pytest.mark.parametrize(
    ("net", "status", "lines"),
    [
        (("true", "ip2", 5), 0, ["w.npz for n: fits", "w.npz: checked 6 blobs, 49 numbers"]),
        (("true", "other", 5), 0, ["missing from the file (2): other.weight, other.bias", "ignored (1): ip2"]),
        (("true", "ip2", 7), 1, ["w.npz for n: does not fit", "ip2.weight: net has (7, 4), file has (5, 4)"]),
        (("true", "ip2", 7), 1, ["ip2.bias: net has (7,), file has (5,)", "w.npz: ip2[0] (weight): ", "(n:4)"]),
        (("false", "ip2", 5), 1, ["w.npz: layer scale: expected 1 (weight) as the net has (n:3)"]),
    ],
)
def test_a_net_and_weights_together(
    net: tuple[str, str, int],
    status: int,
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shapes = {"ip": [(4, 3), (4,)], "scale": [(4,), (4,)], "ip2": [(5, 4), (5,)]}
    blobs = {
        f"{name}.{key}": s for name, pair in shapes.items() for key, s in zip(("weight", "bias"), pair, strict=True)
    }
    np.savez("w.npz", **{key: np.zeros(shape, np.float32) for key, shape in blobs.items()})
    Path("n").write_text(PAIR % net)
    for order in (("n", "w.npz"), ("w.npz", "n")):
        found, said = call(capsys, *order)
        assert found == status
        assert [line for line in lines if line not in said] == []
    assert call(capsys, "n", "w.npz", "--json")[1].count("\n") == 2


def test_a_plugins_layer_is_computed_with_its_fields(tmp_path: Path) -> None:
    """In processes of their own, because they register a layer. Without --proto the block is unknown: one line."""
    examples = ROOT / "docs" / "examples"
    (tmp_path / "bare.prototxt").write_text(
        """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 1 dim: 2 dim: 2 } } }
        layer { name: "zoom" type: "Interp" bottom: "x" top: "y" }"""
    )
    command = [sys.executable, "-m", "caffe_port", "info", "--dialect", "bvlc", "--plugin", str(examples / "interp.py")]
    for more, wanted in (
        ([str(examples / "interp.prototxt"), "--proto", str(examples / "interp.proto")], "zoom 1 x 2 x 33 x 49"),
        ([str(tmp_path / "bare.prototxt")], "no field interp_param in LayerParameter; give the Caffe's .proto"),
    ):
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=False, cwd=ROOT)
        assert wanted in done.stdout, done.stdout + done.stderr


def test_what_can_be_exported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "n.prototxt").write_text(
        'layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: [2, 3] } } }'
        'layer { name: "r" type: "ReLU" bottom: "d" top: "r" } layer { name: "l" type: "CenterLoss" bottom: "r" }'
    )
    assert summarize(tmp_path / "n.prototxt").exports == {
        "onnx": ["DummyData", "CenterLoss"],
        "py": ["DummyData", "CenterLoss"],
    }
    assert "export to .onnx: all but DummyData, CenterLoss\n" in call(capsys, str(tmp_path / "n.prototxt"))[1]


def test_types_that_no_exporter_takes() -> None:
    """caffe_port/spec/exports.py equals the exporters' tables."""
    from caffe_port.export import onnx_file  # importing the package registers all exporters
    from caffe_port.export.onnx_graph import OPERATORS
    from caffe_port.export.source_code import WRITERS

    for target, taken in (
        ("onnx", {*OPERATORS, "Input", "Parameter", *onnx_file._BY_SHAPE}),
        ("py", {*WRITERS, "Input"}),
    ):
        assert NOT_EXPORTED[target] == {
            name
            for name, of in RECORDS.items()
            if name not in taken and all(record.__module__.startswith("caffe_port.") for record in of.values())
        }
