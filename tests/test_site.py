"""The site that make docs builds: every document is in it once, its links are those of the repository."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location("site_hooks", ROOT / ".ci" / "site.py")
assert _SPEC is not None
assert _SPEC.loader is not None
hooks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hooks)


def test_every_document_is_in_the_contents_once() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ *- [^\n]*: (\S+\.md)$", config.partition("\nnav:\n")[2], re.MULTILINE)
    documents = [*ROOT.glob("docs/*.md"), *(ROOT / page for page in hooks.PAGES if page != "shim/README.md")]
    places = [hooks.place(page.relative_to(ROOT).as_posix()) for page in documents]
    assert sorted(listed) == sorted([*places, "results/README.md"])


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "docs/proof.md", "proof.md"),
        ("README.md", "prototxt/README.md", "repository/prototxt/README.md"),
        ("README.md", "LICENSE", "repository/LICENSE"),
        ("docs/converting.md", "proof.md", "proof.md"),
        ("docs/converting.md", "../caffe_port/dialects/base.py", "repository/caffe_port/dialects/base.py"),
        ("shim/README.md", "../docs/pycaffe.md", "../../pycaffe.md"),
    ],
)
def test_links_of_the_site(source: str, link: str, expected: str) -> None:
    text = hooks.rewritten(f"[x]({link}) [y]({link}#z) [w](https://example.org/a.md)", source)
    assert text == f"[x]({expected}) [y]({expected}#z) [w](https://example.org/a.md)"


def test_what_tests_do_with_a_block_is_not_shown() -> None:
    assert hooks.rewritten("```sh fails\nx\n```\n", "README.md") == "```sh\nx\n```\n"


def test_the_site_is_built(tmp_path: Path) -> None:
    """Strictly: no link that leads nowhere; and it loads nothing from elsewhere."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|img)[^>]* src=\"?https?:|<link[^>]* href=\"?https?:[^>]*stylesheet", text), (
            page
        )
    assert "errors.html" in (tmp_path / "index.html").read_text(encoding="utf-8")
