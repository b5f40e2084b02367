"""The page of view in Chromium: it loads, searches, opens layers, shows the first bad one; names with markup are text.

Needs playwright and Chromium: ``pip install playwright``, and the browser of the system (``CHROMIUM`` names another).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_port.pycaffe import Net
from caffe_port.tools.commands import main

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
NASTY = "</script><img src=x onerror=document.title='seen'>"
CONV = "convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: 'gaussian' std: 0.3 } }"
SIDE = 40
NET = f"""name: "{NASTY}" input: "data" input_dim: 1 input_dim: 3 input_dim: {SIDE} input_dim: {SIDE}
layer {{ name: "conv1" type: "Convolution" bottom: "data" top: "conv1" {CONV} }}
layer {{ name: "{NASTY}" type: "ReLU" bottom: "conv1" top: "conv1" }}
layer {{ name: "left" type: "Convolution" bottom: "conv1" top: "left" {CONV} }}
layer {{ name: "right" type: "Convolution" bottom: "conv1" top: "right" {CONV} }}
layer {{ name: "sum" type: "Eltwise" bottom: "left" bottom: "right" top: "sum" }}
layer {{ name: "pool" type: "Pooling" bottom: "sum" top: "pool" pooling_param {{ kernel_size: 2 stride: 2 }} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param {{ num_output: 3 }} }}
"""
NAMES = ["input", "conv1", NASTY, "left", "right", "sum", "pool", "fc"]


def write(folder: Path, name: str, *options: str) -> Path:
    page = folder / f"{name}.html"
    with pytest.raises(SystemExit) as end:
        main(["view", str(folder / "net.prototxt"), *options, "-o", str(page)])
    assert end.value.code == 0
    return page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "net.prototxt").write_text(NET)
    net = Net(str(folder / "net.prototxt"), phase="TEST")
    net.save(weights := str(folder / "net.caffemodel"))
    net.blobs["data"].data[...] = np.random.default_rng(3).standard_normal((1, 3, SIDE, SIDE))
    net.forward()
    arrays = {name: net.blobs[name].data.copy() for name in ("conv1", "left", "right", "sum", "pool")}
    arrays["right"] *= 1.02
    arrays["pool"] *= 1.01
    reference = str(folder / "reference.npz")
    np.savez(reference, **{"in/data": net.blobs["data"].data}, **{f"out/{name}": a for name, a in arrays.items()})
    return {
        "bare": write(folder, "bare"),
        "compared": write(folder, "compared", weights, "--reference", reference),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab that fails the test if the page says something on the console, throws, or asks for any address."""
    tab = browser.new_page(viewport={"width": 1200, "height": 700})
    heard: list[str] = []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on(
        "request", lambda request: heard.append(request.url) if not request.url.startswith(("file:", "data:")) else 0
    )
    yield tab
    tab.close()
    assert heard == []


def load(tab: Any, page: Path) -> None:
    tab.goto(page.as_uri())
    tab.wait_for_selector("body[data-ready=yes]", timeout=30_000)


def chosen(tab: Any) -> str:
    return str(tab.text_content("#panel h2"))


def shown(tab: Any) -> list[str]:
    items = tab.query_selector_all("#list li")
    return [item.query_selector_all("span")[1].text_content() for item in items if item.is_visible()]


def test_it_loads_and_lists_every_layer(tab: Any, pages: dict[str, Path]) -> None:
    load(tab, pages["bare"])
    assert shown(tab) == NAMES
    assert len(tab.query_selector_all("#nodes .node")) == len(NAMES)
    assert len(tab.query_selector_all("#edges .edge")) == len(NAMES)  # one into each layer but the input, two into sum
    assert chosen(tab) == "input"
    assert not tab.is_visible("#first")


def test_the_graph_goes_down_and_boxes_do_not_overlap(tab: Any, pages: dict[str, Path]) -> None:
    load(tab, pages["bare"])
    boxes = [tab.query_selector(f".node[data-index='{i}'] .box").bounding_box() for i in range(len(NAMES))]
    for above, below in [(0, 1), (1, 2), (2, 3), (2, 4), (3, 5), (4, 5), (5, 6), (6, 7)]:
        assert boxes[above]["y"] + boxes[above]["height"] < boxes[below]["y"]
    left, right = boxes[3], boxes[4]
    assert left["y"] == right["y"]
    assert abs(left["x"] - right["x"]) > left["width"]


def test_names_with_markup_are_text(tab: Any, pages: dict[str, Path]) -> None:
    load(tab, pages["compared"])
    tab.click("#list li:nth-child(3) button")
    assert chosen(tab) == NASTY == tab.text_content("#title")
    assert tab.evaluate("[...document.images].every(image => image.src.startsWith('data:'))")
    assert tab.title() == NASTY


def test_it_searches(tab: Any, pages: dict[str, Path]) -> None:
    load(tab, pages["bare"])
    tab.keyboard.press("/")
    tab.keyboard.type("convolution")
    assert shown(tab) == ["conv1", "left", "right"]
    assert tab.text_content("#matches") == f"3 of {len(NAMES)}"
    visited = []
    for _ in range(4):
        tab.keyboard.press("Enter")
        visited.append(chosen(tab))
    assert visited == ["conv1", "left", "right", "conv1"]
    tab.wait_for_selector(".node.chosen[data-index='1']")
    assert len(tab.query_selector_all(".node.match")) == 3
    tab.keyboard.press("Escape")
    assert shown(tab) == NAMES
    tab.fill("#search", "nothing like it")
    assert shown(tab) == []


def test_it_opens_a_layer(tab: Any, pages: dict[str, Path]) -> None:
    load(tab, pages["compared"])
    tab.click(".node[data-index='5']")
    panel = tab.text_content("#panel")
    assert chosen(tab) == "sum"
    assert f"1 \u00d7 4 \u00d7 {SIDE} \u00d7 {SIDE}" in panel
    assert len(tab.query_selector_all("#panel .map")) == 4
    assert tab.query_selector("#panel .bars rect")
    tab.click("#panel .link:text-is('right')")
    assert chosen(tab) == "right"
    assert "num_output: 4" in tab.text_content("#panel pre")
    assert f"{4 * 4 * 9 + 4:,} parameters" in tab.text_content("#panel")


def test_hovering_shows_what_a_pixel_depends_on(tab: Any, pages: dict[str, Path]) -> None:
    load(tab, pages["compared"])
    tab.click(".node[data-index='6']")
    spot = tab.query_selector("#panel .map").bounding_box()
    pixel = spot["width"] / (SIDE // 2)
    tab.mouse.move(spot["x"] + 5.5 * pixel, spot["y"] + 9.5 * pixel)
    # Row 9 of the pooling: rows 18 and 19 before it, one more on each side for each of two convolutions.
    assert "rows 16 to 21, columns 8 to 13: 6 \u00d7 6 pixels" in tab.text_content("#panel")
    mark, image = (tab.query_selector(f"#input {what}").bounding_box() for what in ("i", "img"))
    assert (mark["y"] - image["y"]) / image["height"] == pytest.approx(16 / SIDE, abs=0.02)
    assert mark["height"] / image["height"] == pytest.approx(6 / SIDE, abs=0.02)


def test_the_first_bad_layer_is_seen_at_once(tab: Any, pages: dict[str, Path]) -> None:
    load(tab, pages["compared"])
    assert chosen(tab) == "right"
    node = tab.query_selector(".node.first")
    assert node.get_attribute("data-index") == "4"
    assert "✕" in node.text_content()
    middle = node.bounding_box()
    assert 300 < middle["x"] < 800
    assert 100 < middle["y"] < 600
    over = [n.get_attribute("data-index") for n in tab.query_selector_all(".node.over")]
    assert sorted(over) == ["4", "6"]
    assert "first at layer right" in tab.text_content("#verdict")
    tab.keyboard.press("b")
    assert chosen(tab) == "pool"
    tab.click("#first")
    assert chosen(tab) == "right"


def test_keys_and_wheel_move_the_graph(tab: Any, pages: dict[str, Path]) -> None:
    load(tab, pages["bare"])
    visited = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp", "k", "j", "j"):
        tab.keyboard.press(key)
        visited.append(chosen(tab))
    assert visited == ["conv1", NASTY, "left", "sum", "left", NASTY, "left", "right"]

    def transform() -> str:
        tab.wait_for_timeout(50)
        return str(tab.get_attribute("#world", "transform"))

    before = transform()
    tab.keyboard.press("+")
    assert transform() != before
    tab.keyboard.press("f")
    fitted = transform()
    tab.mouse.move(600, 650)
    tab.mouse.wheel(0, -300)
    zoomed = transform()
    assert float(zoomed.split("scale(")[1].rstrip(")")) > float(fitted.split("scale(")[1].rstrip(")"))
    tab.mouse.move(400, 300)
    tab.mouse.down()
    tab.mouse.move(460, 330, steps=3)
    tab.mouse.up()
    assert transform() != zoomed


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    """The contrast of text on its background is at least 4.5, as WCAG 2 wants it."""
    tab = browser.new_page(color_scheme=scheme)
    load(tab, pages["compared"])
    names = ["paper", "ink", "faint", "over", "over-box", "ties", "ties-box", "ok1", "ok2", "ok3", "box", "mark"]
    read = "names => names.map(n => getComputedStyle(document.body).getPropertyValue('--' + n).trim())"
    colour = dict(zip(names, tab.evaluate(read, names), strict=True))
    tab.close()
    texts = [("ink", name) for name in ("paper", "over-box", "ties-box", "ok1", "ok2", "ok3", "box")]
    texts += [("faint", "paper"), ("faint", "box"), ("over", "ok3"), ("over", "paper"), ("mark", "paper")]
    for text, ground in [*texts, ("over", "over-box"), ("ties", "paper")]:
        bright, dim = sorted((luminance(colour[text]), luminance(colour[ground])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (text, ground)


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def residual(blocks: int) -> str:
    """Blocks of six layers (two of them in place) beside a branch."""
    lines, x = [NET.splitlines()[0]], "data"
    for i in range(blocks):
        lines += [
            f'layer {{ name: "a{i}" type: "Convolution" bottom: "{x}" top: "a{i}" {CONV} }}',
            f'layer {{ name: "r{i}" type: "ReLU" bottom: "a{i}" top: "a{i}" }}',
            f'layer {{ name: "b{i}" type: "Convolution" bottom: "a{i}" top: "b{i}" {CONV} }}',
            f'layer {{ name: "c{i}" type: "Convolution" bottom: "{x}" top: "c{i}" {CONV} }}',
            f'layer {{ name: "s{i}" type: "Eltwise" bottom: "b{i}" bottom: "c{i}" top: "s{i}" }}',
            f'layer {{ name: "t{i}" type: "ReLU" bottom: "s{i}" top: "s{i}" }}',
        ]
        x = f"s{i}"
    return "\n".join(lines)


def skips(n: int) -> str:
    """A chain in which every fifth layer also reads from far above."""
    lines, names = [NET.splitlines()[0]], ["data"]
    for i in range(n):
        far = [names[-k] for k in (7, 20, 60, 200) if k < len(names)] if i % 5 == 0 else []
        bottoms = " ".join(f'bottom: "{name}"' for name in (names[-1], *far))
        lines.append(f'layer {{ name: "l{i}" type: "{"Eltwise" if far else "ReLU"}" {bottoms} top: "t{i}" }}')
        names.append(f"t{i}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "layers", "seconds"),
    [(residual(167), 1003, 5), (skips(1000), 1001, 15)],
    ids=["residual", "far skips"],
)
def test_a_thousand_layers(tab: Any, tmp_path: Path, text: str, layers: int, seconds: float) -> None:
    (tmp_path / "net.prototxt").write_text(text)
    load(tab, write(tmp_path, "large", "--dialect", "bvlc"))
    assert float(tab.evaluate("document.body.dataset.layoutMs")) < 1000 * seconds
    assert len(tab.query_selector_all("#list li")) == layers
    assert len(tab.query_selector_all("#nodes .node")) < 100  # what is out of view is not in the document
    # Median time of a redraw, measured by the page itself while the view moves a third of a screen at a time.
    times = tab.evaluate(
        """() => { const times = [];
        for (let i = 0; i < 60; i++) { view.y -= 200; const start = performance.now(); draw();
          document.body.getBoundingClientRect(); times.push(performance.now() - start); }
        return times.sort((a, b) => a - b) }"""
    )
    assert times[len(times) // 2] < 50
    tab.keyboard.press("f")
    tab.wait_for_timeout(200)
    assert len(tab.query_selector_all("#nodes .node")) == layers
