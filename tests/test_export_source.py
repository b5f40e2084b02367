"""PyTorch files: exported nets, run without this package, give the numbers that real Caffe gave, and read well."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import Case, cases
from slim import with_inputs
from test_export_onnx import CASES, FOLDED, deployed, drawn, prepared

from caffe_port.errors import CaffeError
from caffe_port.execution.executor import Mode
from caffe_port.export import source
from caffe_port.export.check import distance
from caffe_port.export.onnx_picture import Preprocessing
from caffe_port.export.source_code import WRITERS
from caffe_port.formats.safetensors import write_safetensors
from caffe_port.net import Net
from caffe_port.tools.compare import compare
from caffe_port.tools.export import main

pytest.importorskip("safetensors")
pytestmark = pytest.mark.xdist_group("export source")

CASES = [
    *CASES,
    *(case for suite, fork in (("ssd_more", "ssd"), ("pspnet_bn", "pspnet")) for case in cases(suite, fork)),
]
CASES += [case for suite, fork in (("bvlc_inplace", "bvlc"), ("noh_inplace", "noh")) for case in cases(suite, fork)]
CASES += cases("noh_nets", "noh")
CASES = list({str(case): case for case in CASES}.values())
REFUSED = {
    "bvlc_corners/conv_0_axes": "found 0 spatial axes",
    "bvlc_corners/conv_4_axes": "found 4 spatial axes",
    "bvlc_corners/deconv_4_axes": "found 4 spatial axes",
}
"""Cases that are refused by name."""
NOT_WRITTEN = {"Python"}

_RUN = """
import importlib.util, sys
from pathlib import Path
sys.modules["caffe_port"] = None
import numpy, torch
found = {}
for path in sorted(Path(sys.argv[1]).glob("*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with numpy.load(path.with_suffix(".npz")) as arrays, torch.no_grad():
        tops = module.load()(*(torch.from_numpy(arrays[name]) for name in module.INPUTS))
    for name, top in zip(module.OUTPUTS, tops if isinstance(tops, tuple) else (tops,), strict=True):
        found[f"{path.stem}/{name}"] = top.detach().numpy()
numpy.savez(sys.argv[2], **found)
"""
"""Runs every file of a folder on the inputs beside it, in a process that has no caffe_port."""


@cache
def outputs_of(case: Case) -> list[str]:
    """The blobs to compare; none if the case is not for deployment, or has a layer that is not written."""
    if not deployed(case) or (case.suite == "pspnet_bn" and case.phase == "TRAIN"):
        return []
    net = Net(case.prototxt, phase="TEST", dialect=case.dialect)
    if NOT_WRITTEN.intersection(node.type for node, _ in net.nodes):
        return []
    blobs = [key.removeprefix("out/") for key in case.reference.keys("out")]
    return [name for name in blobs if name not in net.graph.inputs and net.shapes.get(name) is not None]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outputs of all cases' files, by place among the cases and blob, and those of cases that were refused."""
    folder = tmp_path_factory.mktemp("files")
    results: dict[str, Any] = {}
    for i, case in enumerate(CASES):
        if not outputs_of(case):
            continue
        net = prepared(case)
        try:
            exported = source(net, folder / f"n{i}.py", verify=False, outputs=outputs_of(case), fold=False)
        except CaffeError as error:
            results[f"n{i}"] = str(error)
            continue
        given = {name: case.reference[f"in/{name}"].astype(np.float32) for name in exported.inputs}
        np.savez(folder / f"n{i}.npz", **{name: x.reshape(net.shapes[name]) for name, x in given.items()})
    made = folder.parent / "made.npz"
    subprocess.run([sys.executable, "-I", "-c", _RUN, str(folder), str(made)], check=True)
    with np.load(made) as arrays:
        return results | dict(arrays)


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: str(CASES[i]))
def test_files_give_real_caffes_numbers(i: int, found: dict[str, Any]) -> None:
    case = CASES[i]
    if not outputs_of(case):
        pytest.skip("not for deployment")
    if f"n{i}" in found:
        assert REFUSED[str(case)] in found[f"n{i}"]
        return
    wrong = []
    for name in outputs_of(case):
        theirs, ours = case.reference[f"out/{name}"], found[f"n{i}/{name}"]
        compared = compare(name, ours.reshape(theirs.shape), theirs, case.reference.bound(f"out/{name}"))
        wrong += [] if compared.ok else [str(compared)]
    assert not wrong


NETS = {
    "vgg": "classification/cls_voc_deploy.prototxt",
    "fcn8s": "fcn8s/fcn-8s-pascal-deploy.prototxt",
    "decouplednet": "decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt",
    "deconvnet": "deconvnet/DeconvNet_inference_deploy.prototxt",
    "fp_bp": "decouplednet/fp_bp_network.prototxt",
}


def inception() -> str:
    """The first layers of a net in GoogLeNet's manner, and its names."""

    def branch(name: str, kernel: int, bottom: str, outputs: int) -> str:
        name = f"inception_3a/{name}"
        return (
            f"layer {{ name: '{name}' type: 'Convolution' bottom: '{bottom}' top: '{name}' convolution_param {{"
            f" num_output: {outputs} kernel_size: {kernel} pad: {kernel // 2} }} }}"
            f"layer {{ name: '{name}_relu' type: 'ReLU' bottom: '{name}' top: '{name}' }}"
        )

    pool = "layer { name: '%s' type: 'Pooling' bottom: '%s' top: '%s' pooling_param { %s } }"
    return (
        "name: 'GoogleNet' layer { name: 'data' type: 'Input' top: 'data' input_param {"
        " shape { dim: 2 dim: 3 dim: 30 dim: 28 } } }"
        "layer { name: 'conv1/7x7_s2' type: 'Convolution' bottom: 'data' top: 'conv1/7x7_s2'"
        " convolution_param { num_output: 8 kernel_size: 7 stride: 2 pad: 3 } }"
        "layer { name: 'pool1/norm1' type: 'LRN' bottom: 'conv1/7x7_s2' top: 'pool1/norm1'"
        " lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 } }"
        + pool % ("pool2/3x3_s2", "pool1/norm1", "pool2/3x3_s2", "pool: MAX kernel_size: 3 stride: 2")
        + branch("1x1", 1, "pool2/3x3_s2", 4)
        + branch("3x3", 3, "pool2/3x3_s2", 5)
        + branch("5x5", 5, "pool2/3x3_s2", 6)
        + pool % ("inception_3a/pool", "pool2/3x3_s2", "inception_3a/pool", "pool: MAX kernel_size: 3 stride: 1 pad: 1")
        + "layer { name: 'inception_3a/output' type: 'Concat' bottom: 'inception_3a/1x1' bottom: 'inception_3a/3x3'"
        " bottom: 'inception_3a/5x5' bottom: 'inception_3a/pool' top: 'inception_3a/output' }"
        + pool
        % ("pool5", "inception_3a/output", "pool5", "pool: AVE global_pooling: true")
        + "layer { name: 'loss3/classifier' type: 'InnerProduct' bottom: 'pool5' top: 'loss3/classifier'"
        " inner_product_param { num_output: 7 } }"
        "layer { name: 'prob' type: 'Softmax' bottom: 'loss3/classifier' top: 'prob' }"
    )


def filled(text: str) -> Net:
    torch.manual_seed(0)
    net = Net(text)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return net


def narrow(name: str) -> Net:
    return filled(inception() if name == "googlenet" else with_inputs(NETS[name], "1/32", 0, "TEST", name=name))


def module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [*NETS, "googlenet"])
def test_whole_nets_are_checked_and_read_well(name: str, tmp_path: Path) -> None:
    """Folded, at a batch of 2; then ruff: long lines, unused names and imports, PEP 8's names, order of imports."""
    net = narrow(name)
    source(net, tmp_path / "net.py", verify=False)
    module = module_of(tmp_path / "net.py")
    given = {blob: torch.randn(2, *shape[1:]) for blob, shape in module.INPUTS.items()}
    with torch.no_grad():
        tops, ours = module.load()(*given.values()), net(given)
    for blob, top in zip(module.OUTPUTS, tops if isinstance(tops, tuple) else (tops,), strict=True):
        assert distance(top.numpy(), ours[blob].numpy()) <= 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.py", "net.safetensors"]
    rules = "E,F,W,I,N,UP,B,C4,SIM,RET,RUF,PLE,PLW,ERA,ARG"
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=120", f"--select={rules}"]
    command += ["--ignore=N812", "--target-version=py310", str(tmp_path / "net.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "No module named ruff" in done.stderr:
        pytest.skip("needs ruff")
    assert done.returncode == 0, done.stdout
    text = (tmp_path / "net.py").read_text()
    assert "caffe_port" not in re.sub(r'^""".*?"""', "", text, count=1, flags=re.DOTALL)


@pytest.mark.parametrize("name", ["fcn8s", "deconvnet", "decouplednet"])
def test_torchs_own_kernels_give_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without folding, against every layer as torch's convolution: no product in place of it, nothing fused.

    Averages of whole maps are left out: they are a mean here and a pooling there.
    """
    monkeypatch.setattr("caffe_port.layers.convolution.FEW_PIXELS", 0)
    net = narrow(name)
    outputs = ["seg-score"] if name == "decouplednet" else None
    source(net, tmp_path / "net.py", fold=False, verify=False, outputs=outputs)
    module = module_of(tmp_path / "net.py")
    torch.manual_seed(1)
    inputs = {blob: torch.randn(shape) for blob, shape in module.INPUTS.items()}
    blobs = dict(inputs)
    with torch.no_grad():
        tops = module.load()(*inputs.values())
        net.executor.run(Mode.PLAIN, blobs, keep=module.OUTPUTS)
    for blob, top in zip(module.OUTPUTS, tops if isinstance(tops, tuple) else (tops,), strict=True):
        assert torch.equal(top, blobs[blob]), blob


def test_the_file_as_a_person_writes_it(tmp_path: Path) -> None:
    net = filled("""name: 'small net'
        layer { name: 'data' type: 'Input' top: 'data' input_param { shape { dim: 2 dim: 3 dim: 8 dim: 6 } } }
        layer { name: 'conv1/3x3' type: 'Convolution' bottom: 'data' top: 'conv1'
          convolution_param { num_output: 4 kernel_size: 3 pad: 1 bias_term: false } }
        layer { name: 'bn' type: 'BatchNorm' bottom: 'conv1' top: 'conv1' batch_norm_param { eps: 0.001 } }
        layer { name: 'scale' type: 'Scale' bottom: 'conv1' top: 'conv1' scale_param { bias_term: true } }
        layer { name: 'relu' type: 'ReLU' bottom: 'conv1' top: 'conv1' }
        layer { name: 'pool' type: 'Pooling' bottom: 'conv1' top: 'pool' pooling_param { kernel_size: 2 stride: 2 } }
        layer { name: 'class' type: 'InnerProduct' bottom: 'pool' top: 'class' inner_product_param { num_output: 5 } }
        layer { name: '2-prob' type: 'Softmax' bottom: 'class' top: '2-prob' }""")
    source(net, tmp_path / "net.py", fold=False)
    assert """\
class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1_3x3 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4, eps=0.001)
        self.class_ = nn.Linear(48, 5)

    def forward(self, data: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv1_3x3(data)))
        x = F.max_pool2d(x, 2, ceil_mode=True)
        return torch.softmax(self.class_(x.flatten(1)), 1)
""" in (tmp_path / "net.py").read_text()
    exported = source(net, tmp_path / "folded.py", verify=False)
    assert exported.folded == {"bn": "conv1/3x3", "scale": "conv1/3x3"}
    assert "x = F.relu(self.conv1_3x3(data))" in (tmp_path / "folded.py").read_text()
    ran = subprocess.run([sys.executable, tmp_path / "net.py"], check=True, capture_output=True, text=True)
    assert ran.stdout.startswith("2-prob: (2, 5), from ")


def test_pictures(tmp_path: Path) -> None:
    from PIL import Image

    net = filled("""
        layer { name: 'data' type: 'Input' top: 'data' input_param { shape { dim: 1 dim: 3 dim: 2 dim: 4 } } }
        layer { name: 'p' type: 'Power' bottom: 'data' top: 'p' power_param { scale: 2 } }""")
    preprocessing = Preprocessing(mean=(104, 117, 123.5), scale=0.5)
    source(net, tmp_path / "net.py", preprocessing=preprocessing, verify=False)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    module = module_of(tmp_path / "net.py")
    found = module.load()(module.picture(str(tmp_path / "p.png")))
    expected = pixels[..., ::-1].astype(np.float32) - np.float32([104, 117, 123.5])
    np.testing.assert_allclose(found[0].numpy(), expected.transpose(2, 0, 1), rtol=1e-6)
    ran = subprocess.run([sys.executable, "net.py", "p.png"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout.startswith("p: (1, 3, 2, 4), from ")


def test_another_batch_and_size(tmp_path: Path) -> None:
    net = drawn(FOLDED)
    source(net, tmp_path / "net.py", verify=False)
    x = torch.rand(5, 4, 9, 7)
    with torch.no_grad():
        ours = net(x=x)["e"]
        torch.testing.assert_close(module_of(tmp_path / "net.py").load()(x), ours, rtol=1e-5, atol=1e-5)


def test_half_precision_of_the_weights(tmp_path: Path) -> None:
    exported = source(drawn(FOLDED), tmp_path / "net.py", dtype="fp16")
    assert exported.checked is not None
    assert 0 < exported.checked.error < 5e-3
    source(drawn(FOLDED), tmp_path / "wide.py", verify=False)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("net", "wide")]
    assert sizes[0] < 0.7 * sizes[1]


@pytest.mark.parametrize(
    ("name", "attribute"),
    [("conv-1", "conv_1"), ("1x1", "layer_1x1"), ("lambda", "lambda_"), ("训", "layer"), ("half", "half_2")],
)
def test_names(name: str, attribute: str, tmp_path: Path) -> None:
    """Names that are no identifiers, keywords, and names that modules of torch have."""
    layers = f"""
        layer {{ name: 'in' type: 'Input' top: 'self' input_param {{ shape {{ dim: 2 dim: 3 }} }} }}
        layer {{ name: '{name}' type: 'InnerProduct' bottom: 'self' top: '{name}'
          inner_product_param {{ num_output: 2 }} }}
        layer {{ name: '{name}' type: 'PReLU' bottom: '{name}' top: 'F' }}
        layer {{ name: 'sum' type: 'Eltwise' bottom: 'F' bottom: '{name}' top: 'x' }}"""
    net = filled(layers)
    source(net, tmp_path / "net.py", verify=False)
    x = torch.randn(2, 3)
    torch.testing.assert_close(module_of(tmp_path / "net.py").load()(x), net(x)["x"])
    text = (tmp_path / "net.py").read_text()
    assert f"self.{attribute} = nn.Linear" in text
    assert len(set(re.findall(r"self\.(\w+) = nn\.", text))) == 2


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (
            "layer { name: 'y' type: 'Input' top: 'y' input_param { shape { dim: 2 dim: 3 } } }"
            "layer { name: 'z' type: 'Input' top: 'z' input_param { shape { dim: 2 } } }"
            "layer { name: 'l' type: 'SoftmaxWithLoss' bottom: 'y' bottom: 'z' top: 'l' }",
            {},
            r"layers that export to Python does not support: l \(SoftmaxWithLoss, <text>:1\); cut the net before them",
        ),
        (FOLDED, {"outputs": ["cc"]}, "outputs: no blob 'cc' in the net; near: c"),
        (FOLDED, {"dtype": "int8"}, "expected fp32 or fp16"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(text: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match=says):
        source(drawn(text), tmp_path / "net.py", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("-{}", "output e: expected 1e-05 at most; nothing was written, found PyTorch's numbers are off"),
        ("oops({})", "found the file does not run: NameError"),
        ("__import__('caffe_port').Net({})", "found the file does not run: ModuleNotFoundError"),
    ],
)
def test_a_wrong_file_leaves_nothing(wrong: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WRITERS["ReLU"], "", lambda c, layer, x: wrong.format(x))
    with pytest.raises(CaffeError, match=says):
        source(drawn(FOLDED), tmp_path / "net.py")
    assert not list(tmp_path.iterdir())


def test_existing_files_stay(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_text("mine")
    with pytest.raises(CaffeError, match=r"net\.safetensors: exists already"):
        source(drawn(FOLDED), tmp_path / "net.py")
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    source(drawn(FOLDED), tmp_path / "net.py", overwrite=True, verify=False)
    assert (tmp_path / "net.safetensors").read_bytes()[8:9] == b"{"


def test_a_reference_is_compared(tmp_path: Path) -> None:
    net = drawn(FOLDED)
    x = np.random.default_rng(3).normal(size=(2, 4, 5, 6)).astype(np.float32)
    with torch.no_grad():
        top = net(x=torch.from_numpy(x))["e"].numpy()
    np.savez(tmp_path / "r.npz", **{"in/x": x, "out/e": top})
    assert "and of r.npz" in str(source(net, tmp_path / "a.py", reference=tmp_path / "r.npz").checked)
    np.savez(tmp_path / "s.npz", **{"in/x": x, "out/e": top + 0.1})
    with pytest.raises(CaffeError, match="from those of"):
        source(net, tmp_path / "b.py", reference=tmp_path / "s.npz")
    assert not (tmp_path / "b.py").exists()


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    layer = "layer {{ name: '{0}' type: 'InnerProduct' bottom: 'x' top: '{0}' param {{ name: 'w' }}"
    layer += " inner_product_param {{ num_output: 3 bias_term: false }} }}"
    text = "layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 2 dim: 4 } } }"
    source(filled(text + layer.format("a") + layer.format("b")), tmp_path / "net.py", verify=False)
    loaded = module_of(tmp_path / "net.py").load()
    assert loaded.a.weight is loaded.b.weight


def test_a_plugins_layer_writes_itself(tmp_path: Path) -> None:
    from caffe_port.layers import REGISTRY, Layer, layer

    try:

        @layer("Twice")
        class Twice(Layer):
            """x + x."""

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + x

            def source(self, code: Any, x: Any) -> str:
                return f"{x} + {x}"

        text = FOLDED + "layer { name: 't' type: 'Twice' bottom: 'e' top: 't' }"
        source(drawn(text), tmp_path / "net.py", verify=False)
        x = torch.rand(2, 4, 5, 6)
        torch.testing.assert_close(module_of(tmp_path / "net.py").load()(x), drawn(text)(x)["t"])
    finally:
        REGISTRY.pop("Twice", None)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["-o", "net.py"], 0, "wrote net.py: 2 lines of forward, x to e"),
        (
            ["-o", "net.pt2", "--outputs", "c"],
            0,
            "torch.export's program gives the numbers of this net: worst output c",
        ),
        (["-o", "net.py", "--opset", "18"], 2, "export to .py: expected an option for this format, found --opset"),
        (["-o", "net.py", "--dynamic-size"], 2, "a .py takes every size that its layers allow"),
        (
            ["-o", "net.pt2", "--dtype", "fp16"],
            2,
            "export to .pt2: expected an option for this format, found --dtype fp16",
        ),
        (["-o", "net.pt2", "--mean", "1"], 2, "found --mean, --scale, --input-size or --rgb"),
        (["-o", "model.py", "-f"], 2, "model.safetensors, which would replace MODEL"),
    ],
)
def test_the_command(
    arguments: list[str],
    status: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(FOLDED)
    write_safetensors("model.safetensors", {key: value.numpy() for key, value in drawn(FOLDED).state_dict().items()})
    with pytest.raises(SystemExit) as left:
        main(["net.prototxt", "model.safetensors", *arguments])
    said = capsys.readouterr()
    assert says in said.out + said.err
    assert left.value.code in (status, None)
    assert {path.stem for path in tmp_path.glob("net.p*")} == {"net"}
    assert len(list(tmp_path.iterdir())) == 2 + (status == 0) * (2 if arguments[1] == "net.py" else 1)
