"""caffe_port under the name caffe, and scripts with the habits of both pycaffes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from slim import narrow

import caffe_port

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, *arguments: str, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in ``folder``, with caffe_port and ``path`` to import from."""
    env = {k: v for k, v in os.environ.items() if k != "CAFFE_PORT_PYTHON_LAYERS"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, [*path, ROOT]))
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=200
    )


NAMES = """
import sys
import caffe_port
caffe = caffe_port.install_as_caffe()
assert caffe is caffe_port.install_as_caffe()
import caffe, caffe.io, caffe.draw
from caffe import layers as L, params as P, Net, TEST, TRAIN, NetSpec, to_proto, Classifier, Detector
from caffe import SGDSolver, get_solver
from caffe.proto import caffe_pb2
from caffe.coord_map import crop
from caffe.pycaffe import AdamSolver
import caffe.net_spec, caffe.classifier, caffe.detector
assert caffe.Net is caffe_port.Net and caffe.__version__ == "1.0.0" and caffe.Layer is caffe_port.Layer
assert L.Convolution(L.Input(), num_output=2).to_proto().layer[1].convolution_param.num_output == 2
assert caffe.net_spec.NetSpec is NetSpec and "Data" in caffe.layer_type_list()
assert not caffe.has_nccl() and caffe.solver_count() == 1
caffe.init_log(1); caffe.log("unheard"); caffe.init_log(0); caffe.log("heard")
timer = caffe.Timer(); timer.start(); timer.stop(); assert timer.ms >= 0
assert {"Net", "io", "layers"} <= set(dir(caffe))
"""


def test_every_name(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", NAMES)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "heard\n"


def test_all_of_pycaffes_names_are_caffe_ports() -> None:
    for name in dir(caffe_port):
        assert getattr(caffe_port, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nett'"):
        _ = caffe_port.Nett
    with pytest.raises(caffe_port.CaffeError, match="expected 1, found 2 solvers"):
        caffe_port.set_solver_count(2)
    with pytest.raises(caffe_port.CaffeError, match="several GPUs"):
        caffe_port.NCCL(None, "")


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A folder with another Caffe."""
    (tmp_path / "real" / "caffe").mkdir(parents=True)
    (tmp_path / "real" / "caffe" / "__init__.py").write_text("real = True\n")
    return tmp_path / "real"


def test_a_real_caffe_is_not_hidden_unasked(tmp_path: Path, real: Path) -> None:
    for first in ("", "import caffe\n"):
        done = run(tmp_path, "-c", f"{first}import caffe_port; caffe_port.install_as_caffe()", path=(real,))
        assert "CaffeError: install_as_caffe: expected none, found another Caffe:" in done.stderr
        assert str(real / "caffe" / "__init__.py") in done.stderr
    force = "import caffe, caffe_port; caffe_port.install_as_caffe(force=True)"
    done = run(tmp_path, "-c", f"{force}\nimport caffe; print(hasattr(caffe, 'real'))", path=(real,))
    assert done.stdout == "False\n"


SCRIPT = """
import sys
import caffe
net = caffe.Net(sys.argv[1])
print(len(net.layers), caffe.__name__, sys.argv[1:])
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A folder with a script that imports caffe, a net, and a checkout of Caffe's as released scripts have it."""
    (tmp_path / "caffe" / "python").mkdir(parents=True)
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "net.prototxt").write_text(
        'input: "x" input_shape { dim: 1 } layer { type: "Power" bottom: "x" top: "y" }'
    )
    return tmp_path


def test_running_one_script(script: Path, real: Path) -> None:
    as_caffe = ("-m", "caffe_port.tools.as_caffe")
    done = run(script, *as_caffe, "script.py", "net.prototxt", "--force")
    assert done.stdout == "2 caffe ['net.prototxt', '--force']\n", done.stderr
    done = run(script, *as_caffe, "script.py", "net.prototxt", path=(real,))
    assert (done.returncode, done.stdout) == (2, "")
    assert "another Caffe" in done.stderr
    done = run(script, *as_caffe, "scrip.py")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_shim_for_an_environment(script: Path, real: Path) -> None:
    """Its .pth file is read as if shim/ were the environment's site-packages."""
    start = f"import site, sys; site.addsitedir({str(ROOT / 'shim')!r}); sys.argv = ['script.py', 'net.prototxt']"
    done = run(script, "-c", f"{start}; import caffe.io, runpy; runpy.run_path('script.py')")
    assert done.stdout == "2 caffe ['net.prototxt']\n", done.stderr
    assert run(script, "-c", f"{start}; import caffe; print(caffe.real)", path=(real,)).stdout == "True\n"


# -- habits ------------------------------------------------------------------------------------------------------------

SURGERY = """
import sys
sys.path.insert(0, "./caffe/python")
import numpy as np
import caffe

net = caffe.Net("net.prototxt", "in.caffemodel")
net.set_phase_test()
net.set_mode_gpu()
net.set_device(0)
for forth, back in (("cls-score-voc", "cls-score-voc-bp"), ("fc7", "fc7-bp"), ("fc6", "fc6-bp")):
    weight = net.params[forth][0].data
    net.params[back][0].data[...] = weight.transpose(1, 0, 2, 3) if forth == "cls-score-voc" else weight
    net.params[back][1].data[...] = 0
    print(forth, net.params[back][0].data.shape, net.params[back][1].data.shape)
net.save("out.caffemodel")
"""

FOLDING = """
import sys
sys.path.append("./caffe/python")
import numpy as np
import caffe
from caffe.proto import caffe_pb2

net = caffe.Net("net.prototxt", "in.caffemodel")
net.set_mode_gpu()
net.set_phase_test()
names = [name for name in net.params if net.params[name][0].data.shape[0] == 1 and len(net.params[name]) == 2]
sums = {}
passes = 3
for _ in range(passes):
    net._forward(0, len(net.layers) - 1)
    found = {out: net.blobs[out].data for out in net.outputs}
    for name in names:
        for kind in ("mean", "var"):
            sums[name, kind] = sums.get((name, kind), 0) + np.squeeze(found[name + "-" + kind])
for name in names:
    scale, shift = (np.squeeze(p.data) for p in net.params[name])
    mean, var = (sums[name, kind] / passes for kind in ("mean", "var"))
    folded = scale / np.sqrt(var + 1e-9)
    net.params[name][1].data[...] = (shift - folded * mean).reshape(net.params[name][1].data.shape)
    net.params[name][0].data[...] = folded.reshape(net.params[name][0].data.shape)
net.save("out.caffemodel")
print(len(names))
"""


def test_net_surgery_as_published(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(str(narrow("decouplednet/fp_bp_network.prototxt", "1/64", 1)))
    net = caffe_port.Net(tmp_path / "net.prototxt")
    for layer in net.params:
        for blob in net.params[layer]:
            blob.data[...] = np.random.RandomState(len(layer)).standard_normal(blob.data.shape)
    net.save(tmp_path / "in.caffemodel")
    (tmp_path / "script.py").write_text(SURGERY)
    done = run(tmp_path, "-W", "ignore", "-m", "caffe_port.tools.as_caffe", "script.py")
    assert done.stdout.splitlines()[0] == "cls-score-voc (64, 20, 1, 1) (1, 1, 1, 64)", done.stderr
    after = caffe_port.Net(tmp_path / "net.prototxt", str(tmp_path / "out.caffemodel"))
    assert np.array_equal(after.params["fc6-bp"][0].data, net.params["fc6"][0].data)
    assert np.array_equal(after.params["cls-score-voc-bp"][0].data, net.params["cls-score-voc"][0].data.swapaxes(0, 1))
    assert not after.params["fc7-bp"][1].data.any()


BN = """
name: "bn"
layers {{ name: "d" type: IMAGE_DATA top: "data" top: "label"
  image_data_param {{ source: "{list}" batch_size: 4 }} transform_param {{ scale: 0.01 {transform} }} }}
layers {{ name: "c" type: CONVOLUTION bottom: "data" top: "c" convolution_param {{ num_output: 3 kernel_size: 3 }} }}
layers {{ name: "b" type: BN bottom: "c" top: "b" top: "b-mean" top: "b-var" bn_param {{
  scale_filler {{ type: "constant" value: 1 }} shift_filler {{ type: "constant" value: 0 }} }} }}
layers {{ name: "r" type: RELU bottom: "b" top: "r" }}
"""


def test_folding_of_batch_statistics_as_published(tmp_path: Path) -> None:
    import cv2

    r = np.random.RandomState(0)
    pictures = r.randint(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    for i, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture)
    (tmp_path / "list").write_text("".join(f"{tmp_path}/{i}.png 0\n" for i in range(4)))
    text = BN.format(list=tmp_path / "list", transform="")
    (tmp_path / "net.prototxt").write_text(text)
    net = caffe_port.Net(text, dialect="noh")
    weight, scale, shift = r.standard_normal((3, 3, 3, 3)), r.rand(1, 3, 1, 1) + 1, r.rand(1, 3, 1, 1)
    for blob, value in zip((net.params["c"][0], *net.params["b"]), (weight, scale, shift), strict=True):
        blob.data[...] = value
    net.save(tmp_path / "in.caffemodel")
    (tmp_path / "script.py").write_text(FOLDING)
    done = run(tmp_path, "-W", "ignore", "-m", "caffe_port.tools.as_caffe", "script.py")
    assert done.stdout == "1\n", done.stderr
    after = caffe_port.Net(text, str(tmp_path / "out.caffemodel"), dialect="noh")
    c = net.forward(blobs=["c"])["c"].astype(float)
    mean, var = c.mean((0, 2, 3)), c.var((0, 2, 3))
    folded = scale.ravel() / np.sqrt(var + 1e-9)
    np.testing.assert_allclose(after.params["b"][0].data.ravel(), folded, rtol=1e-4)
    np.testing.assert_allclose(after.params["b"][1].data.ravel(), shift.ravel() - folded * mean, rtol=1e-3, atol=1e-4)


def test_modules_by_pycaffes_names(tmp_path: Path) -> None:
    """Each is the module that the package's attribute is, whichever is asked for first."""
    code = """
import caffe_port.io, caffe_port.net_spec
from caffe_port.proto import caffe_pb2
from caffe_port.coord_map import crop
from caffe_port import classifier, detector, draw
import caffe_port
assert caffe_port.io is __import__("caffe_port.pycaffe.io", fromlist=["io"])
assert caffe_port.coord_map.crop is crop and caffe_port.draw is draw
assert caffe_port.proto.caffe_pb2.NetParameter is caffe_pb2.NetParameter
"""
    done = run(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
