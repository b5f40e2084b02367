"""Hooks of mkdocs.yml: README files outside docs/ are pages too, and links to the repository's files lead to copies."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "prototxt/README.md", "weights/README.md", "shim/README.md")
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
_FENCE = re.compile(r"^(```\w+) .*$", re.MULTILINE)
"""What tests do with a block stands behind its language."""


def place(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def targets(source: str) -> dict[str, str]:
    """The links of a page of the repository to its files: as written, and from its root."""
    text = (ROOT / source).read_text(encoding="utf-8")
    found = {link: os.path.normpath(os.path.join(os.path.dirname(source), link)) for link in _LINK.findall(text)}  # noqa: PTH118, PTH120
    return {link: path for link, path in found.items() if (ROOT / path).is_file()}


def rewritten(text: str, source: str) -> str:
    """A page's text with links for the site."""
    here = os.path.dirname(place(source))  # noqa: PTH120
    links = {link: os.path.relpath(place(path), here or ".") for link, path in targets(source).items()}
    return _FENCE.sub(r"\1", _LINK.sub(lambda match: links.get(match[1], match[1]), text))


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Adds the pages and files outside docs/."""
    from mkdocs.structure.files import File

    sources = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    linked = {path for source in sources for path in targets(source).values()}
    for path in sorted(linked.union(PAGES)):
        if files.get_file_from_path(place(path)) is None:
            files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites a page."""
    return rewritten(markdown, Path(page.file.abs_src_path).relative_to(ROOT).as_posix())
