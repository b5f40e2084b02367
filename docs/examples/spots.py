"""Pictures of red and blue squares, VOC's annotations of them, and weights with which spots.prototxt finds them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import caffe_port

NAMES = ("red", "blue")


def main(folder: Path, count: int = 4) -> None:
    rng = np.random.default_rng(1)
    for name in ("pictures", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture, objects = np.zeros((64, 64, 3), np.uint8), []
        for cell in rng.choice(16, 3, replace=False):
            y, x = 16 * (cell // 4), 16 * (cell % 4)
            label = rng.integers(2)
            picture[y : y + 16, x : x + 16, 2 * label] = rng.integers(200, 255)
            edges = zip(("xmin", "ymin", "xmax", "ymax"), (2 * x + 1, 2 * y + 1, 2 * x + 32, 2 * y + 32), strict=True)
            box = "".join(f"<{edge}>{n}</{edge}>" for edge, n in edges)
            objects.append(f"<object><name>{NAMES[label]}</name><bndbox>{box}</bndbox></object>")
        Image.fromarray(picture).resize((128, 128), Image.Resampling.NEAREST).save(folder / "pictures" / f"{i}.png")
        (folder / "annotations" / f"{i}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    (folder / "labels.txt").write_text("red\nblue\n")
    net = caffe_port.Net(Path(__file__).with_suffix(".prototxt"))
    weight = np.zeros((3, 3, 16, 16), np.float32)  # channels are blue, green, red
    weight[1, 2] = weight[2, 0] = 8 / 255 / 256
    weight[1, 0] = weight[2, 2] = -8 / 255 / 256
    net.params["conf"][0].data[...] = weight
    net.params["conf"][1].data[...] = [4, 0, 0]
    net.save(folder / "spots.caffemodel")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
