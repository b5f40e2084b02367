"""Makes what the demo needs: python tests/embed_demo.py FORK/python

The picture is drawn here, the net is the builder's. The weights are those of ../shared/reference/noh_inference, the
numbers are computed from them by the fork itself, which is why it has to be given (the folder ``python`` of a built
checkout of HyeonwooNoh/caffe), with the Python that its pycaffe was built for if that is another one (``--python``).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from slim import narrow

from caffe_port.tools.demo_parity import blob_of

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "tests" / "reference" / "demo"
WEIGHTS = ROOT.parent / "shared" / "reference" / "noh_inference" / "weights.caffemodel"
NET, WIDTH = "decouplednet/DecoupledNet_Full_anno_inference_deploy.prototxt", "1/32"
SIDE, FINER = 320, 3
DUMP = [
    str(ROOT / "converters" / "dump_reference.py"),
    "net.prototxt",
    "weights.caffemodel",
    "-o",
    "reference.npz",
    "-f",
]


def draw() -> Image.Image:
    """A sailing boat, every surface rough: in flat ones all windows would be tied."""
    n = SIDE * FINER
    y, x = np.mgrid[:n, :n] / n
    rng = np.random.default_rng(7)

    def rough(cells: int) -> np.ndarray:
        """Smooth noise from -1 to 1 with that many bumps across."""
        bumps = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        return np.asarray(bumps.resize((n, n), Image.Resampling.BICUBIC))

    def colour(red: float, green: float, blue: float, shade: np.ndarray) -> np.ndarray:
        return np.stack([red + shade, green + shade, blue + shade], -1)

    clouds = rough(5) * 18 + rough(14) * 8
    picture = colour(120, 165, 215, 60 * y + clouds)
    sea = y > 0.66 + 0.004 * rough(40)
    waves = 14 * np.sin(260 * abs(y - 0.6) ** 0.7 + 2 * rough(9)) + 8 * rough(70)
    picture[sea] = colour(35, 85, 120, waves - 40 * (y - 0.66))[sea]
    sun = np.hypot(x - 0.82, y - 0.16) < 0.06
    picture[sun] = colour(250, 225, 150, 6 * rough(30))[sun]
    cloth = 10 * np.sin(70 * (y + 0.15 * x)) + 5 * rough(50)
    main = (x > 0.475 - 0.36 * (y - 0.14)) & (x < 0.475) & (y > 0.14) & (y < 0.6)
    picture[main] = colour(228, 222, 205, cloth + 60 * (x - 0.45))[main]
    jib = (x > 0.49) & (x < 0.49 + 0.5 * (y - 0.2)) & (y > 0.2) & (y < 0.58)
    picture[jib] = colour(205, 70, 60, cloth - 80 * (x - 0.5))[jib]
    mast = (abs(x - 0.482) < 0.006) & (y > 0.1) & (y < 0.66)
    picture[mast] = colour(90, 60, 40, 6 * rough(60))[mast]
    hull = (y > 0.62) & (y < 0.73) & (x > 0.24 + 0.9 * (y - 0.62)) & (x < 0.77 - 0.5 * (y - 0.62))
    picture[hull] = colour(110, 62, 34, 9 * np.sin(330 * y) + 6 * rough(60))[hull]
    picture = picture.reshape(SIDE, FINER, SIDE, FINER, 3).mean((1, 3))
    picture += rng.normal(0, 2.5, (SIDE, SIDE, 1))
    return Image.fromarray(picture.clip(0, 255).round().astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fork", help="the folder `python` of the fork")
    parser.add_argument("--python", default=sys.executable, help="which has its pycaffe; default: this one")
    arguments = parser.parse_args()
    DEMO.mkdir(parents=True, exist_ok=True)
    draw().save(DEMO / "picture.png", optimize=True)
    (DEMO / "net.prototxt").write_text(str(narrow(NET, WIDTH)), encoding="utf-8")
    copy = f"import caffe; caffe.Net('net.prototxt', {str(WEIGHTS)!r}).save('weights.caffemodel')"
    environment = {**os.environ, "PYTHONPATH": arguments.fork, "GLOG_minloglevel": "2"}
    subprocess.run([arguments.python, "-c", copy], cwd=DEMO, env=environment, check=True)
    with Image.open(DEMO / "picture.png") as picture, tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/data.npy", blob_of(picture))
        masked = np.zeros((1, 20, 1, 1), np.float32)
        for _ in range(2):  # without labels first, then with those that were found
            np.save(f"{folder}/masked.npy", masked)
            inputs = ["--input", f"data={folder}/data.npy", "--input", f"cls-score-masked={folder}/masked.npy"]
            subprocess.run([arguments.python, *DUMP, "--caffe", arguments.fork, *inputs], cwd=DEMO, check=True)
            with np.load(DEMO / "reference.npz") as computed:
                scores = computed["out/cls-score-avg-sigmoid"]
            masked = scores * (scores > 0.5)


if __name__ == "__main__":
    main()
