"""What users of commit 50f3ff4 have keeps working: its commands, the names that its documents show, its snapshots.

tests/compatibility has what that commit wrote: for each of three solvers the snapshot of iteration 4, the log of the
run without a break, and the weights that it ended with. documents.md, there, is run by test_docs.py.
"""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from killing import SOLVER, NumbersLog, write_nets_and_data

from caffe_port.formats import open_weights
from caffe_port.random import CRand, c_rand
from caffe_port.solver import Solver, snapshot

WRITTEN = Path(__file__).parent / "compatibility"

TRAINING = (
    "--channels-last --device --dialect --keep-going --level --log-dir --plot --plugin --precision --proto"
    " --python-layers --resume --set --sighup-effect --sigint-effect --snapshot --stage --weights"
)
COMMANDS = {
    "tools.as_caffe": "--force --python-layers",
    "tools.caffe": "",
    "tools.caffe2torch": "--dialect --force --format --list --output --prototxt --quiet",
    "tools.cli": None,
    "tools.compare": None,
    "tools.demo": "--output",
    "tools.demo_parity": "--output",
    "tools.evaluate": "--confusion --force --html --list --markdown --names --pictures --quiet --show --truth",
    "tools.evaluation_page": None,
    "tools.fold": "--absorb --batch --device --dialect --output --passes --root-folder --seed --source --unbiased",
    "tools.fp_bp": "--dialect --force --output --prototxt --quiet",
    "tools.layers_table": "--cases",
    "tools.make_shapes": "--classes --force --images --output --quiet --seed --size --val --workers",
    "tools.parity": "--all --backward-tolerance --case --dialect --force --forwards --html --noise --phase --plugin"
    " --proto --python-layers --switches --tolerance --top",
    "tools.parity_page": None,
    "tools.prepare": "--crops --drawn --force --label-dim --levels --masks-as-labels --model --no-deconvnet --output"
    " --proposals --quiet --seed --train --val --workers",
    "tools.replay": None,
    "tools.segment": "--aligned --crf --device --dialect --fit --force --list --maps --model --output --overlay"
    " --palette --pass-by-pass --proposals --prototxt --quiet --smallest --system --threshold --weights --with",
    "tools.torch2caffe": "--allow-missing --dialect --force --format --output --phase --prototxt --quiet",
    "tools.train": None,
    "tools.train_classifier": f"{TRAINING} --force --output",
    "tools.train_segmentation": f"{TRAINING} --classifier --force --nets --output",
    "tools.train_stage": None,
    "solver": TRAINING,
    "segmentation.experiment": "--device --effort --input-size --jobs --levels --output --plan --quick --quiet"
    " --report --seed --systems --threshold --width",
}
"""Each module that ``python -m`` could run, with the options of its help; None: it had none, and ended at once."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", COMMANDS)
def test_a_module_runs_with_its_options(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    options = COMMANDS[module]
    if options is None:
        runpy.run_module(f"caffe_port.{module}", run_name="__main__")
        return
    with pytest.raises(SystemExit) as e:
        runpy.run_module(f"caffe_port.{module}", run_name="__main__")
    assert not e.value.code
    assert {*options.split()} <= {*re.findall(r"--[\w-]+", capsys.readouterr().out)}


NUMBER = r"\d+\.\d+(?:e-?\d+)?"
ADAM = SOLVER.replace("base_lr: 0.05", 'base_lr: 0.01 type: "Adam" snapshot_format: HDF5')
SOLVERS = {"bvlc": ("bvlc", SOLVER), "noh": ("noh", SOLVER), "hdf5": ("bvlc", ADAM)}


@pytest.mark.parametrize("case", SOLVERS)
def test_a_snapshot_is_resumed(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the log of the run without a break from there on, and its weights."""
    monkeypatch.chdir(tmp_path)
    write_nets_and_data(tmp_path)
    shutil.copytree(WRITTEN / case, "run", ignore=shutil.ignore_patterns("*_8.*"))
    c_rand().set_state(CRand().get_state())  # as in a process of its own
    net, text = SOLVERS[case]
    solver = Solver(text.format(net=net, folder="run", iterations=8, seed=5), log=NumbersLog("log"))
    state = snapshot.latest(Path("run/snap"))
    assert state is not None
    solver.restore(state)
    solver.solve()
    written = (WRITTEN / case / "log.txt").read_text()
    expected, logged = written[written.index("Iteration 4") :], Path("log").read_text()
    assert re.sub(NUMBER, "#", logged) == re.sub(NUMBER, "#", expected)
    numbers = [np.array(re.findall(NUMBER, text), float) for text in (logged, expected)]
    np.testing.assert_allclose(*numbers, rtol=1e-5)
    ours, theirs = (next(folder.glob("snap_iter_8.caffemodel*")) for folder in (Path("run"), WRITTEN / case))
    end = open_weights(ours).state_dict()
    for name, blob in open_weights(theirs).state_dict().items():
        if name != "conv.bias":  # a bias before a normalisation moves by rounding alone
            np.testing.assert_allclose(end[name], blob, rtol=0, atol=1e-5 * np.abs(blob).max(), err_msg=name)
