"""The parity command: what it compares, how it judges, what it prints and writes, what it refuses.

The oracle is NumPy: references are computed here, and single numbers in them moved.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from caffe_port.tools import compare, parity

SIDE = 48
NET = f"""
name: "small"
force_backward: true
input: "data" input_dim: 2 input_dim: 3 input_dim: {SIDE} input_dim: {SIDE}
layers {{ name: "conv" type: CONVOLUTION bottom: "data" top: "conv"
  convolution_param {{ num_output: 2 kernel_size: 1 }} }}
layers {{ name: "relu" type: RELU bottom: "conv" top: "conv" }}
layers {{ name: "pool" type: POOLING bottom: "conv" top: "pool" top: "mask"
  pooling_param {{ kernel_size: 2 stride: 2 }} }}
layers {{ name: "unpool" type: UNPOOLING bottom: "pool" bottom: "mask" top: "unpool"
  unpooling_param {{ unpool: MAX kernel_size: 2 stride: 2 unpool_size: {SIDE} }} }}
layers {{ name: "score" type: INNER_PRODUCT bottom: "unpool" top: "score" inner_product_param {{ num_output: 3 }} }}
"""
Arrays = dict[str, np.ndarray]


def windows(plane: np.ndarray) -> np.ndarray:
    """(n, c, h, w) as (n, c, h/2, w/2, 4), a 2x2 window in raster order."""
    n, c, h, w = plane.shape
    return plane.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h // 2, w // 2, 4)


def computed(switch: np.ndarray | None = None) -> Arrays:
    """What Caffe computes, by NumPy in double precision; ``switch`` replaces the pooling's."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 3, SIDE, SIDE))
    x[0, :, 0, 1] = x[0, :, 0, 0] = 9  # a tie
    weight = {"conv": np.abs(rng.standard_normal((2, 3, 1, 1))), "score": rng.standard_normal((1, 1, 3, 2 * SIDE**2))}
    bias = {"conv": rng.standard_normal((1, 1, 1, 2)), "score": rng.standard_normal((1, 1, 1, 3))}
    conv = np.einsum("oi,nihw->nohw", weight["conv"][:, :, 0, 0], x) + bias["conv"].reshape(1, 2, 1, 1)
    relu = np.maximum(conv, 0)
    view = windows(relu)
    switch = view.argmax(-1) if switch is None else switch
    pool = np.take_along_axis(view, switch[..., None], -1)
    kept = (np.arange(4) == switch[..., None]) * pool
    n, c, h, w = pool.shape[:4]
    unpool = kept.reshape(n, c, h, w, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, SIDE, SIDE)
    flat = (2 * np.arange(h)[:, None] + switch // 2) * SIDE + 2 * np.arange(w) + switch % 2
    score = unpool.reshape(2, -1) @ weight["score"][0, 0].T + bias["score"].ravel()
    seed = rng.standard_normal((2, 3, 1, 1))
    back = (seed.reshape(2, 3) @ weight["score"][0, 0]).reshape(unpool.shape) * (unpool != 0) * (relu > 0)
    return {
        "in/data": x,
        **{f"param/{layer}/0": array for layer, array in weight.items()},
        **{f"param/{layer}/1": array for layer, array in bias.items()},
        "out/conv": relu,
        "out/pool": pool[..., 0],
        "switch/mask": switch.astype(np.uint8),
        "masksum/mask": np.array([flat.sum(), (flat.ravel() * (np.arange(flat.size) % 97)).sum()]),
        "sample/unpool": unpool.ravel()[np.random.RandomState(unpool.size).randint(0, unpool.size, 4096)],
        "moments/unpool": np.array([unpool.mean(), unpool.std(), unpool.min(), unpool.max()]),
        "out/score": score.reshape(2, 3, 1, 1),
        "seed/score": seed,
        "diff/data": np.einsum("oi,nohw->nihw", weight["conv"][:, :, 0, 0], back),
        "pdiff/conv/0": np.einsum("nohw,nihw->oi", back, x).reshape(2, 3, 1, 1),
        "pdiff/conv/1": back.sum((0, 2, 3)).reshape(1, 1, 1, 2),
        "pdiff/score/0": (seed.reshape(2, 3).T @ unpool.reshape(2, -1)).reshape(1, 1, 3, -1),
        "pdiff/score/1": seed.sum(0).reshape(1, 1, 1, 3),
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    return tmp_path


def save(arrays: Arrays) -> None:
    np.savez("reference.npz", **arrays)  # type: ignore[arg-type]


def call(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        parity.main(argv)
    return ended.value.code


def run(arrays: Arrays, *argv: str) -> int | str | None:
    save(arrays)
    return call("net.prototxt", "reference.npz", *argv)


# -- what is compared, and how it is judged ----------------------------------------------------------------------------


def test_everything_agrees(here: Path, capsys: pytest.CaptureFixture) -> None:
    arrays = computed()
    assert run(arrays, "--all") == 0
    said = capsys.readouterr().out
    assert "10 arrays of" not in said.splitlines()[0]
    compared = [key for key in arrays if key.split("/")[0] not in ("in", "param", "seed")]
    assert [key for key in compared if f" {key} " in said] == compared
    assert said.splitlines()[-1].startswith("all within their bounds; the largest error is ")


MOVED = [  # key, by how much of the largest value, what is then over, where that shows first
    ("out/conv", 1.2e-5, 0, ""),  # one value of 9216
    ("out/pool", 1e-3, 0, ""),
    ("out/score", 0.9e-5, 0, ""),
    ("out/score", 1.2e-5, 1, "score (InnerProduct)"),
    ("sample/unpool", 1e-3, 0, ""),
    ("moments/unpool", 1.2e-5, 1, "unpool (Unpooling)"),
    ("masksum/mask", 1.2e-5, 1, "pool (Pooling)"),
    ("pdiff/conv/1", 4e-5, 0, ""),
    ("pdiff/conv/1", 6e-5, 1, "conv (Convolution)"),
    ("pdiff/conv/0", 6e-5, 1, "conv (Convolution)"),
    ("diff/data", 1e-3, 0, ""),
]


@pytest.mark.parametrize(("key", "much", "over", "where"), MOVED, ids=[f"{m[0]} {m[1]}" for m in MOVED])
def test_one_number_moved(key: str, much: float, over: int, where: str, here: Path, capsys) -> None:
    """Alone where blobs are small; within the share for near ties where they are large."""
    arrays = computed()
    at = np.abs(arrays[key]).argmin()  # not the largest, so that the scale stays
    arrays[key] = arrays[key].astype(float)
    arrays[key].flat[at] += much * np.abs(arrays[key]).max()
    assert run(arrays) == min(over, 1)
    said = capsys.readouterr().out
    if over:
        assert f"{over} of 12 arrays over their bounds, first at layer {where}: {key}: error" in said
        assert said.splitlines()[2].split()[-1] == "over"
        assert key in said.splitlines()[2], "worst first"


@pytest.mark.parametrize(("share", "status"), [(1, 0), (2, 1)])
def test_near_ties_are_one_in_a_thousand(share: int, status: int, here: Path) -> None:
    arrays = computed()
    moved = int(arrays["out/conv"].size * 1e-3) * share
    arrays["out/conv"].ravel()[np.argsort(arrays["out/conv"].ravel())[:moved]] += 1e-3 * arrays["out/conv"].max()
    assert run(arrays) == status


def test_not_a_number_is_never_close(here: Path, capsys: pytest.CaptureFixture) -> None:
    arrays = computed()
    arrays["out/pool"][0, 0, 0, 0] = np.nan
    assert run(arrays) == 1
    assert "out/pool" in capsys.readouterr().out.splitlines()[2]


def test_another_shape_is_over(here: Path, capsys: pytest.CaptureFixture) -> None:
    arrays = computed()
    arrays["out/pool"] = arrays["out/pool"][:1]
    assert run(arrays) == 1
    assert "out/pool: shape (2, 2, 24, 24), reference (1, 2, 24, 24)" in capsys.readouterr().out


def test_the_references_own_switches(here: Path, capsys: pytest.CaptureFixture) -> None:
    """The reference took the other one of two equal values: everything above moves, unless its switch is used."""
    switch = computed()["switch/mask"].astype(np.int64)
    assert (switch[0, :, 0, 0] == 0).all()
    switch[0, :, 0, 0] = 1
    arrays = computed(switch)
    assert run(arrays) == 1
    said = capsys.readouterr().out
    assert "first at layer score" in said
    assert said.splitlines()[-1].endswith("--switches excludes them")
    forward = {key: array for key, array in arrays.items() if "diff/" not in key}
    assert run(forward, "--switches", "--all") == 0
    said = capsys.readouterr().out
    assert re.search(r"pool +Pooling +switch/mask +2,304 +8\.7e-04 .* 2 .* near ties", said)


@pytest.mark.parametrize(("option", "key"), [("--tolerance", "out/score"), ("--backward-tolerance", "pdiff/conv/1")])
def test_tolerances(option: str, key: str, here: Path) -> None:
    arrays = computed()
    arrays[key].flat[0] += 1e-3 * np.abs(arrays[key]).max()
    assert run(arrays) == 1
    assert run(arrays, option, "2e-3") == 0


def test_noise_widens_a_bound_tenfold(here: Path) -> None:
    arrays = computed()
    arrays["out/score"].flat[0] += 1e-3 * np.abs(arrays["out/score"]).max()
    Path("noise.json").write_text(json.dumps({"reference": {"out/score": 5e-5}, "other": {"out/score": 2e-4}}))
    assert run(arrays, "--noise", "noise.json") == 1
    assert run(arrays, "--noise", "noise.json", "--case", "other") == 0


def test_noise_of_numbers_that_are_all_rounding() -> None:
    assert compare.allowance(1e-5, 1.0, 1e-3) == 10
    assert compare.allowance(1e-5, 1.0, 1e-8) == pytest.approx(1000)
    assert compare.allowance(1e-5, 1e-9, 1e-3) == 1e-5


def test_top_and_all(here: Path, capsys: pytest.CaptureFixture) -> None:
    run(computed(), "--top", "2")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6
    assert said[-2] == "(10 more; --all shows them)"


# -- the page ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Which tags a page has, whether they close, and what its attributes point to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in ("meta", "input", "td", "th", "tr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in ("tr", self.open[-1])
        if tag == self.open[-1]:
            self.open.pop()


def test_page(here: Path, capsys: pytest.CaptureFixture) -> None:
    arrays = computed()
    arrays["out/score"].flat[0] += 1
    assert run(arrays, "--html", "page.html") == 1
    text = Path("page.html").read_text()
    page = Page()
    page.feed(text)
    assert not page.open
    assert not page.links
    assert not re.search(r"https?:|url\(|@import|<script", text)
    assert page.tags.count("li") == len(re.findall(r"--rank:(\d+);", text)) == 5
    assert sorted(map(int, re.findall(r"--rank:(\d+);", text))) == list(range(5))
    worst = re.search(
        r'<li class="over" style="--rank:0;--width:([\d.]+)%;--bound:([\d.]+)%.*?class="name">(.*?)<', text
    )
    assert worst
    assert worst[3] == "score"
    assert float(worst[2]) == pytest.approx(100 * 4 / 9, abs=0.1), "1e-5 on a scale from 1e-9 to 1"
    assert "wrote page.html" in capsys.readouterr().out
    assert run(arrays, "--html", "page.html", "-f") == 1
    assert list(here.iterdir()) == [p for p in here.iterdir() if p.suffix in (".html", ".npz", ".prototxt")]


def test_names_are_escaped(here: Path) -> None:
    Path("net.prototxt").write_text(
        'input: "a<b>" input_dim: 1 input_dim: 1 input_dim: 1 input_dim: 2 '
        'layers { name: "<i>" type: SIGMOID bottom: "a<b>" top: "y&" }'
    )
    zero = np.zeros((1, 1, 1, 2))
    assert run({"in/a<b>": zero, "out/y&": zero + 0.5}, "--html", "page.html") == 0
    assert "<i>&" not in Path("page.html").read_text()
    assert "&lt;i&gt;" in Path("page.html").read_text()


def test_outputs_that_the_reference_lacks_are_listed(here: Path, capsys: pytest.CaptureFixture) -> None:
    arrays = {k: a for k, a in computed().items() if k.startswith(("in/", "param/", "out/")) and k != "out/score"}
    assert run(arrays, "--json") == 0
    assert json.loads(capsys.readouterr().out)["lacking"] == ["score"]
    assert run(arrays, "-q") == 0
    assert capsys.readouterr().out.rstrip().endswith("; the reference lacks the net's outputs score")


@pytest.mark.parametrize(("share", "hinted"), [(0.005, True), (0.5, False)])
def test_few_values_over_look_like_near_ties(share: float, hinted: bool, here: Path, capsys) -> None:
    arrays = {k: a for k, a in computed().items() if k.startswith(("in/", "param/", "out/"))}
    moved = arrays["out/conv"].copy()
    moved.ravel()[: int(share * moved.size)] += 1
    assert run(arrays | {"out/conv": moved}) == 1
    assert ("look like near ties" in capsys.readouterr().out) is hinted


# -- wrong input -------------------------------------------------------------------------------------------------------


def broken(**changes: np.ndarray | None) -> Arrays:
    """A good reference but for some keys (``__`` for ``/``)."""
    arrays = computed()
    for key, array in changes.items():
        arrays.pop(key.replace("__", "/"), None)
        if array is not None:
            arrays[key.replace("__", "/")] = array
    return arrays


ONE = np.ones(1)
WRONG_REFERENCES: list[tuple[str, Arrays, str]] = [
    ("key", {"conv1": ONE}, "the key 'conv1'"),
    ("kind", {"weights/conv1": ONE}, "the key 'weights/conv1'"),
    ("nothing", {"in/data": ONE}, "no arrays to compare with"),
    (
        "inputs alone",
        {k: a for k, a in computed().items() if k.startswith(("in/", "param/"))} | {"out/data": computed()["in/data"]},
        "found nothing that a layer computed (1 arrays, all of inputs)",
    ),
    ("objects", broken(out__pool=np.array([None])), "out/pool cannot be read"),
    ("text", broken(out__pool=np.array(["a"])), "expected numbers"),
    (
        "blob",
        broken(out__pol=ONE),
        "expected a blob of the net, found out/pol; check that it is this net's reference (near: pool, unpool)",
    ),
    ("input", broken(in__pool=ONE), "expected an input of the net, found in/pool"),
    ("no input", broken(in__data=None), "expected a value for each input of the net, found no in/data"),
    ("layer", broken(pdiff__con__0=ONE), "found pdiff/con/0"),
    ("index", broken(pdiff__conv__2=ONE), "expected one of the 2 parameters of layer conv, found pdiff/conv/2"),
    ("no index", broken(pdiff__conv=ONE), "found pdiff/conv"),
    ("switch", broken(switch__score=ONE), "expected the second top of a pooling, found switch/score"),
    ("param", broken(param__conv__0=ONE), "param/conv/0: expected (2, 3, 1, 1) as the net has, found shape (1,)"),
    (
        "no param",
        {k: a for k, a in computed().items() if k[:5] != "param"},
        "expected MODEL.caffemodel before it on the command line",
    ),
    ("seed", broken(seed__score=ONE), "seed/score: expected (2, 3, 1, 1) as the net has, found shape (1,)"),
    ("shape", broken(in__data=np.ones((2, 5, SIDE, SIDE))), "layer conv"),
]


@pytest.mark.parametrize(("arrays", "says"), [w[1:] for w in WRONG_REFERENCES], ids=[w[0] for w in WRONG_REFERENCES])
def test_wrong_reference(arrays: Arrays, says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(arrays, "--html", "page.html") == 2
    refused(capsys, says)


def refused(capsys: pytest.CaptureFixture, says: str) -> None:
    """One line on stderr, no page."""
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.startswith("caffe-port parity: error: ")
    assert said.err.count("\n") == 1
    assert not said.out
    assert {p.suffix for p in Path().iterdir()} <= {".prototxt", ".npz", ".caffemodel", ".json"}


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
WRONG_FILES: list[tuple[str, bytes, str]] = [
    ("reference.npz", b"", "an empty file"),
    ("reference.npz", b"<!DOCTYPE html><html>", "a web page"),
    ("reference.npz", LFS, "a Git LFS pointer"),
    ("reference.npz", b"PK\x03\x04", "expected an .npz"),
    ("reference.npz", b"\x93NUMPY\x01\x00", "a single NumPy array"),
    ("model.caffemodel", b"", "an empty file"),
    ("model.caffemodel", b"<html>", "a web page"),
    ("model.caffemodel", LFS, "a Git LFS pointer"),
    ("model.caffemodel", b"\x08\x05\x12\x01a\x1a\x00\x20\x01", "a solverstate"),
    ("model.caffemodel", b"\x12\xff\x01", "model.caffemodel"),
    ("net.prototxt", b"layers {\n  name: }", "net.prototxt:2"),
    ("net.prototxt", NET.replace('bottom: "pool" ', 'bottom: "pol" ').encode(), "'pol'"),
    ("net.prototxt", NET.replace('top: "score"', 'top: "pool"').encode(), "a second time"),
    ("net.prototxt", NET.replace('name: "relu" type: RELU', 'name: "relu" type: RILU').encode(), "net.prototxt:7"),
    ("noise.json", b"{", "not JSON"),
    ("noise.json", b'{"referense": {}}', "no case 'reference'; give --case NAME (near: referense)"),
]


@pytest.mark.parametrize(("name", "content", "says"), WRONG_FILES, ids=[f"{w[0]} {w[2]}" for w in WRONG_FILES])
def test_wrong_file(name: str, content: bytes, says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    save(computed())
    argv = ["net.prototxt", *(["model.caffemodel"] if name.startswith("model") else []), "reference.npz"]
    Path(name).write_bytes(content)
    noise = ["--noise", "noise.json"] if name == "noise.json" else []
    assert call(*argv, "--html", "page.html", *noise) == 2
    refused(capsys, says)


def test_truncated_reference(here: Path, capsys: pytest.CaptureFixture) -> None:
    save(computed())
    whole = Path("reference.npz").read_bytes()
    Path("reference.npz").write_bytes(whole[: len(whole) // 2])
    assert call("net.prototxt", "reference.npz") == 2
    refused(capsys, "expected an .npz")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("net.prototxt", "none.npz"), "none.npz: no such file"),
        (("none.prototxt", "reference.npz"), "none.prototxt: no such file"),
        (("net.prototxt", "none.caffemodel", "reference.npz"), "none.caffemodel: no such file"),
        (("net.prototxt", "reference.npz", "--html", "there.json"), "exists already; pass -f"),
        (("net.prototxt", "reference.npz", "--html", "none/page.html"), "there is no folder none"),
        (("net.prototxt", "reference.npz", "--noise", "none.json"), "none.json: no such file"),
        (
            ("net.prototxt", "reference.npz", "--plugin", "none.py"),
            "none.py: no such file; check the path",
        ),
        (("net.prototxt", "reference.npz", "--tolerance", "0"), "'0', expected a number above 0"),
        (("net.prototxt", "reference.npz", "--top", "no"), "'no', expected a whole number above 0"),
        (("net.prototxt",), "required: REFERENCE.npz"),
    ],
    ids=lambda v: " ".join(v[1:]) if isinstance(v, tuple) else "",
)
def test_wrong_arguments(argv: tuple[str, ...], says: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    save(computed())
    Path("there.json").write_text("{}")
    assert call(*argv) == 2
    refused(capsys, says)
