"""Data layers over drawn pictures: the cases, and the files that they read.

The numbers in ``reference/data_layers`` are what the two real programs made of them. To record them again::

    python tests/data_cases.py FOLDER
    python tests/record_data.py FOLDER noh PYCAFFE      (with an interpreter that can import that pycaffe)
    python tests/record_data.py FOLDER bvlc PYCAFFE
    cp FOLDER/manifest.json FOLDER/noh.npz FOLDER/bvlc.npz tests/reference/data_layers
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_port.formats.meanfile import write_mean
from caffe_port.schema import SCHEMA, read_net

SEED = 31
BATCHES = 3
PHASES = ("TRAIN", "TEST")


@dataclass(frozen=True)
class Case:
    """A net of data layers. ``blobs`` are recorded of it; ``needs`` is a package that reads its data."""

    dialect: str
    name: str
    text: str
    blobs: tuple[str, ...]
    needs: str = ""

    def __str__(self) -> str:
        return f"{self.dialect}_{self.name}"


def seg(name: str, type_name: str, source: str, image: str, transform: str = "", more: str = "") -> Case:
    text = f"""layers {{ name: "d" type: {type_name} top: "data" top: "label" top: "third"
      image_data_param {{ source: "{source}" batch_size: 2 {image} }}
      transform_param {{ {MEAN} {transform} }} {more} }}"""
    return Case("noh", name, text, ("data", "label", "third"))


def v1(name: str, type_name: str, block: str, transform: str = "", needs: str = "") -> Case:
    text = (
        f'layers {{ name: "d" type: {type_name} top: "data" top: "label" {block} transform_param {{ {transform} }} }}'
    )
    return Case("noh", name, text, ("data", "label"), needs)


def v2(name: str, type_name: str, block: str, transform: str = "", needs: str = "") -> Case:
    text = f'layer {{ name: "d" type: "{type_name}" top: "data" top: "label" {block} {transform} }}'
    return Case("bvlc", name, text, ("data", "label"), needs)


MEAN = "mean_value: 104.008 mean_value: 116.669 mean_value: 122.675"
SMALL = "new_height: 15 new_width: 18"
LMDB = "backend: LMDB batch_size: 4"
WINDOWS = 'source: "windows.txt" batch_size: 5 fg_threshold: 0.5 bg_threshold: 0.3'
SHUFFLED = (
    f'image_data_param {{ source: "labels.txt" batch_size: 2 shuffle: true {SMALL} }}'
    f"transform_param {{ {MEAN} crop_size: 9 mirror: true }}"
)
WITH_MASKS = SHUFFLED.replace("labels.txt", "pairs.txt").replace("shuffle", "label_type: PIXEL shuffle")
DRAWN = "dummy_data_param { shape { dim: 3 } data_filler { type: 'uniform' } }"
FILTER = "convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: 'gaussian' std: 0.1 } }"

CASES = [
    seg(
        "image_seg",
        "IMAGE_SEG_DATA",
        "pairs.txt",
        f"label_type: PIXEL shuffle: true {SMALL}",
        "crop_size: 14 mirror: true",
    ),
    seg(
        "image_seg_small",
        "IMAGE_SEG_DATA",
        "pairs.txt",
        "label_type: PIXEL ignore_label: 250",
        "crop_size: 34 scale: 0.5",
    ),
    Case(
        "noh",
        "two_tops",
        f'layers {{ name: "d" type: WINDOW_SEG_DATA top: "data" top: "label" {WITH_MASKS} }}'.replace("pairs", "boxes"),
        ("data", "label"),
    ),
    seg("image_seg_none", "IMAGE_SEG_DATA", "pairs.txt", f"label_type: NONE rand_skip: 5 {SMALL}", "mirror: true"),
    seg("image_seg_image", "IMAGE_SEG_DATA", "labels.txt", f"shuffle: true {SMALL}", "mirror: true"),
    seg(
        "window_seg",
        "WINDOW_SEG_DATA",
        "boxes.txt",
        f"label_type: PIXEL shuffle: true {SMALL}",
        "crop_size: 13 mirror: true",
    ),
    seg("window_seg_as_cut", "WINDOW_SEG_DATA", "boxes.txt", "label_type: PIXEL ignore_label: 7", "crop_size: 20"),
    seg("window_seg_image", "WINDOW_SEG_DATA", "image_boxes.txt", f"shuffle: true {SMALL}", "mirror: true"),
    seg("window_binary", "WINDOW_SEG_BINARY", "boxes.txt", f"label_type: PIXEL {SMALL}", "crop_size: 12"),
    seg("window_binary_as_cut", "WINDOW_SEG_BINARY", "boxes.txt", "label_type: PIXEL", "crop_size: 20"),
    seg(
        "window_cls",
        "WINDOW_CLS_DATA",
        "boxes.txt",
        f"label_type: PIXEL shuffle: true rand_skip: 3 {SMALL}",
        "crop_size: 14 mirror: true",
        "window_cls_data_param { label_dim: 20 }",
    ),
    seg(
        "window_inst",
        "WINDOW_INST_SEG_DATA",
        "instances.txt",
        f"label_type: PIXEL other_object_label: 9 shuffle: true {SMALL}",
        "crop_size: 14 mirror: true",
    ),
    seg(
        "select",
        "SELECT_SEG_BINARY",
        "vectors.txt",
        f"label_type: PIXEL shuffle: true {SMALL}",
        "crop_size: 14 mirror: true",
        "window_cls_data_param { label_dim: 6 }",
    ),
    seg(
        "select_base",
        "SELECT_SEG_BINARY",
        "vectors.txt",
        f"label_type: PIXEL ignore_label: 4 {SMALL}",
        "mirror: true",
        "window_cls_data_param { label_dim: 6 } select_seg_binary_param { cls_label_base: 2 }",
    ),
    v1(
        "images",
        "IMAGE_DATA",
        f'image_data_param {{ source: "labels.txt" batch_size: 3 shuffle: true rand_skip: 4 {SMALL} }}',
        "crop_size: 13 mirror: true mean_value: 111.5 scale: 0.25",
    ),
    v1(
        "images_mean_file",
        "IMAGE_DATA",
        'image_data_param { source: "equal.txt" batch_size: 4 scale: 0.1 mean_file: '
        '"mean.binaryproto" crop_size: 9 mirror: true }',
    ),
    v1("windows", "WINDOW_DATA", f"window_data_param {{ {WINDOWS} fg_fraction: 0.4 crop_size: 12 mirror: true }}"),
    v1(
        "windows_square",
        "WINDOW_DATA",
        f'window_data_param {{ {WINDOWS} context_pad: 3 crop_mode: "square" '
        'mean_file: "mean.binaryproto" cache_images: true }',
        "crop_size: 14 mirror: true",
    ),
    v1(
        "records",
        "DATA",
        f'data_param {{ source: "raw_lmdb" rand_skip: 6 {LMDB} }}',
        "crop_size: 8 mirror: true mean_value: 99.5",
        "lmdb",
    ),
    v1("records_leveldb", "DATA", 'data_param { source: "raw_leveldb" batch_size: 4 }', "scale: 0.1", "plyvel"),
    v1("records_encoded", "DATA", f'data_param {{ source: "png_lmdb" {LMDB} }}', f"{MEAN} crop_size: 8", "lmdb"),
    v1("records_float", "DATA", f'data_param {{ source: "float_lmdb" {LMDB} }}', "crop_size: 5 scale: 3", "lmdb"),
    v1("rows", "HDF5_DATA", 'hdf5_data_param { source: "files.txt" batch_size: 4 }'),
    Case(
        "noh",
        "two_and_fillers",
        f"""
        layers {{ name: "d" type: IMAGE_DATA top: "data" top: "label" {SHUFFLED} }}
        layers {{ name: "c" type: CONVOLUTION bottom: "data" top: "c" {FILTER} }}
        layers {{ name: "drop" type: DROPOUT bottom: "c" top: "drop" }}
        layers {{ name: "e" type: IMAGE_SEG_DATA top: "other" top: "map" top: "size" {WITH_MASKS} }}
        """,
        ("data", "label", "other", "map", "size"),
    ),
    v2(
        "images",
        "ImageData",
        f'image_data_param {{ source: "labels.txt" batch_size: 3 shuffle: true rand_skip: 4 {SMALL} }}',
        "transform_param { crop_size: 13 mirror: true mean_value: 111.5 scale: 0.25 }",
    ),
    v2(
        "images_grey", "ImageData", f'image_data_param {{ source: "labels.txt" batch_size: 3 is_color: false {SMALL} }}'
    ),
    v2(
        "images_of_all_sizes",
        "ImageData",
        'image_data_param { source: "labels.txt" shuffle: true }',
        f"transform_param {{ mirror: true {MEAN} }}",
    ),
    v2(
        "images_mean_file",
        "ImageData",
        'image_data_param { source: "equal.txt" batch_size: 4 }',
        'transform_param { crop_size: 9 mirror: true scale: 0.1 mean_file: "mean.binaryproto" }',
    ),
    v2("images_with_spaces", "ImageData", 'image_data_param { source: "spaces.txt" batch_size: 2 }'),
    v2(
        "windows",
        "WindowData",
        f"window_data_param {{ {WINDOWS} context_pad: 2 scale: 0.5 }}",
        "transform_param { crop_size: 12 mirror: true mean_value: 3.7 }",
    ),
    v2(
        "windows_square",
        "WindowData",
        f'window_data_param {{ {WINDOWS} context_pad: 3 crop_mode: "square" cache_images: true fg_fraction: 0.6 }}',
        'transform_param { crop_size: 14 mean_file: "mean.binaryproto" }',
    ),
    v2(
        "records",
        "Data",
        f'data_param {{ source: "raw_lmdb" rand_skip: 6 {LMDB} }}',
        "transform_param { crop_size: 8 mirror: true mean_value: 99.5 }",
        "lmdb",
    ),
    v2(
        "records_leveldb",
        "Data",
        'data_param { source: "raw_leveldb" batch_size: 4 }',
        "transform_param { scale: 0.1 }",
        "plyvel",
    ),
    v2(
        "records_encoded",
        "Data",
        f'data_param {{ source: "png_lmdb" {LMDB} }}',
        f"transform_param {{ {MEAN} crop_size: 8 }}",
        "lmdb",
    ),
    v2(
        "records_in_color",
        "Data",
        f'data_param {{ source: "mixed_lmdb" {LMDB} }}',
        "transform_param { force_color: true }",
        "lmdb",
    ),
    v2(
        "records_in_grey",
        "Data",
        f'data_param {{ source: "mixed_lmdb" {LMDB} }}',
        "transform_param { force_gray: true }",
        "lmdb",
    ),
    v2(
        "records_float",
        "Data",
        f'data_param {{ source: "float_lmdb" {LMDB} }}',
        "transform_param { mirror: true crop_size: 5 scale: 3 }",
        "lmdb",
    ),
    v2("rows", "HDF5Data", 'hdf5_data_param { source: "files.txt" batch_size: 4 }'),
    v2("rows_shuffled", "HDF5Data", 'hdf5_data_param { source: "files.txt" batch_size: 4 shuffle: true }'),
    v2("rows_of_one_file_shuffled", "HDF5Data", 'hdf5_data_param { source: "file.txt" batch_size: 4 shuffle: true }'),
    Case(
        "bvlc",
        "two_and_fillers",
        f"""
        layer {{ name: "d" type: "ImageData" top: "data" top: "label" {SHUFFLED} }}
        layer {{ name: "c" type: "Convolution" bottom: "data" top: "c" {FILTER} }}
        layer {{ name: "drop" type: "Dropout" bottom: "c" top: "drop" }}
        layer {{ name: "e" type: "ImageData" top: "other" top: "o" {SHUFFLED} }}
        layer {{ name: "f" type: "DummyData" top: "drawn" {DRAWN} }}
        """,
        ("data", "label", "other", "o", "drawn"),
    ),
]


# -- what they read ----------------------------------------------------------------------------------------------------


def draw(folder: Path) -> None:
    """Make everything that the cases read, the same every time."""
    r = np.random.RandomState(5)
    sizes = [(h, w) for h, w in zip(r.randint(20, 40, 7).tolist(), r.randint(20, 40, 7).tolist(), strict=True)]
    boxes = []
    for i, (h, w) in enumerate(sizes):
        _write(folder / f"p{i}.png", _noise(r, h, w, 3))
        _write(folder / f"m{i}.png", _labels(r, h, w, [0, 0, 1, 2, 3, 4, 5, 7, 20, 255]))
        _write(folder / f"i{i}.png", _labels(r, h, w, [0, 1, 2, 3, 255]))
        x, y = r.randint(-6, w // 2), r.randint(-6, h // 2)
        boxes.append((x, y, x + r.randint(6, w), y + r.randint(6, h)))
    each = [(i, " ".join(map(str, box))) for i, box in enumerate(boxes)]
    _list(folder / "labels.txt", (f"p{i}.png {3 * i}" for i, _ in each))
    _list(folder / "pairs.txt", (f"p{i}.png m{i}.png" for i, _ in each))
    _list(folder / "boxes.txt", (f"p{i}.png m{i}.png {box}" for i, box in each))
    _list(folder / "image_boxes.txt", (f"p{i}.png {i + 1} {box}" for i, box in each))
    _list(folder / "instances.txt", (f"p{i}.png m{i}.png i{i}.png {box} {i % 3 + 1}" for i, box in each))
    _list(
        folder / "vectors.txt", (f"p{i}.png m{i}.png {box} {' '.join(map(str, r.randint(0, 2, 6)))}" for i, box in each)
    )
    for i in range(5):
        _write(folder / f"equal {i}.png", _noise(r, 17, 19, 3))
        _write(folder / f"equal{i}.png", _noise(r, 17, 19, 3))
    _list(folder / "equal.txt", (f"equal{i}.png {i}" for i in range(5)))
    _list(folder / "spaces.txt", (f"equal {i}.png {i}" for i in range(5)))
    write_mean(folder / "mean.binaryproto", r.uniform(90, 130, (3, 17, 19)).astype(np.float32))
    _list(folder / "windows.txt", _windows(r, sizes))
    _databases(folder, r)
    _rows(folder, r)


def _noise(r: np.random.RandomState, height: int, width: int, channels: int) -> np.ndarray:
    return (17 * r.randint(0, 16, (height, width, channels))).astype(np.uint8)


def _labels(r: np.random.RandomState, height: int, width: int, values: list[int]) -> np.ndarray:
    cells = r.choice(values, (height // 5 + 1, width // 5 + 1)).astype(np.uint8)
    return np.kron(cells, np.ones((5, 5), np.uint8))[:height, :width]


def _write(path: Path, picture: np.ndarray) -> None:
    assert cv2.imwrite(str(path), picture)


def _list(path: Path, lines: Iterator[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def _windows(r: np.random.RandomState, sizes: list[tuple[int, int]]) -> Iterator[str]:
    for i, (h, w) in enumerate(sizes):
        yield from (f"# {i}", f"p{i}.png", "3", str(h), str(w), "4")
        for k in range(4):
            x, y = r.randint(0, w - 8), r.randint(0, h - 8)
            overlap = (0.1, 0.7, 0.4, 0.55)[k]
            yield f"{k + 1} {overlap} {x} {y} {x + r.randint(4, w - x)} {y + r.randint(4, h - y)}"


def _databases(folder: Path, r: np.random.RandomState) -> None:
    raw, png, mixed, real = [], [], [], []
    for i in range(9):
        picture = _noise(r, 11, 13, 3)
        numbers = {"channels": 3, "height": 11, "width": 13, "label": 2 * i + 1}
        planes = picture.transpose(2, 0, 1)
        raw.append(SCHEMA.Datum(data=planes.tobytes(), **numbers))
        real.append(SCHEMA.Datum(float_data=r.normal(0, 9, (3, 11, 13)).astype(np.float32).ravel(), **numbers))
        png.append(SCHEMA.Datum(data=cv2.imencode(".png", picture)[1].tobytes(), label=i, encoded=True))
        either = picture if i % 2 else picture[..., 0]
        mixed.append(SCHEMA.Datum(data=cv2.imencode(".png", either)[1].tobytes(), label=i, encoded=True))
    try:
        import lmdb
    except ImportError:
        pass
    else:
        for name, records in (("raw", raw), ("png", png), ("mixed", mixed), ("float", real)):
            with lmdb.open(str(folder / f"{name}_lmdb"), map_size=1 << 20) as db, db.begin(write=True) as write:
                for i, record in enumerate(records):
                    write.put(f"{i:08}".encode(), record.SerializeToString())
    try:
        import plyvel
    except ImportError:
        return
    with plyvel.DB(str(folder / "raw_leveldb"), create_if_missing=True) as db:
        for i, record in enumerate(raw):
            db.put(f"{i:08}".encode(), record.SerializeToString())


def _rows(folder: Path, r: np.random.RandomState) -> None:
    import h5py

    for name, count in (("a", 5), ("b", 7), ("c", 2)):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["data"] = r.normal(0, 1, (count, 2, 3)).astype(np.float32)
            file["label"] = r.normal(0, 1, count)
    _list(folder / "files.txt", iter(["a.h5", "b.h5 c.h5"]))
    _list(folder / "file.txt", iter(["b.h5"]))


def manifest() -> dict[str, dict[str, object]]:
    """The layer types of each case, which docs/layers.md counts."""
    nets = {str(case): read_net(case.text, phase=None).net for case in CASES}
    return {name: {"types": sorted({lay.type for lay in net.layer}), "backward": False} for name, net in nets.items()}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    draw(target)
    cases = [asdict(case) for case in CASES]
    (target / "cases.json").write_text(json.dumps({"seed": SEED, "batches": BATCHES, "phases": PHASES, "cases": cases}))
    (target / "manifest.json").write_text(json.dumps(manifest(), indent=1) + "\n")
