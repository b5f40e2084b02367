"""Writes tests/reference: the numbers of real Caffe that a clone carries, chosen from ../shared/reference.

In use:
    python tests/embed.py           writes what is missing or differs
    python tests/embed.py --check   writes nothing; exit status 1 where something differs
    python tests/embed.py --recorded FOLDER   writes ssd_data from the recordings in FOLDER (embed_ssd_data.py)

Definitions are kept as text in the manifest, those of the published nets as an order to our own builder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import embed_ssd_data

from caffe_port.schema import read_net

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "shared" / "reference"
TARGET = HERE / "reference"

WHOLE = ["bvlc_layers", "noh_layers", "segnet", "deeplab2"]
"""Suites that are embedded with every case."""

CHOSEN = {
    "ssd": "detout_ priorbox_step_hw priorbox_two_mins multibox_cross multibox_default multibox_center_none "
    "multibox_encoded multibox_hard multibox_l2_logistic multibox_mine_none multibox_not_shared "
    "normalize_across_false_shared_false normalize_eps permute_5d permute_short smoothl1",
    "ssd_more": "accuracy_ties deteval_ multibox_background_two multibox_image_without multibox_match_predictions "
    "multibox_nms_ multibox_no_boxes_at_all normalize_zero_cell permute_identity",
    # each kind of lower layer, and each kind of upper one a few times
    "bvlc_inplace": "absval_under_relu. bias_in_under_sigmoid. bn_under_elu. bnll_in_under_relu. clip_in_under_bn. "
    "clip_under_power. elu_in_under_sigmoid. elu_under_bn. exp_under_relu. leaky_in_under_elu. log_under_tanh. "
    "lrn_under_sigmoid. lrn_within_under_bn. maxpool_under_scale. mvn_under_relu. power_under_elu. prelu_under_tanh. "
    "relu_in_under_bn. scale_in_under_sigmoid. sigmoid_in_under_power. sigmoid_under_elu. softmax_under_bn. "
    "swish_under_scale. tanh_under_relu.",
    "rcnn": "dropout_ psroipooling_halves psroipooling_malformed_scale psroipooling_half psroipooling_batch "
    "roipooling_malformed roipooling_batch roipooling_halves roipooling_half roipooling_ties roipooling_scale_third "
    "smoothl1_beside smoothl1_knee smoothl1_loss_weight smoothl1_map_weights smoothl1_weight1_weights",
}
"""Suites of which the cases are embedded whose names begin like one of these."""

BUILT = {  # suite, case: the file of prototxt/ that it is a narrow form of, and the batch of its data layers
    "noh_nets": {
        "decouplednet_fp_bp": ("decouplednet/fp_bp_network.prototxt", 0),
        "decouplednet_train": ("decouplednet/002_train_seg_Full_anno.prototxt", 2),
        "deconvnet_deploy": ("deconvnet/DeconvNet_inference_deploy.prototxt", 0),
    },
}
"""Cases of published nets: a choice, to stay small."""
WIDTH = "1/32"

NUMBERS = {"bvlc_solvers": ["data.h5", "init.caffemodel", "*/trajectory.npz", "*/snap_iter_10.*"]}
"""Suites of which these files are embedded; the definitions are in their tests."""


def read(suite: str, name: str) -> dict[str, Any]:
    return json.loads((SOURCE / suite / f"{name}.json").read_text(encoding="utf-8"))


def types(suite: str, name: str, phase: str) -> list[str]:
    """The types of a case's layers, without inserted ones."""
    read = read_net(SOURCE / suite / f"{name}.prototxt", phase=phase, dialect=suite.partition("_")[0])
    left_out = {*read.synthetic, *read.inserted}
    return sorted({layer.type for i, layer in enumerate(read.net.layer) if i not in left_out} - {"Input"})


def files(suite: str, entries: dict[str, dict[str, Any]]) -> dict[str, bytes]:
    """The embedded files of a suite by their path, for these additions to its manifest's entries."""
    manifest = read(suite, "manifest")
    noise = read(suite, "noise") if (SOURCE / suite / "noise.json").exists() else {}
    kept = ("phase", "backward", "forwards", "dialect")
    cases = {}
    for name, more in entries.items():
        entry = {k: manifest[name][k] for k in kept if k in manifest[name]}
        cases[name] = entry | {"types": types(suite, name, entry["phase"])} | more
    made = {"manifest.json": cases, "noise.json": {name: noise[name] for name in entries if noise.get(name)}}
    texts = {name: json.dumps(it, indent=1, sort_keys=True).encode() + b"\n" for name, it in made.items()}
    arrays = {f"{name}.npz": (SOURCE / suite / f"{name}.npz").read_bytes() for name in entries}
    return {f"{suite}/{name}": content for name, content in {**texts, **arrays}.items()}


def embedded() -> dict[str, bytes]:
    """All files that this script writes, by their path in tests/reference."""
    made: dict[str, bytes] = {}
    for suite, beginnings in {**dict.fromkeys(WHOLE, ""), **CHOSEN}.items():
        chosen = tuple(beginnings.split()) or ("",)
        paths = sorted((SOURCE / suite).glob("*.prototxt"))
        paths = [path for path in paths if path.name.startswith(chosen) and path.with_suffix(".npz").exists()]
        made |= files(suite, {path.stem: {"prototxt": path.read_text(encoding="utf-8")} for path in paths})
    for suite, chosen in BUILT.items():
        orders = {name: {"path": path, "width": WIDTH, "batch": batch} for name, (path, batch) in chosen.items()}
        made |= files(suite, {name: {"built": order} for name, order in orders.items()})
    for suite, patterns in NUMBERS.items():
        found = sorted(path for pattern in patterns for path in (SOURCE / suite).glob(pattern))
        made |= {path.relative_to(SOURCE).as_posix(): path.read_bytes() for path in found}
    return made


def differing(made: dict[str, bytes]) -> list[str]:
    """The paths of files that are not there or hold something else."""
    return [path for path, it in made.items() if not (TARGET / path).is_file() or (TARGET / path).read_bytes() != it]


def main(arguments: list[str]) -> int:
    source = Path(arguments[1]) if arguments[:1] == ["--recorded"] else SOURCE
    if not source.is_dir():
        print(f"{source}: not there; it holds the numbers to choose from", file=sys.stderr)
        return 2
    made = embedded() if source == SOURCE else embed_ssd_data.files(source)
    wrong = differing(made)
    for path in wrong:
        if arguments != ["--check"]:
            (TARGET / path).parent.mkdir(parents=True, exist_ok=True)
            (TARGET / path).write_bytes(made[path])
        print(path)
    return 1 if wrong and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
