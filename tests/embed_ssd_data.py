"""Writes tests/reference/ssd_data from recordings of SSD's program (4817bf8b), as ``tests/embed.py`` asks for it.

A folder of recordings has, by the program's layers, ``ssd_data`` (AnnotatedData), ``ssd_video`` (VideoData) and
``ssd_transform`` (Data and ImageData), each with NET.prototxt, ``manifest.json`` (the phases of every net) and
``batches.npz`` (NET/PHASE/BLOB/BATCH); ``ssd_data`` has the databases that were read, ``ssd_video/frames`` the frames.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

LEFT_OUT = re.compile("warp_up_|sample_ssd_jpg|plain_jpg")
"""Large nets of AnnotatedData."""
VIDEOS = ("crop_mirror", "distort_expand", "images_label", "images_one", "pad", "resize_mirror", "resize")
FRAMES = 8


def archive(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def inputs(source: Path) -> dict[str, Any]:
    """The databases' records and the other files that the nets read, as bytes."""
    import lmdb

    found: dict[str, bytes] = {}
    for folder in sorted((source / "ssd_data").glob("*_lmdb")):
        with lmdb.open(str(folder), readonly=True, lock=False) as database, database.begin() as view:
            found.update((f"{folder.name}/{key.decode()}", value) for key, value in view.cursor())
    for path in sorted((source / "ssd_video" / "frames").glob("*.png"))[:FRAMES]:
        found[f"frames/{path.name}"] = path.read_bytes()
    for name in ("mean.binaryproto", "labelmap.prototxt"):
        found[name] = (source / "ssd_data" / name).read_bytes()
    return {name: np.frombuffer(content, np.uint8) for name, content in found.items()}


def chosen(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The nets (definition, and for each phase the one whose numbers hold), and the arrays kept of them."""
    nets: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for suite, front in (("ssd_data", ""), ("ssd_video", "video_"), ("ssd_transform", "")):
        manifest = json.loads((source / suite / "manifest.json").read_text())
        equal = manifest.get("test_equals_train", ())
        with np.load(source / suite / "batches.npz") as batches:
            for name, phases in manifest["nets"].items():
                if LEFT_OUT.match(name) or (front and name not in VIDEOS):
                    continue
                runs = {phase: "TRAIN" if phase == "TEST" and name in equal else phase for phase in phases}
                text = (source / suite / f"{name}.prototxt").read_text()
                kind = re.search(r'type: "(\w+)"', text)
                assert kind
                nets[front + name] = {"prototxt": text, "phases": runs, "types": [kind[1]], "dialect": "ssd"}
                for phase in runs.values():
                    of_data = (f"{name}/{phase}/data/{k}" for k in range(2))
                    of_labels = (f"{name}/{phase}/label/{k}" for k in range(3))
                    keys = [key for key in (*of_data, *of_labels) if key in batches]
                    kept.update({front + key: batches[key] for key in keys})
    return nets, kept


def packed(kept: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All numbers in two arrays, bytes and float32 (an .npz has 250 bytes of overhead for each array), and for each key
    which of them, its first place, and the shape."""
    parts: dict[str, list[Any]] = {"u": [], "f": []}
    index, ends = {}, {"u": 0, "f": 0}
    for key, array in kept.items():
        small = array.astype(np.uint8)
        which = "u" if "/data/" in key and np.array_equal(small, array) else "f"
        index[key] = [which, ends[which], *array.shape]
        parts[which].append((small if which == "u" else array).ravel())
        ends[which] += array.size
    return {which: np.concatenate(arrays) for which, arrays in parts.items()}, index


def files(source: Path) -> dict[str, bytes]:
    """The suite's files by their path in tests/reference."""
    nets, kept = chosen(source)
    numbers, index = packed(kept)
    manifest = {
        name: net | {"backward": False, "phase": next(iter(net["phases"].values()))} for name, net in nets.items()
    }
    texts = {
        "manifest.json": json.dumps(manifest, indent=1, sort_keys=True),
        "index.json": json.dumps(index, sort_keys=True),
    }
    arrays = {"files.npz": archive(inputs(source)), "batches.npz": archive(numbers)}
    made = {name: text.encode() + b"\n" for name, text in texts.items()} | arrays
    return {f"ssd_data/{name}": content for name, content in made.items()}
