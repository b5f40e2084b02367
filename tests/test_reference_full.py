"""DecoupledNet and DeconvNet at full width against the fork's numbers.

Their weights are not stored: a rule draws them. Two gigabytes and a while are needed, so both nets run in one process.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from reference import SHARED, needs_shared
from test_prototxt import ROOT

import caffe_port
from caffe_port.tools.compare import Comparison
from caffe_port.tools.replay import Reference, read_noise, replay

FULL = SHARED / "reference" / "noh_full"
NETS = {
    "decouplednet_deploy_full": "decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt",
    "deconvnet_deploy_full": "deconvnet/DeconvNet_inference_deploy.prototxt",
}
CHUNK = 1 << 20

pytestmark = [needs_shared("reference/noh_full"), pytest.mark.xdist_group("full width")]


def draw(net: caffe_port.Net) -> None:
    """Fill the parameters by the rule of the reference, piece by piece, so that little memory is needed beside them."""
    types = {node.name: node.type for node, _ in net.nodes}
    for layer, blobs in net.params.items():
        for i, blob in enumerate(blobs):
            flat = blob.data.reshape(-1)
            scale, shift = 0.05, 0.0
            if types[layer] == "BN":
                scale, shift = 0.1, 1.0 if i == 0 else 0.0
            elif i == 0:
                scale = np.sqrt(2 / np.prod(blob.shape[1:]))
            random = np.random.RandomState(zlib.crc32(f"{layer}/{i}".encode()))
            for start in range(0, flat.size, CHUNK):
                piece = flat[start : start + CHUNK]
                piece[:] = random.standard_normal(piece.size)
                piece *= np.float32(scale)
                piece += np.float32(shift)


@pytest.fixture(scope="module", params=NETS)
def run(request: pytest.FixtureRequest) -> tuple[caffe_port.Net, Reference]:
    name = request.param
    net = caffe_port.Net(ROOT / "prototxt" / NETS[name], caffe_port.TEST)
    draw(net)
    net.blobs["data"].data[...] = np.random.RandomState(1).randint(-110, 140, net.blobs["data"].shape)
    if "cls-score-masked" in net.blobs:
        net.blobs["cls-score-masked"].data.flat[14] = 0.9
    return net, Reference(FULL / f"{name}.npz", read_noise(FULL / "noise.json", name))


def deep_flip(compared: Comparison) -> bool:
    """Within what one flipped switch deep in a full-width net can move."""
    return compared.error <= 1e-2 and compared.rms <= 3e-4


def test_full_width(run: tuple[caffe_port.Net, Reference]) -> None:
    compared = list(replay(*run))
    assert [str(c) for c in compared if not c.ok and not deep_flip(c)] == []


def test_full_width_strictly_with_the_references_own_switches(run: tuple[caffe_port.Net, Reference]) -> None:
    """Without near ties, everything is within 1e-5."""
    compared = list(replay(*run, own_switches=True))
    assert [str(c) for c in compared if not c.ok] == []
