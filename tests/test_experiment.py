"""The experiment: a plan of commands, run once each, continued after interruptions, and reported."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caffe_port.errors import CaffeError
from caffe_port.segmentation.experiment import (
    RECIPES,
    SYSTEMS,
    Cell,
    Plan,
    Recipe,
    Runner,
    Step,
    Training,
    plan,
    report,
)

ROOT = Path(__file__).resolve().parents[1]
SMALL = Recipe("1/32", 64, 4, 2, 3, 2, {name: Training(4, 0.001) for name in RECIPES["quick"].trainings})


def small_plan(output: Path, **options: object) -> Plan:
    words = ["--images", "12", "--val", "3", "--classes", "2", "--size", "64", "--seed", "1"]
    return plan(words, output, SMALL, classes=2, **options)  # type: ignore[arg-type]


# -- the plan


def test_every_cell_of_the_table_has_its_chain() -> None:
    made = small_plan(Path("out"))
    assert [(c.level, c.system) for c in made.cells] == [(le, s) for le in ("Full", "25", "10", "5") for s in SYSTEMS]
    for cell in made.cells:
        chain = [step.name for step in cell.step.chain]
        assert len({*chain}) == len(chain)
        assert chain[-1].endswith("-scores")
        assert {"data", "lists"} <= {*chain}
        weak = cell.system in ("decouplednet", "decouplednet-str") and (cell.same_as or cell.system == "decouplednet")
        assert ("classifier" in chain) == bool(weak)
    names = [step.name for step in made.steps]
    assert len({*names}) == len(names)
    for i, step in enumerate(made.steps):
        assert {before.name for before in step.needs} <= {*names[:i]}


def test_what_strong_pictures_alone_may_see() -> None:
    """DecoupledNet-Str, DeconvNet at a level: no list of more pictures, nothing trained on more."""
    for cell in small_plan(Path("out"), levels=["5"], systems=["decouplednet-str", "deconvnet"]).cells:
        trainings = [step for step in cell.step.chain if step.curve]
        assert trainings
        for step in trainings:
            definition = next(word for word in step.words if word.endswith("_solver.prototxt") or word == "5")
            assert definition == "5" or "nets-5" in definition


def test_full_str_is_decouplednet_itself() -> None:
    cells = {c.system: c for c in small_plan(Path("out"), levels=["Full"]).cells}
    assert cells["decouplednet-str"].step == cells["decouplednet"].step
    assert cells["decouplednet-str"].same_as == "decouplednet"


def test_a_key_follows_what_came_before() -> None:
    one, other = small_plan(Path("out")), small_plan(Path("out"), seed=2)
    for a, b in zip(one.steps, other.steps, strict=True):
        assert (a.key == b.key) == (
            a.words == b.words and all(x.key == y.key for x, y in zip(a.needs, b.needs, strict=True))
        )
    assert one.steps[-1].key != other.steps[-1].key


def test_longer() -> None:
    assert {it.iterations for it in SMALL.longer(2.6).trainings.values()} == {12}
    assert {it.iterations for it in SMALL.longer(0.1).trainings.values()} == {4}


def test_a_recipe_with_vgg16_learns_from_pictures_as_inference_has_them_by_its_solver() -> None:
    made = plan(Path("mine"), Path("out"), RECIPES["init"], classes=2, levels=["5"], init="vgg")
    steps = {step.name: step.command.split() for step in made.steps}
    assert "--square" in steps["lists"]
    assert {"type=Adam"} <= {*steps["classifier"]} & {*steps["classifier-str-5"]}
    assert "type=Adam" not in steps["decouplednet-5"]
    assert not {"--square", "type=Adam"} & {word for step in small_plan(Path("out")).steps for word in step.words}


def test_the_demo_starts_from_weights_and_shows_what_they_give_untrained() -> None:
    made = plan([], Path("out"), RECIPES["demo"], classes=3, levels=["Full"], systems=["decouplednet"], start="w.npz",
                untrained=True)  # fmt: skip
    assert [cell.step.name for cell in made.cells] == [
        "decouplednet-Full-scores",
        "decouplednet-Full-untrained-scores",
    ]
    steps = {step.name: step.command for step in made.steps}
    assert "--no-deconvnet" in steps["lists"]
    for name, option in (("classifier", "--weights w.npz"), ("decouplednet-Full", "--init w.npz")):
        trained, untrained = steps[name], steps[f"{name}-untrained"]
        assert option in trained
        assert option in untrained
        assert "base_lr=0.0 " in untrained
        assert "base_lr=0.0 " not in trained
    assert "classifier-folded-untrained/" in steps["decouplednet-Full-untrained"]
    assert "--score-rate" not in steps["nets"]
    others = plan([], Path("out"), RECIPES["demo-weights"], classes=8, levels=["Full"], systems=["decouplednet"])
    assert "--score-rate 1" in next(step.command for step in others.steps if step.name == "nets")
    assert not {"--weights", "--init"} & {word for step in others.steps[:6] for word in step.words}


# -- running


def step(folder: Path, name: str, code: str, *needs: Step) -> Step:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    return Step(name, ("-c", code), needs, folder / name / "made")


def writes(folder: Path, name: str, extra: str = "") -> str:
    return f"from pathlib import Path; Path({str(folder / name / 'made')!r}).write_text('x'); {extra}"


def test_run_once_and_again_when_the_command_changes(tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('%s')"
    first = step(tmp_path, "first", writes(tmp_path, "first", count % "f"))
    second = step(tmp_path, "second", writes(tmp_path, "second", count % "s"), first)
    for _ in range(2):
        Runner(tmp_path, jobs=2).run([first, second])
    assert (tmp_path / "count").read_text() == "fs"
    (tmp_path / "first" / "old").touch()
    changed = step(tmp_path, "first", writes(tmp_path, "first", count % "c"))
    again = step(tmp_path, "second", writes(tmp_path, "second", count % "s"), changed)
    Runner(tmp_path).run([changed, again])
    assert (tmp_path / "count").read_text() == "fscs"
    assert not (tmp_path / "first" / "old").exists()
    record = json.loads((tmp_path / "steps" / "second.json").read_text())
    assert record["command"] == again.command
    assert record["seconds"] > 0


def test_an_interrupted_step_continues_in_its_folder(tmp_path: Path) -> None:
    one = step(tmp_path, "one", "import sys; sys.exit('the disk is full')")
    with pytest.raises(CaffeError, match="step one: the disk is full"):
        Runner(tmp_path).run([one])
    (tmp_path / "one" / "snapshot").touch()
    assert not Runner(tmp_path).done(one)
    with pytest.raises(CaffeError):
        Runner(tmp_path).run([one])
    assert (tmp_path / "one" / "snapshot").exists()


def test_a_step_that_makes_nothing_has_failed(tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match="step idle: status 0"):
        Runner(tmp_path).run([step(tmp_path, "idle", "pass")])


def test_an_error_ends_the_others(tmp_path: Path) -> None:
    slow = step(tmp_path, "slow", "import time; time.sleep(60)")
    wrong = step(tmp_path, "wrong", "import time, sys; time.sleep(0.5); sys.exit('no')")
    start = time.monotonic()
    with pytest.raises(CaffeError, match="step wrong: no"):
        Runner(tmp_path, jobs=2).run([slow, wrong])
    assert time.monotonic() - start < 30


def test_one_run_at_a_time(tmp_path: Path) -> None:
    slow = step(tmp_path, "slow", writes(tmp_path, "slow", "import time; time.sleep(3)"))
    other = step(tmp_path, "other", writes(tmp_path, "other"))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(Runner(tmp_path).run, [slow])
        while not (tmp_path / "steps" / "slow.json").exists():
            time.sleep(0.01)
        with pytest.raises(CaffeError, match="another run is active there"):
            Runner(tmp_path).run([other])
        first.result()
    Runner(tmp_path).run([other])


# -- the report


def counted(folder: Path, name: str, counts: list[list[int]]) -> Step:
    """A finished step with these counts of pixels."""
    made = Step(name, ("-c", "pass"), (), folder / name / "confusion.csv")
    made.makes.parent.mkdir()
    with made.makes.open("w", newline="") as file:
        rows = zip(("background", "disc"), counts, strict=True)
        csv.writer(file).writerows([["", "background", "disc"], *([label, *row] for label, row in rows)])
    (folder / "steps").mkdir(exist_ok=True)
    (folder / "steps" / f"{name}.json").write_text(json.dumps({"key": made.key, "seconds": 3.0}))
    return made


def test_the_report_equals_the_counts(tmp_path: Path) -> None:
    made, again = counted(tmp_path, "one", [[8, 2], [1, 9]]), counted(tmp_path, "two", [[9, 1], [1, 9]])
    later = step(tmp_path, "later", "pass")
    cells = [Cell("Full", "decouplednet", made, seed=7), Cell("5", "decouplednet", later, seed=7)]
    cells += [Cell("10", "decouplednet", made, seed=7), Cell("10", "decouplednet", again, seed=8)]
    table = report(Plan(cells, [made, again, later]), Runner(tmp_path), [("width", "1/8")])
    one, two = 100 * (8 / 11 + 9 / 12) / 2, 100 * 9 / 11
    assert f"| all | {one:.1f} |" in table
    assert "| 5 a class | - |" in table
    assert f"| 10 a class | {(one + two) / 2:.1f} ± {(two - one) / 2**0.5:.1f} (2) |" in table
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(r["level"], r["seed"], float(r["disc"])) for r in rows] == [
        ("Full", "7", pytest.approx(0.75)),
        ("10", "7", pytest.approx(0.75)),
        ("10", "8", pytest.approx(9 / 11)),
    ]
    page = (tmp_path / "results.md").read_text()
    assert made.command in page
    assert "# later: not done" in page
    assert "### DecoupledNet, 10, seed 8" in page
    html = (tmp_path / "results.html").read_text()
    assert f'<td>{one:.1f}<span class="bar"' in html
    assert html.count("data:image/png;base64,") == 2
    assert "prefers-color-scheme: dark" in html
    for picture in ("annotations.png", "curves.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


# -- as a command


def experiment(*arguments: object, cwd: Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "caffe_port.segmentation.experiment", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment, **pipes, **options)  # type: ignore[call-overload,no-any-return]


def test_one_cell_interrupted_and_continued(tmp_path: Path) -> None:
    """The data drawn, everything trained for a few iterations, segmented and counted."""
    made = small_plan(tmp_path / "out", levels=["5"], systems=["decouplednet"])
    runner = Runner(tmp_path / "out", jobs=2)
    trained = next(step for step in made.steps if step.name == "decouplednet-5")
    runner.run(trained.chain[:-1])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("trained.caffemodel")}
    runner.run(made.steps)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    table = report(made, runner, [])
    with Image.open(tmp_path / "out" / "curves.png") as curves:
        red, _, blue = np.moveaxis(np.asarray(curves.convert("RGB")).astype(int), -1, 0)
    assert (blue > red + 60).sum() > 100, "a line for each training"
    assert (red > blue + 60).sum() > 50, "where the rate drops"
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size == (6 + 3 * (2 * 64 + 6), 6 + 3 * (2 * 64 + 6)), "three pictures; each, its truth, its mask"
    assert "| 5 a class | " in table
    assert "-" not in table.splitlines()[-1].split("|")[2]
    masks = tmp_path / "out" / "decouplednet-5-masks"
    assert len(list(masks.glob("*.png"))) == 3


def test_the_command_prints_commands_to_type(tmp_path: Path) -> None:
    process = experiment("--quick", "--plan", "-o", "out", "--levels", "5", "--systems", "wssl", cwd=tmp_path)
    said, wrong = process.communicate(timeout=120)
    assert process.returncode == 0, wrong
    lines = [shlex.split(line) for line in said.splitlines()]
    assert {line[0] for line in lines} == {"python"}
    assert {line[1] for line in lines} == {"-m"}, "modules, which an installed package has, too"
    assert sum(line[2] == "caffe_port.tools.build" for line in lines) == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_what_is_done(tmp_path: Path) -> None:
    process = experiment("--quick", "-o", "out", "--systems", "decouplednet", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "steps" / "nets.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, wrong = process.communicate(timeout=120)
    assert process.returncode == 130, wrong
    assert "interrupted" in wrong
    assert (tmp_path / "out" / "results.md").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--levels", "3"], "--levels: expected of Full, 25, 10, 5"),
        (["--effort", "0"], "--effort: expected above 0, found 0"),
        (["nowhere"], "nowhere"),
    ],
)
def test_wrong_input(tmp_path: Path, arguments: list[str], said: str) -> None:
    process = experiment("--quick", *arguments, cwd=tmp_path)
    _, wrong = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said in wrong
    assert "Traceback" not in wrong
    assert not (tmp_path / "experiment").exists()
